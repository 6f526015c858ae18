"""Simulated rescans of a head: turned, shifted, cut, of other voxels. Volumes (D, H, W) in RAS with their (4, 4) affine."""

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter


def turned(array, affine, axis, degrees):
    """The head turned about one of the axes through the middle of the field of view, on the same grid (cubic)."""
    i, j = ((1, 2), (0, 2), (0, 1))[axis]
    angle, turn = np.radians(degrees), np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return warped(array, affine, turn)


def warped(array, affine, change):
    """The head under a linear change (3, 3) of space about the middle of the field of view, on the same grid."""
    matrix = affine[:3, :3]
    steps = np.linalg.solve(matrix, np.linalg.solve(change, matrix))  # from the new voxels to the old ones
    middle = (np.array(array.shape) - 1) / 2
    low = float(array.min())
    result = affine_transform(array.astype(np.float32), steps, middle - steps @ middle, order=3, cval=low)
    return np.maximum(result, low), affine


def padded(array, affine, axis, before_mm, after_mm, mode="constant"):
    """The field of view larger, by background or (mode "edge") by its last slice."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[axis]
    widths = [(0, 0)] * 3
    widths[axis] = (round(before_mm / spacing), round(after_mm / spacing))
    more = {"constant_values": array.min()} if mode == "constant" else {}
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, axis] * widths[axis][0]
    return np.pad(array, widths, mode=mode, **more), moved


def cut_off(array, affine, axis, share_low=0.0, share_high=0.0):
    """The field of view without a share of it at the low or the high end of an axis."""
    n = array.shape[axis]
    first, last = round(n * share_low), n - round(n * share_high)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, axis] * first
    return array.take(range(first, last), axis), moved


def faceless(array, affine, brain_front, brain_middle):
    """The head with background where the face is: in front of voxel brain_front and below voxel brain_middle."""
    result = array.copy()
    result[:, brain_front:, :brain_middle] = array.min()
    return result, affine


def respaced(array, affine, spacing_mm):
    """The head with voxels of other sizes, anti-aliased."""
    old = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.array(spacing_mm) / old
    smooth = gaussian_filter(array.astype(np.float32), np.maximum(0, (factor - 1) / 2), mode="nearest")
    shape = tuple(np.floor(np.array(array.shape) / factor).astype(int))
    start = (factor - 1) / 2
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * factor
    moved[:3, 3] += affine[:3, :3] @ start
    return affine_transform(smooth, factor, start, output_shape=shape, order=1, mode="nearest"), moved


def inverted(array, affine):
    """The head with dark and bright exchanged where it is not background."""
    top = np.percentile(array, 99.5)
    return np.where(array > 0.05 * top, np.clip(1.1 * top - array, 0, None), array).astype(np.float32), affine
