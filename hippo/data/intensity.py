"""Intensities of images."""

import numpy as np

CLIP_PERCENTILES = (0.5, 99.5)
NORMALISATION = "clipped at the 0.5 and 99.5 percentile, zero mean, unit variance"  # what normalise does


def normalise(array):
    """float32 image with outliers clipped (0.5 and 99.5 percentile), zero mean and unit variance; zeros if constant."""
    array = array.astype(np.float32)
    array = np.clip(array, *np.percentile(array, CLIP_PERCENTILES).astype(np.float32))
    if array.min() == array.max():
        return np.zeros_like(array)
    array -= array.mean()
    return array / array.std()


def to_unit_range(image):
    """float32 image scaled to [0, 1]; zeros if constant."""
    image = image.astype(np.float32, copy=False)
    low, high = image.min(), image.max()
    return (image - low) / max(float(high - low), 1e-8)
