"""Atomic writing of files, JSON, and folders for results."""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

from hippo.errors import UserError, require

import numpy as np

ROOT = Path(__file__).parent.parent  # the repository
HALF_WRITTEN = ".half-*"  # pattern of the files that `atomic` has not finished
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def atomic(path, durable=True):
    """Yields a temporary path in the same folder and with the same extension, which replaces `path` when the block
    succeeds.

    A reader sees the old file or the complete new one. If the block fails, nothing is left. durable: the file also
    survives a power cut, which is not worth the time for thousands of small files. Raises OSError that names `path`,
    with the errno of its cause.
    """
    path = Path(path)
    temporary = path.with_name(_half_written(path, machine(), os.getpid(), threading.get_ident()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        _replace(temporary, path)
        if durable and os.name == "posix":
            _sync_folder(path.parent)
    except OSError as cause:
        error = OSError(f"{path}: could not be written ({cause}); is there room, and permission?")
        error.errno = cause.errno
        raise error from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(source, target):
    """os.replace, which Windows refuses for the moment in which another process reads the target."""
    for wait_s in (0.05, 0.2, 1) if os.name == "nt" else ():
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(wait_s)
    os.replace(source, target)


def _half_written(path, host, pid, thread):
    """Returns the name of an unfinished file. It identifies the process and the target, and stays short even if the
    name of the target is long: a file system allows 255 bytes."""
    return f".half-{host}-{pid}-{thread}-{_short(path.name)}{''.join(path.suffixes[-2:])[-12:]}"


def _short(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


@functools.cache
def machine():
    """Returns a short identifier of this machine, or of this container, which has its own process ids."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += str(os.stat("/proc/self/ns/pid").st_ino)
    return _short(name)


def _sync_folder(folder):
    """Syncs the entries of a folder, if the file system supports it: some network drives refuse it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_half_written(path):
    """Removes unfinished files that a killed process of this machine left for this path, see atomic."""
    path = Path(path)
    for left in path.parent.glob(f".half-{machine()}-*-{_short(path.name)}*"):
        number = re.match(r"\.half-\w+-(\d+)-", left.name)
        if number and not is_alive(int(number[1])):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def work_folder(parent):
    """Yields a new folder in another one, which is removed when the block ends. Removes those that killed processes of
    this machine left there; on Windows, where this is not known, those of an hour ago."""
    parent, mine = Path(parent), f".half-{machine()}-"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{mine}*-*/"):
        pid, is_old = left.name.removeprefix(mine).partition("-")[0], time.time() - left.stat().st_mtime > 3600
        if pid.isdigit() and int(pid) != os.getpid() and (not is_alive(int(pid)) if os.name == "posix" else is_old):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{mine}{os.getpid()}-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def is_alive(pid):
    """Whether a process of this machine is running. Always False on Windows, where this is not checked."""
    if os.name != "posix" or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
        return True
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False


def is_disk_full(error):
    """Whether an OSError says that the disk, or the user's quota, is full."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def save_text(path, text):
    """Writes a text in UTF-8, completely or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(path, content):
    """Writes content as JSON, completely or not at all. NaN and infinity become null."""
    save_text(path, json.dumps(finite(content), indent=1, allow_nan=False))


def finite(value):
    """Converts values for JSON: arrays to lists, NaN and infinity to None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path, made_by):
    """Returns the content of a JSON file. Raises UserError if it is missing or broken; `made_by` is the command that
    creates it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {made_by}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); make it again with: {made_by}") from None


def digest(path, algorithm="sha256"):
    """Returns the checksum of a file's content, in hexadecimal."""
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 18):
            checksum.update(chunk)
    return checksum.hexdigest()


def check_folder(path):
    """Returns the path of a results folder. Raises UserError for a file, for the working directory and for a folder
    above it."""
    path = Path(path)
    require(not path.exists() or path.is_dir(), f"{path} is a file; choose another --out_dir")
    require(
        path.resolve() not in [Path.cwd(), *Path.cwd().parents],
        f"{path}: results need a folder of their own; choose another --out_dir",
    )
    return path


def set_aside(path):
    """Renames an existing file or folder to the first free name <name>.previous-N, so that nothing is overwritten."""
    path, n = Path(path), 1
    if path.exists() or path.is_symlink():
        stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
        while (kept := path.with_name(f"{stem}.previous-{n}{suffix}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} was there before: it is now {kept}", flush=True)


def fresh_folder(path):
    """Creates an empty folder and returns its path. A folder that is not empty is moved aside first."""
    path = check_folder(path)
    if path.is_dir() and any(path.iterdir()):
        set_aside(path)
    path.mkdir(parents=True, exist_ok=True)
    return path
