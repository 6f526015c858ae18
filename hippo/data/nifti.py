"""Reads NIfTI and FreeSurfer's .mgz and .mgh files with checks, and writes NIfTI on the grid of a source image.

Volumes are (D, H, W) arrays in RAS orientation (x to the right, y to the front, z up).
"""

import contextlib
import math
import zlib
from pathlib import Path

from hippo.data import formats
from hippo.errors import UserError, require
from hippo.files import atomic

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.openers import ImageOpener
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError

MAX_VOXELS = 2**29  # 2 GiB as float32; a header that declares more is refused before any voxel is read
READ_ERRORS = (OSError, EOFError, ValueError, ArithmeticError, MemoryError, zlib.error)
READ_ERRORS += (HeaderDataError, ImageFileError, OrientationError)
_MAX_INTENSITY = 1e15  # float32 statistics of larger values overflow
_FORMS_DIFFER_MM = 1.0  # sform and qform disagree if they place a corner of the volume further apart
_SPACINGS_DIFFER = 0.01  # relative difference allowed between the voxel sizes of the sform and of pixdim
_MOST_DEFLATED = 1032  # maximum compression ratio of deflate
_MOST_BEHIND = 2**30  # bytes that may follow the voxels of a gzip file
_KINDS = {b"n+1": nib.Nifti1Image, b"ni1": nib.Nifti1Pair, b"n+2": nib.Nifti2Image, b"ni2": nib.Nifti2Pair}


def read_nifti(path):
    """Reads a 3D file of any orientation and type, see formats.ENDINGS. Returns (array (D, H, W) in RAS, nibabel image
    as stored).

    Integer files without scaling stay integer, others become float32. Trailing axes of length one are dropped. Raises
    UserError for a file that is missing, truncated, of another format, not 3D, too large, or not of real numbers, and
    for a broken affine, spacing or checksum, or voxels that are not finite.
    """
    path, image = Path(path), open_nifti(path)
    with _readable(path), np.errstate(all="ignore"):  # overflow gives non-finite values, which are reported below
        array = _read_voxels(path, image)
    return _checked(path, array, image), image


def read_image(image):
    """Like read_nifti, for a nibabel image that another program opened or made."""
    name = name_of(image)
    _check_image(name, image)
    with _readable(name), np.errstate(all="ignore"):
        array = np.asanyarray(image.dataobj)
    return _checked(name, array, image), image


def name_of(image):
    """Returns the name of a nibabel image for messages: its file, if it has one."""
    return image.get_filename() or "image"


