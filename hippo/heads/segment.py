"""From an image to its labels."""

import nibabel as nib
import numpy as np

from hippo.data.intensity import normalise
from hippo.data.nifti import read_nifti, spacing_mm
from hippo.data.spatial import resample
from hippo.errors import require
from hippo.models.inference import predict_volume

_MODEL_SPACING_MM = 1.0


_SIDE_MM = (12, 100)  # shorter or longer than this along any axis is no crop around one hippocampus


def segment(model, path, device, dtype, tta=True, mirror=False):
    """(label map uint8 on the file's own grid, nibabel image) of one NIfTI file, by a model or a list of them. Raises
    UserError, see nifti.read_nifti.
    """
    array, image = read_nifti(path)
    spacing = np.array(spacing_mm(image))
    require(spacing.min() >= 0.1, f"{path}: a spacing of {spacing.min():g} mm; expected 0.1 mm or more: resample it")
    sides = spacing * array.shape
    require(
        _SIDE_MM[0] <= sides.min() and sides.max() <= _SIDE_MM[1],
        f"{path}: {' x '.join(f'{s:.0f}' for s in sides)} mm is no crop around one hippocampus; expected about 35 x 50 x 36 mm: crop the scan first",
    )
    require(array.min() < array.max(), f"{path}: every voxel has the same value; expected an MRI crop: export it again")
    if mirror:
        array = array[::-1]
    shape = np.maximum(np.round(sides / _MODEL_SPACING_MM), 1).astype(int)
    probabilities = (
        predict_volume(model, normalise(resample(array.astype(np.float32), shape)), device, dtype, tta).cpu().numpy()
    )
    if tuple(shape) != array.shape:
        probabilities = np.stack([resample(p, array.shape) for p in probabilities])
    segmentation = probabilities.argmax(0).astype(np.uint8)
    if mirror:
        segmentation = segmentation[::-1]
    to_ras = nib.io_orientation(image.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to_ras)
    return np.ascontiguousarray(nib.apply_orientation(segmentation, back)), image
