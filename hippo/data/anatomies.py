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
from scipy.ndimage import gaussian_filter, gaussian_filter1d

CLASSES = {1: "left hippocampus", 2: "right hippocampus", 3: "white matter", 4: "other intracranial space"}
SIZE, SPACING_MM = 64, 4.0  # of the cube that the network sees: voxels along each side, and their size
SIDE_MM = SIZE * SPACING_MM
_FINE = 2  # labels that are drawn per voxel of the cube, along each axis
_PAIRS = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58}
_PAIRS |= {28: 60, 30: 62, 136: 163, 137: 164}  # label of the left side: label of the right side
WHITE, GREY = (2, 7, 16, 28, 41, 46, 60, 85), (3, 8, 11, 12, 17, 18, 26, 42, 47, 50, 51, 53, 54, 58)
BETWEEN, FLUID = (10, 13, 49, 52), (4, 5, 14, 15, 24, 43, 44)
AROUND_T1 = {506: (0.05, 0.3), 507: (0.25, 0.7), 511: (0.4, 1.1), 514: (0.15, 0.8), 515: (0, 0.25), 516: (0.4, 1.1)}
# of eyes, muscle, skin and fat, venous sinuses and dura, bone, and marrow: range of intensities in T1
_LABELS, OUTSIDE = 1024, 500  # labels of 500 or more lie outside the intracranial space


class DrawnHeads(torch.utils.data.Dataset):
    """A data set of synthetic heads, see draw_head. The key of an item is (pass, index of the anatomy), as
    EpochSampler yields it. Its random numbers depend only on (seed, pass, index). drawing: further arguments of
    draw_head."""

    def __init__(self, anatomies, seed, **drawing):
        self.anatomies, self.seed, self.drawing = anatomies, seed, drawing

    def __len__(self):
        return len(self.anatomies)

    def __getitem__(self, key):
        number, index = key
        return draw_head(self.anatomies[index], np.random.default_rng([self.seed, number, index]), **self.drawing)


def load_anatomies(folder, spacing=SPACING_MM / _FINE):
    """Loads the label maps in a folder. Returns {name: int16 tensor (D, H, W) in RAS with voxels of `spacing` mm, a
    whole number}.

    Raises UserError if there are none, and for a file without such labels.
    """
    folder, step = Path(folder), int(spacing)
    paths = sorted(folder.glob("*.nii.gz"))
    require(paths, f"{folder}: no label maps (.nii.gz) in it; get them with: python get_data.py --anatomies={folder}")
    anatomies = {}
    for path in paths:
        array, image = read_nifti(path)
        inside = np.allclose(spacing_mm(image), 1, atol=0.02) and np.isin([17, 53], array[::4, ::4, ::4]).all()
        require(
            inside and array.min() >= 0 and array.max() < _LABELS,
            f"{path}: expected labels of 1 mm with both hippocampi (17, 53); get them with: python get_data.py",
        )
        anatomies[case_id(path)] = torch.from_numpy(array[::step, ::step, ::step].astype(np.int16))
    return anatomies


def draw_head(labels, rng, whole=False, size=SIZE, natural=False):
    """Draws a head from an anatomy in a cube of N = `size` voxels. Returns (image (1, N, N, N) float32 scaled by
    to_head_range, fractions (5, N, N, N) float32 of background and CLASSES in each voxel), on the CPU. labels: on the
    device that does most of the work. rng: numpy Generator.

    Contrast, pose, field of view, resolution and image quality vary. Six in ten images have white matter brighter than
    grey matter and dark fluid, as in T1; the others have any order. One in twelve shows blobs instead of a head.
    whole: always a head, not rotated, and completely in view. natural: most T1-like heads have a dark skull under a
    bright scalp, and brains without a skull are cut out along various borders.
    """
    if rng.random() < 0.5:
        labels = swap_sides(labels)
    nothing = rng.random() < 0.08 and not whole
    if nothing:
        labels = _blobs([size * _FINE] * 3, rng).to(labels.device)
    else:
        labels = _posed(labels, rng, whole, size * _FINE)
    if rng.random() < 0.15:
        labels = _defaced(labels, rng)
    image, shares = _paint(labels, rng, natural), _shares(labels)
    if nothing:
        shares = torch.zeros_like(shares)
        shares[0] = 1
    if natural and not nothing and rng.random() < 0.3:
        image = _cut_out(image, shares, _pool(_is_tissue(labels)), rng)
    else:
        image = _degrade(image * (1 - shares[0]) if rng.random() < 0.2 and not natural else image, rng)
    image, shares = image.cpu().numpy(), shares.cpu()
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
    return _look_up(exchanged, labels.flip(0))


