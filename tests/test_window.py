"""What the models see of a scan, and what becomes of it on the scan's grid."""

from hippo.heads.window import Window, behind_plane, likeliest, on_grid

import numpy as np
import pytest
from scipy.spatial.transform import Rotation


def test_labels_on_thick_slices_hold_the_volume_of_the_window():
    """A soft ellipsoid, 5 mm thick: too few voxels of 3 mm have more than one half."""
    window = Window(np.array([0.4, 0.2, -0.7]), (36, 52, 36), 1.0)
    points = window.to_mm(np.moveaxis(np.indices(window.size), 0, -1)) - window.centre_mm
    soft = 1 / (1 + np.exp(np.linalg.norm(points / (1, 4, 1), axis=-1) - 2.5))
    parts = [(np.stack([1 - soft, soft / 2, soft / 2]).astype(np.float32), window)]
    volume = (soft > 0.5).sum()
    for spacing in ((1, 1, 1), (1, 1, 3), (3, 3, 3)):
        views, _ = on_grid(parts, (60, 60, 60), np.diag(np.array(spacing, float)))
        found, voxel = likeliest(views[0], parts, [1]), float(np.prod(spacing))
        assert found.sum() * voxel == pytest.approx(volume, rel=0.01, abs=voxel), spacing
        assert views[0, 0][found].max() <= views[0, 0][~found].min()
    assert (views[0, 0] < 0.5).sum() * voxel < 0.9 * volume


def test_the_border_in_a_turned_window_is_one_plane():
    """Two halves of a soft ellipsoid with noisy votes, on a grid tilted against the window: the border is where it was."""
    turn = Rotation.from_euler("xyz", (35, 10, -20), degrees=True).as_matrix()
    window = Window(np.array([3.0, -2, 1]), (36, 52, 36), 1.0, turn=turn)
    matrix = np.diag([1.0, 1.2, 0.8])
    bbox = slice(5, 55), slice(4, 48), slice(6, 70)
    voxels = np.moveaxis(np.indices((60, 50, 76)), 0, -1) - (np.array([60, 50, 76]) - 1) / 2
    along = ((voxels @ matrix.T - window.centre_mm) @ turn)[bbox]
    inside = np.exp(-((np.linalg.norm(along / (1, 2, 1), axis=-1) / 10) ** 2))
    votes = np.random.default_rng(0).uniform(0, 1, inside.shape)
    posterior = inside * (0.7 * (along[..., 1] < 4) + 0.3 * votes)
    p = np.stack([1 - inside, inside - posterior, posterior]).astype(np.float32)
    behind = behind_plane(p, bbox, window, matrix)
    assert along[..., 1][behind].max() < along[..., 1][~behind].min()  # one plane, across the window's second axis
    assert along[..., 1][behind].max() == pytest.approx(4, abs=0.1)
    assert not behind_plane(p[[0, 1, 1]] * [[[[1]]], [[[1]]], [[[0]]]], bbox, window, matrix).any()  # no posterior part
    assert behind_plane(p[[0, 1, 1]] * [[[[1]]], [[[0]]], [[[1]]]], bbox, window, matrix)[inside > 1e-3].all()