def _checked(path, array, image):
    """Returns the voxels of an image as (D, H, W) in RAS. Raises UserError if one is not finite."""
    array = np.ascontiguousarray(nib.apply_orientation(array, nib.io_orientation(image.affine)))
    if not (-_MAX_INTENSITY < array.min() <= array.max() < _MAX_INTENSITY):  # also false for NaN
        bad = np.count_nonzero(~(np.abs(array.astype(np.float64)) < _MAX_INTENSITY))
        raise UserError(
            f"{path}: {bad} voxels are NaN or infinite, or beyond {_MAX_INTENSITY:g}; expected finite intensities: "
            "clean or export it again"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return array.reshape(array.shape[:3])


def _read_voxels(path, image):
    """Returns the array of a file as stored. Reads gzip files to the end, so that their checksum is verified."""
    if not formats.is_packed(path):
        return np.asanyarray(image.dataobj)
    stored = image.dataobj
    with ImageOpener(path) as file:
        array = np.asanyarray(ArrayProxy(file, (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)))
        behind = 0
        while chunk := file.read(2**20):
            behind += len(chunk)
            require(behind <= _MOST_BEHIND, f"{path}: longer than its header says; copy or export it again")
    return array


def open_nifti(path):
    """Opens a file as a nibabel image and checks its header, see read_nifti. Reads no voxels."""
    path = Path(path)
    require(path.is_file(), f"{path}: {formats.why_missing(path)}")
    with _readable(path):
        require(
            not formats.is_dicom(path),
            f"{path}: a DICOM file; give predict.py the folder, or a .zip file, that holds its series",
        )
        known = formats.has_ending(path)
        require(known, f"{path}: expected a NIfTI file, .nii or .nii.gz, or an .mgz file; {formats.advice(path)}")
        require(
            len(formats.files_of(path)) == 2 or not formats.is_pair(path),
            f"{path}: its other half is missing: .hdr and .img",
        )
        formats.check_packing(path)
        image = formats.open_mgh(path) if formats.is_mgh(path) else _check_header(path).from_filename(path)
        if not formats.is_mgh(path):
            formats.shorten_quaternion(image.header)
        _check_image(path, image)
        _check_size(path, image)
    return image


@contextlib.contextmanager
def _readable(path):
    """Turns nibabel's errors for a broken file into UserError. Small faults that nibabel corrects are not reported."""
    try:
        with LoggingOutputSuppressor():
            yield
    except READ_ERRORS as error:
        kind = type(error).__name__
        raise UserError(f"{path}: not a readable file ({kind}: {error}); copy or export it again") from None


def _check_header(path):
    """Returns the nibabel class that reads a NIfTI file. Raises UserError for faults that nibabel would correct
    silently, or that would make it read far into the file."""
    header_file = next(file for file in formats.files_of(path) if not file.name.lower().endswith(".img"))
    with ImageOpener(header_file) as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr + 4)
        kind = nib.Nifti2Header if start[4:7] in (b"n+2", b"ni2") else nib.Nifti1Header
        size = kind.sizeof_hdr
        require(len(start) >= size, f"{path}: too short for a NIfTI file; copy or export it again")
        header = kind(start[:size], check=False)
        magic = bytes(header["magic"].item())[:3]
        analyze = formats.is_pair(path) and magic not in _KINDS
        require(not analyze, f"{path}: Analyze 7.5, whose sides cannot be known; convert the DICOM files to NIfTI")
        known = magic in _KINDS and magic.startswith(b"ni") == formats.is_pair(path) and header["sizeof_hdr"] == size
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
    return formats.for_long_quaternion(_KINDS[magic]) if formats.has_long_quaternion(header) else _KINDS[magic]


def _check_image(path, image):
    """Raises UserError for an image that is not 3D, too large, or not of real numbers, or whose affine is not
    invertible. Reads no voxels."""
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
    affine = image.affine
    invertible = np.isfinite(affine).all() and 1e-9 < abs(np.linalg.det(affine[:3, :3])) < 1e9
    require(invertible, f"{path}: the affine in the header is not invertible; correct the header")


def _check_size(path, image):
    """Raises UserError if a file is shorter than its header says."""
    room = max(file.stat().st_size for file in formats.files_of(path)) * (
        _MOST_DEFLATED if formats.is_packed(path) else 1
    )
    promised = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    require(promised <= room, f"{path}: shorter than its header says ({promised:,} bytes); copy or export it again")


def spacing_mm(image):
    """Returns the spacing of a nibabel image along its RAS axes, in mm."""
    return tuple(round(float(s), 4) for s in nib.affines.voxel_sizes(ras_affine(image)))


def ras_affine(image):
    """Returns the affine (4, 4) of a nibabel image after reorientation to RAS. Reads no voxels."""
    ornt = nib.io_orientation(image.affine)
    return image.affine @ nib.orientations.inv_ornt_aff(ornt, image.shape[:3])


def to_stored_orientation(array, image):
    """Reorients an array (D, H, W) from RAS to the orientation in which a nibabel image is stored."""
    ras = nib.orientations.axcodes2ornt("RAS")
    return nib.apply_orientation(array, nib.orientations.ornt_transform(ras, nib.io_orientation(image.affine)))


