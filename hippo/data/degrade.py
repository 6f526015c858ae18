"""Steps of the augmentation for scans of other scanners and people: off by default, on in the recipes for heads.

hippo/data/augment.py applies them; each changes a patch at random, up to a strength.
"""

import math

from hippo.data.spatial import resample

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

# the strengths of the shipped models
ROBUST = {"atrophy_mm": 1.5, "gamma": 0.8, "bias_field": 0.3, "blur_mm": 1.2, "sharpening": 1.0, "noise": 0.3}
ROBUST |= {"low_resolution_mm": 3.0, "clipping": 0.05, "intensity": 0.5}
_OUTLINE_MM = 2.0  # standard deviation of the Gaussian that gives the smooth outline moved by `atrophy`


def atrophy(channels, label, grid, rng, most_mm):
    """Samples a patch with a thinner or thicker hippocampus. Returns (3, *patch): image, anterior and posterior.

    channels: the same of the volume, (1, 3, *size), and grid (1, *patch, n), both as F.grid_sample takes them; label:
    (*size) integers, with voxels of 1 mm.

    The outline moves inwards by up to most_mm, or outwards by up to half of it, and the surroundings deform smoothly.
    In half of the cases, the hippocampus instead gets thinner, the cavity around it gets wider, and fluid fills the
    gap, with the hippocampus off centre. This imitates the enlarged temporal horn of an atrophied brain.
    """
    half = np.maximum(np.array(label.shape) - 1, 1) / 2
    field = inwards(label > 0) / half.reshape(-1, *[1] * label.ndim)
    field = torch.from_numpy(field[::-1].astype(np.float32))
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


def inwards(mask, spacing_mm=1.0):
    """Returns the field (n, *size) that points across the smoothed outline of a mask into it, of length 1 at a flat
    outline, and fades with the distance from it. spacing_mm: of the voxels, one number or one for each axis."""
    spacing_mm = np.broadcast_to(spacing_mm, mask.ndim)
    smooth = gaussian_filter(mask.astype(np.float32), _OUTLINE_MM / spacing_mm, mode="nearest", truncate=3)
    return np.stack(np.gradient(smooth, *spacing_mm)) * (_OUTLINE_MM * math.sqrt(2 * math.pi))


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


def bias_field(image, rng, strength):
    """Simulates the shading of a receive coil: multiplies by a smooth factor between exp(-strength) and exp(strength)."""
    knots = torch.from_numpy(rng.uniform(-strength, strength, (3,) * image.ndim).astype(np.float32))
    mode = "trilinear" if image.ndim == 3 else "bilinear"
    field = F.interpolate(knots[None, None], image.shape, mode=mode, align_corners=True)[0, 0]
    low = image.min()
    return (image - low) * field.exp() + low


def sharpen(image, rng, strength):
    """Sharpens like the filter of a scanner: adds up to `strength` times the detail that a Gaussian of 1 mm removes."""
    return image + (image - smooth(image, 1.0)) * rng.uniform(0, strength)


def motion(image, rng, largest_mm):
    """Simulates a head that swings along one axis while the lines of k-space are acquired: blur if slow, ghosts if
    fast."""
    axis, shape = int(rng.integers(image.ndim)), [1] * image.ndim
    n, low = image.shape[axis], image.min()
    shape[axis] = n
    times = torch.fft.ifftshift(torch.arange(n)) / n
    swings = torch.sin(2 * math.pi * (times * rng.uniform(0.5, n / 2) + rng.random())) * rng.uniform(0, largest_mm)
    turned = torch.polar(torch.ones(n), -2 * math.pi * torch.fft.fftfreq(n) * swings).reshape(shape)
    return torch.fft.ifft(torch.fft.fft(image - low, dim=axis) * turned, dim=axis).abs() + low


def low_resolution(image, rng, coarsest_mm):
    """Resamples to voxels of up to coarsest_mm along one axis or, one time in three, up to two thirds of that along
    all axes, and back to 1 mm."""
    sizes = np.array(image.shape)
    if rng.random() < 1 / 3:
        coarse = sizes / rng.uniform(1, max(1, coarsest_mm * 2 / 3))
    else:
        coarse = sizes / np.where(np.arange(image.ndim) == rng.integers(image.ndim), rng.uniform(1, coarsest_mm), 1)
    coarse = np.maximum(coarse.round().astype(int), 2)
    return torch.from_numpy(resample(resample(image.numpy(), coarse.tolist()), image.shape))


def clip(image, rng, share):
    """Clips intensities at both ends, for up to `share` of the voxels at each end."""
    low, high = np.quantile(image.numpy(), [rng.uniform(0, share), 1 - rng.uniform(0, share)])
    return image.clamp(float(low), float(high))


def smooth(image, sigma):
    """Blurs a tensor with a Gaussian of this standard deviation in voxels."""
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=3))
