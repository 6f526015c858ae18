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
from scipy.ndimage import binary_dilation, gaussian_filter, gaussian_filter1d

CLASSES = {1: "left hippocampus", 2: "right hippocampus", 3: "left hemisphere", 4: "right hemisphere"}
CLASSES |= {5: "other intracranial space"}
SIZE, SPACING_MM = 64, 4.0  # of the cube that the network labels: voxels along each side, and their size
DETAIL = 2  # voxels of the image and of the labels per voxel of the cube, along each axis
_PAIRS = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58}
_PAIRS |= {28: 60, 30: 62, 136: 163, 137: 164}  # label of the left side: label of the right side
WHITE, GREY = (2, 7, 16, 28, 41, 46, 60, 85), (3, 8, 11, 12, 17, 18, 26, 42, 47, 50, 51, 53, 54, 58)
BETWEEN, FLUID = (10, 13, 49, 52), (4, 5, 14, 15, 24, 43, 44)
SINUS, DURA, BELOW = 514, 499, 600  # see bound
AROUND_T1 = {506: (0.05, 0.3), 507: (0.25, 0.7), 511: (0.4, 1.1), DURA: (0.15, 0.8), 515: (0, 0.25), 516: (0.4, 1.1)}
# of eyes, muscle, skin and fat, dura and venous sinuses, bone, and marrow: range of intensities in T1
_LABELS, OUTSIDE = 1024, 500  # labels of 500 or more lie outside the intracranial space
_FLUID_AROUND, _CEREBELLUM = 24, (7, 8, 46, 47)
_TONSIL_MM2 = 50  # area of the cerebellum in the lowest plane of the intracranial space
_DURA_MM = 6  # from the brain and the fluid around it; further away, label 514 is a vein of the neck or the face


class DrawnHeads(torch.utils.data.Dataset):
    """A data set of synthetic heads, see draw_head. The key of an item is (pass, index of the anatomy), as
    EpochSampler yields it. Its random numbers depend only on (seed, pass, index). An item is (image (DETAIL^3, N, N, N),
    see to_channels, fractions)."""

    def __init__(self, anatomies, seed):
        self.anatomies, self.seed = anatomies, seed

    def __len__(self):
        return len(self.anatomies)

    def __getitem__(self, key):
        number, index = key
        image, shares = draw_head(self.anatomies[index], np.random.default_rng([self.seed, number, index]))
        return torch.from_numpy(to_channels(image)), shares


def load_anatomies(folder):
    """Loads the label maps in a folder. Returns {name: int16 tensor (D, H, W) in RAS with voxels of 2 mm}, see bound.

    Raises UserError if there are none, and for a file without such labels.
    """
    folder, step = Path(folder), int(SPACING_MM / DETAIL)
    paths = sorted(folder.glob("*.nii.gz"))
    require(paths, f"{folder}: no label maps (.nii.gz) in it; get them with: python get_data.py --anatomies={folder}")
    anatomies = {}
    for path in paths:
        array, image = read_nifti(path)
        inside = np.allclose(spacing_mm(image), 1, atol=0.02) and np.isin([17, 53], array[::4, ::4, ::4]).all()
        require(
            inside and array.min() >= 0 and array.max() < BELOW,
            f"{path}: expected labels of 1 mm with both hippocampi (17, 53); get them with: python get_data.py",
        )
        anatomies[case_id(path)] = torch.from_numpy(bound(array[::step, ::step, ::step], step).astype(np.int16))
    return anatomies


def bound(labels, spacing):
    """Returns labels (D, H, W) in RAS whose numbers from 1 to OUTSIDE - 1 are the intracranial space: also the dura and
    the venous sinuses next to it (DURA), and nothing below the cerebellum (label + BELOW). spacing: of voxels, in mm."""
    inside = (labels > 0) & (labels < OUTSIDE)
    lowest = np.argmax(np.isin(labels, _CEREBELLUM).sum((0, 1)) * spacing**2 > _TONSIL_MM2)
    below = np.arange(labels.shape[2]) < lowest
    near = binary_dilation(inside, iterations=round(_DURA_MM / spacing)) & ~below
    return np.where(inside & below, labels + BELOW, np.where((labels == SINUS) & near, DURA, labels))


