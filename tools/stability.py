"""Measures how stable results are: volumes in simulated rescans of heads, the volumes of small and of large hippocampi in
images drawn from anatomies, and the model for any contrast and the choice between it and those of T1.

    python -m tools.stability --heads=FOLDER      rescans, and small and large hippocampi; writes repeatability.json
    python -m tools.stability --only=sizes      small and large hippocampi alone, a minute; into repeatability.json
    python -m tools.stability --heads=FOLDER --only=contrasts      other contrasts; writes any_contrast.json
    python -m tools.stability --only=skull      T1-like heads with and without a skull; some minutes; writes skull.json

No acquisition but T1 comes with labels here: T1 crops are inverted or sent through random tables of their intensities,
whole heads inverted, and heads painted from label maps. T2w and FLAIR of VISITS are compared with T1w of the same visit.
The crops need a run that held some out: python train_3d.py --recipe=any_contrast --fold=0 --out_dir=HELD_OUT
"""

import collections
from pathlib import Path

from hippo.data.cases import load_volumes
from hippo.data.degrade import lookup_table
from hippo.data.intensity import normalise
from hippo.errors import require
from hippo.files import load_json, save_json
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.heads.segment import joint_labels
from hippo.models.checkpoint import load_model
from hippo.options import configure, run_script
from hippo.scoring import statistics
from hippo.scoring.evaluation import evaluate
from hippo.scoring.metrics import dice
from hippo.segmenter import Segmenter
from tools import simulate
from tools.heads import describe, find_heads, segment, segment_hippodeep
from tools.simulate import PAINTED, find_anatomies, paint, scan_of, skull
from tools.truth import sizes

import nibabel as nib
import numpy as np
import torch

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads
ANATOMIES = "anatomies"  # folder of label maps, see get_data.py
VISITS = "with_skull"  # BIDS folder with T1w, T2w and FLAIR of the same visits
HELD_OUT = "cross_validation_runs_heads/fold_0/any_contrast"  # run of --recipe=any_contrast with validation cases
HIPPODEEP = ""  # folder of bthyreau/hippodeep_pytorch, to measure it on the same rescans; empty: not
ONLY = "repeatability"  # or sizes, contrasts, or skull
OUT = "repeatability.json"  # file to write
OUT_CONTRASTS = "any_contrast.json"  # file that --only=contrasts writes
OUT_SKULL = "skull.json"  # file that --only=skull writes

_SHIFT_MM = (3.3, -5.1, 4.4)
_MOVES = {  # name: (axis, degrees, shift in mm)
    "turned by 10 degrees about x": (0, 10, (0, 0, 0)),
    "turned by 6 degrees about y and shifted": (1, 6, _SHIFT_MM),
    "turned by 8 degrees about z": (2, 8, (0, 0, 0)),
    "shifted by 7.5 mm": (0, 0, _SHIFT_MM),
}
_SPACINGS_MM = ((0.8, 0.8, 0.8), (1.2, 1.2, 1.2), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0))
_NOISES = (0.03, 0.06, 0.09)
_BIAS, _GAMMA = 0.25, 1.3
_PARTS = {"whole": (1, 2), "anterior": (1,), "posterior": (2,)}  # of the left side; the right one's labels are 2 more
_FAILED = 0.5  # Dice of the whole hippocampus below which a segmentation is a failure
_SIDES = [(FREESURFER[side], LABELS[side]) for side in SIDES]  # left, right: label of an anatomy, labels of ours


def main():
    cfg = configure(globals())
    measures = {"repeatability": measure_rescans, "sizes": measure_sizes}
    measures |= {"contrasts": measure_contrasts, "skull": measure_skull}
    require(cfg.only in measures, f"--only={cfg.only}: expected {', '.join(measures)}")
    measures[cfg.only](cfg)


def measure_skull(cfg):
    """Measures what a skull changes and writes the file."""
    segmenter = Segmenter.load(device="cpu")
    save_json(cfg.out_skull, {**describe(segmenter), "heads": skull(cfg.anatomies, segmenter)})


def measure_rescans(cfg):
    """Measures rescans and sizes, and writes the file."""
    paths, segmenter = find_heads(cfg.heads), Segmenter.load(device="cpu")
    results = describe(segmenter)
    rows = {path.name.split("_")[0]: rescans(path, segmenter, cfg.hippodeep) for path in paths}
    results["rescans"], results["summary"] = rows, {}
    for who in ("ours", "hippodeep") if cfg.hippodeep else ("ours",):
        kinds = next(iter(rows.values()))
        results["summary"][who] = {
            "all": summarise([row[kind][who] for row in rows.values() for kind in row]),
            **{kind: summarise([row[kind][who] for row in rows.values()]) for kind in kinds},
        }
    results["anatomies"] = sizes(cfg.anatomies, segmenter)
    save_json(cfg.out, results)
    print(f"wrote {cfg.out}")


