"""The window through which a model sees a hippocampus: cuts it out of a scan, moves it to the prediction, and brings
predictions back to the grid of the scan."""

from typing import NamedTuple

from hippo.data.spatial import largest_component
from hippo.heads.anatomy import LONG_AXIS, MOST_TURNED_DEGREES

import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter


def _rotation(vector):
    """Returns the rotation (3, 3) about a vector (3,) by its length in radians, as scipy.spatial does, which takes time to
    import."""
    return torch.linalg.matrix_exp(torch.from_numpy(np.cross(np.eye(3), vector))).numpy()


_MOVES = 6  # maximum number of times that a window is re-centred
_STAYS_MM, _STAYS_DEGREES = 2.5, 8  # a window has converged if it moves and turns by less
_VIEW_DEGREES = 7  # rotation of the additional views, about axes to the corners of a tetrahedron
VIEWS = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / 3**0.5
VIEWS = np.stack([_rotation(np.radians(_VIEW_DEGREES) * axis) for axis in VIEWS])


class Window(NamedTuple):
    """A box of voxels of spacing_mm whose centre is at centre_mm, in mm from the centre of a scan along the axes of the
    world (x to the right, y to the front, z up).

    mirrored: its first axis points to the left. turn: rotation (3, 3) of its axes. Positions count from the centre of
    the scan, so that a matrix (3, 3) describes any grid, and no result depends on the origin in a header, which may lie
    anywhere. Scan.middle_mm, the centre of the scan in the world, converts between the two.
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
    """Resamples probabilities (C, *window.size), whose sum is 1, to the grid of a scan of this shape. Returns ((C, d, h,
    w) float32, bbox: slices of the scan that it covers). Outside the window, the first class has probability 1."""
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
    size = tuple(high - low)
    result = np.ones((len(probabilities), *size), np.float32)
    for values, brought in zip(probabilities[1:], result[1:]):
        values = gaussian_filter(values, sigma, mode="nearest") if sigma.any() else values
        affine_transform(values, steps, start, size, brought, order=1, mode="constant")
        result[0] -= brought
    return result, tuple(map(slice, low, high))


def _reach(steps, start, size):
    """Returns the lowest and the highest position that voxels of a box of this size have under an affine."""
    ends = np.minimum(steps * (np.array(size) - 1), 0), np.maximum(steps * (np.array(size) - 1), 0)
    return start + ends[0].sum(1), start + ends[1].sum(1)


def settle(predict, windows):
    """Re-centres and re-orients windows on their predictions until each converges. predict(windows) returns
    probabilities (N, 3, *size). Returns a list of (Window or None, converged); None means that no hippocampus was
    found."""
    results = [(window, False) for window in windows]
    for move in range(_MOVES):
        moving = [i for i, (window, converged) in enumerate(results) if window and not converged]
        if not moving:
            break
        for i, probabilities in zip(moving, predict([results[i][0] for i in moving])):
            results[i] = _follow(results[i][0], foreground(probabilities), move)
    return results


def _follow(window, found, move):
    """Returns (the window re-centred and re-oriented on a mask of what was found in it, or None if that is empty; whether
    it stays where it was). move: how often the window has moved."""
    if not found.any():
        return None, False
    middle, turn = _pose(found, window)
    moved = np.linalg.norm(middle - window.centre_mm)
    turned = np.degrees(np.arccos(np.clip((np.trace(turn.T @ window.turn) - 1) / 2, -1, 1)))
    if move >= 2:  # half-way, so that the window does not oscillate between two places
        middle = (middle + window.centre_mm) / 2
    return window._replace(centre_mm=middle, turn=turn), bool(moved < _STAYS_MM and turned < _STAYS_DEGREES)


def _pose(found, window):
    """Returns (centre in mm of the bounding box of the prediction, rotation (3, 3) of the window that aligns the long
    axis with that of the training crops)."""
    voxels = np.argwhere(found)
    middle = window.to_mm((voxels.min(0) + voxels.max(0)) / 2)
    points = (voxels - voxels.mean(0)) @ window.steps().T  # in mm
    axis = np.linalg.eigh(points.T @ points)[1][:, 2]
    axis = axis * (np.sign(axis @ window.turn[:, 1]) or 1)
    usual = np.array(LONG_AXIS) * ((-1, 1, 1) if window.mirrored else 1)
    angle = np.degrees(np.arccos(np.clip(axis @ usual, -1, 1)))
    if angle > MOST_TURNED_DEGREES:
        return middle, window.turn
    normal = np.cross(usual, axis)
    normal = normal / max(np.linalg.norm(normal), 1e-9)
    return middle, _rotation(normal * np.radians(angle))


def foreground(probabilities):
    """Returns a mask of the largest component of voxels whose most probable class is hippocampus."""
    return largest_component(probabilities.argmax(0) > 0)


def on_grid(parts, shape, matrix):
    """Resamples probabilities seen through several windows, [(array (C, *window.size), Window), ...], to the grid of a
    scan of this shape. Returns (array (N, C, d, h, w) float32, bbox: slices of the scan that they cover). Outside its
    window, each view is background."""
    brought = [bring_back(probabilities, window, shape, matrix) for probabilities, window in parts]
    starts = np.min([[s.start for s in bbox] for _, bbox in brought], axis=0)
    stops = np.max([[s.stop for s in bbox] for _, bbox in brought], axis=0)
    result = np.zeros((len(parts), len(parts[0][0]), *(stops - starts)), np.float32)
    result[:, 0] = 1
    for view, (probabilities, bbox) in zip(result, brought):
        inside = tuple(slice(s.start - start, s.stop - start) for s, start in zip(bbox, starts))
        view[(slice(None), *inside)] = probabilities
    return result, tuple(map(slice, starts, stops))


def likeliest(probabilities, parts, weights):
    """Returns a mask of the most probable hippocampus voxels on the grid of the scan, as many as reproduce the volume
    measured in the windows. A threshold of 0.5 would select too few on voxels of 3 mm.

    probabilities: (C, d, h, w), the mean with these weights of the views that on_grid made from `parts`.
    """
    inside = 1 - probabilities[0]
    windows = [1 - seen[0] for seen, _ in parts]
    counted = sum(weight * (window > 0.5).sum() for weight, window in zip(weights, windows))
    share = counted / sum(weight * window.sum() for weight, window in zip(weights, windows))
    count = min(round(float(inside.sum() * share)), inside.size)
    return inside >= (np.partition(inside, -count, None)[-count] if count else np.inf)


def behind_plane(probabilities, bbox, window, matrix):
    """Returns a mask (d, h, w) of the voxels that lie behind the most probable border between the parts among all planes
    across the window's second axis, as inference.decide does for a crop.

    probabilities: (3, d, h, w) in the slices `bbox` of a grid of this matrix, see on_grid.
    """
    along = np.linalg.solve(window.steps(), matrix)[1]  # steps of the second axis per voxel of the grid
    x, y, z = (step * np.arange(part.start, part.stop) for step, part in zip(along, bbox))
    places = x[:, None, None] + y[:, None] + z
    order = places.argsort(axis=None)
    gain = (probabilities[2] - probabilities[1]).flat[order].cumsum(dtype=float)  # if voxels up to here are posterior
    last = gain.argmax()
    return places <= (places.flat[order[last]] if gain[last] > 0 else -np.inf)


def touches_edge(mask, bbox, shape):
    """Tests whether a mask in the slices `bbox` of an array of this shape reaches the edge of that array."""
    for axis, (part, size) in enumerate(zip(bbox, shape)):
        low, high, _ = part.indices(size)
        ends = ([0] if low == 0 else []) + ([mask.shape[axis] - 1] if high == size else [])
        if ends and mask.take(ends, axis).any():
            return True
    return False
