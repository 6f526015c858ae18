"""The profile of a hippocampus along its long axis: the area of its cross-section at each mm.

The axis is the first principal axis of the segmented voxels in mm, a straight line from tail to head. This is geometry: a
step on it is the same share of the length in everyone, and no anatomical border. The parts' border is where a plane
across the axis leaves as much volume behind it as the posterior part has.
"""

import csv
from typing import NamedTuple

from hippo.files import atomic

import numpy as np

STEP_MM = 1.0  # distance of the cross-sections
STEPS = 20  # steps of equal length in which hippocampi are compared
_FINE_MM = 0.25  # voxels are divided into parts of at most this size, so that no step has too many or too few
_ENDS = 0.0005  # share of the volume left out at each end of the length: a single voxel must not make it longer
COLUMNS = {
    "side": "left or right",
    "from_tail_mm": "Middle of the step, in mm from the end of the tail",
    "area_mm2": "Area of the cross-section in mm2: the volume of the step divided by its thickness of 1 mm",
    "anterior_area_mm2": "Share of the anterior part in the area, in mm2",
    "length_mm": "Length of the hippocampus along the axis, in mm",
    "border_mm": "Place of the border of the parts, in mm from the end of the tail",
}


class Profile(NamedTuple):
    """Cross-sections of one hippocampus from tail to head, STEP_MM apart. areas_mm2, anterior_mm2: (N,), of both parts and
    of the anterior one. length_mm: along the axis, without the outermost 0.05 % of the volume at each end. start_mm:
    where the length begins, in mm from the first step. border_mm: from there. anterior_mm2 and border_mm are NaN if
    the parts are not separated."""

    areas_mm2: np.ndarray
    anterior_mm2: np.ndarray
    length_mm: float
    start_mm: float
    border_mm: float


def profile(labels, matrix):
    """Returns the Profile of a label map.

    labels (D, H, W): 1 anterior, 2 posterior, not empty. matrix (3, 3): from voxels to mm, with y to the front. The sum
    of areas_mm2 x STEP_MM is the volume, up to rounding.
    """
    voxels = np.argwhere(labels > 0)
    points = (voxels - voxels.mean(0)) @ matrix.T  # in mm
    axis = np.linalg.eigh(points.T @ points)[1][:, 2]
    axis = axis * (np.sign(axis[1]) or 1)  # to the front, where the head is
    parts = np.ceil(np.linalg.norm(matrix, axis=0) / _FINE_MM).astype(int)
    inside = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in parts), indexing="ij"), -1).reshape(-1, 3)
    places = ((points @ axis)[:, None] + inside @ matrix.T @ axis).ravel()  # of each part of a voxel
    places -= places.min()
    volume = abs(float(np.linalg.det(matrix))) / len(inside)
    is_anterior = np.repeat(labels[tuple(voxels.T)] == 1, len(inside))
    steps = (places / STEP_MM).astype(int)
    both = np.bincount(steps) * volume / STEP_MM
    anterior = np.bincount(steps[is_anterior], minlength=len(both)) * volume / STEP_MM
    start, border, end = np.quantile(places, (_ENDS, 1 - is_anterior.mean(), 1 - _ENDS))
    if is_anterior.all() or not is_anterior.any():
        anterior, border = np.full(len(both), np.nan), np.nan
    return Profile(both, anterior, float(end - start), float(start), float(border - start))


def in_steps(found, steps=STEPS):
    """Returns the areas in mm2 (steps,) of a Profile in steps of equal length. Their sum x length / steps is the volume:
    what lies beyond the length is added to its ends."""
    edges = np.arange(len(found.areas_mm2) + 1) * STEP_MM
    below = np.concatenate([[0], np.cumsum(found.areas_mm2) * STEP_MM])  # volume below each edge
    places = np.interp(found.start_mm + np.linspace(0, found.length_mm, steps + 1), edges, below)
    places[0], places[-1] = 0, below[-1]
    return np.diff(places) * steps / found.length_mm


def save_profiles(path, profiles):
    """Writes the Profiles of a scan as a table, {side: Profile}; see COLUMNS."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, "excel-tab", lineterminator="\n")
        writer.writerow(COLUMNS)
        for side, found in profiles.items():
            for step, areas in enumerate(zip(found.areas_mm2, found.anterior_mm2)):
                place = (step + 0.5) * STEP_MM - found.start_mm
                values = (place, *areas, found.length_mm, found.border_mm)
                writer.writerow([side, *("n/a" if np.isnan(value) else f"{value:.2f}" for value in values)])


def load_profiles(path):
    """Returns {side: Profile} of a table that save_profiles wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    result = {}
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = [row for row in rows if row["side"] == side]
        values = {name: np.array([_number(row[name]) for row in mine]) for name in list(COLUMNS)[1:]}
        place, areas, anterior, length, border = values.values()
        start = STEP_MM / 2 - place[0]
        result[side] = Profile(areas, anterior, float(length[0]), float(start), float(border[0]))
    return result


def _number(text):
    return np.nan if text == "n/a" else float(text)
