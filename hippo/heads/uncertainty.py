"""Uncertainty from samples of probabilities: of each voxel, and of the volumes."""

import numpy as np


def entropies(samples):
    """(predictive entropy, mutual information), each (D, H, W) in [0, 1], of probabilities (N, C, D, H, W).

    Both as shares of the largest entropy, log C. The entropy of the mean is all of the uncertainty; what it exceeds the
    samples' mean entropy by is mutual information, the part that comes from the model (Houlsby et al. 2011).
    """
    most = np.log(samples.shape[1])
    total = _entropy(samples.mean(0), 0) / most
    return total, np.maximum(total - _entropy(samples, 1).mean(0) / most, 0)


def _entropy(probabilities, axis):
    return -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(axis)


def spread(samples, voxel_mm3=1.0):
    """Standard deviations in mm3 over samples (N, 3, D, H, W) of the volumes: [anterior, posterior, whole]."""
    labels = samples.argmax(1).reshape(len(samples), -1)
    counts = np.stack([(labels == 1).sum(1), (labels == 2).sum(1), (labels > 0).sum(1)])
    return (counts.std(1) * voxel_mm3).tolist()
