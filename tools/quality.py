"""Learns the Dice to expect of a segmentation from the evidence, and measures how well it does, and what each flag costs.

    python -m tools.quality --heads=FOLDER     three quarters of an hour on two CPU cores; goes on where it stopped

Needs the runs of python cross_validate.py --recipe=heads: what is learned from are segmentations by models that did not see
the case, clean and degraded (DEGRADATIONS of tools/simulate.py). Measured on folds and degradations that were left out, and on the
heads. Writes OBSERVATIONS (a JSON file for each fold), the coefficients (pretrained/quality.json), OUT and PICTURE.
"""

import collections
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from hippo.data.cases import load_volumes
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json, save_text
from hippo.heads import quality
from hippo.heads.anatomy import SIDES
from hippo.heads.quality import judge, limits_of
from hippo.heads.segment import joint_labels, segment_sides
from hippo.models.checkpoint import load_model
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from hippo.segmenter import Segmenter
from tools.heads import find_heads, hippodeeps_mask, mask_of, segment
from tools.simulate import DEGRADATIONS, MISUSES, scan_of

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import mannwhitneyu, spearmanr

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
RUNS = "cross_validation_runs_heads"  # of python cross_validate.py --recipe=heads
OBSERVATIONS = "quality_observations"  # folder for what is learned from
OUT = "quality.json"  # file to write
PICTURE = "quality.png"  # predicted against true Dice
WORKERS = 2  # folds at a time, on a thread each

_OTHERS = 2  # degradations of each case, of those of DEGRADATIONS that are not for all
_FOR_ALL = ("clean", "wrong side")
_HELD_OUT = "pretrained/any_contrast.pth"  # has seen all cases but its val_cases
_AWAY_MM = (
    (0, 55, 25),
    (0, -55, 20),
    (0, 0, 45),
    (0, 10, -40),
)  # from a hippocampus: frontal, occipital, parietal, neck
_BAD = 0.75  # a Dice below is a failure
_LEVELS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85)  # thresholds of low_quality to compare
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.95)  # of the evidence, where the thresholds of the steps may be
_WEIGHT_OF_MISUSES = 0.1  # in the fit; they are to be told apart, their Dice need not be known
_ROUNDS = 8  # of weighting anew
_OF_ONE = ["expected", "views", "component", "size", "settled", "inside_window"]
# more kinds of evidence did not lower the error
_EVIDENCE = {"two_models": [*_OF_ONE, "contrast"], "one_model": _OF_ONE, "any_contrast": _OF_ONE}


def main():
    run(configure(globals()))


def run(cfg):
    """Observes what is missing, fits, measures, and writes the files."""
    rows = observe_all(cfg.runs, cfg.data_root, cfg.observations, cfg.workers)
    fits, results, points = {}, {"kinds": {}}, {}
    for kind, names in _EVIDENCE.items():
        seen = [row for row in rows if row["kind"] == kind and not row["problem"]]
        fits[kind] = fit(seen, names)
        predicted = left_out(seen, names)
        results["kinds"][kind] = measure(seen, predicted)
        points[kind] = predicted, np.array([row["dice"] for row in seen])
    save_text(ROOT / quality.COEFFICIENTS, json.dumps(fits, indent=1) + "\n")
    segmenter = Segmenter.load(device="cpu")
    results["sides"], results["heads"] = sides_of_crops(rows), observe_heads(cfg.heads, segmenter)
    results["flags"] = shares_of_flags(rows, results["heads"], limits_of(segmenter.settings))
    save_json(cfg.out, results)
    heads = [[side["quality"], side["dice"]] for side in results["heads"]["sides"].values()]
    plots.quality(points["two_models"], np.array(heads).T, cfg.picture, "The Dice to expect, and what it was")
    print(f"wrote {quality.COEFFICIENTS}, {cfg.out} and {cfg.picture}")


def fit(rows, names):
    """The coefficients of quality.predict_dice: {"most", "steps": [[evidence, threshold, weight], ...]}, none negative.

    Of the least absolute errors, by least squares (Lawson & Hanson 1974) that are weighted anew (Schlossmacher 1973).
    """
    values, truth = table(rows, names), np.array([row["dice"] for row in rows])
    thresholds = [(i, t) for i, column in enumerate(values.T) for t in sorted({*np.quantile(column, _QUANTILES)})]
    lost = np.stack([np.maximum(0, t - values[:, i]) for i, t in thresholds], 1)
    terms = np.column_stack([np.ones(len(lost)), -lost])
    fixed = np.array([_WEIGHT_OF_MISUSES if row["degradation"] in MISUSES else 1 for row in rows])
    weights = fixed
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        solution, _ = nnls(terms * root[:, None], truth * root, maxiter=20 * len(terms.T))
        weights = fixed / np.maximum(np.abs(terms @ solution - truth), 0.01)
    steps = [
        [names[i], round(float(t), 4), round(float(w), 4)] for (i, t), w in zip(thresholds, solution[1:]) if w > 1e-4
    ]
    return {"most": round(float(solution[0]), 4), "steps": steps}