def orientation_flags(image):
    """Returns the flags about the orientation and spacing of a nibabel image: a list, empty if nothing is doubtful.

    nibabel and the NIfTI standard define which form counts: the sform if its code is above 0, else the qform, else the
    spacing alone, with the first axis to the left. sform_only and qform_only: the code of the other form is 0.
    sform_qform_disagree: the forms place a corner of the volume more than 1 mm apart; the sform is used.
    sform_qform_sides_differ: one form mirrors left and right. no_orientation: there is neither form. spacing_differs:
    the voxel sizes of sform and pixdim differ. units_not_mm: the unit of the header is metres or microns.
    """
    header = image.header
    if isinstance(image, nib.MGHImage):
        return ["no_orientation"] * bool(image.extra.get("no_orientation"))
    flags, sizes = [], nib.affines.voxel_sizes(image.affine)
    if not np.allclose(sizes / header["pixdim"][1:4], 1, rtol=0, atol=_SPACINGS_DIFFER):
        flags.append("spacing_differs")
    if units_of(image) != "mm":
        flags.append("units_not_mm")
    return _doubts_of_forms(image) + flags


def units_of(image):
    """Returns the length unit in the header of a nibabel image: meter, micron, or mm, which also stands for any other
    unit."""
    code = int(image.header["xyzt_units"]) & 7 if isinstance(image, nib.Nifti1Pair) else 0
    return {1: "meter", 3: "micron"}.get(code, "mm")


def _doubts_of_forms(image):
    """Returns the flags of orientation_flags about sform and qform."""
    sform, qform = int(image.header["sform_code"]) > 0, int(image.header["qform_code"]) > 0
    if not (sform and qform):
        return ["sform_only"] if sform else ["qform_only"] if qform else ["no_orientation"]
    try:
        other = image.get_qform()
    except (HeaderDataError, ValueError):  # the qform is not a rotation
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
    """Writes a label map (uint8) on the grid of a nibabel image: same affine, sform, qform and codes, and orientation.

    synthetic: the model or the image comes from phantoms, and the header says so.
    """
    save_like(path, labels, image, description, 1.0, synthetic)


def save_like(path, array, image, description, slope=1.0, synthetic=False):
    """Writes an array (D, H, W) or (D, H, W, N) of uint8 or float32, in stored orientation, as NIfTI on the grid of a
    nibabel image. The header holds `slope`, by which readers multiply the values."""
    header = _geometry_of(image)
    header.set_data_dtype(array.dtype)
    header["cal_min"], header["cal_max"] = 0, 0
    synthetic = synthetic or is_phantom(image)
    header["descrip"] = description.encode() + (b" (SYNTHETIC data)" if synthetic else b"")
    _save(path, array, image, header, (slope, 0))


def save_scan(path, image):
    """Writes a nibabel image as NIfTI, with its voxels as stored and its geometry, and no text of its header."""
    stored = image.dataobj
    scaling = getattr(stored, "slope", 1), getattr(stored, "inter", 0)
    array = stored.get_unscaled() if hasattr(stored, "get_unscaled") else np.asanyarray(stored)
    header = _geometry_of(image)
    header.set_data_dtype(array.dtype)
    _save(path, array, image, header, scaling)


def _save(path, array, image, header, scaling):
    result = (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image)(array, image.affine, header)
    result.header.set_slope_inter(*scaling)
    with atomic(path) as temporary:
        nib.save(result, temporary)


def _geometry_of(image):
    """Returns the NIfTI header of a nibabel image without its texts and extensions, which may name a person."""
    if not isinstance(image, nib.Nifti1Pair):  # .mgz, .mgh
        header = nib.Nifti1Header()
        header.set_sform(image.affine, code=1)
        header.set_qform(image.affine, code=1)
        header.set_xyzt_units("mm")
        return header
    header = image.header.copy()
    header.extensions = type(header.extensions)()
    for name, (kind, *_) in header.structarr.dtype.fields.items():
        if kind.kind == "S" and name != "magic":
            header[name] = b""
    return header
