"""What a folder of results holds: a record of each scan, a file of its own that is written last. The table is made of the
records that are on the disk: so any number of runs may share a folder, and a study goes on where it stopped."""

import hashlib
import itertools
import os
from pathlib import Path

from hippo.data.formats import files_of, is_pointer
from hippo.errors import UserError, require
from hippo.files import (
    HALF_WRITTEN,
    check_folder,
    digest,
    load_json,
    remove_half_written,
    save_json,
    save_text,
    set_aside,
)
from hippo.heads.result import readable
from hippo.study.inputs import folded, longer_names, real_path
from hippo.study.sharing import RECORDS, STUDY, enter, holds_results, is_in_use, locked

_SCANS = "scans"  # folder of the records
_LONGEST_NAME = 200  # bytes of a record's name
_AGAIN = "the same command"
_GONE = ".gone"  # ending of the records of scans that were taken out of the folder that they were found in
_BEGUN = ".begun"  # ending of the notes of scans that a process is at


def open_study(out_dir, study, items, alone=True, left_out=None, roots=()):
    """Makes a folder for results, or joins one of the same settings, and says that this run is there, until sharing.leave.
    Returns the Items under the names that they have there: where another scan has a name, the folder tells them apart.

    Results of other settings are set aside. Raises UserError where another run is at work on them, where they differ by
    the processor alone, where alone is False (of a shard), and for a folder that holds folders and no results.

    study: {"settings", "bids", "adjustment"} of plain values. left_out: {file: why it is no scan} of what this run found.
    roots: folders that the Items are all scans of; records of others that were there are put aside, and said.
    """
    folder = check_folder(out_dir)
    _check_foreign(folder)
    with locked(folder) as lock:
        difference = _differs(folder, study)
        if not difference:
            return _join_study(folder, study, items, left_out or {}, roots)
        require(alone, f"{folder} holds {difference}; choose another --out_dir")
        busy = f"{folder} holds {difference}, and another run is at work there; choose another --out_dir"
        require(not is_in_use(folder), busy)
        there = any(not item.problem and os.path.isfile(item.path) for item in items)
        problem = items[0].problem or "no such file"
        require(there, f"{items[0].path}: {problem}; the results in {folder} stay as they are")
        if os.name != "posix":  # Windows renames no folder with an open file
            lock.release()
        set_aside(folder)
    return open_study(out_dir, study, items, alone, left_out, roots)


def _check_foreign(folder):
    """Raises UserError where a folder holds folders that are no results, such as derivatives/ itself."""
    there = list(folder.iterdir()) if folder.is_dir() and not holds_results(folder) else []
    ours = any(path.name.startswith("volumes.") for path in there)
    text = f"{folder} holds folders, and no results; give them one of their own: --out_dir={folder / 'hippo'}"
    require(ours or not any(path.is_dir() for path in there if not path.name.startswith(".")), text)


def _differs(folder, study):
    """Why the results in a folder are not of this study; empty if they are, or if there are none. Raises UserError where
    the processor makes the only difference."""
    if not holds_results(folder):
        return "other files" if any(not path.name.startswith(".") for path in folder.iterdir()) else ""
    earlier = load_study(folder)
    if earlier["bids"] != study["bids"]:
        difference = "results of another data set"
    elif earlier["settings"] != study["settings"]:
        names = [name for name, value in study["settings"].items() if earlier["settings"].get(name) != value]
        difference = f"results of other settings ({', '.join(names)})"
    else:
        return ""
    if not is_in_use(folder) and not load_records(folder):
        return ""
    before, now = (settings.get("precision") for settings in (earlier["settings"], study["settings"]))
    other = f"{folder} holds results in {before}, and this processor computes in {now}; give all runs --amp=False, "
    require(difference != "results of other settings (precision)", other + "or this one another --out_dir")
    return difference


