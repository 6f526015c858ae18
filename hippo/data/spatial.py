"""Arrays in space: resampling."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter


def resample(array, shape, order=1):
    """An array (D, H, W) resampled to another shape over the same extent, voxel edges aligned, edges replicated.

    order 1: linear, smoothed first along axes that shrink, as scikit-image's resize(anti_aliasing=True), to float32;
    order 0: the nearest voxel's value, for labels, in the array's own type.
    """
    if tuple(shape) == array.shape:
        return array
    sigma = [max(0, (n / size - 1) / 2) for n, size in zip(array.shape, shape)]
    smooth = gaussian_filter(array, sigma, mode="nearest") if order and any(sigma) else array
    x = torch.from_numpy(np.ascontiguousarray(smooth, np.float32))[None, None]
    mode = {"mode": "trilinear", "align_corners": False} if order else {"mode": "nearest-exact"}
    return F.interpolate(x, tuple(shape), **mode)[0, 0].numpy().astype(np.float32 if order else array.dtype)
