"""Whole heads: found, segmented, drawn; on phantom heads, with the shipped models."""

import csv
import itertools
from types import SimpleNamespace

import phantom
import predict
import viz
from hippo.heads import segment as segmenting
from hippo.heads import window
from hippo.heads.locate import load_locator
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels, segment
from hippo.models.checkpoint import load_model
from hippo.scoring.metrics import dice
from hippo.study.records import RECORDS
from hippo.study.volumes import COLUMNS, STATISTICS
from tools import simulate

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line
from runs import has_colour, leftovers

CPU = torch.device("cpu")
PLACE = nib.affines.from_matvec(np.eye(3), phantom.LOW_MM)


@pytest.fixture(scope="module")
def drawn_head():
    """(image without noise, labels) of a phantom head."""
    return phantom.make_head(np.random.default_rng(3))


@pytest.fixture(scope="module")
def head(drawn_head, tmp_path_factory):
    """(path of a phantom head, its labels in RAS)."""
    image, label = phantom.scan_head(*drawn_head, np.eye(3), np.random.default_rng(4))
    path = tmp_path_factory.mktemp("head") / "head.nii.gz"
    phantom.save_nifti(path, image, PLACE)
    return path, label


@pytest.fixture(scope="module")
def found(models, head):
    """What `run` finds in it."""
    return run(models, head[0])


@pytest.fixture(scope="module")
def models():
    """([the shipped 3D model], the shipped locator)."""
    return [load_model(ROOT / predict.CHECKPOINT)[0]], load_locator(ROOT / predict.LOCATE)


def run(models, path):
    """(label map in RAS, list of Hippocampus, Located, Scan) of a file."""
    scan = read_scan(path)
    sides, located = segment(*models, scan, CPU, None, tta=False)
    return joint_labels(sides, scan), sides, located, scan


