"""Places the window around a hippocampus, and combines predictions from several windows on the grid of the scan."""

from hippo.data.spatial import bring_back, largest_component
from hippo.heads.anatomy import LONG_AXIS, MOST_TURNED_DEGREES

import numpy as np
from scipy.spatial.transform import Rotation

_MOVES = 6  # maximum number of times that a window is re-centred
_STAYS_MM, _STAYS_DEGREES = 2.5, 8  # a window has converged if it moves and turns by less
_TURNED_DEGREES = 7  # rotation of the additional views, about axes to the corners of a tetrahedron
VIEWS = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / 3**0.5
VIEWS = Rotation.from_rotvec(np.radians(_TURNED_DEGREES) * VIEWS).as_matrix()


def settle(look, window):
    """Re-centres and re-orients the window on the prediction until it converges. look(window) returns probabilities
    (3, *window.size). Returns (window or None, converged); None means that no hippocampus was found."""
    for move in range(_MOVES):
        found = foreground(look(window))
        if not found.any():
            return None, False
        middle, turn = _pose(found, window)
        moved = np.linalg.norm(middle - window.centre_mm)
        turned = np.degrees(np.arccos(np.clip((np.trace(turn.T @ window.turn) - 1) / 2, -1, 1)))
        if move >= 2:  # half-way, so that the window does not oscillate between two places
            middle = (middle + window.centre_mm) / 2
        window = window._replace(centre_mm=middle, turn=turn)
        if moved < _STAYS_MM and turned < _STAYS_DEGREES:
            return window, True
    return window, False


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
    return middle, Rotation.from_rotvec(normal * np.radians(angle)).as_matrix()


def foreground(probabilities):
    """Returns a mask of the largest component of voxels whose most probable class is hippocampus."""
    return largest_component(probabilities.argmax(0) > 0)


def on_grid(parts, shape, matrix):
    """Resamples probabilities seen through several windows, [(array (C, *window.size), Window), ...], to the grid of a
    scan of this shape. Returns (array (N, C, d, h, w) float32, slices of the scan that they cover). Outside its
    window, each view is background."""
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


def touches_edge(mask, place, shape):
    """Tests whether a mask, placed at `place` in an array of this shape, reaches the edge of that array."""
    for axis, (part, size) in enumerate(zip(place, shape)):
        low, high, _ = part.indices(size)
        ends = ([0] if low == 0 else []) + ([mask.shape[axis] - 1] if high == size else [])
        if ends and mask.take(ends, axis).any():
            return True
    return False
