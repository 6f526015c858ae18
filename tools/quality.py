"""Learns the Dice to expect of a segmentation from the evidence, and measures how well it does, and what each flag costs.

    python -m tools.quality --heads=FOLDER     three quarters of an hour on two CPU cores; goes on where it stopped

Needs the runs of python cross_validate.py --recipe=heads: what is learned from are segmentations by models that did not see
the case, clean and degraded (tools/observations.py). Measured on folds and degradations that were left out, and on the
heads. Writes OBSERVATIONS (a JSON file for each fold), the coefficients (pretrained/quality.json), OUT and PICTURE.
"""

import collections
import json

import predict
from hippo.files import ROOT, save_json, save_text
from hippo.heads import quality
from hippo.heads.quality import limits_of
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.statistics import bootstrap_of
from tools.common import load_tools
from tools.observations import DEGRADATIONS, MISUSES, observe_all, observe_heads

import numpy as np
from scipy.optimize import nnls
from scipy.stats import rankdata, spearmanr

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
RUNS = "cross_validation_runs_heads"  # of python cross_validate.py --recipe=heads
OBSERVATIONS = "quality_observations"  # folder for what is learned from
OUT = "quality.json"  # file to write
PICTURE = "quality.png"  # predicted against true Dice
WORKERS = 2  # folds at a time, on a thread each

_BAD = 0.75  # a Dice below is a failure
_LEVELS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85)  # thresholds of low_quality to compare
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.95)  # of the evidence, where the thresholds of the steps may be
_WEIGHT_OF_MISUSES = 0.1  # in the fit; they are to be told apart, their Dice need not be known
_ROUNDS = 8  # of weighting anew
_OF_ONE = ["expected", "views", "component", "size", "settled", "inside_window"]
_EVIDENCE = {
    "two_models": [*_OF_ONE, "contrast"],
    "one_model": _OF_ONE,
    "any_contrast": _OF_ONE,
}  # more kinds did not lower the error


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
    limits = limits_of(configure(vars(predict), []))
    results["sides"] = sides_of_crops(rows)
    results["heads"] = observe_heads(cfg.heads, load_tools())
    results["flags"] = shares_of_flags(rows, results["heads"], limits)
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
    places = collections.defaultdict(list)
    for place, row in enumerate(rows):
        places[row["case"]].append(place)
    places = list(places.values())

    def pick(indices):
        return np.concatenate([places[i] for i in indices])

    result = {
        "observations": len(rows),
        "failures": int(bad.sum()),
        "mae": bootstrap_of(lambda i: error[pick(i)][~misused[pick(i)]].mean(), len(places)),
        "mae_of_misuses": bootstrap_of(lambda i: error[pick(i)][misused[pick(i)]].mean(), len(places)),
        "auroc": bootstrap_of(lambda i: auroc(-predicted[pick(i)], bad[pick(i)]), len(places)),
        "spearman": float(spearmanr(predicted, truth).statistic),
        "auroc_of_confidence": auroc(-table(rows, ["confidence"])[:, 0], bad),
        "thresholds": {},
        "degradations": {},
    }
    for level in _LEVELS:
        flagged = predicted < level
        result["thresholds"][level] = {
            "good_flagged": float(flagged[~bad].mean()),
            "bad_missed": float(1 - flagged[bad].mean()),
        }
    for name in DEGRADATIONS:
        there = names == name
        if there.any():
            values = {"n": int(there.sum()), "dice": truth[there].mean(), "predicted": predicted[there].mean()}
            result["degradations"][name] = {
                **values,
                "mae": error[there].mean(),
                "of_a_constant": np.abs(truth[there] - np.median(truth[there])).mean(),
            }
    return result


def auroc(score, positive):
    """The area under the ROC curve: how often a positive has the higher score than a negative one."""
    ranks, n = rankdata(score), np.count_nonzero(positive)
    if n in (0, len(score)):
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def sides_of_crops(rows):
    """Of how many crops the surer side is the right one; elsewhere a wrong --side has no flag of its own."""
    sure = {
        (row["case"], row["degradation"]): row["evidence"].get("confidence", 0)
        for row in rows
        if row["kind"] == "two_models" and not row["window"]
    }
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
    return {
        flag: {"cases": cases[flag] / len(clean), "heads": of_heads[flag] / len(sides)}
        for flag in sorted({*cases, *of_heads})
    }


if __name__ == "__main__":
    run_script(main)
