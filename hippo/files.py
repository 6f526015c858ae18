"""Files that are written whole or not at all, JSON, and folders for results."""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np

from hippo.errors import UserError, require


@contextlib.contextmanager
def atomic(path, durable=True):
    """Yields a temporary path in the same folder, with the same ending; when the block ends well it takes the place
    of `path`, and otherwise nothing is left. A reader sees the old file or the whole new one.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:  # safe against a power cut too; not worth its time for thousands of small files
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); is there room, and permission?") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_json(path, content):
    """Writes content as JSON, whole or not at all; NaN and infinity become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False), encoding="utf-8")


def _finite(value):
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path, made_by):
    """Reads a JSON file; `made_by` is the command to name when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {made_by}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); make it again with: {made_by}") from None


def check_folder(path):
    """The path of a folder for results. Raises UserError for a file and for the working directory or one above it."""
    path = Path(path)
    require(not path.exists() or path.is_dir(), f"{path} is a file; choose another --out_dir")
    require(
        path.resolve() not in [Path.cwd(), *Path.cwd().parents],
        f"{path}: results need a folder of their own; choose another --out_dir",
    )
    return path


def keep_earlier(path):
    """Renames a file that exists to <stem>.previous-N<suffix>, so that it is not overwritten."""
    path, n = Path(path), 1
    if path.exists():
        while (kept := path.with_name(f"{path.stem}.previous-{n}{path.suffix}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} was there: it is now {kept}", flush=True)


def fresh_folder(path):
    """Makes an empty folder; one that holds something is first renamed to <name>.previous-N, so that nothing is
    overwritten.
    """
    path = check_folder(path)
    if path.is_dir() and any(path.iterdir()):
        n = 1
        while (kept := path.with_name(f"{path.name}.previous-{n}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} held earlier results: they are now in {kept}", flush=True)
    path.mkdir(parents=True, exist_ok=True)
    return path
