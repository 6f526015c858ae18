"""The plots of a study's page. Each is drawn where there is enough to draw: matplotlib takes half a second to import."""

from typing import NamedTuple

from hippo.study.change import rescans

import numpy as np

_FEWEST = 3  # minimum number of heads to plot


class Figure(NamedTuple):
    """A plot for the page. png: its content; title: of its section, or empty; alt: what it shows; key: {number: name} of
    the numbered points."""

    png: bytes
    title: str
    alt: str
    key: dict


def of_volumes(scans, path):
    """Draws the volumes of heads, {name: rows of the table}. Returns a list with the Figure; empty if they are few."""
    heads = {name: rows for name, rows in scans.items() if len(rows) == 2 and all(map(_is_whole, rows))}
    if len(heads) < _FEWEST:
        return []
    from hippo.pictures import cohort

    key = cohort.volumes(list(heads), _columns(heads), path, f"{len(heads)} heads")
    return [Figure(path.read_bytes(), "", "volumes of the study", key)]


def of_change(changes, path):
    """Draws the rows of change.tsv. Returns a list with the Figure; empty if there are none."""
    pairs = [row for row in changes if row.get("method") == "pair" and row.get("total_change_percent")]
    if not pairs:
        return []
    from hippo.pictures import cohort

    in_years, people = all(row["years"] for row in pairs), {"left": {}, "right": {}}
    for row in pairs:
        times, percent = people[row["side"]].setdefault(row["participant_id"], ([0.0 if in_years else 1.0], [0.0]))
        times.append(float(row["years"]) if in_years else times[-1] + 1)
        percent.append(float(row["total_change_percent"]))
    band = rescans()["band_percent"]["total"]
    key = cohort.change(people, band, in_years, path, "Whole hippocampus, change since the first visit")
    return [
        Figure(path.read_bytes(), "Change between visits", "change since the first visit, a line for each person", key)
    ]


def of_profiles(profiles, path):
    """Draws the profiles of the study, {side: areas (N, steps)}. Returns a list with the Figure; empty if there are
    none."""
    if not profiles:
        return []
    from hippo.pictures import cohort

    cohort.profiles(profiles, path, "Along the long axis")
    return [
        Figure(path.read_bytes(), "Along the long axis", "mean and spread of the cross-section, left and right", {})
    ]


def _is_whole(row):
    """Whether a row has all values that cohort.volumes draws."""
    return bool(row["total_mm3"] and row["etiv_mm3"] and row["anterior_mm3"])


def _columns(heads):
    """Returns the columns that cohort.volumes draws, from {name: [left row, right row]}."""
    scales = {"etiv_mm3": ("etiv_ml", 1e-3), "total_mm3": ("total_mm3", 1.0), "anterior_mm3": ("anterior_mm3", 1.0)}
    return {
        side: {
            name: np.array([float(rows[i][column]) * scale for rows in heads.values()])
            for column, (name, scale) in scales.items()
        }
        for i, side in enumerate(("left", "right"))
    }
