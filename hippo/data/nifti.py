"""NIfTI and FreeSurfer's .mgz files: reading with checks, and writing on the grid of a source.

Volumes are (D, H, W) arrays in RAS orientation (x to the right, y to the front, z up).
"""

import contextlib
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

ENDINGS = (".nii.gz", ".nii", ".mgz")
MAX_VOXELS = 2**29  # 2 GiB as float32; a header that promises more is refused before any voxel is read
READ_ERRORS = (OSError, EOFError, ValueError, ArithmeticError, MemoryError, zlib.error)
READ_ERRORS += (HeaderDataError, ImageFileError, OrientationError)
_MAX_INTENSITY = 1e15  # beyond it, float32 statistics overflow
_FORMS_DIFFER_MM = 1.0  # sform and qform that put a corner of the volume so far apart disagree
_MOST_DEFLATED = 1032  # deflate packs at most so many bytes into one


def read_nifti(path):
    """(array in RAS as (D, H, W), nibabel image as stored) of a 3D .nii, .nii.gz or .mgz file of any orientation and type.

    Integer files without scaling stay integer, others become float32. A trailing axis of one is dropped. Raises
    UserError for a file that is missing, truncated, of another format, not 3D, too large, of a type that is no real number,
    with a broken affine or spacing, or with voxels that are not finite.
    """
    path, image = Path(path), open_nifti(path)
    with _readable(path), np.errstate(all="ignore"):  # what overflows is not finite, and is reported below
        array = np.asanyarray(nib.as_closest_canonical(image).dataobj)
    if not (-_MAX_INTENSITY < array.min() <= array.max() < _MAX_INTENSITY):  # false for NaN too
        bad = np.count_nonzero(~(np.abs(array.astype(np.float64)) < _MAX_INTENSITY))
        raise UserError(
            f"{path}: {bad} voxels are NaN or infinite, or beyond {_MAX_INTENSITY:g}; expected finite intensities: "
            "clean or export it again"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array.reshape(array.shape[:3])), image


def open_nifti(path):
    """The nibabel image of a file, see read_nifti, whose header is checked; no voxel is read."""
    path = Path(path)
    require(path.is_file(), f"{path}: no such file")
    with _readable(path):
        require(not is_dicom(path), f"{path}: a DICOM file; convert its series: dcm2niix -z y -o FOLDER {path.parent}")
        known = path.name.endswith(ENDINGS)
        require(known, f"{path}: expected a NIfTI file, .nii or .nii.gz, or an .mgz file; convert it")
        if not path.name.endswith(".mgz"):
            _check_header(path)
        image = nib.load(path)
        _check_image(path, image)
    return image


@contextlib.contextmanager
def _readable(path):
    """Makes a UserError of what nibabel raises for a broken file; the small faults that it mends are not reported."""
    try:
        with LoggingOutputSuppressor():
            yield
    except READ_ERRORS as error:
        kind = type(error).__name__
        raise UserError(f"{path}: not a readable file ({kind}: {error}); copy or export it again") from None


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
    known = isinstance(image, (nib.Nifti1Pair, nib.MGHImage))
    require(known, f"{path}: expected a NIfTI file (.nii or .nii.gz) or an .mgz file, got {kind}")
    is_3d = len(shape) >= 3 and all(s == 1 for s in shape[3:])
    require(is_3d, f"{path}: expected a 3D volume, got {len(shape)}D {shape}; split it into volumes")
    require(
        all(s > 0 for s in shape) and math.prod(shape) <= MAX_VOXELS,
        f"{path}: the header gives a size of {' x '.join(map(str, shape))}; expected 1 to {MAX_VOXELS:,} voxels: crop it",
    )
    require(dtype.kind in "iuf", f"{path}: expected integer or real voxels, got {dtype}; convert it")
    room = path.stat().st_size * (_MOST_DEFLATED if path.name.endswith((".gz", ".mgz")) else 1)
    promised = math.prod(shape) * dtype.itemsize
    require(promised <= room, f"{path}: shorter than its header says ({promised:,} bytes); copy or export it again")
    affine = image.affine
    invertible = np.isfinite(affine).all() and 1e-9 < abs(np.linalg.det(affine[:3, :3])) < 1e9
    require(invertible, f"{path}: the affine in the header is not invertible; correct the header")


