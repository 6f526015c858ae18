"""Whether an uncertainty means what it says: calibration, and the risk of what is left when the most uncertain is put aside."""

import numpy as np

BINS = 15


def calibration_bins(confidence, correct):
    """(BINS, 3) sums over equal bins of confidence in [0, 1]: values, their confidence, how many are correct."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(place, weights, BINS) for weights in (None, confidence, correct)], 1)


def expected_calibration_error(bins):
    """The mean distance between confidence and accuracy, of sums as calibration_bins gives them (Guo et al. 2017)."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def risk_coverage(uncertainty, risk):
    """(coverage, mean risk of the least uncertain share) for each number of values kept, and the area under it, AURC
    (Geifman & El-Yaniv 2017). uncertainty, risk: (N,); equal uncertainties share their mean risk."""
    _, place, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    sums = np.bincount(place, risk)
    kept = np.repeat(sums / counts, counts)
    mean = np.cumsum(kept) / np.arange(1, len(kept) + 1)
    return np.arange(1, len(kept) + 1) / len(kept), mean, float(mean.mean())
