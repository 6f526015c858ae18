"""The brain's surface in a head: found with and without a skull, and drawn."""

from types import SimpleNamespace

import viz
from hippo.heads.brain import find_brain
from hippo.heads.scan import read_scan
from hippo.heads.window import Window
from hippo.pictures.scenes import draw_scenes

import nibabel as nib
import numpy as np
import pytest
from runs import has_colour, share_of
from scipy.ndimage import affine_transform, binary_dilation, binary_erosion
from skimage.io import imread

COARSE = Window(np.array([3.0, -2.0, 5.0]), (48, 48, 48), 4.0)  # as the locating network sees a head


@pytest.fixture(scope="module")
def folded():
    """(points in mm of a grid of 1.5 mm about its centre, mask of a ball with grooves 7 mm deep, radius of each point)."""
    axis = (np.arange(120) - 59.5) * 1.5
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    grooves = (np.abs(np.sin(8 * np.arctan2(y, x))) < 0.2) & (radius > 55) & (np.abs(z) < 40)
    return np.stack([x, y, z], axis=-1), (radius < 62) & ~grooves, radius


def head_of(folded, skull, fluid=20.0):
    """A Scan of the folded ball: grey (70) around white (100), fluid, and a skull (10) below fat (220) if wanted, under a
    bias field of 40 %."""
    points, brain, radius = folded
    image = np.where(brain, np.where(radius < 50, 100.0, 70.0), fluid)
    image[(radius > 66) & (radius < 72)] = 10 if skull else 0
    image[radius >= 72] = 0
    if skull:
        image[(radius >= 72) & (radius < 78)] = 220
    image *= 1 + 0.2 * np.sin(points[..., 1] / 50)
    noise = np.random.default_rng(0).normal(0, 3, image.shape) * (image > 0)
    return read_scan(nib.Nifti1Image((image + noise).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1])))


def located(radius_mm):
    """A ball as the intracranial space of a Located."""
    points = COARSE.to_mm(np.moveaxis(np.indices(COARSE.size), 0, -1))
    inside = (np.linalg.norm(points, axis=-1) < radius_mm).astype(np.float32)
    return SimpleNamespace(inside=inside, window=COARSE)


def on_grid(scan, found):
    """The brain that find_brain found, on the grid of the scan."""
    brightness, level, window = found
    steps = np.linalg.solve(window.steps(), scan.matrix)
    start = (np.array(window.size) - 1) / 2 - np.linalg.solve(window.steps(), window.centre_mm)
    start -= steps @ (np.array(scan.array.shape) - 1) / 2
    return affine_transform(brightness, steps, start, scan.array.shape, order=0) > level


@pytest.mark.promise("brain")
@pytest.mark.parametrize(
    "skull, radius_mm", [(False, 60), (False, 66), (True, 60), (True, 70)]
)  # the intracranial space has 66 mm: too small, right, too large
def test_the_brain_is_found_with_its_folds(folded, skull, radius_mm):
    scan, truth = head_of(folded, skull), folded[1]
    brain = on_grid(scan, find_brain(scan, located(radius_mm)))
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.95
    grooves = binary_erosion((folded[2] < 61) & (folded[2] > 56) & ~truth)
    assert grooves.sum() > 100 and brain[grooves].mean() < 0.1
    assert not (brain & ~binary_dilation(truth, iterations=3)).any()


def test_bright_fluid_and_what_is_too_small_are_no_brain(folded):
    scan = head_of(folded, skull=True, fluid=180.0)
    scan.array[folded[2] < 20] = 180  # ventricles
    assert find_brain(scan, located(66)) is None
    assert find_brain(head_of(folded, skull=True), located(6)) is None


@pytest.mark.promise("brain")
def test_two_views_of_one_brain(folded, tmp_path):
    scan = head_of(folded, skull=True)
    labels = np.zeros(scan.array.shape, np.uint8)
    for label, (x, y) in enumerate([(44, 64), (44, 53), (75, 64), (75, 53)], 1):
        labels[x - 4 : x + 4, y - 5 : y + 5, 48:56] = label
    meshes, name = viz.head_meshes(scan, labels, located(66))
    assert name == "brain" and [label for label, _ in meshes] == [0, 1, 2, 3, 4]
    path = tmp_path / "head.png"
    draw_scenes({path: ((1, 2), lambda plotter: viz.draw_head(plotter, meshes, False, name, "a head"))}, "false")
    left, below = np.split(imread(path)[..., :3].astype(int), 2, axis=1)
    for half in (left, below):
        r, g, b = np.moveaxis(half, -1, 0)
        assert ((r > 1.5 * g) & (r > 1.5 * b)).mean() > 0.005  # crimson, seen through the brain
        assert ((abs(r - g) < 12) & (abs(g - b) < 12) & (r > 90) & (r < 225)).mean() > 0.2  # grey
    assert not (below[left.shape[0] // 2] == left[left.shape[0] // 2]).all() and has_colour(path, "black")
    assert path.stat().st_size < 600_000 and share_of(path, "white") > 0.2
    _, name = viz.head_meshes(head_of(folded, skull=True, fluid=400.0), labels, located(66))
    assert name == "intracranial space"
