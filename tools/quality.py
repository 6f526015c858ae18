"""Learns the Dice to expect of a segmentation from how sure the models are, and measures how well that detects failures, and
what each flag costs.

    python -m tools.quality --heads=FOLDER     an hour on two CPU cores; goes on where it stopped

What is learned from are segmentations by models that did not see the case, clean and degraded (DEGRADATIONS of
tools/simulate.py). They need the runs of one or more folds:

    python cross_validate.py --recipe=heads --folds="[0]"
    python train_3d.py --recipe=any_contrast --fold=0 --out_dir=cross_validation_runs_heads/fold_0/any_contrast

Measured on cases and degradations that were left out, and on the heads. Writes OBSERVATIONS (a JSON file for each fold), the
function (pretrained/quality.json), OUT and PICTURE.
"""

import collections
import json

from hippo.files import ROOT, save_json, save_text
from hippo.heads import quality
from hippo.heads.anatomy import SIDES
from hippo.heads.quality import certainty, judge, limits_of
from hippo.heads.segment import segment_sides
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from hippo.segmenter import Segmenter
from tools.heads import find_heads, hippodeeps_mask, mask_of, segment
from tools.observations import observe_all
from tools.simulate import DEGRADATIONS, MISUSES, labels_back, respaced, scan_of

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import mannwhitneyu, spearmanr

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
RUNS = "cross_validation_runs_heads"  # folder of the folds' runs
OBSERVATIONS = "quality_observations"  # folder for what is learned from
OUT = "quality.json"  # file to write
PICTURE = "quality.png"  # predicted against true Dice
WORKERS = 2  # folds at a time, on a thread each

_AWAY_MM = ((0, 55, 25), (0, -55, 20), (0, 0, 45), (0, 10, -40))  # frontal, occipital, parietal, neck
_COARSE_MM = {"2 x 2 x 2": (2, 2, 2), "1 x 1 x 3": (1, 1, 3)}  # voxels of rescans
_BAD, _FAILED = 0.75, 0.7  # a Dice below is bad, or a failure
_LEVELS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85)  # thresholds of low_quality to compare
_KNOTS = 12  # intervals of the certainty, each with as many observations
_WEIGHT_OF_MISUSES = 0.1  # in the fit; they are to be told apart, their Dice need not be known
_GROUPS = 5  # of cases, each left out once


def main():
    run(configure(globals()))


def run(cfg):
    """Observes what is missing, fits, measures, and writes the files."""
    rows = observe_all(cfg.runs, cfg.data_root, cfg.observations, cfg.workers)
    segmenter = Segmenter.load(device="cpu")
    limits = limits_of(segmenter.settings)
    results, kinds = {"cases": len({row["case"] for row in rows}), "kinds": {}}, collections.defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(row)
    fits = {kind: fit(part) for kind, part in kinds.items()}
    save_text(ROOT / quality.FIT, json.dumps(fits, indent=1) + "\n")
    predicted = {kind: left_out(part) for kind, part in kinds.items()}
    results["kinds"] = {kind: measure(part, predicted[kind], limits) for kind, part in kinds.items()}
    crops = kinds["two_models"]
    results["sides"], results["heads"] = sides_of(crops), observe_heads(cfg.heads, segmenter)
    results["flags"] = shares_of_flags(crops, predicted["two_models"], results["heads"], limits)
    save_json(cfg.out, results)
    heads = [[side["quality"], side["dice"]] for side in results["heads"]["sides"].values()]
    points = predicted["one_model"], dices(kinds["one_model"])
    plots.quality(points, np.array(heads).T, cfg.picture, "The Dice to expect, and what it was")
    print(f"wrote {quality.FIT}, {cfg.out} and {cfg.picture}")


def dices(rows):
    """The true Dice (N,) of rows."""
    return np.array([row["dice"] for row in rows])


def fit(rows):
    """The Dice to expect, {"certainty", "dice"}: rising values at _KNOTS + 1 quantiles of the certainty, by isotonic
    regression (Barlow et al. 1972)."""
    rows = [row for row in rows if not row["problem"]]
    sure, truth = np.array([certainty(row["evidence"]) for row in rows]), dices(rows)
    order = np.argsort(sure)
    weights = np.array([_WEIGHT_OF_MISUSES if row["degradation"] in MISUSES else 1 for row in rows])
    rising = isotonic_regression(truth[order], weights=weights[order]).x
    knots = np.unique(np.quantile(sure, np.linspace(0, 1, _KNOTS + 1)))
    values = np.interp(knots, sure[order], rising)
    return {"certainty": [round(float(x), 4) for x in knots], "dice": [round(float(y), 4) for y in values]}


