"""Finds the brain's surface in a T1-weighted head, with or without a skull, to draw it. Volumes are not measured on it."""

from hippo.data.spatial import largest_component, resample, shrink
from hippo.heads.window import Window, cut

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes, distance_transform_edt, gaussian_filter
from skimage.filters import threshold_multiotsu

_DEEP_MM = 8  # tissue is measured so far inside the intracranial space, where neither skull nor fat is
_FADING_MM = 16  # standard deviation of the Gaussian filter that follows the brightness from place to place
_BEYOND_MM = 4  # gyri may reach so far beyond the intracranial space, whose border is known to a voxel of 4 mm
_THIN_MM = 2  # layers up to twice as thick, such as the dura, are cut from the brain
_FAT = 1.7  # what is brighter, by this factor, than the border between grey and white matter is fat or a vessel
_BRIGHT = 1.4  # times the tissue nearby: brighter fluid of T2-weighted images
_BRIGHT_SHARE = 0.02  # fluid counts as bright if more is _BRIGHT: T1 and FLAIR have 0.4 % or less, T2 has 4.6 % or more
_SHARE = (0.5, 1.2)  # volume of the brain, divided by that of the intracranial space


def find_brain(scan, located):
    """Finds the brain's tissue at 1 mm: the largest component of what is brighter than fluid and touches neither skull
    nor dura, by Otsu's method for three classes (fluid, grey, white) inside the intracranial space.

    scan: Scan; located: from heads.locate. Returns (brightness (D, H, W), relative to the tissue nearby; level: the brain
    is where the brightness is higher; Window of the array). Returns None if fluid is bright, as in T2-weighted images, or
    if the result can be no brain.
    """
    inside, window = _box(located)
    image = cut(scan.array, scan.matrix, window)
    factors = np.array(image.shape) // inside.shape
    deep = distance_transform_edt(inside > 0.5) * located.window.spacing_mm > _DEEP_MM
    if not deep.any():
        return None
    image -= image.min()
    coarse = shrink(image, factors)
    nearby = _brightness_nearby(coarse, deep, located.window)
    if np.mean(coarse[deep] > _BRIGHT * nearby[deep]) > _BRIGHT_SHARE:
        return None
    brightness = image / resample(nearby, image.shape)
    space = resample(inside, image.shape) > 0.5
    level, white = threshold_multiotsu(np.clip(brightness[space], 0, 1.5))
    tissue = (brightness > level) & (brightness < _FAT * white) & binary_dilation(space, iterations=_BEYOND_MM)
    core = largest_component(binary_erosion(tissue, iterations=_THIN_MM))
    brain = binary_fill_holes(largest_component(binary_dilation(core, iterations=_THIN_MM + 1, mask=tissue)))
    if not _SHARE[0] <= brain.sum() / space.sum() <= _SHARE[1]:
        return None
    step = 0.1 * level  # at the border of the brain the level is met between voxels, elsewhere at their edges
    brightness = np.where(brain, np.maximum(brightness, level + step), np.minimum(brightness, level - step))
    return brightness, level, window


def _box(located):
    """Returns (probability of the intracranial space in a box around it, Window of that box with voxels of 1 mm)."""
    margin, coarse = 3, located.window
    voxels = np.argwhere(located.inside > 0.5)
    low, high = voxels.min(0), voxels.max(0) + 1 + 2 * margin
    inside = np.pad(located.inside, margin)[tuple(map(slice, low, high))]
    steps = round(coarse.spacing_mm)
    size = tuple(int(n) * steps for n in inside.shape)
    return inside, Window(coarse.to_mm((low + high - 1) / 2 - margin), size, coarse.spacing_mm / steps)


def _brightness_nearby(image, deep, window):
    """Returns the mean brightness of the tissue near each voxel of 4 mm. deep: mask well inside the intracranial space."""
    sigma = _FADING_MM / window.spacing_mm
    weights = (deep & (image > 0.6 * np.median(image[deep]))).astype(np.float32)  # without the ventricles
    mean = gaussian_filter(image * weights, sigma) / np.maximum(gaussian_filter(weights, sigma), 1e-6)
    return np.maximum(mean, np.percentile(mean[deep], 5))