def measure_sizes(cfg):
    """Measures sizes alone, and writes them into the file."""
    results = load_json(cfg.out, "python -m tools.stability")
    save_json(cfg.out, {**results, "anatomies": sizes(cfg.anatomies, Segmenter.load(device="cpu"))})


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


def rescans(path, segmenter, hippodeep):
    """{rescan: {"ours" and, with its code, "hippodeep": {side: {part: {"change", a share, or None, "dice" after turning
    back}}}}} of a head."""
    image = nib.as_closest_canonical(nib.load(path))
    array, affine = np.asarray(image.dataobj, np.float32), image.affine
    scans = [("", array, affine, None), *perturbed(array, affine, np.random.default_rng(0))]
    labels = {"ours": [segment_ours(changed, grid, segmenter) for _, changed, grid, _ in scans]}
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


def segment_ours(array, affine, segmenter):
    """The label map (D, H, W), 1 to 4, of a volume in RAS."""
    sides, _, scan = segment(segmenter, scan_of(array, affine))
    return joint_labels(sides, scan)


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


# ---- other contrasts than T1


def measure_contrasts(cfg):
    """Measures other contrasts, and writes the file."""
    segmenters = {choice: Segmenter.load(device="cpu", contrast=choice) for choice in ("auto", "t1")}
    results = describe(segmenters["auto"])
    results["cases"] = held_out(cfg.data_root, f"{cfg.held_out}/last.pth", segmenters["auto"].networks)
    results["visits"] = visits(cfg.visits, segmenters["auto"])
    results["painted"] = painted(cfg.anatomies, segmenters)
    results["inverted_heads"] = inverted(cfg.heads, segmenters)
    save_json(cfg.out_contrasts, results)
    print(f"wrote {cfg.out_contrasts}")


def held_out(data_root, checkpoint, networks):
    """{intensities: {"dice", "std", "cases": {id: [anterior, posterior]}}} of a checkpoint, on its validation cases."""
    trained, info = load_model(checkpoint)
    volumes = load_volumes(data_root, info["val_cases"])
    kinds = {
        "as they are": lambda image, number: image,
        "inverted": lambda image, number: -image,
        "random tables": table,
    }
    rows = {}
    for kind, change in kinds.items():
        changed = [v._replace(image=change(v.image, number)) for number, v in enumerate(volumes)]
        cases, _ = evaluate(trained, changed, networks.device, networks.dtype, tta=True)
        whole = statistics.summarise(cases)
        dices = {name: case["dice"] for name, case in cases.items()}
        rows[kind] = {"dice": whole["mean"]["dice"], "std": whole["std"]["dice"], "cases": dices}
        print(kind, np.mean(rows[kind]["dice"]), flush=True)
    return rows


def visits(folder, segmenter):
    """{visit: {contrast: {side: {"mm3", "quality", "flags"}}}} of the visits with more than one contrast."""
    rows = collections.defaultdict(dict)
    for path in sorted(Path(folder).rglob("*.nii.gz")):
        visit, contrast = path.name.removesuffix(".nii.gz").rsplit("_", 1)
        result = segmenter(path)
        rows[visit][contrast] = {
            side.side: {"mm3": side.total_mm3, "quality": side.quality, "flags": [str(flag) for flag in side.flags]}
            for side in result.sides
        }
    return {visit: row for visit, row in rows.items() if len(row) > 1}


def table(image, number):
    """A normalised image through a random table of its intensities, the same for a number always."""
    rng = np.random.default_rng([9, number])
    return normalise(lookup_table(torch.from_numpy(image), rng, 1).numpy())


def painted(folder, segmenters):
    """{contrast: {choice: counts and Dice with the true labels}} of heads painted from all anatomies."""
    results = {}
    for contrast in PAINTED:
        rows = {choice: [] for choice in segmenters}
        for number, path in enumerate(find_anatomies(folder)):
            scan, truth = paint(path, contrast, np.random.default_rng([7, number]))
            for choice, sides in rows.items():
                found, located, _ = segment(segmenters[choice], scan)
                labels = joint_labels(found, scan)
                for side, (label, members) in zip(found, _SIDES):
                    score = dice(np.isin(labels, members), truth == label)
                    sides.append(row_of(side, located, score))
        results[contrast] = {choice: count(sides) for choice, sides in rows.items()}
        print(contrast, results[contrast], flush=True)
    return results


def inverted(heads, segmenters):
    """The same of heads with their intensities inverted; the Dice is with the result of the head as it is."""
    rows, plain = {choice: [] for choice in segmenters}, []
    for path in find_heads(heads):
        image = nib.as_closest_canonical(nib.load(path))
        array = np.asarray(image.dataobj, np.float32)
        scan = scan_of(array, image.affine)
        found, located, _ = segment(segmenters["auto"], scan)
        expected = joint_labels(found, scan)
        plain += [row_of(side, located, 1.0) for side in found]
        scan = scan_of(*simulate.inverted(array, image.affine))
        for choice, sides in rows.items():
            found, located, _ = segment(segmenters[choice], scan)
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


if __name__ == "__main__":
    run_script(main)
