"""Uncertainty of each voxel and of the volumes, from sampled probabilities."""

from hippo.data.intensity import normalise
from hippo.heads.window import bring_back, cut
from hippo.models.inference import sample_volume

import numpy as np


def sample_scan(trained, scan, sides, samples, device, dtype):
    """Estimates uncertainty by MC dropout in the windows of the sides. Returns (predictive entropy and mutual
    information (D, H, W, 2) float32 on the grid of a Scan; for each Hippocampus the standard deviations of its volumes
    in mm3, empty if it has no result).

    trained: TrainedModel of a 3D network with dropout. Raises ValueError for one without.
    """
    maps, spreads = np.zeros((*scan.array.shape, 2), np.float32), []
    for side in sides:
        if side.problem:
            spreads.append([])
            continue
        image = normalise(cut(scan.array, side.matrix, side.window))
        drawn = sample_volume(trained, image, device, dtype, samples).cpu().numpy()
        both = np.stack([np.zeros_like(image), *entropies(drawn)])  # bring_back fills the first class itself
        brought, bbox = bring_back(both, side.window, scan.array.shape, side.matrix)
        maps[bbox] = np.maximum(maps[bbox], np.moveaxis(brought[1:], 0, -1))
        spreads.append(spread(drawn, side.window.spacing_mm**3))
    return maps, spreads


def entropies(samples):
    """Returns (predictive entropy, mutual information), each (D, H, W) in [0, 1], of probabilities (N, C, D, H, W).

    Both are divided by the largest possible entropy, log C. The entropy of the mean is the total uncertainty. Its
    excess over the mean entropy of the samples is the mutual information, the part due to the model (Houlsby et al.
    2011).
    """
    most = np.log(samples.shape[1])
    total = _entropy(samples.mean(0), 0) / most
    return total, np.maximum(total - _entropy(samples, 1).mean(0) / most, 0)


def _entropy(probabilities, axis):
    return -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(axis)


def spread(samples, voxel_mm3=1.0):
    """Returns the standard deviations in mm3 of the volumes [anterior, posterior, total] over samples (N, 3, D, H, W)."""
    labels = samples.argmax(1).reshape(len(samples), -1)
    counts = np.stack([(labels == 1).sum(1), (labels == 2).sum(1), (labels > 0).sum(1)])
    return (counts.std(1) * voxel_mm3).tolist()
