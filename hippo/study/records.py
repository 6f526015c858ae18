"""The records in a results folder: a file per scan, written last. The table is built from them, so runs may share a folder, and resume."""

import hashlib
import itertools
import os
from pathlib import Path

from hippo.data.formats import is_pointer
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
from hippo.study.series import hashed, is_there, series_id
from hippo.study.sharing import RECORDS, STUDY, enter, holds_results, is_in_use, locked

_SCANS = "scans"  # folder of the records
_LONGEST_NAME = 200  # maximum length in bytes of a record's name
_AGAIN = "the same command"
_GONE = ".gone"  # extension of the records of scans that were removed from their folder
_BEGUN = ".begun"  # extension of the notes of scans that a process is working on


def open_study(out_dir, study, items, alone=True, left_out=None, roots=()):
    """Creates a results folder, or joins one with the same settings, and registers this run until sharing.leave. Returns the Items with the
    names they have in this folder; if another scan has the name, parent folders are added to it.

    Results with other settings are moved aside. Raises UserError if another run is working on them, if only the processor differs, if alone
    is False (for a shard), or if the folder holds folders but no results.

    study: {"settings", "bids", "adjustment", "prefer"} of plain values. left_out: {file: reason} of files that this run skipped. roots: folders that
    were searched completely; records of scans that no longer exist there are put aside, with a message.
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
        there = any(not item.problem and (item.series or os.path.isfile(item.path)) for item in items)
        problem = items[0].problem or "no such file"
        require(there, f"{items[0].path}: {problem}; the results in {folder} stay as they are")
        if os.name != "posix":  # Windows cannot rename a folder with an open file
            lock.release()
        set_aside(folder)
    return open_study(out_dir, study, items, alone, left_out, roots)


def _check_foreign(folder):
    """Raises UserError if a folder holds folders that are not results, such as derivatives/ itself."""
    there = list(folder.iterdir()) if folder.is_dir() and not holds_results(folder) else []
    ours = any(path.name.startswith("volumes.") for path in there)
    text = f"{folder} holds folders, and no results; give them one of their own: --out_dir={folder / 'hippo'}"
    require(ours or not any(path.is_dir() for path in there if not path.name.startswith(".")), text)


def _differs(folder, study):
    """Returns why the results in a folder do not belong to this study; empty if they do, or if there are none. Raises UserError if only the
    processor differs."""
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
    """Adds the Items to the study in a folder. Returns them with their names in the study."""
    path = folder / RECORDS / STUDY
    earlier = load_study(folder) if path.is_file() else {"scans": {}, "left_out": {}}
    scans = _without_gone(folder, earlier["scans"], items, roots)
    if study["bids"]:
        scans |= {item.name: os.path.abspath(item.path) for item in items}
    else:
        items = _told_apart(folder, scans, items)
    for item in items:
        _take_up(folder, item)
    taken = {readable(os.path.abspath(item.label or item.path)) for item in items}
    still = {file: why for file, why in earlier["left_out"].items() if is_there(file) and file not in taken}
    content = study | {"scans": scans, "left_out": still | left_out}
    if content != earlier:
        save_json(path, content)
    enter(folder)
    return items


def _take_up(folder, item):
    """Restores the record of an Item that was removed and is back, and updates its path if the scan was moved."""
    path = _path(folder, item.name)
    if os.path.isfile(path.with_suffix(_GONE)) and not os.path.exists(path):
        path.with_suffix(_GONE).replace(path)
    record = load_record(folder, item.name)
    if record and real_path(record["path"]) != real_path(item.path):
        rows = [row | {"scan": readable(item.label or item.path)} for row in record["rows"]]
        save_json(path, record | {"path": os.path.abspath(item.path), "rows": rows})


def _without_gone(folder, scans, items, roots):
    """Returns {name: path} without scans that were removed from a searched folder, and without failures of folders that now
    contain scans. Their records are renamed; no result is deleted."""
    mine = {real_path(item.path) for item in items}
    above = {str(parent) for path in mine for parent in Path(path).parents}
    searched = above & {os.path.realpath(root) for root in roots}  # a drive that is not mounted holds none of the Items
    kept, taken_out = {}, []
    for name, path in scans.items():
        real = real_path(path)
        is_gone = not is_there(path) and not searched.isdisjoint(map(str, Path(real).parents))
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
    """Adds the Items to scans, the {name: path} of a study, and returns them with their names there. A known file keeps its
    name, also when it was moved, a known series by the hash of its UID; a new one whose name is taken gets its folder as a prefix."""
    names, taken, result = {real_path(path): name for name, path in scans.items()}, {*map(folded, scans)}, []
    mine = {real_path(item.path) for item in items}
    series = {id: name for name, path in scans.items() if (id := series_id(path)) and real_path(path) not in mine}
    gone = [name for name, path in scans.items() if not is_there(path)]
    moved = {record["sha256"]: name for name in gone if (record := load_record(folder, name)) and record["sha256"]}
    for item in items:
        path, name = os.path.abspath(item.path), names.get(real_path(item.path))
        if name is None and item.series:
            name = series.pop(item.series.id, None)
        elif name is None and moved:
            name = moved.pop(checksum(item), None)
        if name is None:
            candidates = itertools.chain([item.name], longer_names(path, item.name))
            name = next(n for n in candidates if folded(n) not in taken and _is_free(folder, n, item))
        scans[name], names[real_path(path)] = path, name
        taken.add(folded(name))
        result.append(item._replace(name=name))
    return result


def _is_free(folder, name, item):
    """Whether an Item may take a name: no other scan has a record of it, not even a removed one."""
    file = _path(folder, name)
    record = _read(file if os.path.isfile(file) else file.with_suffix(_GONE))
    return not record or real_path(record["path"]) == real_path(item.path)


def load_study(out_dir):
    """Returns what all runs in a results folder share: open_study's `study`, "scans": {name: path} of all scans to be processed, and
    "left_out". Raises UserError if the folder holds no results."""
    path = Path(out_dir) / RECORDS / STUDY
    require(
        path.is_file(),
        f"{out_dir}: no results in this folder; make them with: python predict.py SCANS --out_dir={out_dir}",
    )
    study = {"left_out": {}, "prefer": "", **load_json(path, _AGAIN)}
    if isinstance(study["scans"], list):  # written by version 0.5
        study["scans"] = {name: (load_record(out_dir, name) or {}).get("path", "") for name in study["scans"]}
    return study


def checksum(item):
    """Returns the SHA-256 of the file, or files, of an Item; of a series, its id and a hash of them. Empty if one cannot be read."""
    try:
        digests = "+".join(map(digest, item.files))
        return f"{item.series.id}:{hashed(digests)}" if item.series else digests
    except OSError:
        return ""


def is_done(out_dir, item):
    """Whether the results of an Item are complete (each side and each file) and made from the same input and eTIV. Results of an input that
    no longer exists are kept."""
    record = load_record(out_dir, item.name)
    return bool(
        record
        and not any("failed: " in row["flags"] for row in record["rows"])
        and all(os.path.isfile(Path(out_dir) / file) for file in record["files"])
        and record["own_etiv_mm3"] == item.etiv_mm3
        and (_stat(item) in ([], record["stat"]) or record["sha256"] == checksum(item))
    )


def is_kept(out_dir, item):
    """Whether an Item has an earlier result that must stay, because its file is missing, or only a pointer to it is there."""
    record = load_record(out_dir, item.name)
    had_result = bool(record and has_result(record)) and not item.series
    return had_result and not (os.path.isfile(item.path) and not is_pointer(item.path))


def was_begun(out_dir, item):
    """Whether a process ended while it was working on an Item."""
    return _begun(out_dir, item.name)


def _begun(out_dir, name):
    return os.path.isfile(_path(out_dir, name).with_suffix(_BEGUN))


def begin(out_dir, item):
    """Notes that a process is working on an Item. Returns the current state of its file, for save_record."""
    remove_half_written(_path(out_dir, item.name).with_suffix(_BEGUN))
    save_text(_path(out_dir, item.name).with_suffix(_BEGUN), "")
    return {"stat": _stat(item), "sha256": checksum(item)}


def save_record(out_dir, item, rows, files, state):
    """Writes the record of an Item: its rows, and its files in the results folder, which must all be written by now. Deletes files that
    only an earlier record listed. state: see begin."""
    path, earlier = _path(out_dir, item.name), load_record(out_dir, item.name)
    record = {"name": item.name, "path": os.path.abspath(item.path), **state, "own_etiv_mm3": item.etiv_mm3}
    record |= {"participant_id": item.participant_id, "session_id": item.session_id, "files": files, "rows": rows}
    remove_half_written(path)
    save_json(path, record)
    for file in {*(earlier["files"] if earlier else [])} - {*files}:
        (Path(out_dir) / file).unlink(missing_ok=True)
    path.with_suffix(_BEGUN).unlink(missing_ok=True)


def load_records(out_dir):
    """Returns the records in a results folder, sorted by name for a BIDS data set, else in the order in which the scans were given. Broken
    records are ignored."""
    study = load_study(out_dir)
    paths = [path for path in (Path(out_dir) / RECORDS / _SCANS).rglob("*.json") if not path.match(HALF_WRITTEN)]
    found = {path: record for path in paths if (record := _read(path))}
    records = {record["name"]: record for path, record in found.items() if path == _path(out_dir, record["name"])}
    order = {} if study["bids"] else {name: number for number, name in enumerate(study["scans"])}
    return [records[name] for name in sorted(records, key=lambda name: (order.get(name, len(order)), name))]


def has_result(record):
    """Whether a record has a volume."""
    return any(row["total_mm3"] for row in record["rows"])


def _stat(item):
    """Returns [size, modification time in ns] of each file of an Item, in one flat list; of a series, a hash of it; empty if there is none."""
    try:
        found = [value for file in item.files for value in (os.stat(file).st_size, os.stat(file).st_mtime_ns)]
        return [hashed(str(found))] if item.series else found
    except OSError:
        return []


def shard_of(text):
    """Parses the option --shard into (first, step); 3/100 means every hundredth scan from the third on. Empty: all
    scans."""
    try:
        first, of = map(int, (text or "1/1").split("/"))
    except ValueError:
        first, of = 0, 0
    require(1 <= first <= of, f"--shard={text}: expected a number and of how many, as in 3/100")
    return first - 1, of


def _path(out_dir, name):
    """Returns the path of a record. Names that are too long for a file system are shortened."""
    folder, _, stem = name.rpartition("/")
    if len(stem.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        stem = f"{stem[:40]}-{hashlib.sha256(stem.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    return Path(out_dir) / RECORDS / _SCANS / folder / f"{stem}.json"


def load_record(out_dir, name):
    """Returns the record of a scan, or None if it is missing or broken."""
    record = _read(_path(out_dir, name))
    return record if record and record["name"] == name else None


def _read(path):
    """Returns the record in a file, or None."""
    try:
        record = load_json(path, _AGAIN)
        return record if isinstance(record["name"], str) and isinstance(record["rows"], list) else None
    except (UserError, KeyError, TypeError):
        return None
