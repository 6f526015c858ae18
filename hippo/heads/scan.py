"""Reads a scan into an array in RAS orientation together with its geometry."""

from typing import NamedTuple

from hippo.data.nifti import name_of, orientation_flags, ras_affine, read_image, read_nifti, spacing_mm, units_of
from hippo.errors import require
from hippo.heads.anatomy import LARGEST_CROP_MM, SMALL_CROP_MM

import nibabel as nib
import numpy as np

_SMALLEST_MM = 12
_THICK_MM, _TOO_THICK_MM = 2.0, 5.05  # longer voxels are flagged, or refused
_BACKGROUND = 0.5  # minimum share of outer voxels with the commonest value for a background
_DARKER = 0.05  # a background counts as bright if at least this share of the other voxels is darker
_FEW_VALUES = 4  # a label map has at most so many values apart from the background; a label map with more has
_FLAT = 0.25  # a larger share of voxels with six equal neighbours (scans have 0.30 at most) and
_GRADUAL = 0.6  # a smaller share of edges between adjacent values (scans of 17 or more grey levels have 0.67 or more)


class Scan(NamedTuple):
    """A scan in RAS. array: (D, H, W); matrix: (3, 3), from voxels to mm relative to the centre of the array;
    middle_mm: that centre in scanner space; image: the nibabel image as stored; flags: names of doubts."""

    array: np.ndarray
    matrix: np.ndarray
    middle_mm: np.ndarray
    image: nib.spatialimages.SpatialImage
    flags: list

    @property
    def sides_mm(self):
        """Side lengths of the field of view along the axes of the array."""
        return np.linalg.norm(self.matrix, axis=0) * self.array.shape

    @property
    def is_crop(self):
        """Whether the scan shows only a part of a head around one hippocampus."""
        return bool(self.sides_mm.max() <= LARGEST_CROP_MM)

    @property
    def is_small_crop(self):
        """Whether the models see the scan as it is, since it is like a crop of the Decathlon."""
        return bool((self.sides_mm <= SMALL_CROP_MM).all())


def read_scan(source):
    """Reads a Scan from a file or a nibabel image. Raises UserError, see nifti.read_nifti, and for what cannot be an
    MRI of a head or a part of one: constant images, masks and label maps, voxels longer than 5 mm."""
    in_memory = isinstance(source, nib.spatialimages.SpatialImage)
    array, image = read_image(source) if in_memory else read_nifti(source)
    path = name_of(image) if in_memory else source
    spacing, unit = np.array(spacing_mm(image)), units_of(image)
    known = unit == "mm" or (spacing.min() >= 0.1 and spacing.max() <= _TOO_THICK_MM)
    require(known, f"{path}: voxels of {spacing.max():g} {unit} by the header; write its affine and its unit in mm")
    require(spacing.min() >= 0.1, f"{path}: a spacing of {spacing.min():g} mm; expected 0.1 mm or more: resample it")
    require(
        spacing.max() <= _TOO_THICK_MM,
        f"{path}: voxels of {spacing.max():g} mm; expected 5 mm or less: use a scan with thinner slices",
    )
    sides = spacing * array.shape
    require(
        sides.min() >= _SMALLEST_MM,
        f"{path}: {' x '.join(f'{s:.0f}' for s in sides)} mm; expected a head, or a crop of about 35 x 50 x 36 mm",
    )
    require(array.min() < array.max(), f"{path}: every voxel has the same value; expected an MRI: export it again")
    require(not _is_label_map(array), f"{path}: a mask or label map, by its values; expected an MRI")
    flags = orientation_flags(image) + ["thick_slices"] * bool(spacing.max() > _THICK_MM)
    affine = ras_affine(image)
    middle_mm = nib.affines.apply_affine(affine, (np.array(array.shape) - 1) / 2)
    scan = Scan(array, affine[:3, :3], middle_mm, image, flags)
    return scan if scan.is_crop else scan._replace(array=_with_dark_background(array))


def _with_dark_background(array):
    """Returns the array with its background set to the darkest intensity of the rest, if the background is one value
    that is not the darkest. For instance, a brain that was standardised inside its mask is surrounded by zeros, while
    half of the brain is below zero."""
    faces = np.concatenate([np.take(array, [0, -1], axis)[..., ::2].ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    value = values[counts.argmax()]
    if counts.max() < _BACKGROUND * len(faces) or value == array.min():
        return array
    background = array == value
    shown = array[~background]
    if np.mean(shown < value) < _DARKER:
        return array
    return np.where(background, np.percentile(shown, 0.5).astype(array.dtype), array)


def _is_label_map(array):
    """Tests whether an array has few values, or large areas of one value whose edges skip the values in between. A
    scan with few grey levels also has areas of one value, but its edges pass through the values in between.

    Voxels are drawn at random, because a regular grid would coincide with slices that were repeated.
    """
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(1, n - 1, 400_000) for n in array.shape])  # (3, N)
    background = [array.min(), array[0, 0, 0]]
    here = array[tuple(places)]
    shown = np.flatnonzero(~np.isin(here, background))[:50_000]
    places, here = places[:, shown], here[shown]
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    beside = np.stack([array[tuple(places + step[:, None])] for step in steps])  # (6, N)
    values = np.unique(here)
    if len(values) <= _FEW_VALUES:
        return True
    edge = (beside != here) & ~np.isin(beside, background)
    ranks = np.abs(np.searchsorted(values, beside) - np.searchsorted(values, here))[edge]
    is_gradual = len(ranks) and np.mean(ranks <= 1) >= _GRADUAL
    return bool(np.mean((beside == here).all(0)) > _FLAT and not is_gradual)
