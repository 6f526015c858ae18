"""Measures how stable results are: volumes in simulated rescans of heads, the volumes of small and of large hippocampi in
images drawn from anatomies, and the model for any contrast and the choice between it and those of T1; called by
python -m tools.benchmark --only=repeatability and --only=contrasts.

No acquisition but T1 comes with labels here: T1 crops are inverted or sent through random tables of their intensities,
whole heads inverted, and heads painted from label maps.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from hippo.data.augment import lookup_table
from hippo.data.cases import load_volumes
from hippo.data.intensity import normalise
from hippo.data.nifti import read_nifti
from hippo.files import save_json
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.heads.segment import joint_labels
from hippo.models.checkpoint import load_checkpoint
from hippo.scoring import statistics
from hippo.scoring.evaluation import evaluate
from hippo.scoring.metrics import dice
from tools import simulate
from tools.common import find_heads, load_tools, scan_of
from tools.simulate import PAINTED, paint

import nibabel as nib
import numpy as np
import torch

_SHIFT_MM = (3.3, -5.1, 4.4)
_MOVES = {  # name: (axis, degrees, shift in mm)
    "turned by 10 degrees about x": (0, 10, (0, 0, 0)),
    "turned by 6 degrees about y and shifted": (1, 6, _SHIFT_MM),
    "turned by 8 degrees about z": (2, 8, (0, 0, 0)),
    "shifted by 7.5 mm": (0, 0, _SHIFT_MM),
}
_SPACINGS_MM = ((0.8, 0.8, 0.8), (1.2, 1.2, 1.2), (1.0, 1.0, 3.0))
_NOISES = (0.03, 0.06, 0.09)
_BIAS, _GAMMA = 0.25, 1.3
_PARTS = {"whole": (1, 2), "anterior": (1,), "posterior": (2,)}  # of the left side; the right one's labels are 2 more
_FAILED = 0.5  # Dice of the whole hippocampus below which a segmentation is a failure
_SIDES = [(FREESURFER[side], LABELS[side]) for side in SIDES]  # left, right: label of an anatomy, labels of ours


def measure_rescans(heads, anatomies, out, hippodeep=""):
    """Measures everything and writes a JSON file. hippodeep: folder of its code, to measure it on the same rescans; empty:
    not."""
    paths, tools = find_heads(heads), load_tools()
    results = tools.describe()
    rows = {path.name.split("_")[0]: rescans(path, tools, hippodeep) for path in paths}
    results["rescans"], results["summary"] = rows, {}
    for who in ("ours", "hippodeep") if hippodeep else ("ours",):
        kinds = next(iter(rows.values()))
        results["summary"][who] = {
            "all": summarise([row[kind][who] for row in rows.values() for kind in row]),
            **{kind: summarise([row[kind][who] for row in rows.values()]) for kind in kinds},
        }
    results["anatomies"] = drawn(anatomies, tools)
    save_json(out, results)
    print(f"wrote {out}")


def perturbed(array, affine, rng):
    """Yields (name, array, affine, (change, shift_mm) of `simulate.warped`) of each simulated rescan."""
    still = np.eye(3), (0, 0, 0)
    for name, (axis, degrees, shift_mm) in _MOVES.items():
        yield (
            name,
            *simulate.turned(array, affine, axis, degrees, shift_mm),
            (simulate.rotation(axis, degrees), shift_mm),
        )
    for mm in _SPACINGS_MM:
        yield f"voxels of {' x '.join(f'{s:g}' for s in mm)} mm", *simulate.respaced(array, affine, mm), still
    for share in _NOISES:
        yield f"noise of {share:.0%}", *simulate.noisy(array, affine, share, rng), still
    yield f"bias field of {_BIAS:.0%}", *simulate.shaded(array, affine, _BIAS), still
    yield f"gamma of {_GAMMA}", *simulate.brightened(array, affine, _GAMMA), still


def rescans(path, tools, hippodeep):
    """{rescan: {"ours" and, with its code, "hippodeep": {side: {part: {"change", a share, or None, "dice" after turning
    back}}}}} of a head."""
    image = nib.as_closest_canonical(nib.load(path))
    array, affine = np.asarray(image.dataobj, np.float32), image.affine
    scans = [("", array, affine, None), *perturbed(array, affine, np.random.default_rng(0))]
    labels = {"ours": [segment_ours(changed, grid, tools) for _, changed, grid, _ in scans]}
    if hippodeep:
        labels["hippodeep"] = segment_hippodeep([(changed, grid) for _, changed, grid, _ in scans], hippodeep)
    rows = {}
    for number, (name, _, grid, moved) in enumerate(scans[1:], 1):
        rows[name] = {}
        for who, maps in labels.items():
            back = simulate.labels_back(maps[number], grid, array.shape, affine, *moved)
            rows[name][who] = compare(maps[0], affine, maps[number], grid, back, who == "ours")
        print(
            path.name,
            name,
            {who: round(row["left"]["whole"]["dice"], 3) for who, row in rows[name].items()},
            flush=True,
        )
    return rows


def segment_ours(array, affine, tools):
    """The label map (D, H, W), 1 to 4, of a volume in RAS."""
    scan = scan_of(array, affine)
    return joint_labels(tools.segment(scan)[0], scan)


def segment_hippodeep(scans, code):
    """The label maps of volumes (array, affine) by hippodeep's own code: 1 left, 3 right, the whole hippocampus each."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/scan{number}.nii.gz" for number in range(len(scans))]
        for file, (array, affine) in zip(files, scans):
            image = nib.Nifti1Image(array.astype(np.float32), affine)
            image.set_qform(affine, 1)
            nib.save(image, file)
        subprocess.run([sys.executable, str(Path(code) / "hippodeep.py"), *files], check=True, capture_output=True)
        maps = []
        for file, (array, _) in zip(files, scans):
            result = np.zeros(array.shape, np.uint8)
            for letter, label in (("L", 1), ("R", 3)):
                result[read_nifti(file.replace(".nii.gz", f"_mask_{letter}.nii.gz"))[0] >= 128] = label
            maps.append(result)
    return maps


