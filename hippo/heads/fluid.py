"""Whether a segmentation lies in fluid: where a hippocampus was removed, networks still draw one, and are sure of it."""

import numpy as np
from scipy.ndimage import gaussian_filter

_AROUND_MM = 10  # of the box around the labels that fluid and tissue are read from
_SMOOTHED_MM = 0.7  # against noise
_IN_FLUID = {"dark": 0.25, "bright": 0.20}  # below it, between fluid (0) and tissue (1), a voxel lies in fluid
# real hippocampi at their median: 0.37 or more in T1, 0.73 in T2, 0.26 in FLAIR; removed ones 0.1


def in_fluid(scan, side):
    """(whether three quarters of a Hippocampus are as dark, or as bright, as fluid; whether half of it is).

    Fluid is the darkest or the brightest that lies around it, tissue the quartile at the other end. In a cavity of more
    than 20 mm there is no tissue to compare with.
    """
    spacing = np.linalg.norm(scan.matrix, axis=0)
    voxels, reach = np.argwhere(side.labels), np.ceil(_AROUND_MM / spacing).astype(int)
    if not len(voxels):
        return False, False
    corner = np.array([part.start for part in side.place])
    low = np.maximum(corner + voxels.min(0) - reach, 0)
    high = np.minimum(corner + voxels.max(0) + 1 + reach, scan.array.shape)
    values = scan.array[tuple(map(slice, low, high))].astype(np.float32)
    seen = np.ones(values.shape, bool) if scan.is_crop else values != scan.array[0, 0, 0]  # no background
    smooth = gaussian_filter(values, _SMOOTHED_MM / spacing)
    inside = smooth[tuple((voxels + corner - low).T)]
    darkest, dark, light, lightest = np.percentile(smooth[seen], (2, 25, 75, 98))
    shares = {
        "dark": (inside - darkest) / max(light - darkest, 1e-6),
        "bright": (lightest - inside) / max(lightest - dark, 1e-6),
    }
    return tuple(any(np.percentile(shares[end], at) < least for end, least in _IN_FLUID.items()) for at in (75, 50))
