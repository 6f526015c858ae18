"""The window around a hippocampus: where it comes to rest, and what is seen through several, on the scan's grid."""

from hippo.data.spatial import bring_back, largest_component
from hippo.heads.anatomy import LONG_AXIS, MOST_TURNED_DEGREES

import numpy as np
from scipy.spatial.transform import Rotation

_MOVES = 6  # times a window is centred anew at most
_STAYS_MM, _STAYS_DEGREES = 2.5, 8  # a window that would move or turn by less stays
_TURNED_DEGREES = 7  # of the further views, about the corners of a tetrahedron
VIEWS = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / 3**0.5
VIEWS = Rotation.from_rotvec(np.radians(_TURNED_DEGREES) * VIEWS).as_matrix()


def settle(look, window):
    """(the Window centred and turned anew on what look(window), probabilities (3, *window.size), shows in it, until it
    stays; whether it did). None for the window: there is no hippocampus in it."""
    for move in range(_MOVES):
        found = foreground(look(window))
        if not found.any():
            return None, False
        middle, turn = _pose(found, window)
        moved = np.linalg.norm(middle - window.centre_mm)
        turned = np.degrees(np.arccos(np.clip((np.trace(turn.T @ window.turn) - 1) / 2, -1, 1)))
        if move >= 2:  # half-way, so that it does not swing between two places
            middle = (middle + window.centre_mm) / 2
        window = window._replace(centre_mm=middle, turn=turn)
        if moved < _STAYS_MM and turned < _STAYS_DEGREES:
            return window, True
    return window, False


def _pose(found, window):
    """(middle in mm of the box around what was found, rotation (3, 3) of the window in which its long axis runs as in the
    training's crops)."""
    voxels = np.argwhere(found)
    middle = window.to_mm((voxels.min(0) + voxels.max(0)) / 2)
    points = (voxels - voxels.mean(0)) @ window.steps().T  # mm
    axis = np.linalg.eigh(points.T @ points)[1][:, 2]
    axis = axis * (np.sign(axis @ window.turn[:, 1]) or 1)
    usual = np.array(LONG_AXIS) * ((-1, 1, 1) if window.mirrored else 1)
    angle = np.degrees(np.arccos(np.clip(axis @ usual, -1, 1)))
    if angle > MOST_TURNED_DEGREES:
        return middle, window.turn
    normal = np.cross(usual, axis)
    normal = normal / max(np.linalg.norm(normal), 1e-9)
    return middle, Rotation.from_rotvec(normal * np.radians(angle)).as_matrix()


def foreground(probabilities):
    """The largest component of the hippocampus, where it is the likeliest class."""
    return largest_component(probabilities.argmax(0) > 0)


def on_grid(parts, shape, matrix):
    """Probabilities seen through several windows, [(array (C, *window.size), Window), ...], on the grid of a scan of this
    shape: (array (N, C, d, h, w) float32, slices of the scan that they cover). Beyond its window, each is background."""
    brought = [bring_back(probabilities, window, shape, matrix) for probabilities, window in parts]
    starts = np.min([[s.start for s in place] for _, place in brought], axis=0)
    stops = np.max([[s.stop for s in place] for _, place in brought], axis=0)
    result = np.zeros((len(parts), len(parts[0][0]), *(stops - starts)), np.float32)
    result[:, 0] = 1
    for view, (probabilities, place) in zip(result, brought):
        view[(slice(None), *(slice(s.start - start, s.stop - start) for s, start in zip(place, starts)))] = (
            probabilities
        )
    return result, tuple(map(slice, starts, stops))


def likeliest(probabilities, parts, weights):
    """The voxels of a grid (boolean) that are likeliest to be hippocampus, as many as make the volume that it has in the
    windows: on voxels of 3 mm, those of more than one half would be too few.

    probabilities: (C, d, h, w), the mean with these weights of those that `parts`, see on_grid, were brought to.
    """
    inside = 1 - probabilities[0]
    windows = [1 - seen[0] for seen, _ in parts]
    counted = sum(weight * (window > 0.5).sum() for weight, window in zip(weights, windows))
    share = counted / sum(weight * window.sum() for weight, window in zip(weights, windows))
    count = min(round(float(inside.sum() * share)), inside.size)
    return inside >= (np.partition(inside, -count, None)[-count] if count else np.inf)


def touches_edge(mask, place, shape):
    """Whether a boolean array, which lies at `place` in an array of this shape, reaches the edge of the latter."""
    for axis, (part, size) in enumerate(zip(place, shape)):
        low, high, _ = part.indices(size)
        ends = ([0] if low == 0 else []) + ([mask.shape[axis] - 1] if high == size else [])
        if ends and mask.take(ends, axis).any():
            return True
    return False
