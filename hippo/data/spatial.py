"""Resamples arrays, and finds the largest component of a mask."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, label


def resample(array, shape, order=1):
    """Resamples an array (D, H, W) or (H, W) to another shape over the same extent, with aligned voxel edges and
    replicated borders.

    order 1: linear, returns float32; smoothed first along the axes that shrink (see anti_alias), as in scikit-image's
    resize(anti_aliasing=True). order 0: nearest neighbour, for labels; keeps the type of the array.
    """
    if order == 0:
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
        return F.interpolate(x, tuple(shape), mode="nearest-exact")[0, 0].numpy().astype(array.dtype)
    array = anti_alias(array.astype(np.float32, copy=False), shape)
    if tuple(shape) == array.shape:
        return array
    x = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    mode = "trilinear" if array.ndim == 3 else "bilinear"
    return F.interpolate(x, tuple(shape), mode=mode, align_corners=False)[0, 0].numpy()


def anti_alias(array, shape):
    """Smooths an array along the axes that shrink to `shape`, by a Gaussian of (factor - 1) / 2 voxels. Returns the
    array itself if no axis shrinks."""
    sigma = [max(0, (n / size - 1) / 2) for n, size in zip(array.shape, shape)]
    return gaussian_filter(array, sigma, mode="nearest") if any(sigma) else array


def shrink(array, factors):
    """Returns the float32 means of blocks of `factors` voxels of an array (D, H, W). Incomplete blocks at the high
    ends are dropped."""
    volume = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    return F.avg_pool3d(volume[None], tuple(map(int, factors)))[0].numpy()


def largest_component(mask, weights=None):
    """Returns a mask of the connected component with the most voxels, or with the largest sum of weights."""
    components, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel(), None if weights is None else weights.ravel())
    sizes[0] = 0
    return components == sizes.argmax()
