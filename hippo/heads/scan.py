"""A scan as the rest of this room sees it: an array in RAS, and where its voxels lie."""

from typing import NamedTuple

from hippo.data.nifti import orientation_flags, ras_affine, read_nifti, spacing_mm
from hippo.errors import require

import nibabel as nib
import numpy as np

_LARGEST_CROP_MM = 100  # a scan whose sides are all shorter shows a part of a head
_SMALLEST_MM = 12
_THICK_MM, _TOO_THICK_MM = 2.0, 5.05  # voxels longer than this are flagged, or refused
_ALIKE = 0.5  # share of equal neighbours from which on an array is a label map or a mask


class Scan(NamedTuple):
    """array (D, H, W) in RAS; matrix (3, 3) from its voxels to mm, in which positions count from its middle, and
    middle_mm, where that lies in the scanner's space; image: nibabel's, as stored; flags: what is doubtful, in words."""

    array: np.ndarray
    matrix: np.ndarray
    middle_mm: np.ndarray
    image: nib.spatialimages.SpatialImage
    flags: list

    @property
    def sides_mm(self):
        """Lengths of the field of view along the array's axes."""
        return np.linalg.norm(self.matrix, axis=0) * self.array.shape

    @property
    def is_crop(self):
        """Whether this is a part of a head, around one hippocampus, and no head."""
        return bool(self.sides_mm.max() <= _LARGEST_CROP_MM)


def read_scan(path):
    """The Scan of a file. Raises UserError, see nifti.read_nifti, and for what can be no MRI of a head or a part of one:
    every voxel the same, a mask or label map, voxels longer than 5 mm."""
    array, image = read_nifti(path)
    spacing = np.array(spacing_mm(image))
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
    return Scan(array, affine[:3, :3], middle_mm, image, flags)


def _is_label_map(array):
    """Whether neighbours along the first axis are mostly equal where they are not background, as noise forbids."""
    pairs = array[: len(array) // 2 * 2 : 2, ::3, ::3], array[1::2, ::3, ::3]
    equal, background = pairs[0] == pairs[1], np.isin(pairs[0], [array.min(), array[0, 0, 0]])
    counted = ~(equal & background)
    return not counted.any() or bool(equal[counted].mean() > _ALIKE)
