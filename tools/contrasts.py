"""Measures the model for any contrast, and the choice between it and those of T1; called by python -m tools.benchmark
--only=contrasts.

No acquisition but T1 comes with labels here: T1 crops are inverted or sent through random tables of their intensities,
whole heads inverted, and heads painted from label maps.
"""

from pathlib import Path

from hippo.data.augment import lookup_table
from hippo.data.cases import load_volumes
from hippo.data.intensity import normalise
from hippo.files import save_json
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.heads.segment import joint_labels
from hippo.models.checkpoint import load_checkpoint
from hippo.scoring.evaluation import evaluate
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import summarise
from tools import rescan
from tools.heads import find_heads, load_tools, scan_of
from tools.painted import PAINTED, paint

import nibabel as nib
import numpy as np
import torch

_FAILED = 0.5  # Dice of the whole hippocampus below which a segmentation is a failure
_SIDES = [(FREESURFER[side], LABELS[side]) for side in SIDES]  # left, right: label of an anatomy, labels of ours


def run(data_root, heads, anatomies, out):
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
        whole = summarise(cases)
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
        scan = scan_of(*rescan.inverted(array, image.affine))
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