def compare(labels, affine, labels_after, affine_after, back, with_parts):
    """{side: {part: {"change", "dice"}}} of a rescan's label map, and of the same on the scan's grid."""
    voxel, voxel_after = (abs(np.linalg.det(a[:3, :3])) for a in (affine, affine_after))
    row = {}
    for side, first in (("left", 0), ("right", 2)):
        row[side] = {}
        for part, members in _PARTS.items() if with_parts else [("whole", (1, 2))]:
            members = [first + label for label in members]
            before, after, same = (np.isin(a, members) for a in (labels, labels_after, back))
            failed = not (before.any() and after.any())
            change = None if failed else float(after.sum() * voxel_after / (before.sum() * voxel) - 1)
            row[side][part] = {"change": change, "dice": dice(before, same)}
    return row


def summarise(rows):
    """{part: median and 95th percentile of the change in %, mean Dice, and how many failed}; a failure counts as 100 %."""
    result = {}
    for part in rows[0]["left"]:
        values = [row[side][part] for row in rows for side in ("left", "right")]
        changes = np.array([100 if v["change"] is None else 100 * abs(v["change"]) for v in values])
        result[part] = {
            "median_percent": np.median(changes),
            "percentile_95_percent": np.percentile(changes, 95),
            "dice": np.mean([v["dice"] for v in values]),
            "failed": sum(v["change"] is None for v in values),
            "of": len(values),
        }
    return result


def drawn(folder, tools):
    """True and found volumes of the hippocampi in T1-like images drawn from the anatomies at 1 mm, with the line through
    them, and found / true of the smallest and of the largest third."""
    sides = []
    for number, path in enumerate(sorted(Path(folder).glob("*.nii.gz"))):
        scan, truth = paint(path, "T1", np.random.default_rng([5, number]))
        labels = joint_labels(tools.segment(scan)[0], scan)
        for side in SIDES:
            true_label, members = FREESURFER[side], LABELS[side]
            found, there = np.isin(labels, members), truth == true_label
            volumes = {"true_mm3": int(there.sum()), "found_mm3": int(found.sum())}  # voxels of 1 mm
            sides.append({"anatomy": path.name, "side": side, **volumes, "dice": dice(found, there)})
    true, found = (np.array([s[name] for s in sides], float) for name in ("true_mm3", "found_mm3"))
    slope, intercept = np.polyfit(true, found, 1)
    order = np.argsort(true)
    third = len(order) // 3
    ratio = found / true
    return {
        "sides": sides,
        "slope": slope,
        "intercept_mm3": intercept,
        "bias_mm3": np.mean(found - true),
        "correlation": np.corrcoef(true, found)[0, 1],
        "ratio": {
            "mean": ratio.mean(),
            "smallest third": ratio[order[:third]].mean(),
            "largest third": ratio[order[-third:]].mean(),
        },
        "dice": np.mean([s["dice"] for s in sides]),
    }


