"""Measures whole heads against hippocampi that experts drew by hand, beside hippodeep's own code in the same run; and
(`sizes`, for tools.stability) volumes in heads painted from label maps.

    python get_data.py --manual=manual      20 scans of 15 people with labels (licence: CC BY-NC), once
    python -m tools.truth --manual=manual --hippodeep=FOLDER      three minutes on two cores; writes manual.json and two figures

The folder is a BIDS data set with derivatives/manual/. These heads are for evaluation only: nothing learns from them, and
nothing is chosen on them. Five people were scanned twice within weeks, and both scans were drawn, so a second drawing shows
what an expert's own numbers are worth. Intervals come from resampling people, since both sides and both scans of a person
are alike. The protocol of the drawings is not that of the models' training labels.
"""

import csv
from functools import partial
from pathlib import Path

from hippo.data.nifti import read_nifti
from hippo.errors import require
from hippo.files import save_json
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from hippo.segmenter import Segmenter
from tools.heads import describe, mask_of, segment_hippodeep
from tools.simulate import DEFECTIVE, find_anatomies, paint

import nibabel as nib
import numpy as np
from scipy.stats import theilslopes

MANUAL = "manual"  # BIDS folder of heads with derivatives/manual/
HIPPODEEP = ""  # folder of bthyreau/hippodeep_pytorch; empty: ours alone
OUT = "manual.json"  # file to write
PICTURE = "manual.png"  # figure of volumes and agreement
PICTURE_RESCANS = "manual_rescans.png"  # figure of two scans of a person

_CREDIT = "scans: OASIS; labels: Neuromorphometrics, Inc. under academic subscription (CC BY-NC)"
_NAMES = {"ours": "this repository", "hippodeep": "hippodeep", "manual": "drawn by hand"}
_OLD_YEARS = 60


def main():
    run(configure(globals()))


def run(cfg):
    """Segments all scans with both programs and writes the file and the figures."""
    scans = find_scans(Path(cfg.manual))
    segmenter = Segmenter.load(device="cpu")
    rows = [row for scan in scans for row in measure(scan, segmenter)]
    if cfg.hippodeep:
        add_hippodeep(rows, scans, cfg.hippodeep)
    programs = [name for name in ("ours", "hippodeep") if f"{name}_mm3" in rows[0]]
    results = describe(segmenter) | {"credit": _CREDIT, "rows": rows}
    results |= {name: summarise(rows, name) for name in programs}
    results["rescans"] = {name: summarise_rescans(rows, name) for name in (*programs, "manual")}
    save_json(cfg.out, results)
    draw(rows, programs, cfg.picture, cfg.picture_rescans)
    for name in programs:
        print(name, {key: np.round(part["mean"], 3) for key, part in results[name]["all"].items()})
    print("rescans", {name: part["median_percent"] for name, part in results["rescans"].items()})
    return results


def find_scans(root):
    """Returns [(path of a T1-weighted scan, {side: path of its mask}, person, session, age)] of the folder."""
    with open(root / "participants.tsv", newline="") as file:
        ages = {row["participant_id"]: float(row["age"]) for row in csv.DictReader(file, dialect="excel-tab")}
    scans = []
    for path in sorted(root.glob("sub-*/**/anat/*_T1w.nii.gz")):
        name, place = path.name.removesuffix("_T1w.nii.gz"), path.parent.parent.relative_to(root)
        masks = {
            side: root / f"derivatives/manual/{place.as_posix()}/{name}_hemi-{side[0].upper()}_mask.nii.gz"
            for side in SIDES
        }
        session = place.name if place.name.startswith("ses-") else ""
        scans.append((path, masks, place.parts[0], session, ages[place.parts[0]]))
    require(scans, f"{root}: no scans with drawn labels; get them with: python get_data.py --manual={root}")
    return scans


