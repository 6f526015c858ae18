"""Lets several runs share a results folder: changes that belong together are locked, and each run registers its
presence.

The operating system's locks are used, which end with their process; most network drives support them. On a drive
without locks, filelock uses the existence of a file as a lock, or runs continue without locks and say so. No record of
a scan is lost then, but the table may lack scans until --collect=True writes it again.
"""

import contextlib
import functools
import os
import secrets
import sys
from pathlib import Path

from hippo.errors import UserError
from hippo.files import machine

from filelock import FileLock, Timeout

RECORDS = ".hippo"  # subfolder of the results folder
STUDY = "study.json"  # file in RECORDS: what all results have in common
_LOCK = "lock"
_RUNS = "runs"  # folder with one file per run, locked by that run
_PATIENCE_S, _LONGEST_S = 20, 600  # seconds before a run reports that it is waiting, and before it gives up
_present = {}  # {folder: the lock of this process's run there}


@contextlib.contextmanager
def locked(out_dir):
    """Locks a results folder while the block runs, so that no other process is in such a block. Creates the folder if
    needed."""
    folder = Path(out_dir) / RECORDS
    lock = FileLock(folder / _LOCK)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        before = _identity(folder)
        try:
            has_lock = _acquire(lock, _PATIENCE_S)
        except Timeout:
            print(f"{out_dir}: waiting for another run that writes its table", file=sys.stderr, flush=True)
            try:
                has_lock = _acquire(lock, _LONGEST_S)
            except Timeout:
                text = f"{lock.lock_file} was held for {_LONGEST_S} s; if no other run is at work, delete it and start again"
                raise UserError(text) from None
        if before and _identity(folder) == before:
            break
        lock.release()  # the folder was renamed in the meantime
    try:
        yield lock
    finally:
        if has_lock:
            lock.release()


def _identity(folder):
    """Returns (device, inode) of a folder, which distinguish it from another one of the same name; None if it does not
    exist."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(folder)
        return status.st_dev, status.st_ino


def _acquire(lock, timeout):
    """Acquires a lock. Returns whether this drive supports locks. Raises Timeout if another process holds it for so many
    seconds."""
    try:
        lock.acquire(timeout)
        return True
    except Timeout:  # Timeout is an OSError, too
        raise
    except (OSError, NotImplementedError) as error:
        _say_once(
            f"{Path(lock.lock_file).parent}: no locks on this drive ({error}); at the end of all runs: --collect=True"
        )
        return False


@functools.cache
def _say_once(text):
    print(text, file=sys.stderr, flush=True)


def enter(out_dir):
    """Registers a run of this process in a results folder, until `leave` or the end of the process."""
    folder = Path(out_dir).resolve()
    is_in_use(folder)  # removes files left by killed runs
    if folder not in _present:
        path = folder / RECORDS / _RUNS / f"{machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if not _acquire(lock, 0):
            path.touch()
        _present[folder] = lock


def leave(out_dir):
    """Removes the registration made by `enter`."""
    lock = _present.pop(Path(out_dir).resolve(), None)
    if lock:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def is_in_use(out_dir):
    """Whether another run is working in a results folder. Removes files left by killed runs."""
    mine = _present.get(Path(out_dir).resolve())
    for path in (Path(out_dir) / RECORDS / _RUNS).glob("*"):
        if mine and path.name == Path(mine.lock_file).name:
            continue
        lock = FileLock(path)
        try:
            if not _acquire(lock, 0):
                return True  # unknown on a drive without locks
        except Timeout:
            return True
        lock.release()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return False


def holds_results(folder):
    """Whether a folder is a results folder."""
    return (Path(folder) / RECORDS / STUDY).is_file()
