import warnings

from hippo.scoring import surface
from hippo.scoring.metrics import case_metrics, dice, nsd_and_hd95
from hippo.scoring.statistics import summarise
from hippo.scoring.surface import surface_distances

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA


def cube(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop))] = True
    return mask


def test_dice_by_hand():
    a, b = cube((6, 6, 6), (1, 1, 1), (3, 3, 3)), cube((6, 6, 6), (2, 1, 1), (4, 3, 3))
    empty = np.zeros((6, 6, 6), bool)
    assert (
        dice(a, b) == 0.5
        and dice(a, a) == 1
        and dice(empty, a) == 0
        and dice(a, empty) == 0
        and dice(empty, empty) == 1
    )


def test_surface_of_a_cube_by_hand():
    # a 10 mm cube of 1 mm voxels: six faces of 9 x 9 whole elements, 12 edges of 9 bevelled ones, 8 corners
    mask = cube((20, 20, 20), (5, 5, 5), (15, 15, 15))
    _, sizes, _, _ = surface_distances(mask, mask, (1, 1, 1))
    corner = np.sqrt(3) / 8
    assert sizes.sum() == pytest.approx(6 * 81 + 12 * 9 * np.sqrt(0.5) + 8 * corner, rel=1e-6)


def test_distances_by_hand():
    a, b = cube((20, 20, 20), (5, 5, 5), (15, 15, 15)), cube((20, 20, 20), (5, 5, 8), (15, 15, 18))
    assert nsd_and_hd95(a, a, (1, 1, 1)) == ([1, 1], 0)
    for spacing, hd95 in (((1, 1, 1), 3.0), ((1, 1, 2), 6.0), ((2, 2, 0.5), 1.5)):
        assert nsd_and_hd95(a, b, spacing)[1] == pytest.approx(hd95)  # the shift by three voxels along z, in mm
    assert nsd_and_hd95(a, b, (1, 1, 1), [3.0])[0] == [1.0]
    assert nsd_and_hd95(a, b, (1, 1, 1), [2.9])[0][0] < 1


def test_empty_masks():
    empty, mask = np.zeros((8, 8, 8), bool), cube((8, 8, 8), (2, 2, 2), (5, 5, 5))
    for prediction, truth, score in ((empty, empty, 1), (empty, mask, 0), (mask, empty, 0)):
        nsd, hd95 = nsd_and_hd95(prediction, truth, (1, 1, 1))
        assert nsd == [score, score] and np.isnan(hd95) and dice(prediction, truth) == score


def test_masks_at_the_edge_are_closed():
    full = np.ones((4, 4, 4), bool)
    assert nsd_and_hd95(full, full, (1, 1, 1)) == ([1, 1], 0)


def test_near_and_far_surfaces_are_measured_alike(monkeypatch):
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 14, 15, 16)) < 0.1
    truth[4:9, 4:9, 4:9] = True
    results = []
    for most in (0, 10**9):
        monkeypatch.setattr(surface, "_MANY_POINTS", most)
        results.append(nsd_and_hd95(prediction, truth, (1, 0.8, 1.5)))
    assert results[0] == results[1]


def test_case_metrics_and_summary():
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[2:6, 2:6, 2:6], truth[2:6, 6:10, 2:6] = 1, 2
    prediction = np.where(truth == 1, 1, 0).astype(np.uint8)
    case = case_metrics(prediction, truth, (1, 1, 2))
    assert (
        case["dice"] == [1, 0]
        and case["nsd_1mm"] == [1, 0]
        and case["hd95_mm"][0] == 0
        and np.isnan(case["hd95_mm"][1])
    )
    assert case["volume_mm3"] == [128, 0] and case["true_volume_mm3"] == [128, 128]
    assert case["dice_whole"] == [2 / 3] and case["dice_true_border"] == [1, 0]
    swapped = np.where(truth > 0, 3 - truth, 0)
    case_swapped = case_metrics(swapped, truth, (1, 1, 2))
    assert case_swapped["dice"] == [0, 0]
    assert case_swapped["dice_whole"] == [1] and case_swapped["dice_true_border"] == [1, 1]
    summary = summarise({"a": case, "b": case_metrics(truth, truth, (1, 1, 2))})
    assert (
        summary["mean"]["dice"] == [1, 0.5]
        and summary["std"]["dice"] == pytest.approx([0, 0.5**0.5])
        and summary["mean"]["hd95_mm"] == [0, 0]
    )
    with pytest.raises(ValueError, match="shape"):
        case_metrics(prediction[1:], truth, (1, 1, 1))


def real_pairs(n=6):
    """Real labels, and each moved by a voxel with a few voxels flipped."""
    rng = np.random.default_rng(0)
    for path in sorted((DATA / "labelsTr").glob("*.nii.gz"))[:n]:
        truth = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        prediction = np.roll(truth, (1, 0, 1), (0, 1, 2))
        prediction[2:-2, 2:-2, 2:-2][rng.random([s - 4 for s in truth.shape]) < 2e-4] = 1
        yield prediction, truth


@pytest.mark.data
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 0.8, 1.5)])
def test_against_surface_distance(spacing, monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("surface_distance")
        for prediction, truth in real_pairs():
            ours = case_metrics(prediction, truth, spacing)
            for i, label in enumerate((1, 2)):
                theirs = peer.compute_surface_distances(truth == label, prediction == label, spacing)
                for name, tolerance in (("nsd_1mm", 1), ("nsd_2mm", 2)):
                    assert ours[name][i] == pytest.approx(
                        peer.compute_surface_dice_at_tolerance(theirs, tolerance), abs=1e-4
                    )
                assert ours["hd95_mm"][i] == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), abs=1e-4)


@pytest.mark.data
def test_dice_against_monai():
    peer = pytest.importorskip("monai.metrics")
    for prediction, truth in real_pairs():
        one_hot = [F.one_hot(torch.from_numpy(a).long(), 3).movedim(-1, 0)[None] for a in (prediction, truth)]
        theirs = peer.compute_dice(*one_hot, include_background=False)[0].numpy()
        assert case_metrics(prediction, truth, (1, 1, 1))["dice"] == pytest.approx(theirs, abs=1e-4)


def test_two_dimensions_against_surface_distance():
    peer = pytest.importorskip("surface_distance")
    truth = cube((30, 30), (5, 8), (20, 22)) | cube((30, 30), (18, 4), (25, 12))
    prediction = np.roll(truth, (1, -2), (0, 1))
    theirs = peer.compute_surface_distances(truth, prediction, (1, 0.7))
    nsd, hd95 = nsd_and_hd95(prediction, truth, (1, 0.7))
    assert nsd == pytest.approx([peer.compute_surface_dice_at_tolerance(theirs, t) for t in (1, 2)], abs=1e-6)
    assert hd95 == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), abs=1e-6)


@pytest.mark.parametrize("start", range(1, 8))
def test_a_distance_that_equals_the_tolerance_counts_wherever_it_lies(start):
    """Five voxels of 0.2 mm are 1 mm, although 6 x 0.2 - 0.2 is a little more in floating point."""
    masks = []
    for low in (start, start + 5):
        masks.append(np.zeros((30, 8, 8), bool))
        masks[-1][low : low + 15, 2:6, 2:6] = True
    (nsd, _), hd95 = nsd_and_hd95(*masks, (0.2, 0.2, 0.2))
    assert nsd == 1.0 and hd95 == 1.0
