"""Augments training patches on the fly: turned, scaled and shifted first, then changed in its intensities.

Begin with `augment`. By default it uses random_affine and some of the steps in PARTS, at the end of this file.
"""

import math
from itertools import combinations

from hippo.data.spatial import resample

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

# the strengths of the shipped models, for heads from other scanners and of other people
ROBUST = {"atrophy_mm": 1.5, "gamma": 0.8, "bias_field": 0.3, "blur_mm": 1.2, "sharpening": 1.0, "noise": 0.3}
ROBUST |= {"low_resolution_mm": 3.0, "clipping": 0.05, "intensity": 0.5}
_OUTLINE_MM = 2.0  # standard deviation of the Gaussian that gives the smooth outline moved by `atrophy`


def augment(
    image,
    label,
    patch,
    rng,
    rotation_degrees=15.0,
    scale=0.15,
    shift_voxels=4.0,
    flip_axes="",
    atrophy_mm=0.0,
    **strengths,
):
    """Cuts an augmented patch from a volume (D, H, W) or slice (H, W). Returns (image (1, *patch) float32, label (*patch)
    uint8), tensors.

    image: float32, normalised; label: integers 0 to 2; patch: shape; rng: numpy Generator. The patch is resampled once:
    the image linearly, with replicated edges; a voxel is foreground if the linear weights of both labels add up to more
    than 0.5, and gets the label of the larger weight. rotation_degrees, scale, shift_voxels: see random_affine.
    flip_axes: axes to mirror, each with p = 1/2, as in "xz"; x is the first axis of the array, in 2D too. atrophy_mm:
    see atrophy; applied to half of the patches. strengths: see change_intensities. 0 turns any of them off.
    """
    theta = random_affine(rng, image.shape, patch, rotation_degrees, scale, shift_voxels)
    for axis in flip_axes:
        if rng.random() < 0.5:  # affine_grid's columns are in the reverse order of the array's axes
            theta[:, image.ndim - 1 - "xyz".index(axis)] *= -1
    grid = F.affine_grid(
        torch.from_numpy(np.ascontiguousarray(theta[None], np.float32)), [1, 3, *patch], align_corners=True
    )
    parts = torch.from_numpy(label)
    channels = torch.stack([torch.from_numpy(image), (parts == 1).float(), (parts == 2).float()])[None]
    if atrophy_mm and rng.random() < 0.5:
        image, anterior, posterior = atrophy(channels, label, grid, rng, atrophy_mm)
    else:
        image, anterior, posterior = F.grid_sample(channels, grid, padding_mode="border", align_corners=True)[0]
    label = torch.where(anterior + posterior > 0.5, torch.where(posterior > anterior, 2, 1), 0).to(torch.uint8)
    return change_intensities(image, rng, **strengths)[None], label


def random_affine(rng, size, patch, rotation_degrees, scale, shift_voxels):
    """Returns a random (n, n + 1) matrix for F.affine_grid (align_corners=True) that cuts a patch around the centre of
    an image.

    size, patch: shapes of the image and of the patch, n = 2 or 3 numbers each. The patch is rotated in each plane of
    two axes by up to rotation_degrees, scaled by a factor between 1 / (1 + scale) and 1 + scale, and shifted by up to
    shift_voxels along each axis.
    """
    n = len(size)
    planes = list(combinations(range(n), 2))[::-1]
    angles = np.radians(rng.uniform(-1, 1, len(planes)) * rotation_degrees)
    matrix = np.eye(n)
    for (i, j), angle in zip(planes, angles):
        turn = np.eye(n)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    matrix = matrix * np.exp(rng.uniform(-1, 1) * math.log1p(scale))
    # map coordinates of the patch in [-1, 1] to voxels, through the matrix, to coordinates of the image in [-1, 1]
    half_in, half_out = (np.maximum(np.array(s) - 1, 1) / 2 for s in (size, patch))
    theta = np.concatenate(
        [matrix * half_out / half_in[:, None], (rng.uniform(-1, 1, n) * shift_voxels / half_in)[:, None]], axis=1
    )
    # affine_grid wants (x, y, z) for the axes (W, H, D)
    return np.concatenate([theta[::-1, -2::-1], theta[::-1, -1:]], axis=1)


