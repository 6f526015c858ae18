"""Files in a folder or in a .zip file, read where they are. A .zip file is never unpacked by the names in it."""

import contextlib
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from hippo.errors import UserError, require

MOST_BYTES = 2**34  # of all files in a .zip file, unpacked
_MOST_FILES = 100_000  # in a .zip file
_BOMB = 2**28, 250  # a .zip file with more bytes, and packed more tightly, holds no scans; slices of MRI reach 10
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError)


def is_zip(path):
    """Whether a file is a .zip file, judged by its name."""
    return Path(path).name.lower().endswith(".zip")


def files_in(source, most_bytes=MOST_BYTES):
    """Returns {name: size in bytes} of the files in a .zip file, sorted by name, hidden ones left out.

    Raises UserError for a file that is none, is empty, encrypted, or a bomb, or has names that lead out of it.
    """
    with _readable(source), zipfile.ZipFile(source) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    require(entries, f"{source}: an empty .zip file; pack it again")
    require(len(entries) <= _MOST_FILES, f"{source}: a .zip file of more than {_MOST_FILES:,} files; unpack it first")
    names = [entry.filename.replace("\\", "/") for entry in entries]
    leading_out = [n for n in names if n.startswith("/") or ":" in n[:2] or ".." in n.split("/")]
    require(not leading_out, f"{source}: a .zip file with names that lead out of it; pack it again")
    total, packed = (sum(getattr(entry, name) for entry in entries) for name in ("file_size", "compress_size"))
    size, most = f"{total / 1e6:,.0f} MB", f"{most_bytes / 1e6:,.0f} MB"
    is_plausible = total <= _BOMB[0] or total <= _BOMB[1] * packed
    require(is_plausible, f"{source}: {size} unpacked, far more than scans would be; is it a bomb?")
    require(total <= most_bytes, f"{source}: {size} unpacked; expected up to {most}: pack the series of the T1 alone")
    require(not any(entry.flag_bits & 1 for entry in entries), f"{source}: an encrypted .zip file; unpack it first")
    regular = [entry for entry in entries if stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)]
    sizes = {entry.filename: entry.file_size for entry in regular if not _is_hidden(entry.filename)}
    return dict(sorted(sizes.items()))


def _is_hidden(name):
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


@contextlib.contextmanager
def opened(source):
    """Yields a function that opens a file in a folder or a .zip file by its name. Raises UserError for a broken one."""
    if Path(source).is_dir():
        yield lambda name: (Path(source) / name).open("rb")
        return
    with _readable(source), zipfile.ZipFile(source) as archive:
        yield archive.open


def copy_out(source, names, folder):
    """Copies files out of a folder or a .zip file into a new folder. names: {name of each: its name in the folder}.
    Returns their paths."""
    folder.mkdir()
    with opened(source) as open_file:
        for name, new_name in names.items():
            with open_file(name) as file, open(folder / new_name, "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
    return [folder / new_name for new_name in names.values()]


@contextlib.contextmanager
def _readable(source):
    """Turns the errors of a broken .zip file into UserError."""
    try:
        yield
    except _ERRORS as error:
        kind = type(error).__name__  # its message may hold the name of a file in it
        raise UserError(f"{source}: not a readable .zip file ({kind}); copy or pack it again") from None
