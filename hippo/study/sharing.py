"""Several runs in one folder of results: what must be changed together is locked, and a run says that it is there.

Locks are those of the operating system, which ends them with their process. Network drives have them as well, as a rule.
Where a drive has none, filelock takes the existence of a file for one, or runs go on without and say so: no record of a scan
is lost then, but a table may lack scans until --collect=True writes it again.
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

RECORDS = ".hippo"  # in the folder of results
STUDY = "study.json"  # in it: what its results have in common
_LOCK = "lock"
_RUNS = "runs"  # a file for each run, which holds its lock
_PATIENCE_S, _LONGEST_S = 20, 600  # before a run says that it waits, and before it gives up
_present = {}  # {folder: the lock of this process's run there}


@contextlib.contextmanager
def locked(out_dir):
    """While the block runs, no other process is in such a block of this folder of results, which is made if need be."""
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
        lock.release()  # the folder was renamed meanwhile
    try:
        yield lock
    finally:
        if has_lock:
            lock.release()


def _identity(folder):
    """What tells a folder from another one of its name; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(folder)
        return status.st_dev, status.st_ino


def _acquire(lock, timeout):
    """Whether a lock could be had on this drive. Raises Timeout where another process has it for so many seconds."""
    try:
        lock.acquire(timeout)
        return True
    except Timeout:  # an OSError, too
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
    """Says that this process has a run in a folder of results, until `leave`, or its end."""
    folder = Path(out_dir).resolve()
    is_in_use(folder)  # removes what killed runs left
    if folder not in _present:
        path = folder / RECORDS / _RUNS / f"{machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if not _acquire(lock, 0):
            path.touch()
        _present[folder] = lock


def leave(out_dir):
    """Takes back what `enter` said."""
    lock = _present.pop(Path(out_dir).resolve(), None)
    if lock:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def is_in_use(out_dir):
    """Whether another run is at work in a folder of results. What runs left that were killed is removed."""
    mine = _present.get(Path(out_dir).resolve())
    for path in (Path(out_dir) / RECORDS / _RUNS).glob("*"):
        if mine and path.name == Path(mine.lock_file).name:
            continue
        lock = FileLock(path)
        try:
            if not _acquire(lock, 0):
                return True  # it cannot be known
        except Timeout:
            return True
        lock.release()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return False


def holds_results(folder):
    """Whether a folder is one of results."""
    return (Path(folder) / RECORDS / STUDY).is_file()