def measure(scan, segmenter):
    """Returns a row for each side of a scan: volumes in mm3 and the Dice with the drawing."""
    path, masks, person, session, age = scan
    result = segmenter(path)
    rows = []
    for side in result.sides:
        drawn = read_nifti(masks[side.side])[0] > 0
        voxel_mm3 = abs(np.linalg.det(result.scan.matrix))
        row = {"person": person, "session": session, "age": age, "side": side.side}
        row |= {"manual_mm3": float(drawn.sum() * voxel_mm3), "ours_mm3": side.total_mm3 or 0.0}
        row |= {"ours_dice": dice(mask_of(side.found, result.scan), drawn), "quality": side.quality}
        rows.append(row | {"flags": sorted({*map(str, result.flags), *map(str, side.flags)})})
    print(person, session, [round(row["ours_dice"], 3) for row in rows], flush=True)
    return rows


def add_hippodeep(rows, scans, code):
    """Adds hippodeep's volumes and Dice to the rows of all scans."""
    images = [nib.as_closest_canonical(nib.load(scan[0])) for scan in scans]
    maps = segment_hippodeep([(np.asarray(image.dataobj), image.affine) for image in images], code)
    found = iter(rows)
    for image, labels, (_, masks, *_) in zip(images, maps, scans):
        for side, label in zip(SIDES, (1, 3)):
            row, theirs = next(found), labels == label
            row["hippodeep_mm3"] = float(theirs.sum() * abs(np.linalg.det(image.affine[:3, :3])))
            row["hippodeep_dice"] = dice(theirs, read_nifti(masks[side])[0] > 0)


# ---- statistics over rows; intervals resample people


def by_person(rows, function):
    """Returns {"mean", "interval"} of function(rows), with a 95 % interval from resampled people."""
    people = sorted({row["person"] for row in rows})
    of = [[row for row in rows if row["person"] == person] for person in people]
    return bootstrap_of(lambda indices: function([row for index in indices for row in of[index]]), len(people))


def columns(rows, *names):
    """Returns arrays of columns of rows."""
    return [np.array([row[name] for row in rows], float) for name in names]


def slope(true, found):
    """Returns the slope of a least-squares line of found on true values."""
    return float(np.polyfit(true, found, 1)[0])


def summarise(rows, name):
    """Returns the agreement of a program with the drawings: of all, of the young and of the old."""
    volumes = partial(columns_of, name=name)
    measures = {
        "dice": lambda rows: columns(rows, f"{name}_dice")[0].mean(),
        "correlation": lambda rows: np.corrcoef(*volumes(rows))[0, 1],
        "slope": lambda rows: slope(*volumes(rows)),
        "spreads": lambda rows: volumes(rows)[1].std() / volumes(rows)[0].std(),
        "relative_spreads": lambda rows: np.divide(*(v.std() / v.mean() for v in volumes(rows)[::-1])),
        "difference_mm3": lambda rows: np.mean(np.subtract(*volumes(rows)[::-1])),
        "difference_sd_mm3": lambda rows: np.std(np.subtract(*volumes(rows)[::-1]), ddof=1),
    }
    if name == "ours":
        measures["quality_spearman"] = lambda rows: spearman(*columns(rows, "ours_dice", "quality"))
    ages = {"young": lambda age: age < _OLD_YEARS, "old": lambda age: age >= _OLD_YEARS}
    groups = {"all": rows} | {group: [r for r in rows if belongs(r["age"])] for group, belongs in ages.items()}
    result = {group: {key: by_person(of, f) for key, f in measures.items()} for group, of in groups.items()}
    dices = columns(rows, f"{name}_dice")[0]
    return result | {"worst_dice": dices.min(), "dice_sd": dices.std(ddof=1), "n": len(rows)}


def columns_of(rows, name):
    """Returns the drawn volumes and those of a program."""
    return columns(rows, "manual_mm3", f"{name}_mm3")


def spearman(a, b):
    """Returns Spearman's rank correlation."""
    return np.corrcoef(*(np.argsort(np.argsort(values)) for values in (a, b)))[0, 1]


def changes(rows, name):
    """Returns |second - first| / mean of the volumes of two scans in percent, of people who were scanned twice. A person
    may occur several times among the rows, each time with both scans."""
    sessions = ([row for row in rows if row["session"] == session] for session in ("ses-1", "ses-2"))
    first, second = (columns(part, f"{name}_mm3")[0] for part in sessions)
    return 200 * np.abs(second - first) / (first + second)


