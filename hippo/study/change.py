"""The change of volumes between the visits of a person: change.tsv, from the rows of volumes.tsv and the dates or ages in
the data set's sessions.tsv.

Each row is a person and a side: a later visit compared with the first (a pair), or a straight line through three or more
visits at known times (a fit, by least squares).
"""

import csv
import datetime
import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple

from hippo.errors import UserError, require
from hippo.files import ROOT, load_json
from hippo.heads.anatomy import SIDES
from hippo.heads.flags import FLAGS, NONE
from hippo.heads.result import PARTS
from hippo.study.volumes import Column

import numpy as np

RESCANS = "pretrained/rescans.json"  # what rescans of one person change, written by python -m tools.change
FLAG = "visits_differ"
_FEWEST = 3  # minimum number of visits for a fit
_VOXELS_DIFFER = 0.05  # relative difference of voxel sizes from which visits differ
_DAYS = {"day": 1.0, "week": 7.0, "month": 365.25 / 12, "year": 365.25}  # units of age


class Visit(NamedTuple):
    """A visit of a person. row: of volumes.tsv, for one side; years: its time, from any beginning, or None."""

    session: str
    row: dict
    years: float | None


def check_prefer(prefer, names):
    """Raises UserError for a --prefer that names no entities of BIDS, or ones that no scan has."""
    words = _words(prefer)
    known = {word for name in names for word in _entities(name)}
    for word in words:
        require(re.fullmatch(r"[a-z]+-\w+", word), f"--prefer={prefer}: expected entities of names, such as run-1")
        require(word in known, f"--prefer={prefer}: no scan has {word} in its name; see the names of the T1w files")


def _words(prefer):
    return [word for word in re.split(r"[,\s]+", prefer) if word]


def _entities(name):
    return _file(name).split(".")[0].split("_")


def _file(path):
    return re.split(r"[/\\]", path)[-1]


def choose(rows, prefer=""):
    """Chooses a scan of each person and session: that with most of the entities in `prefer`, then the highest quality of
    its worse side, then the first. Returns the rows with `chosen` added where there is a choice, and {(participant_id,
    session_id): scan}."""
    scans, words = {}, _words(prefer)
    for row in rows:
        there = scans.setdefault((row["participant_id"], row["session_id"]), {})
        there.setdefault(row["scan"], []).append(float(row["quality"] or -1))
    taken, texts = {}, {}
    for visit, there in scans.items():
        matches = {scan: sum(word in _entities(scan) for word in words) for scan in there}
        best = max(there, key=lambda scan: (matches[scan], min(there[scan])))
        others = [scan for scan in there if scan != best]
        is_preferred = any(matches[scan] < matches[best] for scan in others)
        why = f"--prefer={prefer}" if is_preferred else f"highest quality of {len(there)}"
        taken[visit] = best
        texts |= {(*visit, scan): f"no: {_file(best)} ({why})" for scan in others}
        texts |= {(*visit, best): f"yes: {why}"} if others else {}
    keys = ("participant_id", "session_id", "scan")
    return [row | {"chosen": texts.get(tuple(row[key] for key in keys), "")} for row in rows], taken


def changes(rows, taken, times):
    """Returns the rows of change.tsv, {column: text}, see `columns`.

    rows: of volumes.tsv; taken: {(participant_id, session_id): scan}, see `choose`; times: {(participant_id,
    session_id): {"acq_time", "age": years}}, see load_times.
    """
    people, result = {}, []
    for row in rows:
        person, session = row["participant_id"], row["session_id"]
        if session and row["scan"] == taken[person, session]:
            for side in (row["side"],) if row["side"] else SIDES:  # a scan that failed as a whole has no side
                people.setdefault(person, {}).setdefault(side, {})[session] = row
    for person, sides in people.items():
        sessions = sorted({session for of in sides.values() for session in of}, key=_natural)
        known = {
            source: [s for s in sessions if source in times.get((person, s), {})] for source in ("acq_time", "age")
        }
        source = max(known, key=lambda source: len(known[source]))
        years = {session: times[person, session][source] for session in known[source]}
        if len(years) == len(sessions):
            sessions.sort(key=years.get)
        for side in (side for side in SIDES if side in sides):
            visits = [Visit(s, sides[side][s], years.get(s)) for s in sessions if s in sides[side]]
            for row in _of_side([visit for visit in visits if visit.row["total_mm3"]]):
                of = {"participant_id": person, "side": side, "years_from": source if row["years"] else ""}
                result.append(of | row)
            result += [
                _failed(person, side, visit) for visit in visits if len(visits) > 1 and not visit.row["total_mm3"]
            ]
    return result


