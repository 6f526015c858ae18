"""Names and first bytes of files: which of them are scans, and what to say of those that are not, or not as they are."""

import os
from pathlib import Path

from hippo.errors import UserError, require

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img")  # of the files that are read; in capitals, too
_PACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip", ".z": "uncompress"}
_BEGINNINGS = (b"\0\0\1\x5c", b"\x5c\1\0\0", b"\0\0\2\x1c", b"\x1c\2\0\0", b"\0\0\0\1")  # NIfTI 1 and 2, MGH


def has_ending(path):
    """Whether a file has the name of a scan."""
    return Path(path).name.lower().endswith(ENDINGS)


def files_of(path):
    """The files that a scan consists of: itself and, of a pair, the other half where it is there."""
    path = Path(path)
    if not is_pair(path):
        return [path]
    names = {path.name, *(path.stem + ending for ending in (".hdr", ".img", ".HDR", ".IMG"))}
    return sorted({p.resolve(): p for p in map(path.with_name, names) if p.is_file()}.values())


def is_pair(path):
    """Whether a file is the half of a pair by its name."""
    return path.name.lower().endswith((".hdr", ".img"))


def is_mgh(path):
    """Whether a file is FreeSurfer's by its name."""
    return path.name.lower().endswith((".mgz", ".mgh"))


def is_packed(path):
    """Whether a file is gzipped by its name."""
    return path.name.lower().endswith((".gz", ".mgz"))


def why_missing(path):
    """What to say of a path that is no file."""
    if not path.is_symlink():
        return "no such file"
    target = os.readlink(path)
    if "annex" in target:
        return f"a git-annex link whose content is not here; get it with: datalad get {path}"
    return f"a link to {target}, which is not there"


def advice(path):
    """What to do with a file that has another ending."""
    packer = _PACKERS.get(path.suffix.lower())
    return f"unpack it first: {packer} {path}" if packer else "convert it"


def check_packing(path):
    """Raises UserError where a file's ending says gzip and its content does not, or the other way round, and where another
    file stands for it."""
    with open(path, "rb") as file:
        start = file.read(512)
    pointer = path.stat().st_size < 1024 and (
        b"annex/objects/" in start or start.startswith(b"version https://git-lfs")
    )
    require(not pointer, f"{path}: the content is not here, a pointer stands for it; get it with: datalad get {path}")
    name, packed = path.name, start[:2] == b"\x1f\x8b"
    if packed and not is_packed(path):
        right = f"{name[:-1]}z" if is_mgh(path) else f"{name}.gz"
        raise UserError(f"{path}: gzipped, and its name does not say so; rename it to {right}")
    if start.startswith(_BEGINNINGS) and is_packed(path):
        right = f"{name[:-1]}h" if is_mgh(path) else name[: -len(".gz")]
        raise UserError(f"{path}: not gzipped, whatever its name says; rename it to {right}")


def is_dicom(path):
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
