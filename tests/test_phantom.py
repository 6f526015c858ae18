import json

import phantom
from hippo.data.cases import list_cases
from hippo.data.nifti import read_nifti
from hippo.options import configure
from hippo.scoring import metrics

import nibabel as nib
import numpy as np
from conftest import one_error_line
from scipy.ndimage import label as components


def test_layout_and_style(phantoms):
    cases, info = list_cases(phantoms)
    assert (
        info["synthetic"] is True
        and "SYNTHETIC" in info["description"]
        and all(case.id.startswith("phantom_") for case in cases)
    )
    types, ranges = set(), []
    for case in cases:
        image, label = nib.load(case.image), nib.load(case.label)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and image.header.get_zooms() == (1, 1, 1)
        assert b"SYNTHETIC" in image.header["descrip"].item() and b"SYNTHETIC" in label.header["descrip"].item()
        assert all(low <= s <= high for s, low, high in zip(image.shape, (31, 40, 24), (43, 59, 47)))
        types |= {image.get_data_dtype().name, "label " + label.get_data_dtype().name}
        ranges.append(float(np.max(image.dataobj)))
    assert types == {"uint8", "float32", "label uint8", "label float32"} and max(ranges) / min(ranges) > 100


def test_labels_are_one_shape_cut_by_a_coronal_plane(phantoms):
    for case in list_cases(phantoms)[0]:
        label, _ = read_nifti(case.label)
        anterior, posterior = (np.argwhere(label == value)[:, 1] for value in (1, 2))
        assert anterior.min() == posterior.max() + 1
        assert 500 < len(anterior) < 3500 and 500 < len(posterior) < 3500
        _, n = components(label > 0)
        sizes = np.bincount(components(label > 0)[0].ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum(), n


def test_a_threshold_does_not_solve_it(phantoms):
    """The best threshold, chosen with the label at hand, and the largest component: under 0.5 Dice on each volume."""
    for case in list_cases(phantoms)[0]:
        image, truth = read_nifti(case.image)[0].astype(float), read_nifti(case.label)[0] > 0
        best = 0
        for threshold in np.percentile(image, np.arange(2, 100, 4)):
            for mask in (image > threshold, image < threshold):
                parts, _ = components(mask)
                largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
                best = max(best, metrics.dice(largest, truth))
        assert best < 0.5


def test_the_same_seed_gives_the_same_files(tmp_path, phantoms):
    for name, seed in (("a", 0), ("b", 1)):
        phantom.run(configure(vars(phantom), [], out_dir=str(tmp_path / name), cases=2, seed=seed))
    first = "imagesTr/phantom_001.nii.gz"
    assert np.array_equal(nib.load(tmp_path / "a" / first).dataobj, nib.load(phantoms / first).dataobj)
    assert not np.array_equal(np.shape(nib.load(tmp_path / "b" / first).dataobj), nib.load(phantoms / first).shape)


def test_earlier_phantoms_are_kept(tmp_path, script):
    for _ in range(2):
        assert script(phantom, "--cases=1", f"--out_dir={tmp_path / 'p'}")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "p.previous-1"]
    assert json.loads((tmp_path / "p" / "dataset.json").read_text())["numTraining"] == 1
    one_error_line(script(phantom, "--cases=0", f"--out_dir={tmp_path / 'q'}"), "--cases=0")