def atrophy(channels, label, grid, rng, most_mm):
    """Samples a patch with a thinner or thicker hippocampus. Returns (3, *patch): image, anterior and posterior.

    channels: the same of the volume, (1, 3, *size), and grid (1, *patch, n), both as F.grid_sample takes them; label:
    (*size) integers, with voxels of 1 mm.

    The outline moves inwards by up to most_mm, or outwards by up to half of it, and the surroundings deform smoothly.
    In half of the cases, the hippocampus instead gets thinner, the cavity around it gets wider, and fluid fills the
    gap, with the hippocampus off centre. This imitates the enlarged temporal horn of an atrophied brain.
    """
    smooth = gaussian_filter((label > 0).astype(np.float32), _OUTLINE_MM, mode="nearest", truncate=3)
    inwards = np.stack(np.gradient(smooth)) * (_OUTLINE_MM * math.sqrt(2 * math.pi))  # of length 1 at a flat outline
    half = np.maximum(np.array(label.shape) - 1, 1) / 2
    field = torch.from_numpy((inwards / half.reshape(-1, *[1] * label.ndim))[::-1].astype(np.float32))
    field = F.grid_sample(field[None], grid, padding_mode="border", align_corners=True).movedim(1, -1)

    def thinner(by_mm, moved_mm=0.0):
        moved = torch.from_numpy((moved_mm / half)[::-1].astype(np.float32))
        return F.grid_sample(channels, grid - by_mm * field - moved, padding_mode="border", align_corners=True)[0]

    if rng.random() < 0.5:
        return thinner(rng.uniform(-most_mm / 2, most_mm))
    direction = rng.standard_normal(label.ndim)
    moved_mm = direction / np.linalg.norm(direction) * rng.uniform(0, 1.5 * most_mm)
    hippocampus, around = thinner(rng.uniform(0.3, 1) * most_mm, moved_mm), thinner(-rng.uniform(0, 2) * most_mm)
    inside = hippocampus[1:].sum(0).clamp(0, 1)
    outside = (1 - around[1:].sum(0)).clamp(0, 1) * (1 - inside)
    fluid = channels[0, 0].min() + rng.uniform(0, 0.15) * (channels[0, 0].max() - channels[0, 0].min())
    hippocampus[0] = inside * hippocampus[0] + outside * around[0] + (1 - inside - outside) * fluid
    return hippocampus


def change_intensities(image, rng, **strengths):
    """Changes a float32 image (D, H, W) or (H, W) as if it came from another scanner, or from a person who moved.

    strengths: {name of a step: its strength}, see PARTS; steps that are missing or 0 are skipped. Each step is a
    function of the image, rng and its strength, and is applied to a random share of the images.
    """
    for name, (share, change) in PARTS.items():
        strength = strengths.pop(name, 0)
        if strength and rng.random() < share:
            image = change(image, rng, strength)
    if strengths:
        raise TypeError(f"no such part of the augmentation: {', '.join(strengths)}")
    return image


def lookup_table(image, rng, share, knots=6):
    """Maps a tensor of any contrast through a random, piecewise linear lookup table, with p = share. Mean and standard
    deviation are kept."""
    if rng.random() >= share:
        return image
    low, high = image.min(), image.max()
    place = (image - low) / (high - low).clamp_min(1e-6) * (knots - 1)
    table = torch.from_numpy(rng.uniform(0, 1, knots).astype(np.float32))
    first = place.long().clamp(0, knots - 2)
    changed = table[first] + (table[first + 1] - table[first]) * (place - first)
    return (changed - changed.mean()) / changed.std().clamp_min(1e-3) * image.std() + image.mean()


def _gamma(image, rng, strength):
    """Raises intensities, scaled to [0, 1], to a power between 1 / (1 + strength) and 1 + strength."""
    low, high = image.min(), image.max()
    exponent = float((1 + strength) ** rng.uniform(-1, 1))
    return ((image - low) / (high - low).clamp_min(1e-6)) ** exponent * (high - low) + low


