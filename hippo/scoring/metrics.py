"""Metrics of a case and of its labels: Dice, normalised surface Dice (NSD), HD95, volume.

Surface metrics are those of the Decathlon (Nikolov et al. 2018, arXiv 1809.04430); hippo/scoring/surface.py measures the
distances.
"""

from hippo.data.cases import labels_of

import numpy as np
import torch


def dice(prediction, truth):
    """Returns the Dice of two boolean arrays of the same shape, in [0, 1]; 1 if both are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def nsd_and_hd95(prediction, truth, spacing_mm, tolerances_mm=(1.0, 2.0)):
    """Returns (list of NSD at each tolerance, HD95 in mm) of two boolean arrays of the same shape.

    NSD: the share of both surfaces that lies within the tolerance of the other. HD95: the 95th percentile of distance,
    weighted by area; the larger one of the two directions. Both empty: 1 and nan; one empty: 0 and nan.
    """
    from hippo.scoring.surface import surface_distances  # its libraries take time to import, and Dice needs none

    to_prediction, truth_sizes, to_truth, prediction_sizes = surface_distances(prediction, truth, spacing_mm)
    if not len(truth_sizes) or not len(prediction_sizes):
        return [float(len(truth_sizes) == len(prediction_sizes))] * len(tolerances_mm), float("nan")
    total = truth_sizes.sum() + prediction_sizes.sum()
    nsd = [
        float(truth_sizes[to_prediction <= t].sum() + prediction_sizes[to_truth <= t].sum()) / total
        for t in tolerances_mm
    ]
    hd95 = 0.0
    for distances, sizes in ((to_prediction, truth_sizes), (to_truth, prediction_sizes)):
        order = np.argsort(distances)
        share = np.cumsum(sizes[order]) / sizes.sum()
        hd95 = max(hd95, float(distances[order][min(np.searchsorted(share, 0.95), len(order) - 1)]))
    return [float(n) for n in nsd], hd95


def case_metrics(prediction, truth, spacing_mm, n_labels=2):
    """Computes all metrics of one case.

    prediction, truth: label maps (integers 0 to `n_labels`) of the same shape, on the grid of the case. Returns {"dice":
    [anterior, posterior], or [hippocampus] for one label, "nsd_1mm": [..], "nsd_2mm": [..], "hd95_mm": [..],
    "volume_mm3": [..], "true_volume_mm3": [..]}; an undefined HD95 is nan. Two more separate the kinds of error:
    "dice_whole" [Dice of all labels as one], and "dice_true_border" [..], where each voxel that is hippocampus in both
    truth and prediction gets the true label. Raises ValueError for different shapes.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    result = {name: [] for name in ("dice", "nsd_1mm", "nsd_2mm", "hd95_mm", "volume_mm3", "true_volume_mm3")}
    for label in labels_of(n_labels):
        p, t = prediction == label, truth == label
        (nsd_1mm, nsd_2mm), hd95 = nsd_and_hd95(p, t, spacing_mm)
        values = dice(p, t), nsd_1mm, nsd_2mm, hd95, volume_mm3(p, spacing_mm), volume_mm3(t, spacing_mm)
        for name, value in zip(result, values):
            result[name].append(value)
    corrected = np.where((prediction > 0) & (truth > 0), truth, prediction)
    result["dice_whole"] = [dice(prediction > 0, truth > 0)]
    result["dice_true_border"] = [dice(corrected == label, truth == label) for label in labels_of(n_labels)]
    return result


def volume_mm3(mask, spacing_mm):
    """Returns the volume of a boolean array in mm3."""
    return float(np.count_nonzero(mask) * np.prod(spacing_mm))


def dice_of_logits(logits, target):
    """Returns the Dice of the most probable class for each sample and label: logits (B, C, *S) and target (B, *S) to a
    (B, C - 1) tensor on their device.

    nan (0/0) if neither has the label, so that the means of a training leave it out; scores of cases count it as 1. For a
    target (B, C, *S) of fractions, the largest one counts.
    """
    target = target.argmax(1) if target.ndim == logits.ndim else target
    prediction, target = logits.argmax(1).flatten(1), target.flatten(1)
    columns = []
    for label in range(1, logits.shape[1]):
        p, t = prediction == label, target == label
        columns.append(2 * (p & t).sum(1) / (p.sum(1) + t.sum(1)))
    return torch.stack(columns, 1)
