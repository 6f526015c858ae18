"""From an image file to its labels."""

from hippo.data.intensity import normalise
from hippo.data.nifti import read_nifti, spacing_mm, to_stored_orientation
from hippo.data.spatial import resample
from hippo.errors import require
from hippo.models.inference import predict_volume

import numpy as np

_SIDE_MM = (12, 100)  # shorter or longer than this along any axis is no crop around one hippocampus


def segment(trained, path, device, dtype, tta=True, mirror=False):
    """(label map uint8 on the file's own grid, nibabel image) of one NIfTI file: a crop around one hippocampus.

    trained: a TrainedModel, or a list of them whose spacing is the same. mirror: left and right are exchanged before,
    and back after. Raises UserError, see nifti.read_nifti, and for a file that is no such crop.
    """
    array, image = read_nifti(path)
    spacing = np.array(spacing_mm(image))
    require(spacing.min() >= 0.1, f"{path}: a spacing of {spacing.min():g} mm; expected 0.1 mm or more: resample it")
    sides_mm = spacing * array.shape
    require(
        _SIDE_MM[0] <= sides_mm.min() and sides_mm.max() <= _SIDE_MM[1],
        f"{path}: {' x '.join(f'{s:.0f}' for s in sides_mm)} mm is no crop around one hippocampus; expected about "
        "35 x 50 x 36 mm: crop the scan first",
    )
    require(array.min() < array.max(), f"{path}: every voxel has the same value; expected an MRI crop: export it again")
    if mirror:
        array = array[::-1]
    first = trained[0] if isinstance(trained, list) else trained
    shape = np.maximum(np.round(sides_mm / first.preprocessing["spacing_mm"]), 1).astype(int)
    probabilities = predict_volume(trained, normalise(resample(array, shape)), device, dtype, tta).cpu().numpy()
    if tuple(shape) != array.shape:
        probabilities = np.stack([resample(p, array.shape) for p in probabilities])
    labels = probabilities.argmax(0).astype(np.uint8)
    return np.ascontiguousarray(to_stored_orientation(labels[::-1] if mirror else labels, image)), image
