"""Synthesises images from label maps of whole heads, in any contrast and pose, to train the network that locates
hippocampi.

An anatomy is a label map with FreeSurfer's labels, as in the training set of BBillot/SynthSeg (Apache 2.0). Images are
drawn with a random mean and spread of intensity for each label, as in Billot et al., Medical Image Analysis 86, 2023.
"""

from pathlib import Path

from hippo.data.cases import case_id
from hippo.data.intensity import to_head_range
from hippo.data.nifti import read_nifti, spacing_mm
from hippo.errors import require

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

CLASSES = {1: "left hippocampus", 2: "right hippocampus", 3: "white matter", 4: "other intracranial space"}
SIZE, SPACING_MM = 64, 4.0  # of the cube that the network sees: voxels along each side, and their size
_FINE = 2  # voxels of an anatomy in memory per voxel of the cube, along each axis
_PAIRS = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58}
_PAIRS |= {28: 60, 30: 62, 136: 163, 137: 164}  # label of the left side: label of the right side
WHITE, GREY = (2, 7, 16, 28, 41, 46, 60, 85), (3, 8, 11, 12, 17, 18, 26, 42, 47, 50, 51, 53, 54, 58)
BETWEEN, FLUID = (10, 13, 49, 52), (4, 5, 14, 15, 24, 43, 44)
_LABELS, OUTSIDE = 1024, 500  # labels of 500 or more lie outside the intracranial space


class DrawnHeads(torch.utils.data.Dataset):
    """A data set of synthetic heads, see draw_head. The key of an item is (pass, index of the anatomy), as
    EpochSampler yields it. Its random numbers depend only on (seed, pass, index)."""

    def __init__(self, anatomies, seed):
        self.anatomies, self.seed = anatomies, seed

    def __len__(self):
        return len(self.anatomies)

    def __getitem__(self, key):
        number, index = key
        return draw_head(self.anatomies[index], np.random.default_rng([self.seed, number, index]))


