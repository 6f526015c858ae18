"""Normalises image intensities."""

import numpy as np

CLIP_PERCENTILES = (0.5, 99.5)
NORMALISATION = "clipped at the 0.5 and 99.5 percentile, zero mean, unit variance"  # what normalise does

HEAD_NORMALISATION = (
    "clipped at the 1 and 99 percentile, zero mean, unit variance, of a head"  # what to_head_range does
)


def normalise(array):
    """Returns the image as float32 with outliers clipped (0.5 and 99.5 percentile), zero mean and unit variance; zeros
    if constant."""
    array = array.astype(np.float32)
    array = np.clip(array, *np.percentile(array, CLIP_PERCENTILES).astype(np.float32))
    if array.min() == array.max():
        return np.zeros_like(array)
    array -= array.mean()
    return array / array.std()


def to_unit_range(image):
    """Returns the image as float32 scaled to [0, 1]; zeros if constant."""
    image = image.astype(np.float32, copy=False)
    low, high = image.min(), image.max()
    return (image - low) / max(float(high - low), 1e-8)


def to_head_range(image, seen):
    """Returns the image of a head as float32, clipped at its 1 and 99 percentile, with zero mean and unit variance;
    zeros if constant.

    seen: boolean mask of the field of view, same shape. Percentiles are computed inside it; voxels outside get the
    lower one.
    """
    low, high = np.percentile(image[seen], (1, 99)) if seen.any() else (0, 0)
    image = np.where(seen, np.clip((image - low) / max(float(high - low), 1e-8), 0, 1.2), 0).astype(np.float32)
    spread = image.std()
    return (image - image.mean()) / spread if spread > 1e-6 else np.zeros_like(image)
