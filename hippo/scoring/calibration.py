"""Evaluates uncertainty: calibration, and the risk that remains when the most uncertain values are rejected."""

import numpy as np

BINS = 15


def calibration_bins(confidence, correct):
    """Returns (BINS, 3) sums over equal bins of confidence in [0, 1]: number of values, their confidence, number of
    correct ones."""
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bin_of, weights, BINS) for weights in (None, confidence, correct)], 1)


def expected_calibration_error(bins):
    """Returns the mean distance between confidence and accuracy, from the sums of calibration_bins (Guo et al. 2017)."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def risk_coverage(uncertainty, risk):
    """Returns (coverage, mean risk of the least uncertain values) for each number of values kept, and the area under
    this curve, AURC (Geifman & El-Yaniv 2017). uncertainty, risk: (N,); equal uncertainties share their mean risk."""
    _, bin_of, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    sums = np.bincount(bin_of, risk)
    kept = np.repeat(sums / counts, counts)
    mean = np.cumsum(kept) / np.arange(1, len(kept) + 1)
    return np.arange(1, len(kept) + 1) / len(kept), mean, float(mean.mean())