def table(rows, names):
    """The evidence (observations, names)."""
    return np.array([[row["evidence"][name] for name in names] for row in rows], float)


def predict_all(coefficients, rows, names):
    """The predicted Dice of rows, as quality.predict_dice."""
    values = dict(zip(names, table(rows, names).T))
    lost = sum(weight * np.maximum(0, threshold - values[name]) for name, threshold, weight in coefficients["steps"])
    return np.clip(coefficients["most"] - lost, 0, 1)


def left_out(rows, names):
    """The predicted Dice (N,) of each row by a fit that has seen neither its fold nor, unless it is clean, its degradation."""
    fold, degradation = (np.array([row[name] for row in rows]) for name in ("fold", "degradation"))
    result = np.zeros(len(rows))
    for f in np.unique(fold):
        for d in np.unique(degradation):
            there = (fold == f) & (degradation == d)
            if there.any():
                use = (fold != f) & ((degradation != d) | (degradation == "clean"))
                known = [row for row, used in zip(rows, use) if used]
                result[there] = predict_all(fit(known, names), [row for row, here in zip(rows, there) if here], names)
    return result


def measure(rows, predicted):
    """Errors of the predicted Dice, and how well it tells failures apart, with intervals over cases."""
    truth, names = (np.array([row[key] for row in rows]) for key in ("dice", "degradation"))
    bad, error, misused = truth < _BAD, np.abs(predicted - truth), np.isin(names, MISUSES)
    of_case = collections.defaultdict(list)
    for number, row in enumerate(rows):
        of_case[row["case"]].append(number)
    of_case = list(of_case.values())

    def pick(indices):
        return np.concatenate([of_case[i] for i in indices])

    result = {
        "observations": len(rows),
        "failures": int(bad.sum()),
        "mae": bootstrap_of(lambda i: error[pick(i)][~misused[pick(i)]].mean(), len(of_case)),
        "mae_of_misuses": bootstrap_of(lambda i: error[pick(i)][misused[pick(i)]].mean(), len(of_case)),
        "auroc": bootstrap_of(lambda i: auroc(-predicted[pick(i)], bad[pick(i)]), len(of_case)),
        "spearman": float(spearmanr(predicted, truth).statistic),
        "auroc_of_confidence": auroc(-table(rows, ["confidence"])[:, 0], bad),
        "thresholds": {},
        "degradations": {},
    }
    for level in _LEVELS:
        flagged = predicted < level
        good_flagged, bad_missed = float(flagged[~bad].mean()), float(1 - flagged[bad].mean())
        result["thresholds"][level] = {"good_flagged": good_flagged, "bad_missed": bad_missed}
    for name in DEGRADATIONS:
        there = names == name
        if there.any():
            values = {"n": int(there.sum()), "dice": truth[there].mean(), "predicted": predicted[there].mean()}
            constant = np.abs(truth[there] - np.median(truth[there])).mean()
            result["degradations"][name] = {**values, "mae": error[there].mean(), "of_a_constant": constant}
    return result


def auroc(score, positive):
    """The area under the ROC curve: how often a positive has the higher score than a negative one."""
    groups = score[positive], score[~positive]
    return float(mannwhitneyu(*groups).statistic / np.prod([*map(len, groups)])) if all(map(len, groups)) else np.nan


def sides_of_crops(rows):
    """Of how many crops the surer side is the right one; elsewhere a wrong --side has no flag of its own."""
    rows = [row for row in rows if row["kind"] == "two_models" and not row["window"]]
    sure = {(row["case"], row["degradation"]): row["evidence"].get("confidence", 0) for row in rows}
    right = [sure[case, "clean"] > sure[case, "wrong side"] for case, name in sure if name == "clean"]
    return {"of": len(right), "right": int(sum(right))}


def shares_of_flags(rows, heads, limits):
    """{flag: share of the 260 cases, and of the hippocampi of the heads, that raise it}."""
    clean = [row for row in rows if row["kind"] == "two_models" and row["degradation"] == "clean" and not row["window"]]
    cases = collections.Counter(flag for row in clean for flag in row["flags"])
    for row in clean:
        value = quality.predict_dice(row["evidence"], "two_models") if row["evidence"] else 0
        cases["low_quality"] += value < limits.low_quality
        cases["implausible_volume"] += not limits.usual_mm3[0] <= sum(row["volumes_mm3"]) <= limits.usual_mm3[1]
    sides = heads["sides"].values()
    of_heads = collections.Counter(flag for side in sides for flag in side["flags"])
    names = sorted({*cases, *of_heads})
    return {name: {"cases": cases[name] / len(clean), "heads": of_heads[name] / len(sides)} for name in names}