def draw_head(labels, rng, whole=False):
    """Draws a head from an anatomy in a cube of N = 64 voxels. Returns (image (N x DETAIL, ...) float32 scaled by
    to_head_range, fractions (6, N, N, N) float32 of background and CLASSES in each voxel), on the CPU. labels: on the
    device that does most of the work. rng: numpy Generator.

    Contrast, pose, field of view, resolution and image quality vary. Six in ten images have white matter brighter than
    grey matter and dark fluid, as in T1, and most of these a dark skull under a bright scalp; the others have any order.
    Three in ten show a brain without a skull, cut out along various borders, and one in twelve shows blobs instead of a
    head. whole: always a head, not rotated, and completely in view.
    """
    if rng.random() < 0.5:
        labels = swap_sides(labels)
    nothing = rng.random() < 0.08 and not whole
    if nothing:
        labels = _blobs([SIZE * DETAIL] * 3, rng).to(labels.device)
    else:
        labels = _posed(labels, rng, whole)
    if rng.random() < 0.15:
        labels = _defaced(labels, rng)
    image, shares = _paint(labels, rng), _shares(labels)
    if nothing:
        shares = (torch.arange(len(shares)) == 0).float()[:, None, None, None].expand_as(shares)
    image = _cut_out(image, labels, rng) if rng.random() < 0.3 and not nothing else _degrade(image, rng)
    image, shares = image.cpu().numpy(), shares.cpu()
    seen = torch.ones(shares.shape[1:]) if whole else _field_of_view(shares, rng)
    shares = shares * seen
    shares[0] += 1 - seen
    seen = F.interpolate(seen[None, None], scale_factor=DETAIL)[0, 0].numpy() > 0
    return to_head_range(image, seen), shares


def to_channels(image):
    """Rearranges an array (N x DETAIL, ...) to (DETAIL^3, N, N, N): each voxel's details become its channels."""
    n = len(image) // DETAIL
    return image.reshape([n, DETAIL] * 3).transpose(1, 3, 5, 0, 2, 4).reshape(DETAIL**3, n, n, n)


def swap_sides(labels):
    """Mirrors a label map left to right and exchanges the labels of the sides, which are right then, too."""
    exchanged = torch.arange(_LABELS, dtype=torch.int16)
    for left, right in _PAIRS.items():
        exchanged[left], exchanged[right] = right, left
    return _look_up(exchanged, labels.flip(0))


def _look_up(table, labels):
    """Returns the values of a table (_LABELS,) for labels (D, H, W), on their device."""
    return table.to(labels.device).index_select(0, labels.flatten().int()).view(labels.shape)


def _pool(fine):
    """Returns the means of blocks of DETAIL = 2 voxels along each axis of a tensor, float32."""
    fine = fine.float()
    fine = fine[::2] + fine[1::2]
    fine = fine[:, ::2] + fine[:, 1::2]
    return (fine[..., ::2] + fine[..., 1::2]) / DETAIL**3


def _shares(labels):
    """Returns the fractions (6, N, N, N) of background and CLASSES in the blocks of 2 x 2 x 2 labels, float32."""
    classes = np.zeros(_LABELS, np.int64)
    classes[1:OUTSIDE], classes[list(_PAIRS)], classes[list(_PAIRS.values())], classes[17], classes[53] = 5, 3, 4, 1, 2
    # a digit counts the voxels of a class, so that one pass over the labels is enough
    digits = torch.from_numpy(np.where(classes > 0, 16.0 ** (classes - 1), 0).astype(np.float32))
    counts = (_pool(_look_up(digits, labels)) * DETAIL**3).round_().int()
    shares = torch.stack([counts >> 4 * number & 15 for number in range(len(CLASSES))]).float() / DETAIL**3
    return torch.cat([1 - shares.sum(0, keepdim=True), shares])


def _cut_out(image, labels, rng):
    """Returns an image after _degrade and skull-stripping, which leaves all of the intracranial space, or the brain
    with more or less of the fluid around it.

    Noise comes before or after. One in ten images keeps an even rim.
    """
    mask = ((labels > 0) & (labels < OUTSIDE)).float()
    if rng.random() < 0.6:
        brain = mask * ((labels != _FLUID_AROUND) & (labels != DURA))
        mask = ((_blur(brain, [rng.uniform(0.8, 4)] * 3) - rng.uniform(0.1, 0.5)) * 4 + 0.5).clamp(0, 1)
    rim = (_blur(mask, [rng.uniform(2, 8)] * 3) > 0.05) * rng.uniform(0, 0.4) * (rng.random() < 0.1)
    if rng.random() < 0.5:
        return _degrade(image * mask + rim * (1 - mask), rng)
    return _degrade(image, rng) * mask + rim * (1 - mask)