def _look_up(table, labels):
    """Returns the values of a table (_LABELS,) for labels (D, H, W), on their device."""
    return table.to(labels.device).index_select(0, labels.flatten().int()).view(labels.shape)


def _pool(fine):
    """Returns the means of blocks of _FINE = 2 voxels along each axis of a tensor, float32."""
    fine = fine.float()
    fine = fine[::2] + fine[1::2]
    fine = fine[:, ::2] + fine[:, 1::2]
    return (fine[..., ::2] + fine[..., 1::2]) / _FINE**3


def _shares(labels):
    """Returns the fractions (5, N, N, N) of background and CLASSES in the blocks of 2 x 2 x 2 labels, float32."""
    classes = np.zeros(_LABELS, np.int64)
    classes[1:OUTSIDE], classes[list(WHITE)], classes[17], classes[53] = 4, 3, 1, 2
    # a digit counts the voxels of a class, so that one pass over the labels is enough
    digits = torch.from_numpy(np.where(classes > 0, 16.0 ** (classes - 1), 0).astype(np.float32))
    counts = (_pool(_look_up(digits, labels)) * _FINE**3).round_().int()
    shares = torch.stack([counts >> 4 * number & 15 for number in range(4)]).float() / _FINE**3
    return torch.cat([1 - shares.sum(0, keepdim=True), shares])


def _is_tissue(labels):
    """Tests which labels belong to the brain with its ventricles, without the fluid around it."""
    return (labels > 0) & (labels < OUTSIDE) & (labels != 24)


def _cut_out(image, shares, tissue, rng):
    """Returns an image after _degrade and skull-stripping, which leaves all of the intracranial space, or the brain
    with more or less of the fluid around it.

    Noise comes before or after. One in five images keeps an even rim. tissue: share of the brain with its ventricles.
    """
    mask, unit = 1 - shares[0], len(tissue) / SIZE
    if rng.random() < 0.6:
        blurred = _blur(tissue, [rng.uniform(0.4, 2) * unit] * 3)
        mask = ((blurred - rng.uniform(0.1, 0.5)) * 4 + 0.5).clamp(0, 1)
    rim = (_blur(mask, [rng.uniform(1, 4) * unit] * 3) > 0.05) * rng.uniform(0, 0.4) * (rng.random() < 0.2)
    if rng.random() < 0.5:
        return _degrade(image * mask + rim * (1 - mask), rng)
    return _degrade(image, rng) * mask + rim * (1 - mask)


def _blur(image, sigmas):
    """Returns an image (N, N, N) blurred by Gaussians of `sigmas` voxels along the axes."""
    for axis, sigma in enumerate(sigmas):
        kernel = torch.from_numpy(gaussian_filter1d(np.eye(len(image), dtype=np.float32), sigma, 0)).to(image.device)
        image = torch.tensordot(kernel, image, ([1], [axis])).movedim(0, axis)
    return image


def _posed(labels, rng, whole, size):
    """Returns the labels on a grid of `size` voxels along each side of the cube, randomly rotated, scaled and
    shifted."""
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
    shift = rng.uniform(-0.35, 0.35, 3) * np.array(labels.shape) / 2
    # below the anatomy, its lowest slice is repeated, like a neck, or the head ends there
    beyond = 0 if rng.random() < 0.6 else 1
    places = torch.arange(size, device=labels.device, dtype=torch.float32) - (size - 1) / 2
    padded, index = F.pad(labels, (1,) * 6), 0
    for n, row, start in zip(labels.shape, matrix, shift):
        x, y, z = (places * float(step * n / size) for step in row)
        x = x + float(start + (n + 1) / 2)
        at = (x[:, None, None] + y[:, None] + z).round_().clamp_(1 - beyond, n + beyond)
        index = index * (n + 2) + at.int()
    return padded.flatten().index_select(0, index.flatten()).view(index.shape)


