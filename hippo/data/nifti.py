"""NIfTI files: reading with checks, and writing on the grid of a source.

Volumes are (D, H, W) arrays in RAS orientation (x to the right, y to the front, z up).
"""

import math
import zlib
from pathlib import Path

from hippo.errors import UserError, require
from hippo.files import atomic

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError

MAX_VOXELS = 2**29  # 2 GiB as float32; a header that promises more is refused before any voxel is read
READ_ERRORS = (OSError, EOFError, ValueError, ArithmeticError, MemoryError, zlib.error)
READ_ERRORS += (HeaderDataError, ImageFileError, OrientationError)
_MAX_INTENSITY = 1e15  # beyond it, float32 statistics overflow
_MOST_DEFLATED = 1032  # deflate packs at most so many bytes into one


def read_nifti(path):
    """(array in RAS as (D, H, W), nibabel image as stored) of a 3D NIfTI file of any orientation and data type.

    Integer files without scaling stay integer, others become float32. A trailing axis of one is dropped. Raises
    UserError for a file that is missing, truncated, not NIfTI, not 3D, too large, of a type that is no real number,
    with a broken affine or spacing, or with voxels that are not finite.
    """
    path = Path(path)
    require(path.is_file(), f"{path}: no such file")
    try:
        require(not is_dicom(path), f"{path}: a DICOM file; convert its series: dcm2niix -z y -o FOLDER {path.parent}")
        require(path.name.endswith((".nii", ".nii.gz")), f"{path}: expected a NIfTI file, .nii or .nii.gz; convert it")
        _check_header(path)
        with LoggingOutputSuppressor():  # nibabel reports small faults that it mends
            image = nib.load(path)
            _check_image(path, image)
            with np.errstate(all="ignore"):  # what overflows is not finite, and is reported below
                array = np.asanyarray(nib.as_closest_canonical(image).dataobj)
    except READ_ERRORS as error:
        kind = type(error).__name__
        raise UserError(f"{path}: not a readable NIfTI file ({kind}: {error}); copy or export it again") from None
    if not (-_MAX_INTENSITY < array.min() <= array.max() < _MAX_INTENSITY):  # false for NaN too
        bad = np.count_nonzero(~(np.abs(array.astype(np.float64)) < _MAX_INTENSITY))
        raise UserError(
            f"{path}: {bad} voxels are NaN or infinite, or beyond {_MAX_INTENSITY:g}; expected finite intensities: "
            "clean or export it again"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array.reshape(array.shape[:3])), image


def is_dicom(path):
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_header(path):
    """Raises UserError for what nibabel would mend without a word, or follow far into the file."""
    with nib.openers.ImageOpener(path) as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr + 4)
        kind = nib.Nifti2Header if start[4:7] == b"n+2" else nib.Nifti1Header
        size = kind.sizeof_hdr
        require(len(start) >= size, f"{path}: too short for a NIfTI file; copy or export it again")
        header = kind(start[:size], check=False)
        magic = bytes(header["magic"].item())[:3]
        known = magic in (b"n+1", b"n+2") and header["sizeof_hdr"] == size
        require(known, f"{path}: not a NIfTI file (it does not begin like one); convert it")
        offset, spacing = float(header["vox_offset"]), header["pixdim"][1:4].tolist()
        require(0 <= offset <= 2**20, f"{path}: the header puts the voxels at byte {offset:g}; export it again")
        extensions = start + file.read(max(0, int(offset) - len(start)))
    positive = all(0 < s < math.inf for s in spacing)
    require(positive, f"{path}: expected a positive spacing in mm, got {spacing}; correct the header")
    scaled = not any(math.isinf(header[name]) for name in ("scl_slope", "scl_inter"))
    require(scaled, f"{path}: the header scales intensities by infinity; correct the header")
    at = size + 4
    while start[size : size + 1] not in (b"", b"\0") and at + 8 <= int(offset) <= len(extensions):
        length = int.from_bytes(extensions[at : at + 4], "little" if header.endianness == "<" else "big", signed=True)
        fits = 16 <= length <= int(offset) - at
        require(fits, f"{path}: the header has an extension of {length} bytes; export it again")
        at += length


def _check_image(path, image):
    """Raises UserError for an image that is not 3D, too large for the checks or for its file, not of real numbers, or
    whose affine cannot be inverted. No voxel is read."""
    kind, dtype, shape = type(image).__name__, image.get_data_dtype(), tuple(map(int, image.shape))
    require(isinstance(image, nib.Nifti1Pair), f"{path}: expected a NIfTI file (.nii or .nii.gz), got {kind}")
    is_3d = len(shape) >= 3 and all(s == 1 for s in shape[3:])
    require(is_3d, f"{path}: expected a 3D volume, got {len(shape)}D {shape}; split it into volumes")
    require(
        all(s > 0 for s in shape) and math.prod(shape) <= MAX_VOXELS,
        f"{path}: the header gives a size of {' x '.join(map(str, shape))}; expected 1 to {MAX_VOXELS:,} voxels: crop it",
    )
    require(dtype.kind in "iuf", f"{path}: expected integer or real voxels, got {dtype}; convert it")
    room = path.stat().st_size * (_MOST_DEFLATED if path.name.endswith(".gz") else 1)
    promised = math.prod(shape) * dtype.itemsize
    require(promised <= room, f"{path}: shorter than its header says ({promised:,} bytes); copy or export it again")
    affine = image.affine
    invertible = np.isfinite(affine).all() and 1e-9 < abs(np.linalg.det(affine[:3, :3])) < 1e9
    require(invertible, f"{path}: the affine in the header is not invertible; correct the header")


def spacing_mm(image):
    """Spacing of a nibabel image along its RAS axes, in mm."""
    return tuple(round(float(s), 4) for s in nib.affines.voxel_sizes(nib.as_closest_canonical(image).affine))


def voxel_volume_mm3(image):
    """Volume of a voxel of a nibabel image in mm3: |det| of its affine, which holds for sheared ones too."""
    return abs(float(np.linalg.det(image.affine[:3, :3])))


def to_stored_orientation(array, image):
    """An array (D, H, W) in RAS, turned to the orientation in which a nibabel image is stored."""
    ras = nib.orientations.axcodes2ornt("RAS")
    return nib.apply_orientation(array, nib.orientations.ornt_transform(ras, nib.io_orientation(image.affine)))


def save_labels(path, labels, image, synthetic):
    """Writes a label map (uint8) on the grid of a nibabel image: its affine, the codes of its header, its orientation.

    synthetic: the model or the image is of phantoms, and the header says so.
    """
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    synthetic = synthetic or b"SYNTHETIC" in header["descrip"].item()
    header["descrip"] = b"hippocampus: 1 anterior, 2 posterior" + (b" (SYNTHETIC data)" if synthetic else b"")
    with atomic(path) as temporary:
        nib.save(type(image)(labels, image.affine, header), temporary)
