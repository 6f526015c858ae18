"""Augmentation: of patches, anew in each epoch, and of the slices that data_aug.py stores."""

import math
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform, gaussian_filter


def random_affine(rng, size, patch, rotation_degrees, scale, shift_voxels):
    """A random (n, n + 1) matrix for F.affine_grid (align_corners=True) that cuts a patch around an image's centre.

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
    # from the patch's coordinates in [-1, 1] to voxels, through the matrix, to the image's coordinates in [-1, 1]
    half_in, half_out = (np.maximum(np.array(s) - 1, 1) / 2 for s in (size, patch))
    theta = np.concatenate(
        [matrix * half_out / half_in[:, None], (rng.uniform(-1, 1, n) * shift_voxels / half_in)[:, None]], axis=1
    )
    # affine_grid wants (x, y, z) for the axes (W, H, D)
    return np.concatenate([theta[::-1, -2::-1], theta[::-1, -1:]], axis=1)


def augment(
    image,
    label,
    patch,
    rng,
    rotation_degrees=15.0,
    scale=0.15,
    shift_voxels=4.0,
    flip_axes="",
    intensity=0.25,
    gamma=0.3,
    noise=0.1,
    blur_mm=0.7,
):
    """An augmented patch of a volume (D, H, W) or slice (H, W): (1, *patch) float32 and (*patch) uint8 tensors.

    image: float32, normalised; label: integers 0 to 2; rng: numpy Generator. Geometry is one resampling, see
    random_affine: the image linearly, beyond its borders the nearest edge. A voxel is foreground where the linear
    weights of both labels add up to more than 0.5, and has the label of the larger weight.
    flip_axes: axes to mirror, each with p = 1/2, as in "xz"; x is the array's first axis, in 2D too.
    For the rest, see change_intensities. 0 turns any of them off.
    """
    theta = random_affine(rng, image.shape, patch, rotation_degrees, scale, shift_voxels)
    for axis in flip_axes:
        if rng.random() < 0.5:
            theta[:, image.ndim - 1 - "xyz".index(axis)] *= -1
    label = torch.from_numpy(label)
    channels = torch.stack([torch.from_numpy(image), (label == 1).float(), (label == 2).float()])[None]
    theta = torch.from_numpy(np.ascontiguousarray(theta, np.float32))[None]
    grid = F.affine_grid(theta, [1, 3, *patch], align_corners=True)
    image, anterior, posterior = F.grid_sample(channels, grid, padding_mode="border", align_corners=True)[0]
    label = torch.where(anterior + posterior > 0.5, torch.where(posterior > anterior, 2, 1), 0).to(torch.uint8)
    return change_intensities(image, rng, intensity, gamma, noise, blur_mm)[None], label


def change_intensities(image, rng, intensity, gamma, noise, blur_mm):
    """A float32 tensor of the same shape with random contrast, brightness, gamma, blur and noise.

    intensity: largest change of contrast (a factor of 1 +- intensity) and of brightness (+- intensity), with p = 1/2. gamma: an exponent between
    1 / (1 + gamma) and 1 + gamma (p = 1/3). blur_mm: largest sigma of a Gaussian, in voxels of 1 mm (p = 1/5).
    noise: largest standard deviation (p = 1/3).
    """
    if rng.random() < 0.5 and intensity:
        image = image * (1 + rng.uniform(-intensity, intensity)) + rng.uniform(-intensity, intensity)
    if rng.random() < 1 / 3 and gamma:
        low, high = image.min(), image.max()
        exponent = float((1 + gamma) ** rng.uniform(-1, 1))
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** exponent * (high - low) + low
    if rng.random() < 1 / 5 and blur_mm:
        sigma = rng.uniform(0.3, 1) * blur_mm
        image = torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=3))
    if rng.random() < 1 / 3 and noise:
        image = image + torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32)) * rng.uniform(0, noise)
    return image


def augment_slice(image, label, kind, parameters):
    """(image float32, label uint8) of a stored slice (H, W), moved about its centre; edges are replicated.

    kind: none, flip (along the first axis), rotation (parameters: degrees) or affine (scale, and dx and dy in pixels).
    """
    if kind == "flip":
        image, label = image[::-1], label[::-1]
    elif kind != "none":
        angle = np.radians(parameters.get("degrees", 0.0))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = turn / parameters.get("scale", 1.0)
        centre = (np.array(image.shape) - 1) / 2
        shift = np.array([parameters.get("dx", 0.0), parameters.get("dy", 0.0)])
        offset = centre - turn @ (centre + shift)
        image = affine_transform(image, turn, offset, order=1, mode="nearest")
        label = affine_transform(label, turn, offset, order=0, mode="nearest")
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.uint8)
