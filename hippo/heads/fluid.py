"""Detects segmentations that lie in fluid. Where a hippocampus was removed, networks still draw one, with high
confidence."""

import numpy as np
from scipy.ndimage import gaussian_filter

_AROUND_MM = 10  # margin of the box around the labels in which fluid and tissue intensities are measured
_SMOOTHED_MM = 0.7  # standard deviation of the Gaussian filter against noise
_IN_FLUID = {"dark": 0.25, "bright": 0.20}  # a voxel is fluid below it, on a scale from fluid (0) to tissue (1)
# medians of real hippocampi: 0.37 or more in T1, 0.73 in T2, 0.26 in FLAIR; of removed ones: 0.1


def in_fluid(scan, side):
    """Tests whether a Hippocampus is as dark, or as bright, as fluid. Returns (True if three quarters of it are, True
    if half of it is).

    Fluid is the darkest or brightest intensity in the neighbourhood; tissue is the quartile at the other end. In a
    cavity of more than 20 mm there is no tissue to compare with.
    """
    spacing = np.linalg.norm(scan.matrix, axis=0)
    voxels, reach = np.argwhere(side.labels), np.ceil(_AROUND_MM / spacing).astype(int)
    if not len(voxels):
        return False, False
    corner = np.array([part.start for part in side.bbox])
    low = np.maximum(corner + voxels.min(0) - reach, 0)
    high = np.minimum(corner + voxels.max(0) + 1 + reach, scan.array.shape)
    values = scan.array[tuple(map(slice, low, high))].astype(np.float32)
    seen = np.ones(values.shape, bool) if scan.is_crop else values != scan.array[0, 0, 0]  # exclude the background
    smooth = gaussian_filter(values, _SMOOTHED_MM / spacing)
    inside = smooth[tuple((voxels + corner - low).T)]
    darkest, dark, light, lightest = np.percentile(smooth[seen], (2, 25, 75, 98))
    shares = {
        "dark": (inside - darkest) / max(light - darkest, 1e-6),
        "bright": (lightest - inside) / max(lightest - dark, 1e-6),
    }
    return tuple(any(np.percentile(shares[end], at) < least for end, least in _IN_FLUID.items()) for at in (75, 50))
