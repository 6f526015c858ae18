"""Augments training patches on the fly: turned, scaled and shifted first, then changed in its intensities.

Begin with `augment`. By default a patch is turned, scaled and shifted (random_affine), then, each at times and in this
order, changed in its gamma, blurred, made noisy, and changed in its contrast. PARTS, at the end, has all steps; those that
are off by default are in hippo/data/degrade.py.
"""

import math
from itertools import combinations

from hippo.data.degrade import atrophy, bias_field, clip, lookup_table, low_resolution, motion, sharpen, smooth

import numpy as np
import torch
import torch.nn.functional as F


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
    # affine_grid wants (x, y, z) for the axes (W, H, D): rows and columns are reversed, and the shift stays last
    return np.concatenate([theta[::-1, -2::-1], theta[::-1, -1:]], axis=1)


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


def _gamma(image, rng, strength):
    """Raises intensities, scaled to [0, 1], to a power between 1 / (1 + strength) and 1 + strength."""
    low, high = image.min(), image.max()
    exponent = float((1 + strength) ** rng.uniform(-1, 1))
    return ((image - low) / (high - low).clamp_min(1e-6)) ** exponent * (high - low) + low


def _blur(image, rng, largest_mm):
    """Blurs with a Gaussian whose standard deviation is up to largest_mm, on voxels of 1 mm."""
    return smooth(image, rng.uniform(0.3, 1) * largest_mm)


def _noise(image, rng, largest):
    """Adds the Rician noise of a magnitude image. Its standard deviation is up to `largest` times that of the image."""
    deviation, low = float(image.std()) * rng.uniform(0, largest), image.min()
    real, imaginary = torch.from_numpy(rng.standard_normal((2, *image.shape), np.float32)) * deviation
    return torch.hypot(image - low + real, imaginary) + low


def _contrast(image, rng, strength):
    """Multiplies intensities by 1 +- strength, and adds +- strength."""
    return image * (1 + rng.uniform(-strength, strength)) + rng.uniform(-strength, strength)


# in the order in which they occur: tissue, coil, scanner and person, export. Name: (share of images, function)
PARTS = {
    "lookup_tables": (1, lookup_table),
    "gamma": (1 / 3, _gamma),
    "bias_field": (1 / 3, bias_field),
    "blur_mm": (1 / 5, _blur),
    "sharpening": (1 / 5, sharpen),
    "motion_mm": (1 / 5, motion),
    "noise": (1 / 3, _noise),
    "low_resolution_mm": (1 / 4, low_resolution),
    "clipping": (1 / 4, clip),
    "intensity": (1 / 2, _contrast),
}