def predict(function, row):
    """The predicted Dice of a row by a fit, as quality.predict_dice."""
    return 0.0 if row["problem"] else float(np.interp(certainty(row["evidence"]), *function.values()))


def left_out(rows):
    """The predicted Dice (N,) of each row by a fit that has seen neither its case nor, unless it is clean, its
    degradation."""
    cases = sorted({row["case"] for row in rows})
    group = np.array([cases.index(row["case"]) % _GROUPS for row in rows])
    degradation = np.array([row["degradation"] for row in rows])
    result = np.zeros(len(rows))
    for g in range(_GROUPS):
        for d in np.unique(degradation):
            use = (group != g) & ((degradation != d) | (degradation == "clean"))
            function = fit([row for row, used in zip(rows, use) if used])
            for i in np.flatnonzero((group == g) & (degradation == d)):
                result[i] = predict(function, rows[i])
    return result


def measure(rows, predicted, limits):
    """Errors of the predicted Dice, and how well it tells failures apart, with intervals over cases."""
    truth, names = dices(rows), np.array([row["degradation"] for row in rows])
    bad, error, misused = truth < _BAD, np.abs(predicted - truth), np.isin(names, MISUSES)
    of_case = collections.defaultdict(list)
    for number, row in enumerate(rows):
        of_case[row["case"]].append(number)
    of_case = list(of_case.values())

    def over_cases(function):
        return bootstrap_of(lambda indices: function(np.concatenate([of_case[i] for i in indices])), len(of_case))

    parts = {name: np.array([row["evidence"].get(name, 0) for row in rows]) for name in ("confidence", "views")}
    green = np.array([not (flags_of(row, value, limits)) for row, value in zip(rows, predicted)])
    result = {
        "observations": len(rows),
        "bad": int(bad.sum()),
        "failures": int((truth < _FAILED).sum()),
        "green_failures": float(green[truth < _FAILED].mean()),
        "mae": over_cases(lambda i: error[i][~misused[i]].mean()),
        "auroc": over_cases(lambda i: auroc(-predicted[i], bad[i])),
        "auroc_of_parts": {name: auroc(-values, bad) for name, values in parts.items()},
        "thresholds": {},
        "degradations": {},
    }
    for level in _LEVELS:
        flagged = predicted < level
        good_flagged, bad_missed = float(flagged[~bad].mean()), float(1 - flagged[bad].mean())
        result["thresholds"][level] = {"good_flagged": good_flagged, "bad_missed": bad_missed}
    for name in DEGRADATIONS:
        there = names == name
        values = {"n": int(there.sum()), "dice": truth[there].mean(), "predicted": predicted[there].mean()}
        result["degradations"][name] = {**values, "green": green[there].mean()}
    return result


def flags_of(row, value, limits):
    """The flags of a row, and why it has no result: empty if it is green."""
    low, high = limits.usual_mm3
    raised = {
        "problem": row["problem"],
        "low_quality": value < limits.low_quality,
        "implausible_volume": not low <= sum(row["volumes_mm3"]) <= high,
    }
    return [*row["flags"], *(name for name, is_raised in raised.items() if is_raised)]


def auroc(score, positive):
    """The area under the ROC curve: how often a positive has the higher score than a negative one."""
    groups = score[positive], score[~positive]
    return float(mannwhitneyu(*groups).statistic / np.prod([*map(len, groups)])) if all(map(len, groups)) else np.nan


def sides_of(crops):
    """Of how many crops the surer side is the right one; elsewhere a wrong --side has no flag of its own."""
    sure = {(row["case"], row["degradation"]): row["evidence"].get("confidence", 0) for row in crops}
    right = [sure[case, "clean"] > sure[case, "wrong side"] for case, name in sure if name == "clean"]
    return {"of": len(right), "right": int(sum(right))}


