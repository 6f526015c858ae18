"""What people feed to predict.py by mistake: never a number without a flag or a failed row."""

import csv

import phantom
import predict
from hippo.data.augment import PARTS
from hippo.options import configure
from tools.simulate import respaced

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.ndimage import binary_dilation, gaussian_filter

IMAGES, LABELS = (ROOT / "Task04_Hippocampus" / name for name in ("imagesTr", "labelsTr"))
GOOD = [f"hippocampus_{number}" for number in ("001", "304", "326", "338", "372")]  # nothing is wrong with these


def strong(part, strength, seed=1):
    """A part of the augmentation, much stronger than in training."""

    def change(array, label, rng):
        scaled = torch.from_numpy((array - array.mean()) / array.std())
        return PARTS[part][1](scaled, np.random.default_rng(seed), strength).numpy() * 100 + 300

    return change


def resected(array, label, rng):
    """The hippocampus taken out, and fluid in its place."""
    gone = gaussian_filter(binary_dilation(label > 0, iterations=2).astype(float), 0.7)
    return array * (1 - gone) + gone * (np.percentile(array, 3) + rng.normal(0, array.std() * 0.05, array.shape))


def anterior_resected(array, label, rng):
    return resected(array, label == 1, rng)


def one_voxel_changed(array, label, rng):
    label[5, 5, 5] += 1
    return label


def ct(array, label, rng):
    """Air at -1000, soft tissues within 60 units, bone at 1000."""
    low, high = np.percentile(array, (5, 99))
    return np.where(array < low, -1000, np.where(array > high, 1000, 20 + 40 * (array - low) / (high - low)))


def beside(array, label, rng):
    return np.concatenate([array, array[::-1]])


def from_above(array, label, rng):
    """Only what lies above the hippocampus."""
    top = int(np.argwhere(label)[:, 2].max())
    return array[:, :, top - 4 :] if array.shape[2] - top > 4 else array[:, :, -8:]


def smooth_noise(array, label, rng):
    return gaussian_filter(rng.normal(size=array.shape), 2) * 500 + 300


ONE = np.eye(4)

