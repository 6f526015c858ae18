"""Files that are written whole or not at all, JSON, and folders for results."""

import contextlib
import hashlib
import json
import math
import os
import threading
from pathlib import Path

from hippo.errors import UserError, require

import numpy as np

ROOT = Path(__file__).parent.parent  # the repository
HALF_WRITTEN = ".[0-9]*.*"  # pattern of the files that `atomic` has not finished


@contextlib.contextmanager
def atomic(path, durable=True):
    """Yields a temporary path in the same folder and with the same ending, which replaces `path` when the block ends well.

    A reader sees the old file or the whole new one. When the block fails, nothing is left. durable: the file survives
    a power cut too, which is not worth its time for thousands of small files. Raises OSError that names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable and os.name == "posix":  # the folder's entry too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); is there room, and permission?") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_text(path, text):
    """Writes a text in UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(path, content):
    """Writes content as JSON, whole or not at all. NaN and infinity become null."""
    save_text(path, json.dumps(finite(content), indent=1, allow_nan=False))


def finite(value):
    """Values as JSON holds them: lists for arrays, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path, made_by):
    """The content of a JSON file. Raises UserError where it is missing or broken; `made_by` is the command that makes it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {made_by}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); make it again with: {made_by}") from None


def digest(path, algorithm="sha256"):
    """The checksum of a file's content, in hexadecimal."""
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 18):
            checksum.update(chunk)
    return checksum.hexdigest()


def check_folder(path):
    """The path of a folder for results. Raises UserError for a file, for the working directory and for a folder above it."""
    path = Path(path)
    require(not path.exists() or path.is_dir(), f"{path} is a file; choose another --out_dir")
    require(
        path.resolve() not in [Path.cwd(), *Path.cwd().parents],
        f"{path}: results need a folder of their own; choose another --out_dir",
    )
    return path


def set_aside(path):
    """Renames a file or folder that exists to its first free name, <name>.previous-N, so that nothing is overwritten."""
    path, n = Path(path), 1
    if path.exists() or path.is_symlink():
        stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
        while (kept := path.with_name(f"{stem}.previous-{n}{suffix}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} was there before: it is now {kept}", flush=True)


def fresh_folder(path):
    """Makes an empty folder and returns its path; one that holds something is set aside first."""
    path = check_folder(path)
    if path.is_dir() and any(path.iterdir()):
        set_aside(path)
    path.mkdir(parents=True, exist_ok=True)
    return path