# ---- other contrasts than T1


def measure_contrasts(data_root, heads, anatomies, out):
    """Measures everything and writes a JSON file."""
    tools = load_tools()
    results = tools.describe()
    results["cases"] = held_out(data_root, tools)
    results["painted"] = painted(anatomies, tools)
    results["inverted_heads"] = inverted(heads, tools)
    save_json(out, results)
    print(f"wrote {out}")


def held_out(data_root, tools):
    """{intensities: {"dice", "std", "cases": {id: [anterior, posterior]}}} of the model for any contrast, on its validation
    cases."""
    ids = load_checkpoint(tools.names[-1])["val_cases"]
    volumes = load_volumes(data_root, ids)
    kinds = {
        "as they are": lambda image, number: image,
        "inverted": lambda image, number: -image,
        "random tables": table,
    }
    rows = {}
    for kind, change in kinds.items():
        changed = [v._replace(image=change(v.image, number)) for number, v in enumerate(volumes)]
        cases, _ = evaluate(tools.any_contrast, changed, tools.device, tools.dtype, tta=True)
        whole = statistics.summarise(cases)
        dices = {name: case["dice"] for name, case in cases.items()}
        rows[kind] = {"dice": whole["mean"]["dice"], "std": whole["std"]["dice"], "cases": dices}
        print(kind, np.mean(rows[kind]["dice"]), flush=True)
    return rows


def table(image, number):
    """A normalised image through a random table of its intensities, the same for a number always."""
    rng = np.random.default_rng([9, number])
    return normalise(lookup_table(torch.from_numpy(image), rng, 1).numpy())


def painted(folder, tools):
    """{contrast: {choice: counts and Dice with the true labels}} of heads painted from all anatomies."""
    results = {}
    for contrast in PAINTED:
        rows = {choice: [] for choice in ("auto", "t1")}
        for number, path in enumerate(sorted(Path(folder).glob("*.nii.gz"))):
            scan, truth = paint(path, contrast, np.random.default_rng([7, number]))
            for choice, sides in rows.items():
                found, located = tools.segment(scan, choice)
                labels = joint_labels(found, scan)
                for side, (label, members) in zip(found, _SIDES):
                    score = dice(np.isin(labels, members), truth == label)
                    sides.append(row_of(side, located, score))
        results[contrast] = {choice: count(sides) for choice, sides in rows.items()}
        print(contrast, results[contrast], flush=True)
    return results


def inverted(heads, tools):
    """The same of heads with their intensities inverted; the Dice is with the result of the head as it is."""
    rows = {choice: [] for choice in ("auto", "t1")}
    plain = []
    for path in find_heads(heads):
        image = nib.as_closest_canonical(nib.load(path))
        array = np.asarray(image.dataobj, np.float32)
        scan = scan_of(array, image.affine)
        found, located = tools.segment(scan)
        expected = joint_labels(found, scan)
        plain += [row_of(side, located, 1.0) for side in found]
        scan = scan_of(*simulate.inverted(array, image.affine))
        for choice, sides in rows.items():
            found, located = tools.segment(scan, choice)
            labels = joint_labels(found, scan)
            for side, (_, members) in zip(found, _SIDES):
                sides.append(row_of(side, located, dice(np.isin(labels, members), np.isin(expected, members))))
    results = {choice: count(sides) for choice, sides in rows.items()}
    results["as they are"] = {name: value for name, value in count(plain).items() if "dice" not in name}
    print("inverted heads", results, flush=True)
    return results


def row_of(side, located, score):
    """What counts of one side."""
    flags = [*located.flags, *side.flags]
    return {"found": not side.problem, "dice": score, "flags": flags}


def count(sides):
    """How many sides were found, by which model, and how well; and the failures that nothing flags."""
    found = [side["dice"] for side in sides if side["found"]]
    failed = [side for side in sides if side["found"] and side["dice"] < _FAILED]
    return {
        "sides": len(sides),
        "found": len(found),
        "any_contrast": sum("any_contrast" in side["flags"] for side in sides),
        "flagged": sum(bool(side["flags"]) for side in sides),
        "dice": {"mean": np.mean(found), "worst": min(found)} if found else None,
        "failed": len(failed),
        "failed_without_a_flag": sum(not side["flags"] for side in failed),
    }