# name: (function of (array, label, rng), affine)
CROPS = {
    "noise": (lambda a, m, r: r.normal(300, 80, a.shape), ONE),
    "smooth noise": (smooth_noise, ONE),
    "zeros": (lambda a, m, r: 0 * a, ONE),
    "one value": (lambda a, m, r: 0 * a + 7, ONE),
    "a ramp": (lambda a, m, r: np.linspace(0, 1000, a.size).reshape(a.shape), ONE),
    "a checkerboard": (
        lambda a, m, r: 400 * (np.indices(a.shape) // 4).sum(0) % 2 * 400 + r.normal(0, 5, a.shape),
        ONE,
    ),
    "its label map": (lambda a, m, r: m, ONE),
    "its label map, one voxel changed": (one_voxel_changed, ONE),
    "its label map doubled": (lambda a, m, r: np.repeat(m, 2, 0), np.diag([0.5, 1, 1, 1])),
    "its mask": (lambda a, m, r: 1.0 * (m > 0), ONE),
    "a threshold of it": (lambda a, m, r: 1.0 * (a > np.median(a)), ONE),
    "its edges": (lambda a, m, r: np.linalg.norm(np.gradient(a), axis=0), ONE),
    "intensities inverted": (lambda a, m, r: a.max() - a, ONE),
    "contrast of CT": (ct, ONE),
    "a random table": (strong("lookup_tables", 1, 5), ONE),
    "strong noise": (strong("noise", 5), ONE),
    "strong blur": (strong("blur_mm", 6), ONE),
    "strong motion": (strong("motion_mm", 25, 3), ONE),
    "cut to a narrow range": (lambda a, m, r: np.clip(a, *np.percentile(a, (45, 55))), ONE),
    "upside down": (lambda a, m, r: a[:, :, ::-1], ONE),
    "back to front": (lambda a, m, r: a[:, ::-1], ONE),
    "two axes exchanged": (lambda a, m, r: np.swapaxes(a, 1, 2), ONE),
    "axes rolled": (lambda a, m, r: np.transpose(a, (2, 0, 1)), ONE),
    "half of it": (lambda a, m, r: a[:, : a.shape[1] // 2], ONE),
    "inner half": (lambda a, m, r: a[: a.shape[0] // 2], ONE),
    "what lies above": (from_above, ONE),
    "beside its mirror image": (beside, ONE),
    "half of it empty": (lambda a, m, r: a * (np.arange(a.shape[1]) > 25)[:, None], ONE),
    "the hippocampus taken out": (resected, ONE),
    "its anterior part taken out": (anterior_resected, ONE),
    "voxels said to be of 2 mm": (lambda a, m, r: a, np.diag([2.0, 2, 2, 1])),
    "voxels said to be of 0.5 mm": (lambda a, m, r: a, np.diag([0.5, 0.5, 0.5, 1])),
    "slices said to be of 3 mm": (lambda a, m, r: a, np.diag([1.0, 1, 3, 1])),
    "slices of 8 mm": (lambda a, m, r: respaced(a, ONE, (1, 1, 8))[0], np.diag([1.0, 1, 8, 1])),
    "several volumes": (lambda a, m, r: np.stack([a] * 3, -1), ONE),
    "not a number": (lambda a, m, r: np.where(np.arange(a.shape[0]) < 12, np.nan, a.T).T, ONE),
}
HEADS = {
    "upside down": (lambda a: a[:, :, ::-1], None),
    "upside down and back to front": (lambda a: a[:, ::-1, ::-1], None),
    "axes rolled": (lambda a: np.transpose(a, (1, 2, 0)), None),
    "half a head": (lambda a: a[: a.shape[0] // 2], None),
    "two heads": (lambda a: np.concatenate([a, a]), None),
    "no brain": (lambda a: a * 0 + np.random.default_rng(0).normal(300, 50, a.shape), None),
    "voxels said to be of 0.4 mm": (lambda a: a, 0.4),
    "voxels said to be of 2 mm": (lambda a: a, 2.0),
    "voxels said to be of 0.5 mm, and the air cut off": (lambda a: a[25:-25, 20:-20, 20:-20], 0.5),
    "the lower third only": (lambda a: a[:, :, : a.shape[2] // 4], None),
}

# what the default run tries: one of each kind of mistake; -m slow tries the others
BY_DEFAULT = {
    "noise",
    "the hippocampus taken out",
    "its anterior part taken out",
    "several volumes",
    "not a number",
    "half a head",
    "no brain",
}


def kinds(named):
    """Parameters of a test: the names, those that are not in BY_DEFAULT marked slow."""
    return [pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow) for name in named]


def rows_of(paths, out, **options):
    """{name of a scan: its rows} of predict.py."""
    cfg = configure(
        vars(predict), list(map(str, paths)), "scans", out_dir=str(out), pictures=False, workers=1, **options
    )
    predict.run(cfg)
    with open(out / "volumes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {path.name.removesuffix(".nii.gz"): [row for row in rows if row["scan"] == str(path)] for path in paths}


def assert_doubtful(rows, name=""):
    """A row at least, and each with a flag or without a number."""
    assert rows, name
    for row in rows:
        assert row["flags"] and ("failed: " in row["flags"]) == (not row["total_mm3"]), (name, row)


def misuse(name, crop, path):
    """Writes a crop with a misuse of CROPS."""
    change, affine = CROPS[name]
    array, label = (np.asarray(nib.load(folder / f"{crop}.nii.gz").dataobj, float) for folder in (IMAGES, LABELS))
    changed = np.asarray(change(array, label, np.random.default_rng(list(CROPS).index(name))), np.float32)
    nib.save(nib.Nifti1Image(changed, affine), path)


@pytest.mark.data
def test_good_crops_raise_no_flag(tmp_path):
    """Found to be of the left side, and told so."""
    for side, name in zip(("auto", "left"), GOOD):
        (row,) = rows_of([IMAGES / f"{name}.nii.gz"], tmp_path / side, side=side)[name]
        assert row["side"] == "left"
        assert not row["flags"] and float(row["quality"]) > 0.8, (name, row)


@pytest.mark.promise("misuse")
@pytest.mark.data
@pytest.mark.parametrize("name", sorted(BY_DEFAULT & CROPS.keys()))
def test_a_misused_crop_is_flagged_or_refused(tmp_path, name):
    misuse(name, GOOD[list(CROPS).index(name) % len(GOOD)], tmp_path / "misused.nii.gz")
    assert_doubtful(rows_of([tmp_path / "misused.nii.gz"], tmp_path / "out")["misused"])


@pytest.mark.promise("misuse")
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("crop", GOOD)
def test_every_misuse_of_each_good_crop(tmp_path, crop):
    (row,) = rows_of([IMAGES / f"{crop}.nii.gz"], tmp_path / "good")[crop]
    assert not row["flags"]
    paths = {name: tmp_path / f"{number}.nii.gz" for number, name in enumerate(CROPS)}
    for name, path in paths.items():
        misuse(name, crop, path)
    rows = rows_of(paths.values(), tmp_path / "out")
    for name, path in paths.items():
        assert_doubtful(rows[path.name.removesuffix(".nii.gz")], name)


@pytest.mark.promise("misuse")
@pytest.mark.data
def test_the_wrong_side_of_a_crop_is_flagged(tmp_path):
    """Told to be of the other side than it is: all of these crops look like left ones."""
    (row,) = rows_of([IMAGES / f"{GOOD[0]}.nii.gz"], tmp_path, side="right")[GOOD[0]]
    assert row["flags"], row


@pytest.fixture(scope="module", params=["phantom", "real"])
def a_head(request):
    """A head (D, H, W) of 1 mm in RAS: a phantom, or the first one of the folder `heads`."""
    if request.param == "phantom":
        return phantom.scan_head(*phantom.make_head(np.random.default_rng(3)), np.eye(3), np.random.default_rng(4))[0]
    paths = sorted((ROOT / "heads").glob("sub-*/anat/*_T1w.nii.gz"))
    if not paths:
        pytest.skip("no whole heads in heads/sub-*/anat")
    image = nib.as_closest_canonical(nib.load(paths[0]))
    return respaced(np.asarray(image.dataobj, np.float32), image.affine, (1, 1, 1))[0]


@pytest.mark.promise("misuse")
@pytest.mark.parametrize("name", kinds(HEADS))
def test_misused_heads_are_flagged_or_refused(a_head, tmp_path, name):
    change, spacing = HEADS[name]
    path = tmp_path / "misused.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(change(a_head), np.float32), np.diag([spacing or 1.0] * 3 + [1.0])), path)
    assert_doubtful(rows_of([path], tmp_path / "out")["misused"])
