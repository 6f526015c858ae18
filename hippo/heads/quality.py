"""Detects failed segmentations: collects evidence from the models, and predicts the Dice from how sure they are."""

import functools
from typing import NamedTuple

from hippo.data.spatial import largest_component
from hippo.files import ROOT, load_json
from hippo.scoring.metrics import dice

import numpy as np

FIT = "pretrained/quality.json"  # the Dice to expect as a function of the certainty, by python -m tools.quality


def collect_evidence(members, views, labels, other=None):
    """Returns the evidence for a segmentation, {name: number}; higher is better.

    members: probabilities (3, *window) of each model; views: (N, 3, d, h, w), probabilities of the window and of
    rotated windows on the grid of the scan; labels (d, h, w): the resulting labels; other: (3, *window) of a further
    model. confidence: mean probability of the likeliest class; models, contrast, views: agreement of the models, with
    the further model, and of the rotated windows with the result.
    """
    mean = sum(members) / len(members)
    window = mean.argmax(0)
    return {
        "confidence": float(mean.max(0)[largest_component(window > 0)].mean()),
        "models": agreement(members[0].argmax(0), members[-1].argmax(0)),
        "contrast": 1.0 if other is None else agreement(window, other.argmax(0)),
        "views": float(np.mean([agreement(view.argmax(0), labels) for view in views[1:]])),
    }


def agreement(first, second):
    """Returns the Dice of two label maps, averaged over the parts that occur in at least one of them."""
    parts = [part for part in (1, 2) if (first == part).any() or (second == part).any()]
    return float(np.mean([dice(first == part, second == part) for part in parts or (1,)]))


def predict_dice(evidence, kind):
    """Predicts the Dice, averaged over both parts, in [0, 1]: a rising function of the certainty. kind: of what
    segmented: one_model, two_models, or any_contrast (the model for any contrast)."""
    fit = _fits()[kind]
    return float(np.interp(certainty(evidence), fit["certainty"], fit["dice"]))


def certainty(evidence):
    """Returns how sure the models are, in [0, 1], of a segmentation with this evidence: the mean of confidence and views."""
    return (evidence["confidence"] + evidence["views"]) / 2


@functools.cache
def _fits():
    return load_json(ROOT / FIT, "python -m tools.quality")


class Limits(NamedTuple):
    """Thresholds for flags and refusals. They have the names of predict.py's constants."""

    low_quality: float  # a lower predicted Dice is flagged
    least_quality: float  # a lower predicted Dice means no result
    asymmetry: float  # largest difference of a head's two volumes, relative to their mean; above it both are flagged
    usual_mm3: tuple  # volumes of a hippocampus outside this range are flagged
    possible_mm3: tuple  # volumes outside this range are refused


def limits_of(settings):
    """Returns the Limits in settings, or in the configuration of a script."""
    return Limits(*(getattr(settings, name) for name in Limits._fields))


def judge(sides, scan, limits, strict=True):
    """Returns the list of Hippocampus with flags and, if strict, problems added according to the Limits. Strict
    refuses a quality below least_quality, a volume outside possible_mm3, and segmentations in fluid. It is off for
    models trained on phantoms, whose confidence is always low."""
    volumes = [0 if side.problem else sum(side.volumes_mm3(scan)) for side in sides]
    problems = [side.problem or strict * _problem(side, volume, limits) for side, volume in zip(sides, volumes)]
    kept = [volume for volume, problem in zip(volumes, problems) if volume and not problem]
    apart = len(kept) == 2 and abs(kept[0] - kept[1]) / (sum(kept) / 2) > limits.asymmetry
    return [
        side if side.problem else side._replace(flags=_flags(side, volume, apart, limits), problem=problem)
        for side, volume, problem in zip(sides, volumes, problems)
    ]


def _problem(side, volume, limits):
    """Returns why a side has no result, or an empty text if it has one."""
    low, high = limits.possible_mm3
    if side.evidence.get("in_fluid") and limits.least_quality:
        return "what looks like a hippocampus lies in fluid: was it removed? To see it anyway: --least_quality=0"
    if side.quality < limits.least_quality:
        return f"perhaps no hippocampus: quality {side.quality:.2f}, expected {limits.least_quality} or more"
    if not low <= volume <= high:
        return f"{volume:.0f} mm3 is no volume of a hippocampus; expected {low} to {high}"
    return ""


def _flags(side, volume, apart, limits):
    """Returns the flags of a side, with those added that the Limits raise."""
    flags = {
        "low_quality": side.quality < limits.low_quality,
        "implausible_volume": not limits.usual_mm3[0] <= volume <= limits.usual_mm3[1],
        "asymmetric": apart,
    }
    return (*side.flags, *(name for name, raised in flags.items() if raised))
