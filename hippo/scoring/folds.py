"""Collects the results of the folds of a cross-validation, and compares them case by case with another method."""

import csv
from pathlib import Path

from hippo.errors import UserError, require
from hippo.files import load_json
from hippo.scoring.statistics import bootstrap, summarise

import numpy as np


def read_peer(path):
    """Reads {case: mean Dice} from a CSV with the columns case_id and argmax_foreground_mean_dice."""
    require(Path(path).is_file(), f"{path}: missing; get it with: git checkout {path}; or --peer= for no comparison")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["case_id"]: float(row["argmax_foreground_mean_dice"]) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError, csv.Error):
        raise UserError(
            f"{path}: expected a CSV with case_id and argmax_foreground_mean_dice; or --peer= for no comparison"
        ) from None


def result_name(names):
    """Returns the name of the folder, inside that of a fold, with the result of these models."""
    return names[0] if len(names) == 1 else "_".join(["together", *names])


def collect_members(folders, names, peer):
    """Returns the content of cross_validation.json: all models together and, under "members", each one alone."""
    result = collect([folder / result_name(names) for folder in folders], peer)
    result["members"], kept = {}, ("mean", "std", "folds", "training_minutes", "interval", "difference")
    for name in names:
        alone = collect([folder / name for folder in folders], peer)
        dice = {case: values["dice"] for case, values in alone["cases"].items()}
        result["members"][name] = {**{key: alone[key] for key in kept if key in alone}, "dice": dice}
    if len(names) > 1:
        first = result["members"][names[0]]["dice"]
        result["gain"] = bootstrap([np.mean(v["dice"]) - np.mean(first[case]) for case, v in result["cases"].items()])
    free = {case: v["dice_voxel_border"] for case, v in result["cases"].items() if "dice_voxel_border" in v}
    if free:
        result["border_gain"] = bootstrap(
            [np.mean(result["cases"][case]["dice"]) - np.mean(free[case]) for case in free]
        )
    return result


def collect(folders, peer):
    """Collects the scores of all cases from metrics.json of the folds. Returns them with their means and intervals."""
    parts = [load_json(folder / "metrics.json", "python cross_validate.py") for folder in folders]
    cases = {
        case: {"fold": fold, **values} for fold, part in enumerate(parts) for case, values in part["cases"].items()
    }
    cases = dict(sorted(cases.items()))
    scores = {case: float(np.mean(values["dice"])) for case, values in cases.items()}
    result = {
        "synthetic": parts[0]["synthetic"],
        "cases": cases,
        **summarise({case: {k: v for k, v in values.items() if k != "fold"} for case, values in cases.items()}),
        "tta": parts[0]["tta"],
        "training_minutes": [part["training_minutes"] for part in parts],
        "folds": [{"mean": part["mean"], "cases": len(part["cases"])} for part in parts],
        "interval": bootstrap(list(scores.values())),
    }
    shared = [case for case in scores if case in peer]
    if shared:
        result["difference"] = bootstrap([scores[case] - peer[case] for case in shared])
        result["difference"]["cases"] = len(shared)
    return result
