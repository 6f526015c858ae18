"""How good a segmentation is likely to be: evidence from what the models say of it, and the Dice that it predicts."""

import functools
from typing import NamedTuple

from hippo.data.spatial import largest_component
from hippo.files import ROOT, load_json
from hippo.heads.anatomy import MEAN_MM3
from hippo.scoring.metrics import dice

import numpy as np

COEFFICIENTS = "pretrained/quality.json"  # written by python -m tools.quality


def expected_dice(probabilities):
    """The Dice that probabilities (3, D, H, W) expect of their own likeliest labels, mean of both parts.

    A voxel of a label is right with its probability; so many voxels of it there are as the probabilities add up to.
    """
    labels = probabilities.argmax(0)
    values = []
    for part in (1, 2) if probabilities[2].any() else (1,):  # of a model of the whole
        there = labels == part
        hits, total = probabilities[part][there].sum(), there.sum() + probabilities[part].sum()
        values.append(2 * hits / total if total else 1.0)
    return float(np.mean(values))


def gather(members, views, labels, volumes_mm3, other=None):
    """{name: number} of what speaks for a segmentation: the more, the better.

    members: probabilities (3, *window) of each model; views: (N, 3, d, h, w) of the window and of turned ones on the scan's
    grid; labels (d, h, w): what came of them, of these volumes; other: (3, *window) of a further model.
    """
    mean = sum(members) / len(members)
    window = mean.argmax(0)
    found = largest_component(window > 0)
    return {
        "confidence": float(mean.max(0)[found].mean()),
        "expected": expected_dice(mean),
        "models": agreement(members[0].argmax(0), members[-1].argmax(0)),
        "contrast": 1.0 if other is None else agreement(window, other.argmax(0)),
        "views": float(np.mean([agreement(view.argmax(0), labels) for view in views[1:]])),
        "component": float(found.sum() / (window > 0).sum()),
        "size": -abs(float(np.log(max(sum(volumes_mm3), 1) / MEAN_MM3))),
    }


def agreement(first, second):
    """Dice of two label maps, mean of the parts that one of them has."""
    parts = [part for part in (1, 2) if (first == part).any() or (second == part).any()]
    return float(np.mean([dice(first == part, second == part) for part in parts or (1,)]))


def predict_dice(evidence, kind):
    """The Dice to expect, mean of both parts, in [0, 1]: the usual one, less what each shortfall of the evidence from a
    threshold costs. So less agreement never gives a higher number.

    kind: of the coefficients: both (two models and a check by a third), one (a single model), or any (the model for any
    contrast).
    """
    fit = _coefficients()[kind]
    lost = sum(weight * max(0.0, threshold - evidence[name]) for name, threshold, weight in fit["steps"])
    return float(np.clip(fit["most"] - lost, 0, 1))


@functools.cache
def _coefficients():
    return load_json(ROOT / COEFFICIENTS, "python -m tools.quality")


class Limits(NamedTuple):
    """What is flagged and what is refused; predict.py's constants of the same names."""

    low_quality: float  # a predicted Dice below is flagged
    least_quality: float  # below it there is no result
    asymmetry: float  # difference of a head's two volumes, a share of their mean, above which both are flagged
    usual_mm3: tuple  # of a whole hippocampus; what is outside is flagged
    possible_mm3: tuple  # what is outside is refused


def limits_of(settings):
    """The Limits that settings, or the configuration of a script, hold."""
    return Limits(*(getattr(settings, name) for name in Limits._fields))


def judge(sides, scan, limits, strict=True):
    """The list of Hippocampus with the flags of these Limits and, if strict, the problems: no result below least_quality,
    outside possible_mm3 and in fluid. Without strict they have the flags only, as for models of phantoms, which are sure of nothing."""
    volumes = [0 if side.problem else sum(side.volumes_mm3(scan)) for side in sides]
    problems = [side.problem or strict * _problem(side, volume, limits) for side, volume in zip(sides, volumes)]
    kept = [volume for volume, problem in zip(volumes, problems) if volume and not problem]
    apart = len(kept) == 2 and abs(kept[0] - kept[1]) / (sum(kept) / 2) > limits.asymmetry
    return [
        side if side.problem else side._replace(flags=_flags(side, volume, apart, limits), problem=problem)
        for side, volume, problem in zip(sides, volumes, problems)
    ]


def _problem(side, volume, limits):
    """Why a side is no result; empty where it is one."""
    low, high = limits.possible_mm3
    if side.quality < limits.least_quality:
        return f"no hippocampus for sure: quality {side.quality:.2f}, expected {limits.least_quality} or more"
    if not low <= volume <= high:
        return f"{volume:.0f} mm3 is no volume of a hippocampus; expected {low} to {high}"
    if side.evidence.get("in_fluid") and limits.least_quality:
        return "what looks like a hippocampus lies in fluid: was it removed? To see it anyway: --least_quality=0"
    return ""


def _flags(side, volume, apart, limits):
    """The flags of a side and those of these Limits."""
    flags = {
        "low_quality": side.quality < limits.low_quality,
        "implausible_volume": not limits.usual_mm3[0] <= volume <= limits.usual_mm3[1],
        "asymmetric": apart,
    }
    return (*side.flags, *(name for name, raised in flags.items() if raised))
