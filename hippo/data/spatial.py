"""Arrays in space: resampling."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter


def resample(array, shape, order=1):
    """An array (D, H, W) resampled to another shape over the same extent, voxel edges aligned, edges replicated.

    order 1: linear, to float32, smoothed first along the axes that shrink (see anti_alias), as scikit-image's
    resize(anti_aliasing=True). order 0: the nearest voxel's value, for labels, in the array's own type.
    """
    if order == 0:
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
        return F.interpolate(x, tuple(shape), mode="nearest-exact")[0, 0].numpy().astype(array.dtype)
    array = anti_alias(array.astype(np.float32, copy=False), shape)
    if tuple(shape) == array.shape:
        return array
    x = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    return F.interpolate(x, tuple(shape), mode="trilinear", align_corners=False)[0, 0].numpy()


def anti_alias(array, shape):
    """A real array smoothed along the axes that shrink to `shape`, by a Gaussian of (factor - 1) / 2 voxels; the array
    itself where none does."""
    sigma = [max(0, (n / size - 1) / 2) for n, size in zip(array.shape, shape)]
    return gaussian_filter(array, sigma, mode="nearest") if any(sigma) else array