def _join_study(folder, study, items, left_out, roots):
    """The Items by their names in the study, which is to have them from now on."""
    path = folder / RECORDS / STUDY
    earlier = load_study(folder) if path.is_file() else {"scans": {}, "left_out": {}}
    scans = _without_gone(folder, earlier["scans"], items, roots)
    if study["bids"]:
        scans |= {item.name: os.path.abspath(item.path) for item in items}
    else:
        items = _told_apart(folder, scans, items)
    for item in items:
        _take_up(folder, item)
    still = {file: why for file, why in earlier["left_out"].items() if os.path.lexists(file)}
    content = study | {"scans": scans, "left_out": still | left_out}
    if content != earlier:
        save_json(path, content)
    enter(folder)
    return items


def _take_up(folder, item):
    """Brings the record of an Item back that was gone, and gives it the Item's path where that has moved."""
    path = _path(folder, item.name)
    if os.path.isfile(path.with_suffix(_GONE)) and not os.path.exists(path):
        path.with_suffix(_GONE).replace(path)
    record = load_record(folder, item.name)
    if record and real_path(record["path"]) != real_path(item.path):
        rows = [row | {"scan": readable(item.label or item.path)} for row in record["rows"]]
        save_json(path, record | {"path": os.path.abspath(item.path), "rows": rows})


def _without_gone(folder, scans, items, roots):
    """{name: path} without what is gone: scans that were taken out of a folder that was searched, and failures of folders in
    which there are scans now. Their records are renamed, and no result is deleted."""
    mine = {real_path(item.path) for item in items}
    above = {str(parent) for path in mine for parent in Path(path).parents}
    searched = above & {os.path.realpath(root) for root in roots}  # a drive that is not mounted holds none of the Items
    kept, taken_out = {}, []
    for name, path in scans.items():
        real = real_path(path)
        is_gone = not os.path.lexists(path) and not searched.isdisjoint(map(str, Path(real).parents))
        record = load_record(folder, name) if real not in mine and (is_gone or real in above) else None
        if record and (is_gone or not has_result(record)):
            _path(folder, name).replace(_path(folder, name).with_suffix(_GONE))
            taken_out += [name] * is_gone
        elif record or real in mine or not is_gone or _begun(folder, name):
            kept[name] = path
    if taken_out:
        names = ", ".join(taken_out[:3]) + ", ..." * (len(taken_out) > 3)
        print(f"out of the table, since the scan is gone: {names}; the results stay in {folder}")
    return kept


def _told_apart(folder, scans, items):
    """The Items by their names in a study, whose {name: path} they are added to: a file keeps the name that it has, also where
    it was moved, another one of that name gets its folder before it."""
    names, taken, result = {real_path(path): name for name, path in scans.items()}, {*map(folded, scans)}, []
    gone = [name for name, path in scans.items() if not os.path.lexists(path)]
    moved = {record["sha256"]: name for name in gone if (record := load_record(folder, name))}
    for item in items:
        path, name = os.path.abspath(item.path), names.get(real_path(item.path))
        if name is None and moved:
            name = moved.pop(checksum(item.path), None)
        if name is None:
            candidates = itertools.chain([item.name], longer_names(path, item.name))
            name = next(n for n in candidates if folded(n) not in taken and _is_free(folder, n, item))
        scans[name], names[real_path(path)] = path, name
        taken.add(folded(name))
        result.append(item._replace(name=name))
    return result


def _is_free(folder, name, item):
    """Whether no record has a name, not even one of a scan that was taken out, but for the Item's own."""
    file = _path(folder, name)
    record = _read(file if os.path.isfile(file) else file.with_suffix(_GONE))
    return not record or real_path(record["path"]) == real_path(item.path)


def load_study(out_dir):
    """What the runs in a folder of results have in common: open_study's `study`, "scans": {name: path} that it is to have,
    and "left_out". Raises UserError where a folder holds no results."""
    path = Path(out_dir) / RECORDS / STUDY
    require(
        path.is_file(),
        f"{out_dir}: no results in this folder; make them with: python predict.py SCANS --out_dir={out_dir}",
    )
    study = {"left_out": {}, **load_json(path, _AGAIN)}
    if isinstance(study["scans"], list):  # of version 0.5
        study["scans"] = {name: (load_record(out_dir, name) or {}).get("path", "") for name in study["scans"]}
    return study