def summarise_rescans(rows, name):
    """Returns the change between two scans of a person: each, the median with its interval, and the largest."""
    twice = [row for row in rows if row["session"]]
    values = changes(twice, name)
    return {
        "percent": values.tolist(),
        "median_percent": by_person(twice, lambda rows: np.median(changes(rows, name))),
        "largest_percent": values.max(),
    }


# ---- volumes that are known: heads painted from anatomies


def sizes(folder, segmenter):
    """True and found volumes of the hippocampi in T1-like images painted from the anatomies at 1 mm, with a robust line
    through them (Theil and Sen: the median of the slopes of all pairs), and found / true of the smallest and of the
    largest third. DEFECTIVE labels are listed, and left out of everything else."""
    sides = []
    for number, path in enumerate(find_anatomies(folder)):
        scan, truth = paint(path, "T1", np.random.default_rng([5, number]))
        labels = segmenter(scan).labels()
        for side in SIDES:
            true_label, members = FREESURFER[side], LABELS[side]
            found, there = np.isin(labels, members), truth == true_label
            volumes = {"true_mm3": int(there.sum()), "found_mm3": int(found.sum())}  # voxels of 1 mm
            sides.append({"anatomy": path.name, "side": side, **volumes, "dice": dice(found, there)})
    return {"sides": sides, "left_out": [" ".join(name) for name in DEFECTIVE]} | line_of_sizes(
        [side for side in sides if (side["anatomy"].removesuffix(".nii.gz"), side["side"]) not in DEFECTIVE]
    )


def line_of_sizes(sides):
    """The robust line through true and found volumes, their correlation, and found / true in thirds."""
    true, found = (np.array([s[name] for s in sides], float) for name in ("true_mm3", "found_mm3"))
    slope, intercept, *interval = theilslopes(found, true)
    order = np.argsort(true)
    third = len(order) // 3
    ratio = found / true
    return {
        "slope": slope,
        "slope_interval": interval,
        "intercept_mm3": intercept,
        "bias_mm3": np.mean(found - true),
        "correlation": np.corrcoef(true, found)[0, 1],
        "ratio": {
            "mean": ratio.mean(),
            "smallest third": ratio[order[:third]].mean(),
            "largest third": ratio[order[-third:]].mean(),
        },
        "largest_percent": 100 * (ratio.max() - 1),
        "dice": np.mean([s["dice"] for s in sides]),
    }


# ---- figures


def draw(rows, programs, path, path_rescans):
    """Draws volumes and Dice against the drawings, and the changes between two scans of a person."""
    figure, (left, middle) = plots.panels(1, 2, (10, 4.6))
    colours = dict(zip(("ours", "hippodeep", "manual"), ("#0072B2", "#E69F00", "#000000")))
    volumes = np.array([columns_of(rows, name) for name in programs])
    ends = [volumes.min() - 200, volumes.max() + 200]
    left.plot(ends, ends, color="#999999", linewidth=1, label="the same volume")
    for name in programs:
        left.scatter(*columns_of(rows, name), s=16, color=colours[name], label=_NAMES[name], alpha=0.8)
        middle.scatter(*columns(rows, "age", f"{name}_dice"), s=16, color=colours[name], label=_NAMES[name], alpha=0.8)
    left.set(xlabel="drawn by hand, mm3", ylabel="segmented, mm3", xlim=ends, ylim=ends)
    middle.set(xlabel="age, years", ylabel="Dice with the drawing, whole hippocampus")
    for axes in (left, middle):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    plots.save(figure, path, f"Heads labelled by hand ({_CREDIT})")
    figure, axes = plots.panels(1, 1, (6.4, 3.4))
    for place, name in enumerate((*programs, "manual")):
        values = changes([row for row in rows if row["session"]], name)
        axes.scatter(
            values, np.full(len(values), place) + np.linspace(-0.15, 0.15, len(values)), color=colours[name], s=18
        )
        axes.plot([np.median(values)] * 2, [place - 0.3, place + 0.3], color=colours[name], linewidth=2)
    axes.set_yticks(range(len(programs) + 1), [_NAMES[name] for name in (*programs, "manual")])
    axes.set(xlabel="difference of two scans of a person within weeks, % (line: median)")
    axes.grid(alpha=0.3, axis="x")
    plots.save(figure, path_rescans, "Five people scanned twice, both sides")


if __name__ == "__main__":
    run_script(main)