def _bias_field(image, rng, strength):
    """Simulates the shading of a receive coil: multiplies by a smooth factor between exp(-strength) and exp(strength)."""
    knots = torch.from_numpy(rng.uniform(-strength, strength, (3,) * image.ndim).astype(np.float32))
    mode = "trilinear" if image.ndim == 3 else "bilinear"
    field = F.interpolate(knots[None, None], image.shape, mode=mode, align_corners=True)[0, 0]
    low = image.min()
    return (image - low) * field.exp() + low


def _blur(image, rng, largest_mm):
    """Blurs with a Gaussian whose standard deviation is up to largest_mm, on voxels of 1 mm."""
    return _smooth(image, rng.uniform(0.3, 1) * largest_mm)


def _sharpen(image, rng, strength):
    """Sharpens like the filter of a scanner: adds up to `strength` times the detail that a Gaussian of 1 mm removes."""
    return image + (image - _smooth(image, 1.0)) * rng.uniform(0, strength)


def _motion(image, rng, largest_mm):
    """Simulates a head that swings along one axis while the lines of k-space are acquired: blur if slow, ghosts if
    fast."""
    axis, shape = int(rng.integers(image.ndim)), [1] * image.ndim
    n, low = image.shape[axis], image.min()
    shape[axis] = n
    times = torch.fft.ifftshift(torch.arange(n)) / n
    swings = torch.sin(2 * math.pi * (times * rng.uniform(0.5, n / 2) + rng.random())) * rng.uniform(0, largest_mm)
    turned = torch.polar(torch.ones(n), -2 * math.pi * torch.fft.fftfreq(n) * swings).reshape(shape)
    return torch.fft.ifft(torch.fft.fft(image - low, dim=axis) * turned, dim=axis).abs() + low


def _noise(image, rng, largest):
    """Adds the Rician noise of a magnitude image. Its standard deviation is up to `largest` times that of the image."""
    deviation, low = float(image.std()) * rng.uniform(0, largest), image.min()
    real, imaginary = torch.from_numpy(rng.standard_normal((2, *image.shape), np.float32)) * deviation
    return torch.hypot(image - low + real, imaginary) + low


def _low_resolution(image, rng, coarsest_mm):
    """Resamples to voxels of up to coarsest_mm along one axis or, one time in three, up to two thirds of that along
    all axes, and back to 1 mm."""
    sizes = np.array(image.shape)
    if rng.random() < 1 / 3:
        coarse = sizes / rng.uniform(1, max(1, coarsest_mm * 2 / 3))
    else:
        coarse = sizes / np.where(np.arange(image.ndim) == rng.integers(image.ndim), rng.uniform(1, coarsest_mm), 1)
    coarse = np.maximum(coarse.round().astype(int), 2)
    return torch.from_numpy(resample(resample(image.numpy(), coarse.tolist()), image.shape))


def _clip(image, rng, share):
    """Clips intensities at both ends, for up to `share` of the voxels at each end."""
    low, high = np.quantile(image.numpy(), [rng.uniform(0, share), 1 - rng.uniform(0, share)])
    return image.clamp(float(low), float(high))


def _contrast(image, rng, strength):
    """Multiplies intensities by 1 +- strength, and adds +- strength."""
    return image * (1 + rng.uniform(-strength, strength)) + rng.uniform(-strength, strength)


def _smooth(image, sigma):
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=3))


# in the order in which they occur: tissue, coil, scanner and person, export. Name: (share of images, function)
PARTS = {
    "lookup_tables": (1, lookup_table),
    "gamma": (1 / 3, _gamma),
    "bias_field": (1 / 3, _bias_field),
    "blur_mm": (1 / 5, _blur),
    "sharpening": (1 / 5, _sharpen),
    "motion_mm": (1 / 5, _motion),
    "noise": (1 / 3, _noise),
    "low_resolution_mm": (1 / 4, _low_resolution),
    "clipping": (1 / 4, _clip),
    "intensity": (1 / 2, _contrast),
}