def checksum(path):
    """The SHA-256 of a scan's file, or files, or empty where one cannot be read."""
    try:
        return "+".join(map(digest, files_of(path)))
    except OSError:
        return ""


def is_done(out_dir, item):
    """Whether the results of an Item are there, of the same input and eTIV: each side of it, and each file. The results of
    an input that is there no longer stay."""
    record = load_record(out_dir, item.name)
    return bool(
        record
        and not any("failed: " in row["flags"] for row in record["rows"])
        and all(os.path.isfile(Path(out_dir) / file) for file in record["files"])
        and record["own_etiv_mm3"] == item.etiv_mm3
        and (_stat(item.path) in ([], record["stat"]) or record["sha256"] == checksum(item.path))
    )


def is_kept(out_dir, item):
    """Whether an Item has an earlier result, and no file, or a pointer to one, to make another one of."""
    record = load_record(out_dir, item.name)
    return bool(record and has_result(record)) and not (os.path.isfile(item.path) and not is_pointer(item.path))


def was_begun(out_dir, item):
    """Whether a process ended while it was at an Item."""
    return _begun(out_dir, item.name)


def _begun(out_dir, name):
    return os.path.isfile(_path(out_dir, name).with_suffix(_BEGUN))


def begin(out_dir, item):
    """Notes that a process is at an Item; returns what save_record wants of its file as it is now."""
    remove_half_written(_path(out_dir, item.name).with_suffix(_BEGUN))
    save_text(_path(out_dir, item.name).with_suffix(_BEGUN), "")
    return {"stat": _stat(item.path), "sha256": checksum(item.path)}


def save_record(out_dir, item, rows, files, state):
    """Writes the record of an Item: its rows, and its files in the folder of results, which are all written by now. Files of
    an earlier record that are no longer its are removed. state: see begin."""
    path, earlier = _path(out_dir, item.name), load_record(out_dir, item.name)
    record = {"name": item.name, "path": os.path.abspath(item.path), **state, "own_etiv_mm3": item.etiv_mm3}
    record |= {"participant_id": item.participant_id, "session_id": item.session_id, "files": files, "rows": rows}
    remove_half_written(path)
    save_json(path, record)
    for file in {*(earlier["files"] if earlier else [])} - {*files}:
        (Path(out_dir) / file).unlink(missing_ok=True)
    path.with_suffix(_BEGUN).unlink(missing_ok=True)


def load_records(out_dir):
    """The records that are in a folder of results, those of a BIDS data set by their names, others in the order in which
    they were given; one that is broken is as if not there."""
    study = load_study(out_dir)
    paths = [path for path in (Path(out_dir) / RECORDS / _SCANS).rglob("*.json") if not path.match(HALF_WRITTEN)]
    found = {path: record for path in paths if (record := _read(path))}
    records = {record["name"]: record for path, record in found.items() if path == _path(out_dir, record["name"])}
    place = {} if study["bids"] else {name: number for number, name in enumerate(study["scans"])}
    return [records[name] for name in sorted(records, key=lambda name: (place.get(name, len(place)), name))]


def has_result(record):
    """Whether a record has a volume."""
    return any(row["total_mm3"] for row in record["rows"])


def _stat(path):
    """[size, time of the last change in ns] of each file of a scan, in one list; empty where there is none."""
    try:
        return [value for file in files_of(path) for value in (os.stat(file).st_size, os.stat(file).st_mtime_ns)]
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


def _path(out_dir, name):
    """The file of a record, whose name is shortened where a file system would not take it."""
    folder, _, stem = name.rpartition("/")
    if len(stem.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        stem = f"{stem[:40]}-{hashlib.sha256(stem.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    return Path(out_dir) / RECORDS / _SCANS / folder / f"{stem}.json"


def load_record(out_dir, name):
    """The record of a scan, or None where there is none, or a broken one."""
    record = _read(_path(out_dir, name))
    return record if record and record["name"] == name else None


def _read(path):
    """The record in a file, or None."""
    try:
        record = load_json(path, _AGAIN)
        return record if isinstance(record["name"], str) and isinstance(record["rows"], list) else None
    except (UserError, KeyError, TypeError):
        return None