def _blur(image, sigmas):
    """Returns an image (N, N, N) blurred by Gaussians of `sigmas` voxels along the axes."""
    n = len(image)
    for axis, sigma in enumerate(sigmas):
        kernel = torch.from_numpy(gaussian_filter1d(np.eye(n, dtype=np.float32), sigma, 0)).to(image.device)
        if axis == 0:
            image = (kernel @ image.reshape(n, -1)).view(n, n, n)
        else:
            image = kernel @ image if axis == 1 else image @ kernel.T
    return image


def _posed(labels, rng, whole):
    """Returns the labels on a grid of DETAIL x SIZE voxels along each side of the cube, randomly rotated, scaled and
    shifted."""
    size = SIZE * DETAIL
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
    """Removes the labels of the face, in front of the brain and below its centre, from labels that are about upright."""
    brain = torch.nonzero((labels > 0) & (labels < OUTSIDE))
    if not len(brain):
        return labels
    (front, middle) = brain[:, 1].max(), brain[:, 2].float().mean()
    y, z = (torch.arange(n, device=labels.device) for n in labels.shape[1:])
    slope = rng.uniform(0, 1.5)
    cut = (y[:, None] - front + rng.uniform(0, 15)) + slope * (z[None] - middle) * -1 > rng.uniform(0, 20)
    outside = (labels == 0) | (labels >= OUTSIDE)
    return torch.where(outside & cut & (z[None] < middle), 0, labels)


def _paint(labels, rng):
    """Draws an image from labels, float32, with a random mean and spread of intensity for each label."""
    mean = rng.uniform(0, 1, _LABELS)
    if rng.random() < 0.6:  # as in T1
        white, grey, fluid = rng.uniform(0.7, 1), rng.uniform(0.4, 0.65), rng.uniform(0.02, 0.25)
        mean[list(WHITE)] = white * rng.uniform(0.92, 1.05, len(WHITE))
        mean[list(GREY)] = grey * rng.uniform(0.9, 1.15, len(GREY))
        mean[list(BETWEEN)] = (white + grey) / 2
        mean[list(FLUID)] = fluid
        if rng.random() < 0.7:
            for tissue, (low, high) in AROUND_T1.items():
                mean[tissue] = rng.uniform(low, high)
    elif rng.random() < 0.5:  # tissues in any order, as in T2 or inverted
        white, grey, fluid = rng.uniform(0, 1, 3)
        for tissue, value in ((WHITE, white), (GREY, grey), (BETWEEN, (white + grey) / 2), (FLUID, fluid)):
            mean[list(tissue)] = value * rng.uniform(0.92, 1.08, len(tissue))
    for left, right in _PAIRS.items():
        mean[right] = mean[left] * rng.uniform(0.96, 1.04)
    mean[SINUS], mean[BELOW:] = mean[DURA], mean[: _LABELS - BELOW]
    mean[0] = rng.uniform(0, 0.08) if rng.random() < 0.85 else rng.uniform(0, 1)
    spread = rng.uniform(0, 0.08, _LABELS)
    mean, spread = (_look_up(torch.from_numpy(v.astype(np.float32)), labels) for v in (mean, spread))
    return _blur(mean, [0.5] * 3) + spread * _noise(mean, rng)  # voxels at a border show several tissues


def _noise(image, rng):
    """Returns normally distributed random numbers like an image, on its device."""
    generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**62)))
    return torch.randn(image.shape, generator=generator, device=image.device)


def _degrade(image, rng):
    """Adds blur, shading and noise to an image (N, N, N), and changes its gamma."""
    if rng.random() < 0.5:
        image = _blur(image, rng.uniform(0, 1.8, 3))
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
    seen = torch.ones(shares.shape[1:])
    side = torch.nonzero(shares[rng.integers(1, 3)] > 0.3).float()
    if len(side) and rng.random() < 0.12:  # a crop
        centre = side.mean(0).numpy() + rng.uniform(-4, 4, 3)
        half = rng.uniform(5, 14, 3)
        for axis in range(3):
            low, high = np.clip(np.round((centre - half)[axis]), 0, size - 4), np.round((centre + half)[axis])
            seen.narrow(axis, 0, int(low)).zero_()
            seen.narrow(axis, int(min(high, size)), size - int(min(high, size))).zero_()
        return seen
    for axis in range(3):
        if rng.random() < 0.4:
            cut = int(rng.integers(0, 22 if rng.random() < 0.3 else 12))
            seen.narrow(axis, 0 if rng.random() < 0.5 else size - cut, cut).zero_()
    return seen