def rows_of(folder):
    with open(folder / "volumes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_head_from_file_to_files(script, head, tmp_path):
    path, truth = head
    out = tmp_path / "out"
    options = (f"--out_dir={out}", "--probabilities=True", "--etiv=1480000")
    code, text, err = script(predict, path, *options)
    assert code == 0 and "1 segmentation and" in text, err
    names = {p.name for p in out.iterdir()}
    assert names == {
        RECORDS,
        "head_hippocampus.nii.gz",
        "head_hippocampus.png",
        "head_probabilities.nii.gz",
        "volumes.csv",
    } and not leftovers(out)
    result = nib.load(out / "head_hippocampus.nii.gz")
    labels = np.asarray(result.dataobj)
    assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert b"SYNTHETIC" in result.header["descrip"].item() and len(result.header["descrip"].item()) < 80
    for side in ((1, 2), (3, 4)):  # the right place, on the right side
        assert dice(np.isin(labels, side), np.isin(truth, side)) > 0.6
    rows = rows_of(out)
    assert [row["side"] for row in rows] == ["left", "right"] and list(rows[0]) == [*list(COLUMNS)[2:], *STATISTICS]
    for row, (anterior, posterior) in zip(rows, ((1, 2), (3, 4))):
        counts = [np.count_nonzero(labels == label) for label in (anterior, posterior)]
        values = [float(row[f"{part}_mm3"]) for part in ("anterior", "posterior", "total")]
        assert values == [*counts, sum(counts)]
        assert row["etiv_mm3"] == "1480000" and 0 < float(row["quality"]) <= 1 and float(row["seconds"]) > 0
        assert row["model"] == "heads_3d.pth" and "failed" not in row["flags"]
    soft = nib.load(out / "head_probabilities.nii.gz")
    assert soft.shape == (*labels.shape, 4) and soft.get_data_dtype() == np.uint8
    values = soft.get_fdata()
    assert 0.9 < values.max() < 1.001 and (values[labels > 0].sum(-1) > 0.45).all()
    assert has_colour(out / "head_hippocampus.png", "#56B4E9") and has_colour(out / "head_hippocampus.png", "#E69F00")


def test_freesurfers_labels_and_a_table_of_etiv(script, head, tmp_path):
    table = tmp_path / "etiv.csv"
    table.write_text("scan,etiv_mm3\nhead.nii.gz,1510000\n", encoding="utf-8")
    options = ("--labels=freesurfer", f"--etiv={table}", "--partner=", "--tta=False", "--pictures=False")
    code, _, err = script(predict, head[0], f"--out_dir={tmp_path / 'out'}", *options)
    assert code == 0, err
    labels = np.asarray(nib.load(tmp_path / "out" / "head_hippocampus.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 17, 53}
    assert np.argwhere(labels == 17)[:, 0].max() < np.argwhere(labels == 53)[:, 0].min()  # left of it, in RAS
    assert {row["etiv_mm3"] for row in rows_of(tmp_path / "out")} == {"1510000"}


ORIENTATIONS = ["".join(c) for axes in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*axes)]


@pytest.mark.promise("orientations")
@pytest.mark.parametrize(
    "codes", [["LPI", "ASR"], pytest.param(ORIENTATIONS, marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_every_orientation_gives_the_same_labels(models, head, found, tmp_path, codes):
    expected = found[0]
    source, ras = nib.load(head[0]), nib.orientations.axcodes2ornt("RAS")
    for code in codes:
        turned = source.as_reoriented(nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(code)))
        nib.save(turned, tmp_path / "turned.nii")
        assert np.array_equal(run(models, tmp_path / "turned.nii")[0], expected), code


@pytest.mark.promise("orientations")
def test_sides_come_from_the_header(models, head, found, nifti):
    """Data and affine flipped together: the same; the affine's sign alone: the sides are exchanged."""
    expected = found[0]
    source = nib.load(head[0])
    array, flip = np.asarray(source.dataobj), np.diag([-1.0, 1, 1, 1])
    both = source.affine @ flip
    both[:3, 3] = nib.affines.apply_affine(source.affine, [array.shape[0] - 1, 0, 0])
    assert np.array_equal(run(models, nifti("both.nii", array[::-1], both))[0], expected)
    exchanged = run(models, nifti("sign.nii", array, flip @ source.affine))[0][::-1]
    for ours, theirs in ((1, 3), (2, 4)):
        # another side is mirrored for the models, and the rest is rounding
        assert dice(exchanged == theirs, expected == ours) > 0.9 and dice(exchanged == ours, expected == theirs) > 0.9


@pytest.mark.promise("volumes")
def test_volumes_follow_a_known_affine(models, drawn_head, nifti):
    """The same head 9 % larger and turned: its volumes change by the determinant, nearly."""
    volumes, change = [], 1.03 * phantom.turn((5, 0, 5))
    for number, matrix in enumerate((np.eye(3), change)):
        image, _ = phantom.scan_head(*drawn_head, matrix, np.random.default_rng(4))
        _, sides, _, scan = run(models, nifti(f"head_{number}.nii", image, PLACE))
        volumes.append([sum(side.volumes_mm3(scan)) / np.linalg.det(matrix) for side in sides])
    assert np.allclose(volumes[1], volumes[0], rtol=0.06), volumes


@pytest.mark.promise("volumes")
@pytest.mark.parametrize(
    "change",
    [
        lambda a, m: simulate.padded(a, m, 0, 40, 0),
        lambda a, m: simulate.padded(a, m, 2, 80, 0, "edge"),
        lambda a, m: simulate.cut_off(a, m, 2, share_high=0.2),
        lambda a, m: simulate.respaced(a, m, (1.3,) * 3),
        lambda a, m: simulate.respaced(a, m, (1, 1, 3)),
    ],
    ids=["shifted", "neck", "top cut", "1.3 mm", "slices"],
)
def test_rescans_are_found(models, head, found, nifti, change):
    expected, *_ = found
    source = nib.load(head[0])
    array, affine = change(np.asarray(source.dataobj), source.affine)
    labels, sides, located, scan = run(models, nifti("changed.nii", array.astype(np.float32), affine))
    assert not any(side.problem for side in sides)
    before = [np.count_nonzero(np.isin(expected, side)) for side in ((1, 2), (3, 4))]
    after = [sum(side.volumes_mm3(scan)) for side in sides]
    assert np.allclose(after, before, rtol=0.15), (before, after)
    assert ("thick_slices" in scan.flags) == (max(np.linalg.norm(scan.matrix, axis=0)) > 2)


def test_what_may_spoil_a_volume_is_flagged(models, head, found, nifti, monkeypatch):
    """A head that is cut off in front, one that is too small by its header, and a window that never rests."""
    _, sides, located, _ = found
    assert not located.flags and not any(side.flags for side in sides)
    image, affine = np.asarray(nib.load(head[0]).dataobj), nib.load(head[0]).affine
    _, sides, located, _ = run(models, nifti("cut.nii", image[:, :105], affine))
    assert located.flags == ["intracranial_space_cut"]
    assert all("touches_field_of_view" in side.flags for side in sides)
    located = run(models, nifti("small.nii", image, affine @ np.diag([0.78, 0.78, 0.78, 1])))[2]
    assert located.flags == ["etiv_implausible"]
    monkeypatch.setattr(window, "_STAYS_MM", 0.0)
    assert all("window_unsettled" in side.flags for side in run(models, head[0])[1])


def test_other_contrasts_are_flagged(models, head, found, nifti):
    source = nib.load(head[0])
    array, affine = simulate.inverted(np.asarray(source.dataobj), source.affine)
    _, sides, located, _ = run(models, nifti("inverted.nii", array, affine))
    assert "contrast_not_t1" in located.flags or all(side.problem for side in sides)
    assert "contrast_not_t1" not in found[2].flags


@pytest.mark.promise("no_hippocampus")
def test_what_holds_no_hippocampus_fails(script, nifti, tmp_path):
    rng = np.random.default_rng(0)
    grid = np.indices((90, 90, 90)) / 45 - 1
    abdomen = np.where((grid**2).sum(0) < 0.6, 100, 1) + rng.normal(0, 3, (90, 90, 90))
    bad = [
        nifti("abdomen.nii.gz", abdomen.astype(np.float32), np.diag([2.5, 2.5, 2.5, 1])),
        nifti("noise_head.nii.gz", rng.normal(size=(90, 90, 90)).astype(np.float32), np.diag([2.5, 2.5, 2.5, 1])),
        nifti("noise_crop.nii.gz", rng.normal(size=(36, 50, 36)).astype(np.float32)),
        nifti("empty_head.nii.gz", np.zeros((90, 90, 90), np.int16), np.diag([2.5, 2.5, 2.5, 1])),
    ]
    code, _, err = script(predict, *bad, f"--out_dir={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out")
    assert code == 2 and len(rows) == len(err.splitlines()), err
    for path in bad:
        of_path = [row for row in rows if row["scan"] == str(path)]
        assert of_path and all("failed: " in row["flags"] and not row["total_mm3"] for row in of_path), path
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_the_brain_and_its_hippocampi_in_3d(script, head, tmp_path):
    out, saved = tmp_path / "head.png", tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(head[1], PLACE), saved)
    fixed = ("--partner=", "--tta=False", "--interactive=False", f"--out={out}")
    options = (f"--segmentation={saved}", "--by_label=True", f"--mesh={tmp_path / 'head.vtk'}")
    code, text, err = script(viz, head[0], *fixed, *options)
    assert code == 0 and "head.vtk" in text and has_colour(out, "white"), err
    surfaces = viz.pv.read(tmp_path / "head.vtk")
    assert set(np.unique(surfaces["label"])) == {0, 1, 2, 3, 4}
    for label in range(1, 5):  # the surfaces lie where the labels are, in mm
        middle = surfaces.points[surfaces["label"] == label].mean(0)
        truth = nib.affines.apply_affine(PLACE, np.argwhere(head[1] == label).mean(0))
        assert np.linalg.norm(middle - truth) < 2, label
    brain = surfaces.points[surfaces["label"] == 0]
    assert (np.ptp(brain, axis=0) > 100).all()
    code, _, err = script(viz, head[0], *fixed, f"--mesh={tmp_path / 'head.stl'}")
    assert code == 0 and (tmp_path / "head.stl").stat().st_size > 10_000, err
    for name in ("a.obj", "a"):
        one_error_line(script(viz, head[0], f"--mesh={name}"), ".stl or .vtk")
    nib.save(nib.Nifti1Image(head[1], np.diag([2.0, 1, 1, 1])), saved)  # of another scan
    one_error_line(script(viz, head[0], *fixed, f"--segmentation={saved}"), "on the grid of")
    one_error_line(script(viz, head[0], head[0]), "one head at a time")


@pytest.mark.promise("contrasts")
@pytest.mark.parametrize(
    "contrast, doubts, qualities, flags",
    [
        ("auto", (), (0.8, 0.9), ()),
        ("auto", ("contrast_doubtful",), (0.8, 0.7), ("contrast_doubtful",)),
        ("auto", ("contrast_doubtful",), (0.7, 0.8), ("contrast_doubtful",)),
        ("auto", ("contrast_doubtful",), (0.4, 0.8), ("any_contrast",)),
        ("auto", ("contrast_doubtful",), (0.4, 0.3), ("contrast_doubtful",)),
        ("auto", ("no result",), (0.0, 0.8), ("any_contrast",)),
        ("auto", ("models_disagree",), (0.7, 0.8), ("models_disagree",)),
        ("t1", ("contrast_doubtful",), (0.7, 0.8), ("contrast_doubtful",)),
        ("t1", (), (0.8, 0.9), ()),
        ("any", (), (0.8, 0.7), ("any_contrast",)),
    ],
)
def test_the_choice_between_contrasts(monkeypatch, contrast, doubts, qualities, flags):
    """The T1 models' result stands, flagged where the other model disagrees; where they give none, the other's is taken."""
    calls = []

    def segment_sides(models, scan, centres, check=None, **how):
        calls.append((models, check))
        flags = {side: doubts if check and side == "left" else () for side in centres}
        quality = {"left": qualities[models == ["other"]], "right": 0.9}
        problems = {side: "none" * ("no result" in flags[side]) for side in centres}
        return {side: segmenting.Hippocampus(side, problems[side], quality[side], flags[side]) for side in centres}

    monkeypatch.setattr(segmenting, "segment_sides", segment_sides)
    located = SimpleNamespace(problems={}, centres={"left": np.zeros(3), "right": np.zeros(3)}, flags=[])
    monkeypatch.setattr(segmenting, "locate", lambda *_: located)
    scan = SimpleNamespace(is_crop=False, is_small_crop=True)
    how = {"any_contrast": "other", "least_quality": 0.5}
    sides, _ = segment(["t1"], None, scan, CPU, None, contrast=contrast, **how)
    assert [side.side for side in sides] == ["left", "right"] and sides[0].flags == flags
    assert sides[1].flags == (flags if contrast == "any" else ())
    if contrast == "auto":
        located.flags.append("contrast_not_t1")
        calls.clear()
        sides, _ = segment(["t1"], None, scan, CPU, None, any_contrast="other")
        assert {side.flags for side in sides} == {("any_contrast",)} and calls == [(["other"], None)]
