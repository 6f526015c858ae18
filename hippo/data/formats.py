"""File formats: recognises scans by name and first bytes, says what to do with other files, and handles headers that
nibabel does not read as intended."""

import math
import os
from pathlib import Path

from hippo.errors import UserError, require

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img")  # extensions of the supported files, in any case
_PACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip", ".z": "uncompress"}
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_LONGEST = 1.01  # largest length of a quaternion that is accepted as a rotation, whose length is 1
_FREESURFER = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # LIA, used if an .mgz file has no orientation
_BEGINNINGS = (b"\0\0\1\x5c", b"\x5c\1\0\0", b"\0\0\2\x1c", b"\x1c\2\0\0", b"\0\0\0\1")  # NIfTI 1 and 2, MGH


def has_ending(path):
    """Whether a file has the extension of a scan."""
    return Path(path).name.lower().endswith(ENDINGS)


def files_of(path):
    """Returns the files that make up a scan: the file itself and, for a pair, the other half if it exists."""
    path = Path(path)
    if not is_pair(path):
        return [path]
    names = {path.name, *(path.stem + ending for ending in (".hdr", ".img", ".HDR", ".IMG"))}
    found = {(os.stat(p).st_dev, os.stat(p).st_ino): p for p in sorted(map(path.with_name, names)) if p.is_file()}
    return sorted(found.values())  # file systems that ignore case have one file under two names


def is_pair(path):
    """Whether a file is half of a .hdr and .img pair, judged by its name."""
    return path.name.lower().endswith((".hdr", ".img"))


def is_mgh(path):
    """Whether a file has a FreeSurfer format, judged by its name."""
    return path.name.lower().endswith((".mgz", ".mgh"))


def is_packed(path):
    """Whether a file is gzipped, judged by its name."""
    return path.name.lower().endswith((".gz", ".mgz"))


def why_missing(path):
    """Returns the message for a path that is not a file."""
    if path.is_dir():
        return "a folder; expected one scan (predict.py takes folders)"
    if not path.is_symlink():
        return "no such file"
    target = os.readlink(path)
    if "annex" in target:
        return f"a git-annex link whose content is not here; get it with: datalad get {path}"
    return f"a link to {target}, which is not there"


def advice(path):
    """Returns what to do with a file that has another extension."""
    packer = _PACKERS.get(path.suffix.lower())
    return f"unpack it first: {packer} {path}" if packer else "convert it"


def is_pointer(path):
    """Whether a file stands for another one, whose content git-annex or git-lfs has not brought."""
    with open(path, "rb") as file:
        start = file.read(1024)
    return len(start) < 1024 and (b"annex/objects/" in start or start.startswith(b"version https://git-lfs"))


def check_packing(path):
    """Raises UserError if the extension of a file says gzip but its content is not gzipped, or vice versa, and if the
    file is only a pointer to its content."""
    with open(path, "rb") as file:
        start = file.read(512)
    require(
        not is_pointer(path),
        f"{path}: the content is not here, a pointer stands for it; get it with: datalad get {path}",
    )
    name, packed = path.name, start[:2] == b"\x1f\x8b"
    if packed and not is_packed(path):
        right = f"{name[:-1]}z" if is_mgh(path) else f"{name}.gz"
        raise UserError(f"{path}: gzipped, and its name does not say so; rename it to {right}")
    if start.startswith(_BEGINNINGS) and is_packed(path):
        right = f"{name[:-1]}h" if is_mgh(path) else name[: -len(".gz")]
        raise UserError(f"{path}: not gzipped, whatever its name says; rename it to {right}")


def is_dicom(path):
    """Whether a file begins like a DICOM file."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_mgh(path):
    """Opens an .mgz or .mgh file. If it has no orientation, the image gets FreeSurfer's default, and image.extra says
    so."""
    image = nib.MGHImage.from_filename(path)
    with ImageOpener(path) as file:
        flag = int.from_bytes(file.read(30)[28:], "big", signed=True)  # nibabel corrects it on reading
    if flag > 0:
        return image
    middle = -_FREESURFER @ (np.array(image.shape[:3]) / 2)
    affine = nib.affines.from_matvec(_FREESURFER, middle)
    return nib.MGHImage(image.dataobj, affine, image.header, {"no_orientation": True})


def has_long_quaternion(header):
    """Whether rounding made the quaternion of a NIfTI header slightly longer than 1."""
    return 1 < _length_of_quaternion(header) <= _LONGEST


def for_long_quaternion(kind):
    """Returns a nibabel class of NIfTI images that accepts such a quaternion, as the NIfTI reference code does."""
    header = type("Header", (kind.header_class,), {"quaternion_threshold": 1 - _LONGEST**2})
    return type(kind.__name__, (kind,), {"header_class": header})


def shorten_quaternion(header):
    """Scales such a quaternion to length 1."""
    if has_long_quaternion(header):
        length = _length_of_quaternion(header)
        for name in _QUATERNION:
            header[name] = float(header[name]) / length


def _length_of_quaternion(header):
    return math.sqrt(sum(float(header[name]) ** 2 for name in _QUATERNION))
