"""profiles.tsv: the profiles along the long axis of all scans of a study, in steps of equal length."""

import contextlib
from pathlib import Path

from hippo.heads.profile import STEPS, in_steps, load_profiles
from hippo.study.volumes import COLUMNS, Column, save_rows

import numpy as np

NAME = "profiles.tsv"
_AREA = "area_{:02d}_mm2"
_OF_SCAN = ("participant_id", "session_id", "scan", "side")


def save_profiles_of(out_dir, records, is_bids):
    """Writes profiles.tsv and profiles.json from the profiles of records. Returns {side: areas in mm2 (N, STEPS)}, empty
    if there are none; the files of an earlier run are removed then."""
    rows, areas = [], {}
    for record in records:
        for file in (file for file in record["files"] if file.endswith("_profile.tsv")):
            found = {}
            with contextlib.suppress(OSError):  # another run does the scan again
                found = load_profiles(Path(out_dir) / file)
            for side, profile in found.items():
                steps = in_steps(profile)
                areas.setdefault(side, []).append(steps)
                row = {name: record.get(name, "") for name in _OF_SCAN} | {
                    "scan": record["rows"][0]["scan"],
                    "side": side,
                }
                row |= {"length_mm": f"{profile.length_mm:.2f}"}
                row["border_mm"] = "" if np.isnan(profile.border_mm) else f"{profile.border_mm:.2f}"
                rows.append(row | {_AREA.format(i): f"{area:.2f}" for i, area in enumerate(steps, 1)})
    if rows:
        save_rows(Path(out_dir) / NAME, rows, _columns(is_bids))
    else:
        for path in (Path(out_dir) / NAME, (Path(out_dir) / NAME).with_suffix(".json")):
            path.unlink(missing_ok=True)
    return {side: np.array(areas[side]) for side in ("left", "right") if side in areas}


def _columns(is_bids):
    """Returns {name: Column} of profiles.tsv."""
    axis = "First principal axis of the segmented voxels, from tail to head; geometry, and no anatomical border"
    result = {name: COLUMNS[name] for name in _OF_SCAN if is_bids or not name.endswith("_id")}
    result["length_mm"] = Column("Length along the long axis", "mm", axis)
    result["border_mm"] = Column(
        "Border of the parts, from the end of the tail", "mm", "Where the posterior part's volume lies behind"
    )
    for step in range(1, STEPS + 1):
        words = f"Mean area of the cross-section in step {step} of {STEPS} of equal length, from tail to head"
        result[_AREA.format(step)] = Column(words, "mm2", "Volume of the step divided by its thickness, length_mm / 20")
    return result