def observe_all(runs, data_root, out_dir, workers):
    """The observations of all folds: a list of dicts, see observe. Observes what is missing in out_dir."""
    missing = [fold for fold in range(5) if not _file(out_dir, fold).is_file()]
    for fold in missing:
        for name in ("3d-0", "2d-0"):
            path = Path(runs) / f"fold_{fold}" / name / "last.pth"
            hint = "train them with: python cross_validate.py --recipe=heads"
            require(path.is_file(), f"{path}: no such weights; {hint}")
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(partial(observe_fold, runs, data_root, out_dir), missing))
    return [row for fold in range(5) for row in load_json(_file(out_dir, fold), "python -m tools.quality")]


def _file(out_dir, fold):
    return Path(out_dir) / f"fold_{fold}.json"


def observe_fold(runs, data_root, out_dir, fold):
    """Writes the observations of one fold."""
    device, dtype = set_up_device("cpu")
    loaded = [load_model(Path(runs) / f"fold_{fold}" / name / "last.pth") for name in ("3d-0", "2d-0")]
    models = [model for model, _ in loaded]
    any_contrast, info = load_model(_HELD_OUT)
    rows = []
    for number, volume in enumerate(load_volumes(data_root, loaded[0][1]["val_cases"])):
        rest = [name for name in DEGRADATIONS if name not in _FOR_ALL]
        some = {rest[(number * _OTHERS + i) % len(rest)] for i in range(_OTHERS)} | {*_FOR_ALL}
        held_out = volume.id in info["val_cases"]
        for index, name in enumerate(DEGRADATIONS):
            rng = np.random.default_rng([fold, number, index])
            kinds = {"two_models": (models, any_contrast), "one_model": (models[:1], None)} if name in some else {}
            kinds |= {"any_contrast": ([any_contrast], None)} if held_out else {}
            seen = DEGRADATIONS[name](volume.image, volume.label, rng)
            for kind, (members, check) in kinds.items():
                for window in (False, True):
                    row = observe(members, check, seen, window, kind, device, dtype)
                    rows.append({"case": volume.id, "fold": fold, "degradation": name, **row})
        print(f"fold {fold}: {number + 1} cases", flush=True)
    save_json(_file(out_dir, fold), rows)


def observe(models, check, seen, window, kind, device, dtype):
    """{"kind", "window", "dice", "problem", "evidence", ...} of one segmentation. seen: of DEGRADATIONS; window: whether
    it is found in a window, as in a head, and else in the whole crop."""
    image, label, centre_mm = seen
    scan = scan_of(np.ascontiguousarray(image), np.eye(4))
    where = {"left": centre_mm if window else None}, device, dtype
    side = segment_sides(models, scan, *where, check=check, evidence_of=kind)["left"]
    found = joint_labels([side], scan, crop=True)
    return {
        "kind": kind,
        "window": window,
        "dice": np.mean([dice(found == part, label == part) for part in (1, 2)]),
        "problem": side.problem,
        "flags": side.flags,
        "volumes_mm3": [] if side.problem else side.volumes_mm3(scan),
        "evidence": side.evidence,
    }


def observe_heads(heads, segmenter):
    """{"sides": {head and side: quality, Dice with hippodeep, flags}, "spearman": of both, with an interval over heads;
    "upside_down", "elsewhere": counts of what is flagged}."""
    sides, upside_down, elsewhere = {}, [], []
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
        print(name, *(f"{sides[f'{name} {side}']['quality']:.3f}" for side in SIDES), flush=True)
    names = dict.fromkeys(key.split()[0] for key in sides)
    pairs = [[[sides[f"{name} {side}"][key] for side in SIDES] for key in ("quality", "dice")] for name in names]
    pairs = np.array(pairs)  # (heads, 2, sides)
    spearman = bootstrap_of(lambda i: spearmanr(*pairs[i].transpose(1, 0, 2).reshape(2, -1)).statistic, len(pairs))
    counts = {"upside_down": upside_down, "elsewhere": elsewhere}
    counts = {name: {"of": len(raised), "flagged": sum(raised)} for name, raised in counts.items()}
    return {"sides": sides, "spearman": spearman, **counts}


def look_elsewhere(segmenter, scan, centre_mm, side, usual):
    """Whether a window that starts far from the hippocampus gives no result, a flag, or the usual result after all."""
    n = segmenter.networks
    found = segment_sides(n.models, scan, {side: centre_mm}, n.device, n.dtype, check=n.any_contrast)
    found = judge([found[side]], scan, limits_of(segmenter.settings))[0]
    return bool(found.problem or found.flags) or dice(mask_of(found, scan), mask_of(usual, scan)) > 0.5


if __name__ == "__main__":
    run_script(main)