def load_anatomies(folder):
    """Loads the label maps in a folder. Returns {name: int16 tensor (D, H, W) in RAS with voxels of 2 mm}.

    Raises UserError if there are none, and for a file without such labels.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.nii.gz"))
    require(paths, f"{folder}: no label maps (.nii.gz) in it; get them with: python get_data.py --anatomies={folder}")
    anatomies = {}
    for path in paths:
        array, image = read_nifti(path)
        inside = (
            np.allclose(spacing_mm(image), SPACING_MM / _FINE / 2, atol=0.02)
            and np.isin([17, 53], array[::4, ::4, ::4]).all()
        )
        require(
            inside and array.min() >= 0 and array.max() < _LABELS,
            f"{path}: expected labels of 1 mm with both hippocampi (17, 53); get them with: python get_data.py",
        )
        anatomies[case_id(path)] = torch.from_numpy(array[::2, ::2, ::2].astype(np.int16))
    return anatomies


def draw_head(labels, rng, whole=False):
    """Draws a head from an anatomy in a cube of N = SIZE voxels. Returns (image (1, N, N, N) float32 scaled by
    to_head_range, fractions (5, N, N, N) float32 of background and CLASSES in each voxel). rng: numpy Generator.

    Contrast, pose, field of view, resolution and image quality vary. Six in ten images have white matter brighter than
    grey matter and dark fluid, as in T1; the others have any order. One in twelve shows blobs instead of a head.
    whole: always a head, not rotated, and completely in view.
    """
    if rng.random() < 0.5:
        labels = swap_sides(labels)
    nothing = rng.random() < 0.08 and not whole
    labels = _blobs(labels.shape, rng) if nothing else _posed(labels, rng, whole)
    if rng.random() < 0.15:
        labels = _defaced(labels, rng)
    brain = (labels > 0) & (labels < OUTSIDE)
    image = _paint(labels, rng)
    if rng.random() < 0.2:
        image = image * brain  # skull-stripped
    if nothing:
        shares = torch.zeros(5, *labels.shape)
    else:
        white = torch.isin(labels, torch.tensor(WHITE))
        left, right = labels == 17, labels == 53
        shares = torch.stack([~brain, left, right, white, brain & ~left & ~right & ~white]).float()
    image, shares = F.avg_pool3d(image[None], _FINE)[0], F.avg_pool3d(shares[None], _FINE)[0]
    if nothing:
        shares[0] = 1
    image = _degrade(image.numpy(), rng)
    seen = torch.ones(shares.shape[1:]) if whole else _field_of_view(shares, rng)
    shares = shares * seen
    shares[0] += 1 - seen
    image = to_head_range(image, seen.numpy() > 0)
    return torch.from_numpy(image)[None], shares


def swap_sides(labels):
    """Mirrors a label map left to right and exchanges the labels of the sides, so that they are correct in the
    mirrored head."""
    exchanged = torch.arange(_LABELS, dtype=torch.int16)
    for left, right in _PAIRS.items():
        exchanged[left], exchanged[right] = right, left
    return exchanged[labels.flip(0).long()]


def _posed(labels, rng, whole):
    """Returns the labels on the fine grid of the cube, randomly rotated, scaled and shifted."""
    largest = 25 if rng.random() < 0.7 else 60
    matrix = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.radians(rng.uniform(-largest, largest, 3))):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    if rng.random() < 0.06:  # upside down, by a rotation of 180 degrees about one of the axes
        kept = rng.integers(3)
        matrix = np.diag([1.0 if axis == kept else -1.0 for axis in range(3)]) @ matrix
    matrix = matrix @ np.diag(np.exp(rng.uniform(-0.15, 0.15) + rng.uniform(-0.08, 0.08, 3)))
    if whole:
        matrix = np.eye(3)
    theta = np.concatenate([matrix, rng.uniform(-0.35, 0.35, (3, 1))], axis=1)[::-1, [2, 1, 0, 3]]
    theta = torch.from_numpy(np.ascontiguousarray(theta, np.float32))[None]
    grid = F.affine_grid(theta, [1, 1, *[SIZE * _FINE] * 3], align_corners=False)
    # below the anatomy, its lowest slice is repeated, like a neck, or the head ends there
    beyond = "border" if rng.random() < 0.6 else "zeros"
    return F.grid_sample(labels.float()[None, None], grid, "nearest", beyond, align_corners=False)[0, 0].long()


def _blobs(shape, rng):
    """Returns labels of a few smooth shapes that do not look like a head."""
    field = gaussian_filter(rng.standard_normal([n // 4 for n in shape]), rng.uniform(0.8, 5), mode="wrap")
    field = F.interpolate(torch.from_numpy(field)[None, None], shape, mode="trilinear")[0, 0]
    cuts = torch.quantile(field.flatten()[::31], torch.tensor(np.sort(rng.uniform(0, 1, rng.integers(1, 6)))))
    labels = torch.bucketize(field, cuts) + OUTSIDE
    if rng.random() < 0.7:  # inside an ellipsoid, like an abdomen
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
        radii, centre = rng.uniform(0.3, 1, 3), rng.uniform(-0.3, 0.3, 3)
        labels[sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii)) > 1] = 0
    return labels


def _defaced(labels, rng):
    """Removes the labels of the face, in front of the brain and below its centre. Expects `labels` to be roughly
    upright."""
    brain = torch.nonzero((labels > 0) & (labels < OUTSIDE))
    if not len(brain):
        return labels
    (front, middle) = brain[:, 1].max(), brain[:, 2].float().mean()
    y, z = (torch.arange(n) for n in labels.shape[1:])
    slope = rng.uniform(0, 1.5)
    cut = (y[:, None] - front + rng.uniform(0, 15)) + slope * (z[None] - middle) * -1 > rng.uniform(0, 20)
    outside = (labels == 0) | (labels >= OUTSIDE)
    return torch.where(outside & cut & (z[None] < middle), 0, labels)


def _paint(labels, rng):
    """Draws an image from labels, with a random mean and spread of intensity for each label."""
    mean = rng.uniform(0, 1, _LABELS)
    if rng.random() < 0.6:  # as in T1
        white, grey, fluid = rng.uniform(0.7, 1), rng.uniform(0.4, 0.65), rng.uniform(0.02, 0.25)
        mean[list(WHITE)] = white * rng.uniform(0.92, 1.05, len(WHITE))
        mean[list(GREY)] = grey * rng.uniform(0.9, 1.15, len(GREY))
        mean[list(BETWEEN)] = (white + grey) / 2
        mean[list(FLUID)] = fluid
    elif rng.random() < 0.5:  # tissues in any order, as in T2 or inverted
        white, grey, fluid = rng.uniform(0, 1, 3)
        for tissue, value in ((WHITE, white), (GREY, grey), (BETWEEN, (white + grey) / 2), (FLUID, fluid)):
            mean[list(tissue)] = value * rng.uniform(0.92, 1.08, len(tissue))
    for left, right in _PAIRS.items():
        mean[right] = mean[left] * rng.uniform(0.96, 1.04)
    mean[0] = rng.uniform(0, 0.08) if rng.random() < 0.85 else rng.uniform(0, 1)
    spread = rng.uniform(0, 0.08, _LABELS)
    mean, spread = (torch.tensor(values, dtype=torch.float32) for values in (mean, spread))
    noise = torch.from_numpy(rng.standard_normal(tuple(labels.shape), np.float32))
    return mean[labels] + spread[labels] * noise


def _degrade(image, rng):
    """Adds blur, shading and noise to an image (N, N, N), and changes its gamma."""
    if rng.random() < 0.5:
        image = gaussian_filter(image, rng.uniform(0, 0.9, 3))
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    axes = (line[:, None, None], line[:, None], line)
    for axis, slope, bow in zip(axes, rng.uniform(-0.4, 0.4, 3), rng.uniform(-0.4, 0.4, 3)):
        image = image * np.exp(slope * axis + bow * axis**2)
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.05))
    return np.clip(image, 0, None) ** np.float32(np.exp(rng.uniform(-0.4, 0.4)))


def _field_of_view(shares, rng):
    """Returns a tensor (N, N, N) that is 1 inside a random field of view and 0 outside: the whole cube, cut at its
    sides, or a box around a hippocampus."""
    seen = torch.ones(shares.shape[1:])
    side = torch.nonzero(shares[rng.integers(1, 3)] > 0.3).float()
    if len(side) and rng.random() < 0.12:  # a crop
        centre = side.mean(0).numpy() + rng.uniform(-4, 4, 3)
        half = rng.uniform(5, 14, 3)
        for axis in range(3):
            low, high = np.clip(np.round((centre - half)[axis]), 0, 60), np.round((centre + half)[axis])
            seen.narrow(axis, 0, int(low)).zero_()
            seen.narrow(axis, int(min(high, SIZE)), SIZE - int(min(high, SIZE))).zero_()
        return seen
    for axis in range(3):
        if rng.random() < 0.4:
            cut = int(rng.integers(0, 22 if rng.random() < 0.3 else 12))
            seen.narrow(axis, 0 if rng.random() < 0.5 else SIZE - cut, cut).zero_()
    return seen
