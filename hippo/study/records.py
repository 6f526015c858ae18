"""What a folder of results holds so far: a record of each scan, written last, so that a study goes on where it stopped."""

import glob
from pathlib import Path

from hippo.errors import UserError, require
from hippo.files import HALF_WRITTEN, check_folder, digest, load_json, save_json, set_aside

RECORDS = ".hippo"  # in the folder of results
_STUDY = "study.json"  # what its results have in common
_AGAIN = "the same command"


def open_study(out_dir, study, items, alone=True):
    """Makes a folder for results, or takes up one of the same settings. One that holds something else is set aside: results
    of other settings, or of another scan under the name of one of the Items.

    study: {"settings": ..., ...} of plain values. alone: no other process writes there; else another study is a UserError.
    """
    folder = check_folder(out_dir)
    if folder.is_dir() and (difference := _differs(folder, study, items)):
        require(alone, f"{folder} holds {difference}; choose another --out_dir")
        set_aside(folder)
    there = (folder / RECORDS / _STUDY).is_file()
    scans = dict.fromkeys([*(load_study(folder)["scans"] if there else []), *(item.name for item in items)])
    save_json(folder / RECORDS / _STUDY, study | {"scans": list(scans)})


def _differs(folder, study, items):
    """Why the results in a folder are not of this study; empty if they are."""
    if not (folder / RECORDS / _STUDY).is_file():  # another shard may be about to write it
        return "other files" if {path.name for path in folder.iterdir()} - {RECORDS} else ""
    if not load_records(folder):
        return ""
    earlier = load_study(folder)
    if {**earlier, "scans": None} != {**study, "scans": None}:
        names = [k for k in study["settings"] if earlier["settings"].get(k) != study["settings"][k]]
        return f"results of other settings ({', '.join(names) or 'or of another data set'})"
    for item in items:
        record = _load(folder, item.name)
        if record and record["path"] != str(item.path.resolve()) and record["sha256"] != checksum(item.path):
            return f"results of {record['path']} under the name of {item.path}"
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
    """Whether the results of an Item are there, of the same input: each side of it, and each file."""
    record = _load(out_dir, item.name)
    return bool(
        record
        and not any("failed: " in row["flags"] for row in record["rows"])
        and all((Path(out_dir) / file).is_file() for file in record["files"])
        and record["sha256"] == checksum(item.path)
    )


def save_record(out_dir, item, rows, files):
    """Writes the record of an Item: its rows, and its files in the folder of results, which are all written by now."""
    record = {"name": item.name, "path": str(item.path.resolve()), "sha256": checksum(item.path)}
    record |= {"participant_id": item.participant_id, "session_id": item.session_id}
    remove_half_written(_path(out_dir, item.name))
    save_json(_path(out_dir, item.name), record | {"files": files, "rows": rows})


def load_records(out_dir):
    """All records of a folder, in the order in which their scans were given."""
    found = [p for p in (Path(out_dir) / RECORDS / "scans").rglob("*.json") if not p.match(HALF_WRITTEN)]
    place = {name: i for i, name in enumerate(load_study(out_dir)["scans"])}
    records = [load_json(path, _AGAIN) for path in found]
    return sorted(records, key=lambda record: (place.get(record["name"], len(place)), record["name"]))


def remove_half_written(path):
    """Removes what a killed process had begun to write in the place of a file, see files.atomic."""
    path = Path(path)
    for left in path.parent.glob(f".[0-9]*-[0-9]*.{glob.escape(path.name)}"):
        left.unlink(missing_ok=True)


def shard_of(text):
    """(first, step) of the option --shard, as in 3/100: every hundredth scan, from the third on. Empty: all of them."""
    try:
        first, of = map(int, (text or "1/1").split("/"))
    except ValueError:
        first, of = 0, 0
    require(1 <= first <= of, f"--shard={text}: expected a number and of how many, as in 3/100")
    return first - 1, of


def _path(out_dir, name):
    return Path(out_dir) / RECORDS / "scans" / f"{name}.json"


def _load(out_dir, name):
    """A record, or None where there is none, or a broken one."""
    try:
        return load_json(_path(out_dir, name), _AGAIN)
    except UserError:
        return None
