"""Resamples arrays, and cuts windows out of a scan and maps them back."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform, gaussian_filter, label


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
    for axis, factor in enumerate(factors):
        length = array.shape[axis] // factor * factor
        parts = [array[(slice(None),) * axis + (slice(i, length, factor),)] for i in range(factor)]
        array = sum(parts[1:], parts[0].astype(np.float32)) / factor
    return array


class Window(NamedTuple):
    """A box of voxels of spacing_mm whose centre is at centre_mm, relative to the centre of a scan.

    mirrored: its first axis points to the left. turn: rotation (3, 3) of its axes.
    """

    centre_mm: np.ndarray
    size: tuple
    spacing_mm: float
    mirrored: bool = False
    turn: np.ndarray = np.eye(3)

    def steps(self):
        """Returns the matrix (3, 3) from voxels of the window to mm."""
        return self.turn @ np.diag([-1.0 if self.mirrored else 1.0, 1.0, 1.0]) * self.spacing_mm

    def to_mm(self, voxels):
        """Converts voxel indices (..., 3) to mm relative to the centre of the scan."""
        return self.centre_mm + (voxels - (np.array(self.size) - 1) / 2) @ self.steps().T


def cut(array, matrix, window):
    """Resamples the window (float32) from an array (D, H, W) by one linear interpolation, after smoothing along the
    axes that shrink. Outside the array, its edge is replicated.

    matrix: (3, 3) from voxels of the array to mm, about its centre.
    """
    middle = (np.array(array.shape) - 1) / 2
    steps = np.linalg.solve(matrix, window.steps())  # window voxels to array voxels
    start = middle + np.linalg.solve(matrix, window.to_mm(np.zeros(3)))
    low, high = _reach(steps, start, window.size)
    scale = window.spacing_mm / np.linalg.norm(matrix, axis=0)
    sigma = np.maximum(0, (scale - 1) / 2)
    low = np.clip(np.floor(low - 4 * sigma - 1), 0, middle * 2).astype(int)
    high = np.clip(np.ceil(high + 4 * sigma + 2), 1, middle * 2 + 1).astype(int)
    low = np.minimum(low, high - 1)
    part = array[tuple(map(slice, low, high))].astype(np.float32)
    part = gaussian_filter(part, sigma, mode="nearest") if sigma.any() else part
    return affine_transform(part, steps, start - low, window.size, order=1, mode="nearest")


def bring_back(probabilities, window, shape, matrix):
    """Resamples probabilities (C, *window.size) to the grid of a scan of this shape. Returns ((C, d, h, w) float32,
    slices of the scan that it covers). Outside the window, the first class has probability 1."""
    middle = (np.array(shape) - 1) / 2
    steps = np.linalg.solve(window.steps(), matrix)  # array voxels to window voxels
    back = np.linalg.inv(steps)
    corner = middle + np.linalg.solve(matrix, window.to_mm(np.zeros(3)))
    low, high = _reach(back, corner, window.size)
    low = np.clip(np.floor(low), 0, middle * 2).astype(int)
    high = np.clip(np.ceil(high) + 1, low + 1, middle * 2 + 1).astype(int)
    start = (np.array(window.size) - 1) / 2 + np.linalg.solve(
        window.steps(), matrix @ (low - middle) - window.centre_mm
    )
    sigma = np.maximum(0, (np.linalg.norm(steps, axis=1) - 1) / 2)
    result = []
    for number, values in enumerate(probabilities):
        values = gaussian_filter(values, sigma, mode="nearest") if sigma.any() else values
        outside = float(number == 0)
        result.append(affine_transform(values, steps, start, tuple(high - low), order=1, mode="constant", cval=outside))
    return np.stack(result), tuple(map(slice, low, high))


def _reach(steps, start, size):
    """Returns the lowest and the highest position that voxels of a box of this size have under an affine."""
    ends = np.minimum(steps * (np.array(size) - 1), 0), np.maximum(steps * (np.array(size) - 1), 0)
    return start + ends[0].sum(1), start + ends[1].sum(1)


def largest_component(mask, weights=None):
    """Returns a mask of the connected component with the most voxels, or with the largest sum of weights."""
    components, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel(), None if weights is None else weights.ravel())
    sizes[0] = 0
    return components == sizes.argmax()