def shares_of_flags(rows, predicted, heads, limits):
    """{flag: share of the clean crops, and of the hippocampi of the heads, that raise it}."""
    clean = [(row, value) for row, value in zip(rows, predicted) if row["degradation"] == "clean"]
    cases = collections.Counter(flag for row, value in clean for flag in flags_of(row, value, limits))
    sides = heads["sides"].values()
    of_heads = collections.Counter(flag for side in sides for flag in side["flags"])
    names = sorted({*cases, *of_heads})
    return {name: {"cases": cases[name] / len(clean), "heads": of_heads[name] / len(sides)} for name in names}


def observe_heads(heads, segmenter):
    """{"sides": {head and side: quality, Dice with hippodeep, flags}, "spearman": of both, with an interval over heads;
    "coarse": see rescan; "upside_down", "elsewhere": counts of what is flagged}."""
    sides, upside_down, elsewhere, coarse = {}, [], [], {name: [] for name in _COARSE_MM}
    for path in find_heads(heads):
        found, located, scan = segment(segmenter, path)
        name = path.name.split("_")[0]
        for side in found:
            mask, truth = mask_of(side, scan), hippodeeps_mask(heads, name, side.side)
            row = {"quality": side.quality, "dice": dice(mask, truth), "flags": list(side.flags)}
            volume = None if side.problem else sum(side.volumes_mm3(scan))
            sides[f"{name} {side.side}"] = {**row, "problem": side.problem, "volume_mm3": volume}
        spacing = np.linalg.norm(scan.matrix, axis=0)
        flipped = scan_of(np.ascontiguousarray(scan.array[:, :, ::-1]), np.diag([*spacing, 1]))
        turned, about, _ = segment(segmenter, flipped)
        upside_down += [bool(side.problem or side.flags or about.flags) for side in turned]
        for number, side in enumerate(SIDES):
            away = np.array(_AWAY_MM[(len(elsewhere) + number) % len(_AWAY_MM)])
            elsewhere.append(look_elsewhere(segmenter, scan, located.centres[side] + away, side, found[number]))
        for kind, spacing_mm in _COARSE_MM.items():
            coarse[kind] += rescan(segmenter, scan, found, spacing_mm)
        print(name, *(f"{sides[f'{name} {side}']['quality']:.3f}" for side in SIDES), flush=True)
    names = dict.fromkeys(key.split()[0] for key in sides)
    pairs = [[[sides[f"{name} {side}"][key] for side in SIDES] for key in ("quality", "dice")] for name in names]
    pairs = np.array(pairs)  # (heads, 2, sides)
    spearman = bootstrap_of(lambda i: spearmanr(*pairs[i].transpose(1, 0, 2).reshape(2, -1)).statistic, len(pairs))
    counts = {"upside_down": upside_down, "elsewhere": elsewhere}
    counts = {name: {"of": len(raised), "flagged": sum(raised)} for name, raised in counts.items()}
    return {"sides": sides, "spearman": spearman, "coarse": coarse, **counts}


def rescan(segmenter, scan, first, spacing_mm):
    """[{"dice", "flags"}] of both sides in a coarser scan of a head; the Dice is with the first segmentation."""
    affine = np.eye(4)
    affine[:3, :3] = scan.matrix
    array, grid = respaced(scan.array, affine, spacing_mm)
    sides, _, coarse = segment(segmenter, scan_of(array, grid))
    rows = []
    for before, after in zip(first, sides):
        mask = mask_of(after, coarse).astype(np.uint8)
        back = labels_back(mask, grid, scan.array.shape, affine, np.eye(3), (0, 0, 0))
        rows.append(
            {"dice": dice(mask_of(before, scan), back > 0), "flags": list(after.flags), "problem": after.problem}
        )
    return rows


def look_elsewhere(segmenter, scan, centre_mm, side, usual):
    """Whether a window that starts far from the hippocampus gives no result, a flag, or the usual result after all."""
    n = segmenter.networks
    found = segment_sides(n.models, scan, {side: centre_mm}, n.device, n.dtype, check=n.any_contrast)
    found = judge([found[side]], scan, limits_of(segmenter.settings))[0]
    return bool(found.problem or found.flags) or dice(mask_of(found, scan), mask_of(usual, scan)) > 0.5


if __name__ == "__main__":
    run_script(main)
