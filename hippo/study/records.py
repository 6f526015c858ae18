"""What a folder of results holds so far: a record of each scan, written last, so that a study goes on where it stopped."""

import glob
import os
import re
from pathlib import Path

from hippo.errors import UserError, require
from hippo.files import check_folder, digest, load_json, save_json, save_text, set_aside

RECORDS = ".hippo"  # in the folder of results
_STUDY = "study.json"  # what its results have in common
_AGAIN = "the same command"
_BEGUN = ".begun"  # ending of the notes of scans that a process is at


def open_study(out_dir, study, items, alone=True):
    """Makes a folder for results, or takes up one of the same settings. One that holds something else is set aside: results
    of other settings, or of the Items under other names. Raises UserError where it holds folders and no results.

    study: {"settings", "bids", "adjustment"} of plain values. alone: no other process writes there; else other results
    are a UserError, too.
    """
    folder = check_folder(out_dir)
    if folder.is_dir() and (difference := _differs(folder, study, items)):
        require(alone, f"{folder} holds {difference}; choose another --out_dir")
        problem = items[0].problem or "no such file"
        there = any(Path(item.path).is_file() for item in items)
        require(there, f"{items[0].path}: {problem}; the results in {folder} stay as they are")
        set_aside(folder)
    earlier = load_study(folder) if (folder / RECORDS / _STUDY).is_file() else {"scans": []}
    names = {item.name: None for item in items}
    scans = {name: None for name in earlier["scans"] if name in names or _is_there(_load(folder, name))}
    content = study | {"scans": [*(scans | names)]}
    if content != earlier:
        save_json(folder / RECORDS / _STUDY, content)


def _differs(folder, study, items):
    """Why the results in a folder are not of this study; empty if they are, or if there are none."""
    if not (folder / RECORDS / _STUDY).is_file():  # another shard may be about to write it
        there = [path for path in folder.iterdir() if not path.name.startswith(".")]
        ours = any(path.name.startswith("volumes.") for path in there)
        text = f"{folder} holds folders, and no results; give them one of their own: --out_dir={folder / 'hippo'}"
        require(ours or not any(path.is_dir() for path in there), text)
        return "other files" if there else ""
    records = {record["name"]: record for record in load_records(folder)}
    if not records:
        return ""
    earlier = load_study(folder)
    if earlier["bids"] != study["bids"]:
        return "results of another data set"
    if earlier["settings"] != study["settings"]:
        names = [name for name, value in study["settings"].items() if earlier["settings"].get(name) != value]
        return f"results of other settings ({', '.join(names)})"
    of_path = {record["path"]: name for name, record in records.items()}
    for item in items:
        record, path = records.get(item.name), os.path.abspath(item.path)
        if record and record["path"] != path and record["sha256"] != checksum(item.path):
            return f"results of {record['path']} under the name of {item.path}"
        if of_path.get(path, item.name) != item.name:
            return f"results of {item.path} under another name"
    return ""


def load_study(out_dir):
    """What open_study wrote. Raises UserError where a folder holds no results."""
    path = Path(out_dir) / RECORDS / _STUDY
    require(
        path.is_file(),
        f"{out_dir}: no results in this folder; make them with: python predict.py SCANS --out_dir={out_dir}",
    )
    return load_json(path, _AGAIN)


def checksum(path):
    """The SHA-256 of a file, or empty where it cannot be read."""
    try:
        return digest(path)
    except OSError:
        return ""


def is_done(out_dir, item):
    """Whether the results of an Item are there, of the same input and eTIV: each side of it, and each file. The results of
    an input that is there no longer stay."""
    record = _load(out_dir, item.name)
    return bool(
        record
        and not any("failed: " in row["flags"] for row in record["rows"])
        and all((Path(out_dir) / file).is_file() for file in record["files"])
        and record["own_etiv_mm3"] == item.etiv_mm3
        and (_stat(item.path) in ([], record["stat"]) or record["sha256"] == checksum(item.path))
    )


def was_begun(out_dir, item):
    """Whether a process ended while it was at an Item."""
    return _path(out_dir, item.name).with_suffix(_BEGUN).is_file()


def begin(out_dir, item):
    """Notes that a process is at an Item; returns what save_record wants of its file as it is now."""
    save_text(_path(out_dir, item.name).with_suffix(_BEGUN), "")
    return {"stat": _stat(item.path), "sha256": checksum(item.path)}


def save_record(out_dir, item, rows, files, state):
    """Writes the record of an Item: its rows, and its files in the folder of results, which are all written by now. Files of
    an earlier record that are no longer its are removed. state: see begin."""
    path, earlier = _path(out_dir, item.name), _load(out_dir, item.name)
    record = {"name": item.name, "path": os.path.abspath(item.path), **state, "own_etiv_mm3": item.etiv_mm3}
    record |= {"participant_id": item.participant_id, "session_id": item.session_id, "files": files, "rows": rows}
    remove_half_written(path)
    save_json(path, record)
    for file in {*(earlier["files"] if earlier else [])} - {*files}:
        (Path(out_dir) / file).unlink(missing_ok=True)
    path.with_suffix(_BEGUN).unlink(missing_ok=True)


def load_records(out_dir):
    """The records of a study's scans, in the order in which these were given; one that is broken is as if not there."""
    records = (_load(out_dir, name) for name in load_study(out_dir)["scans"])
    return [record for record in records if record]


def remove_half_written(path):
    """Removes what a process that was killed had begun to write in the place of a file, see files.atomic."""
    path = Path(path)
    for left in path.parent.glob(f".[0-9]*-[0-9]*.{glob.escape(path.name)}"):
        number = re.fullmatch(rf"\.(\d+)-\d+\.{re.escape(path.name)}", left.name)
        if number and not _is_alive(int(number[1])):
            left.unlink(missing_ok=True)


def _is_alive(pid):
    """Whether a process of this machine runs; on Windows none is asked, so that none counts as alive."""
    if os.name != "posix" or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
        return True
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False


def _stat(path):
    """[size, time of the last change in ns] of a file; empty where there is none."""
    try:
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    except OSError:
        return []


def shard_of(text):
    """(first, step) of the option --shard, as in 3/100: every hundredth scan, from the third on. Empty: all of them."""
    try:
        first, of = map(int, (text or "1/1").split("/"))
    except ValueError:
        first, of = 0, 0
    require(1 <= first <= of, f"--shard={text}: expected a number and of how many, as in 3/100")
    return first - 1, of


def _is_there(record):
    """Whether the scan of a record is where it was."""
    return bool(record) and Path(record["path"]).exists()


def _path(out_dir, name):
    """The file of a record."""
    return Path(out_dir) / RECORDS / "scans" / f"{name}.json"


def _load(out_dir, name):
    """A record, or None where there is none, or a broken one."""
    try:
        record = load_json(_path(out_dir, name), _AGAIN)
        return record if record["name"] == name else None
    except (UserError, KeyError, TypeError):
        return None