def _blobs(shape, rng):
    """Returns labels of a few smooth shapes that do not look like a head."""
    field = gaussian_filter(rng.standard_normal([n // 4 for n in shape]), rng.uniform(0.8, 5), mode="wrap")
    field = F.interpolate(torch.from_numpy(field)[None, None], tuple(shape), mode="trilinear")[0, 0]
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
    y, z = (torch.arange(n, device=labels.device) for n in labels.shape[1:])
    slope = rng.uniform(0, 1.5)
    cut = (y[:, None] - front + rng.uniform(0, 15)) + slope * (z[None] - middle) * -1 > rng.uniform(0, 20)
    outside = (labels == 0) | (labels >= OUTSIDE)
    return torch.where(outside & cut & (z[None] < middle), 0, labels)


def _paint(labels, rng, natural):
    """Draws an image from labels, with a random mean and spread of intensity for each label. Returns the means of
    blocks of 2 x 2 x 2 voxels, float32."""
    mean = rng.uniform(0, 1, _LABELS)
    if rng.random() < 0.6:  # as in T1
        white, grey, fluid = rng.uniform(0.7, 1), rng.uniform(0.4, 0.65), rng.uniform(0.02, 0.25)
        mean[list(WHITE)] = white * rng.uniform(0.92, 1.05, len(WHITE))
        mean[list(GREY)] = grey * rng.uniform(0.9, 1.15, len(GREY))
        mean[list(BETWEEN)] = (white + grey) / 2
        mean[list(FLUID)] = fluid
        if natural and rng.random() < 0.7:
            for tissue, (low, high) in AROUND_T1.items():
                mean[tissue] = rng.uniform(low, high)
    elif rng.random() < 0.5:  # tissues in any order, as in T2 or inverted
        white, grey, fluid = rng.uniform(0, 1, 3)
        for tissue, value in ((WHITE, white), (GREY, grey), (BETWEEN, (white + grey) / 2), (FLUID, fluid)):
            mean[list(tissue)] = value * rng.uniform(0.92, 1.08, len(tissue))
    for left, right in _PAIRS.items():
        mean[right] = mean[left] * rng.uniform(0.96, 1.04)
    mean[0] = rng.uniform(0, 0.08) if rng.random() < 0.85 else rng.uniform(0, 1)
    spread = rng.uniform(0, 0.08, _LABELS)
    mean, variance = (_pool(_look_up(torch.from_numpy(v.astype(np.float32)), labels)) for v in (mean, spread**2))
    return mean + (variance / _FINE**3).sqrt() * _noise(mean, rng)


def _noise(image, rng):
    """Returns normally distributed random numbers like an image, on its device."""
    return torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32)).to(image.device)


def _degrade(image, rng):
    """Adds blur, shading and noise to an image (N, N, N), and changes its gamma."""
    if rng.random() < 0.5:
        image = _blur(image, rng.uniform(0, 0.9, 3) * len(image) / SIZE)
    line = torch.linspace(-1, 1, len(image), device=image.device)
    axes = (line[:, None, None], line[:, None], line)
    for axis, slope, bow in zip(axes, rng.uniform(-0.4, 0.4, 3).tolist(), rng.uniform(-0.4, 0.4, 3).tolist()):
        image = image * torch.exp(slope * axis + bow * axis**2)
    image = image + _noise(image, rng) * rng.uniform(0, 0.05)
    return image.clamp_min(0) ** float(np.exp(rng.uniform(-0.4, 0.4)))


def _field_of_view(shares, rng):
    """Returns a tensor (N, N, N) that is 1 inside a random field of view and 0 outside: the whole cube, cut at its
    sides, or a box around a hippocampus."""
    size = shares.shape[-1]
    seen, unit = torch.ones(shares.shape[1:]), size / SIZE
    side = torch.nonzero(shares[rng.integers(1, 3)] > 0.3).float()
    if len(side) and rng.random() < 0.12:  # a crop
        centre = side.mean(0).numpy() + rng.uniform(-4, 4, 3) * unit
        half = rng.uniform(5, 14, 3) * unit
        for axis in range(3):
            low, high = np.clip(np.round((centre - half)[axis]), 0, size - 4), np.round((centre + half)[axis])
            seen.narrow(axis, 0, int(low)).zero_()
            seen.narrow(axis, int(min(high, size)), size - int(min(high, size))).zero_()
        return seen
    for axis in range(3):
        if rng.random() < 0.4:
            cut = int(rng.integers(0, 22 if rng.random() < 0.3 else 12) * unit)
            seen.narrow(axis, 0 if rng.random() < 0.5 else size - cut, cut).zero_()
    return seen