def spacing_mm(image):
    """Spacing of a nibabel image along its RAS axes, in mm."""
    return tuple(round(float(s), 4) for s in nib.affines.voxel_sizes(ras_affine(image)))


def ras_affine(image):
    """The affine (4, 4) of a nibabel image once its array is turned to RAS; no voxel is read."""
    ornt = nib.io_orientation(image.affine)
    return image.affine @ nib.orientations.inv_ornt_aff(ornt, image.shape[:3])


def to_stored_orientation(array, image):
    """An array (D, H, W) in RAS, turned to the orientation in which a nibabel image is stored."""
    ras = nib.orientations.axcodes2ornt("RAS")
    return nib.apply_orientation(array, nib.orientations.ornt_transform(ras, nib.io_orientation(image.affine)))


def orientation_flags(image):
    """What is doubtful about where a nibabel image lies in space: a list of flags, empty where nothing is.

    nibabel and the NIfTI standard decide which form counts: the sform if its code is above 0, else the qform, else the
    spacing alone, with the first axis to the left. sform_only and qform_only say that the other one's code is 0;
    sform_qform_disagree that they put a corner of the volume more than 1 mm apart, and the sform counted;
    sform_qform_sides_differ that one of them mirrors left and right; no_orientation that there is neither.
    """
    header = image.header
    if isinstance(image, nib.MGHImage):
        return [] if header["goodRASFlag"] > 0 else ["no_orientation"]
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (sform and qform):
        return ["sform_only"] if sform else ["qform_only"] if qform else ["no_orientation"]
    try:
        other = image.get_qform()
    except HeaderDataError:  # no rotation
        return ["sform_only"]
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape[:3]) - 1)
    apart = nib.affines.apply_affine(image.affine, corners) - nib.affines.apply_affine(other, corners)
    if np.linalg.det(image.affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return ["sform_qform_disagree", "sform_qform_sides_differ"]
    return ["sform_qform_disagree"] * bool(np.linalg.norm(apart, axis=1).max() > _FORMS_DIFFER_MM)


def is_phantom(image):
    """Whether the header of a nibabel image says that it is synthetic."""
    return isinstance(image, nib.Nifti1Pair) and b"SYNTHETIC" in image.header["descrip"].item()


def save_labels(path, labels, image, description, synthetic=False):
    """Writes a label map (uint8) on the grid of a nibabel image: its affine, both forms and their codes, its orientation.

    synthetic: the model or the image is of phantoms, and the header says so.
    """
    save_like(path, labels, image, description, 1.0, synthetic)


def save_like(path, array, image, description, slope=1.0, synthetic=False):
    """Writes an array (D, H, W) or (D, H, W, N) of uint8 or float32, oriented as stored, as NIfTI on the grid of a nibabel image;
    readers multiply its values by `slope`, which the header holds."""
    if isinstance(image, nib.Nifti1Pair):
        kind, header = type(image), image.header.copy()
        synthetic = synthetic or is_phantom(image)
    else:  # .mgz
        kind, header = nib.Nifti1Image, nib.Nifti1Header()
        header.set_sform(image.affine, code=1)
        header.set_qform(image.affine, code=1)
        header.set_xyzt_units("mm")
    header.set_data_dtype(array.dtype)
    header["cal_min"], header["cal_max"] = 0, 0
    header["descrip"] = description.encode() + (b" (SYNTHETIC data)" if synthetic else b"")
    result = kind(array, image.affine, header)
    result.header.set_slope_inter(slope, 0)
    with atomic(path) as temporary:
        nib.save(result, temporary)
