import csv
import itertools
import shutil

import predict
from hippo.data.cases import case_id
from hippo.data.nifti import to_stored_orientation
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels, segment
from hippo.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from hippo.models.inference import make_preprocessing
from hippo.study.volumes import COLUMNS, STATISTICS
from unet_inr_3d import UNet3DWithINR

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import one_error_line


@pytest.fixture(autouse=True)
def any_result_will_do(monkeypatch):
    """What the model of `checkpoint` finds is no hippocampus."""
    monkeypatch.setattr(predict, "LEAST_QUALITY", 0.0)
    monkeypatch.setattr(predict, "POSSIBLE_MM3", [0, 1_000_000])


def labels_of(model, path, side="left"):
    """(label map as stored, nibabel image) of a crop."""
    scan = read_scan(path)
    sides, _ = segment([model], None, scan, torch.device("cpu"), None, False, side)
    return to_stored_orientation(joint_labels(sides, scan), scan.image), scan.image


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint whose network sees intensity only: dark is posterior, middle background, bright anterior."""
    model = UNet3DWithINR(base_channels=2, depth=1, convs=1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_() if p.ndim > 1 else None
        centre = (slice(None), slice(None), 1, 1, 1)
        model.unet.down[0][0].weight[centre] = torch.tensor([[1.0], [-1.0]])
        model.unet.merge[0][0].weight[centre][:, :2] = torch.eye(2)  # what comes through the skip connection
        model.head.weight[1:, :, 0, 0, 0] = torch.eye(2)
        model.head.bias[:] = torch.tensor([1.0, 0.0, 0.0])
    path = tmp_path / "model.pth"
    save_checkpoint(
        path,
        {
            "model": {"name": "UNet3DWithINR", "args": {"base_channels": 2, "depth": 1, "convs": 1}},
            "model_state_dict": model.state_dict(),
            "preprocessing": make_preprocessing(),
            "synthetic": False,
        },
    )
    return path


@pytest.fixture
def run(script, checkpoint, tmp_path):
    def run(*argv):
        fixed = ("--partner=", "--side=left", "--pictures=False")
        return script(predict, f"--checkpoint={checkpoint}", f"--out_dir={tmp_path / 'out'}", *fixed, *argv)

    return run


def volumes(folder):
    with open(folder / "volumes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_segments_files_and_folders(run, phantoms, tmp_path):
    extra = shutil.copy(phantoms / "imagesTr" / "phantom_001.nii.gz", tmp_path / "été 1.nii.gz")
    code, out, err = run(phantoms / "imagesTr", extra)
    assert code == 0 and "precision" in out, err
    rows = volumes(tmp_path / "out")
    assert len(rows) == 9 and list(rows[0]) == [*list(COLUMNS)[2:], *STATISTICS]
    for row in rows:
        path = tmp_path / "out" / f"{case_id(row['scan'])}_seg.nii.gz"
        result, source = nib.load(path), nib.load(row["scan"])
        array = np.asarray(result.dataobj)
        assert (
            result.get_data_dtype() == np.uint8
            and result.shape == source.shape
            and np.array_equal(result.affine, source.affine)
        )
        for field in ("sform_code", "qform_code", "xyzt_units"):
            assert result.header[field] == source.header[field]
        assert [float(row[f"{n}_mm3"]) for n in ("anterior", "posterior", "total")] == [
            (array == 1).sum(),
            (array == 2).sum(),
            (array > 0).sum(),
        ]
    assert (tmp_path / "out" / "été 1_seg.nii.gz").is_file()


CODES = [code for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)]


@pytest.mark.parametrize("codes", [CODES[5::14], pytest.param(CODES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_orientation_gives_the_same_segmentation(checkpoint, tmp_path, phantoms, codes):
    model, _ = load_model(checkpoint)
    source = nib.load(phantoms / "imagesTr" / "phantom_003.nii.gz")
    expected, _ = labels_of(model, phantoms / "imagesTr" / "phantom_003.nii.gz")
    assert 0.01 < (expected > 0).mean() < 0.99
    ras = nib.orientations.axcodes2ornt("RAS")
    for code in codes:
        turned = source.as_reoriented(nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(code)))
        path = tmp_path / "turned.nii"
        nib.save(turned, path)
        result, image = labels_of(model, path)
        assert nib.aff2axcodes(image.affine) == code and result.shape == turned.shape
        back = nib.as_closest_canonical(nib.Nifti1Image(result, image.affine))
        assert np.array_equal(np.asarray(back.dataobj), expected)


@pytest.mark.promise("half_a_voxel")
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1, 0.5), (1, 0.4, 1), (1.5, 1, 1), (1, 1, 2)])
def test_every_spacing_comes_back_in_place(run, nifti, tmp_path, spacing):
    """A bright and a dark ball come back where they are: half a voxel off would fail."""
    size_mm, balls = np.array([40, 54, 36]), {1: (17.3, 38.1, 19.6), 2: (21.0, 14.2, 16.9)}
    shape = (size_mm / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(spacing) / 2  # the outer faces are the same in all of them
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    for label, ball in balls.items():
        shade = np.exp(-(((points - ball) / 6) ** 2).sum(-1)) * (1 if label == 1 else -1)
        path = nifti(f"ball_{label}.nii.gz", (500 + 300 * shade).astype(np.float32), affine)
        code, _, err = run(path, f"--out_dir={tmp_path / f'out_{label}'}")
        assert code == 0, err
        result = nib.load(tmp_path / f"out_{label}" / f"ball_{label}_seg.nii.gz")
        labels = np.asarray(result.dataobj)
        assert labels.shape == tuple(shape) and np.allclose(result.affine, affine)
        centre = nib.affines.apply_affine(affine, np.argwhere(labels == label)).mean(0)
        assert np.allclose(centre, ball, atol=0.15), (label, centre)
        row = volumes(tmp_path / f"out_{label}")[0]
        assert float(row["total_mm3"]) == pytest.approx(np.count_nonzero(labels) * np.prod(spacing), abs=0.1)


def test_the_volume_of_a_sheared_voxel_is_its_determinant(run, nifti, phantoms, tmp_path):
    source = nib.load(phantoms / "imagesTr" / "phantom_003.nii.gz")
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    run(nifti("sheared.nii.gz", np.asarray(source.dataobj), sheared))
    labels = np.asarray(nib.load(tmp_path / "out" / "sheared_seg.nii.gz").dataobj)
    assert float(volumes(tmp_path / "out")[0]["total_mm3"]) == pytest.approx(np.count_nonzero(labels), abs=0.1)


def test_a_trailing_axis_of_one(run, nifti, phantoms, tmp_path):
    source = nib.load(phantoms / "imagesTr" / "phantom_003.nii.gz")
    array = np.asarray(source.dataobj)
    code, _, err = run(
        nifti("a.nii.gz", array), nifti("b.nii.gz", array[..., None]), nifti("c.nii", array[..., None, None])
    )
    assert code == 0, err
    results = [nib.load(tmp_path / "out" / f"{n}_seg.nii.gz") for n in "abc"]
    assert all(r.shape == array.shape and np.array_equal(r.dataobj, results[0].dataobj) for r in results)


def test_the_right_side_is_mirrored(checkpoint, nifti, phantoms):
    model, _ = load_model(checkpoint)
    path = phantoms / "imagesTr" / "phantom_003.nii.gz"
    source = nib.load(path)
    mirrored = nifti("mirrored.nii", np.ascontiguousarray(np.asarray(source.dataobj)[::-1]), source.affine)
    assert np.array_equal(labels_of(model, path)[0], labels_of(model, mirrored, "right")[0][::-1])


@pytest.mark.promise("no_hippocampus")
def test_bad_files_are_reported_and_the_others_done(run, nifti, phantoms, tmp_path):
    good = phantoms / "imagesTr" / "phantom_001.nii.gz"
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.nii.gz").write_text("text")
    bad = [
        tmp_path / "cut.nii.gz",
        tmp_path / "text.nii.gz",
        tmp_path / "absent.nii.gz",
        nifti("four.nii.gz", np.zeros((20, 20, 20, 2))),
        nifti("nan.nii.gz", np.full((20, 20, 20), np.nan)),
        nifti("flat.nii.gz", np.ones((20, 20, 20))),
        nifti("mask.nii.gz", np.pad(np.ones((9, 9, 9), np.uint8), 8)),
        nifti("thin.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 9))),
        nifti("thick.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 9)), np.diag([1.0, 1, 6, 1])),
        nifti("other/phantom_001.nii.gz", np.zeros((20, 20, 20))),
        nifti("capitals/PHANTOM_001.nii.gz", np.zeros((20, 20, 20))),
    ]
    (tmp_path / "nothing").mkdir()
    code, out, err = run(good, *bad, tmp_path / "nothing")
    lines = err.splitlines()
    assert code == 2 and len(lines) == len(bad) + 1 and all(line.startswith("error:") for line in lines), err
    for path in [*bad, tmp_path / "nothing"]:
        assert sum(str(path) in line for line in lines) == 1, path
    results = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.nii.gz")]
    assert len(results) == 1 and results[0].endswith("imagesTr/phantom_001_seg.nii.gz")  # others have its name
    assert "1 segmentation and" in out
    rows = volumes(tmp_path / "out")
    failed = [row for row in rows if row["flags"].startswith("failed: ")]
    assert len(rows) == len(bad) + 2 and len(failed) == len(bad) + 1 and not any(row["total_mm3"] for row in failed)


def test_folders_without_nifti_files_are_told_what_to_do(run, tmp_path):
    (tmp_path / "dicom" / "series").mkdir(parents=True)
    (tmp_path / "dicom" / "series" / "IM1").write_bytes(bytes(128) + b"DICM")
    one_error_line(run(tmp_path / "dicom"), "dicom: DICOM files that cannot be read")
    one_error_line(run(tmp_path / "Task04_Hippocampus" / "imagesTs"), "imagesTs: no such folder", "python get_data.py")


def test_results_do_not_go_into_the_folder_of_the_scans(script, checkpoint, phantoms, tmp_path):
    scans = shutil.copytree(phantoms / "imagesTr", tmp_path / "scans")
    one_error_line(
        script(predict, scans, f"--checkpoint={checkpoint}", f"--out_dir={scans}"), "choose another --out_dir"
    )
    assert len(list(scans.iterdir())) == 8 and not list(tmp_path.glob("*.previous-*"))


def test_inputs_may_stand_around_options(script, checkpoint, phantoms, tmp_path):
    a, b = sorted((phantoms / "imagesTr").iterdir())[:2]
    options = (f"--checkpoint={checkpoint}", "--partner=", f"--out_dir={tmp_path / 'out'}", "--tta=False")
    code, _, err = script(predict, a, *options, b)
    assert code == 0 and len(volumes(tmp_path / "out")) == 2, err


def test_mistakes_leave_nothing_but_a_failed_row(run, tmp_path):
    one_error_line(run(), "no input")
    one_error_line(run(tmp_path, "--checkpoint="), "expected a checkpoint")
    one_error_line(run(tmp_path, "--side=up"), "auto, left or right")
    one_error_line(run(tmp_path, "--labels=all"), "parts or freesurfer")
    one_error_line(run(tmp_path, "--etiv=much"), "etiv_mm3")
    one_error_line(run(tmp_path, "--etiv=1480"), "about 1500000")
    one_error_line(run(tmp_path, "--locate=none.pth"), "none.pth")
    assert not (tmp_path / "out").exists()
    one_error_line(run(tmp_path / "absent.nii.gz"), "absent.nii.gz", "no such file")
    assert [row["flags"] for row in volumes(tmp_path / "out")] == ["failed: no such file"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"].update(name="UNet2D"),
        lambda c: c["model"]["args"].update(base_channels=4),
        lambda c: c.pop("model"),
        lambda c: c["model_state_dict"].popitem(),
        lambda c: c["model"]["args"].update(colour=1),
        lambda c: c.update(model_state_dict={"x": 1}),
        lambda c: c.update(model=3),
    ],
)
def test_checkpoints_of_other_models(run, checkpoint, phantoms, tmp_path, change):
    content = load_checkpoint(checkpoint)
    change(content)
    save_checkpoint(checkpoint, content)
    one_error_line(run(phantoms / "imagesTr"), "model.pth")
    assert not (tmp_path / "out").exists()


def test_a_segmentation_of_a_phantom_says_so(run, phantoms, tmp_path):
    run(phantoms / "imagesTr" / "phantom_001.nii.gz")
    assert b"SYNTHETIC" in nib.load(tmp_path / "out" / "phantom_001_seg.nii.gz").header["descrip"].item()


def test_a_model_of_phantoms_says_so(run, checkpoint, phantoms, tmp_path):
    content = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, {**content, "synthetic": True})
    _, out, _ = run(phantoms / "imagesTr" / "phantom_001.nii.gz")
    assert "SYNTHETIC" in out
    assert b"SYNTHETIC" in nib.load(tmp_path / "out" / "phantom_001_seg.nii.gz").header["descrip"].item()