def _natural(session):
    """Returns a key that puts ses-10 behind ses-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", session)]


def _of_side(visits):
    """Returns the rows of one side with at least two Visits that have a result: pairs with the first, and the fit."""
    rows = []
    for visit in visits[1:]:
        values = {part: tuple(_number(v.row[f"{part}_mm3"]) for v in (visits[0], visit)) for part in PARTS}
        rows.append(_row("pair", [visits[0], visit], values))
    timed = [visit for visit in visits if visit.years is not None]
    if len(timed) >= _FEWEST and np.ptp([visit.years for visit in timed]) > 0:
        years = np.array([visit.years for visit in timed]) - timed[0].years
        lines = {part: np.array([_number(visit.row[f"{part}_mm3"]) for visit in timed]) for part in PARTS}
        fits = {part: np.polyfit(years, line, 1) if np.isfinite(line).all() else None for part, line in lines.items()}
        ends = {p: (np.nan,) * 2 if fit is None else np.polyval(fit, years[[0, -1]]) for p, fit in fits.items()}
        rows.append(_row("fit", timed, ends))
    return rows


def _row(method, visits, values):
    """Returns a row of change.tsv without the person. values: {part: (first, last) in mm3}, NaN where unknown."""
    first, last = visits[0], visits[-1]
    years = None if None in (first.years, last.years) else last.years - first.years
    row = {"session_from": first.session, "session_to": last.session, "method": method, "visits": str(len(visits))}
    row["years"], beyond = "" if years is None else f"{years:.3f}", []
    band = rescans()["band_percent"]
    for part, (before, after) in values.items():
        if np.isfinite([before, after]).all() and before > 0:
            percent = 100 * (after - before) / before
            row[f"{part}_change_mm3"] = f"{after - before:.1f}"
            row[f"{part}_change_percent"] = f"{percent:.2f}"
            row[f"{part}_percent_per_year"] = f"{percent / years:.2f}" if years else ""
            beyond += [part] * bool(abs(percent) > band[part])
        row[f"{part}_rescan_percent"] = f"{band[part]:.1f}"
    flags = dict.fromkeys(flag for visit in visits for flag in visit.row["flags"].split(";") if _counts(flag))
    flags |= {FLAG: None} if any(_differ(first.row, visit.row) for visit in visits[1:]) else {}
    row |= {"beyond_rescans": ";".join(beyond) or "none", "flags": ";".join(flags)}
    return row | {"scan_from": first.row["scan"], "scan_to": last.row["scan"]}


def _failed(person, side, visit):
    """Returns the row of a visit without a result on this side."""
    row = {"participant_id": person, "side": side, "session_to": visit.session}
    return row | {"flags": visit.row["flags"], "scan_to": visit.row["scan"]}


def _counts(flag):
    return flag and (flag not in FLAGS or FLAGS[flag].severity != NONE)


def _number(text):
    return float(text) if text else np.nan


def _differ(first, second):
    """Whether two rows of volumes.tsv are of other voxel sizes, scanners (where both are known) or networks."""
    sizes = [np.array(row["voxel_mm"].split(" x "), float) for row in (first, second) if row.get("voxel_mm")]
    apart = len(sizes) == 2 and (np.abs(np.log(sizes[0] / sizes[1])) > np.log1p(_VOXELS_DIFFER)).any()
    scanners = {row.get("scanner") for row in (first, second)} - {None, ""}
    return bool(apart or len(scanners) > 1 or first["model"] != second["model"])


# ---- times of visits


def load_times(root, people):
    """Returns {(participant_id, session_id): {"acq_time" and "age", where known: years}} from the sessions.tsv of people
    in a BIDS data set. Dates count from year 1. What cannot be read is a line on stderr, and counts as unknown."""
    times = {}
    if people and not Path(root).is_dir():
        print(f"{root} is not there; change.tsv has no times of visits", file=sys.stderr)
    for person in sorted(people):
        path = Path(root) / person / f"{person}_sessions.tsv"
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file, dialect="excel-tab"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, csv.Error) as error:
            print(f"{path}: not readable ({error}); its times count as unknown", file=sys.stderr)
            continue
        readers = {"acq_time": _date, "age": functools.partial(_age, _days_of_age(path))}
        for row in rows:
            times[person, row.get("session_id")] = {
                name: years
                for name, read in readers.items()
                if (years := _read(path, name, row.get(name), read)) is not None
            }
    return times


def _read(path, name, text, read):
    """Returns the years in a cell, or None."""
    if text in (None, "", "n/a"):
        return None
    try:
        return read(text)
    except ValueError:
        print(f"{path}: {name} {text!r} is none; expected 2009-06-15T13:45:30, or an age as a number", file=sys.stderr)


def _date(text):
    date = datetime.datetime.fromisoformat(re.sub(r"(\.\d*)?Z?$", "", text.strip()))
    return (date.replace(tzinfo=None) - datetime.datetime(1, 1, 1)).total_seconds() / 86_400 / _DAYS["year"]


def _age(unit_days, text):
    years = float(text) * unit_days / _DAYS["year"]
    if not 0 <= years < np.inf:
        raise ValueError
    return years


def _days_of_age(path):
    """Returns the days of the unit of age that the .json beside a sessions.tsv, or in the root of the data set, gives;
    else of a year. NaN for a unit that is none of time."""
    unit = "year"
    for sidecar in (path.parents[1] / "sessions.json", path.with_suffix(".json")):
        try:
            unit = load_json(sidecar, "")["age"]["Units"].lower().rstrip("s")
        except (UserError, KeyError, TypeError, AttributeError):
            continue
    return _DAYS.get(unit, np.nan)


# ---- what rescans change


@functools.cache
def rescans():
    """Returns what rescans of one person change: {"band_percent": {part: number}, "band_of": text, ...}."""
    return load_json(ROOT / RESCANS, "python -m tools.change --only=rescans")


def columns():
    """Returns {name: Column} of change.tsv."""
    of, words = rescans(), {"anterior": "anterior part", "posterior": "posterior part", "total": "whole hippocampus"}
    result = {
        "participant_id": Column("Participant"),
        "side": Column("left or right"),
        "session_from": Column("First visit with a result, by time where it is known for all, else by name"),
        "session_to": Column("Later visit; of a fit, the last one"),
        "method": Column("pair: two visits; fit: a least-squares line through three or more visits at known times"),
        "visits": Column("Number of visits that count"),
        "years": Column("Time between the visits", "year"),
        "years_from": Column("acq_time (a date) or age", source="sub-*_sessions.tsv of the data set"),
    }
    for part, name in words.items():
        result |= {
            f"{part}_change_mm3": Column(f"Change of the {name}", "mm3", "Later minus first; of a fit, slope x years"),
            f"{part}_change_percent": Column(f"Change of the {name}", "%", "In % of the first; of a fit, of its begin"),
            f"{part}_percent_per_year": Column(f"Change of the {name} in a year", "%/year", "In %, divided by years"),
            f"{part}_rescan_percent": Column(
                f"Change of the {name} that rescans without any change show: a smaller one may be noise",
                "%",
                of["band_of"],
                RESCANS,
            ),
        }
    return result | {
        "beyond_rescans": Column("Parts that change by more than rescans do, joined by semicolons; or none"),
        "flags": Column("What is doubtful about any of the visits; visits_differ: other voxels, scanners or networks"),
        "scan_from": Column("File of the first visit", source="chosen in volumes.tsv"),
        "scan_to": Column("File of the later visit", source="chosen in volumes.tsv"),
    }
