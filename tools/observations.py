"""What segmentations look like, and how good they are: of the 260 cases, by models that did not see them, clean and degraded;
and of whole heads: as they are, upside down, and of places without a hippocampus.

Called by python -m tools.quality. Writes a JSON file for each fold of the cross-validation of the recipe of heads.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from hippo.data.augment import PARTS
from hippo.data.cases import load_volumes
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import load_json, save_json
from hippo.heads.anatomy import SIDES
from hippo.heads.quality import judge
from hippo.heads.segment import segment_sides
from hippo.models.checkpoint import load_model
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from tools.common import find_heads, hippodeeps_mask, mask_of, scan_of

import numpy as np
import torch
from scipy.stats import spearmanr

_OTHERS = 2  # degradations of each case, of those of DEGRADATIONS that are not for all
_HELD_OUT = "pretrained/any_contrast.pth"  # has seen all cases but its val_cases
_AWAY_MM = (
    (0, 55, 25),
    (0, -55, 20),
    (0, 0, 45),
    (0, 10, -40),
)  # from a hippocampus: frontal, occipital, parietal, neck


def _intensities(part, strength):
    """A degradation by one part of the augmentation."""

    def change(image, label, rng):
        return PARTS[part][1](torch.from_numpy(image), rng, strength).numpy(), label, np.zeros(3)

    return change


def _shifted(image, label, rng):
    """The window off the hippocampus by 6 to 22 mm."""
    direction = rng.standard_normal(3)
    return image, label, direction / np.linalg.norm(direction) * rng.uniform(6, 22)


def _cut(image, label, rng):
    """A fifth to half of the field of view cut off, along one axis."""
    axis = int(rng.integers(3))
    gone, size = int(image.shape[axis] * rng.uniform(0.2, 0.55)), image.shape[axis]
    part = (slice(None),) * axis + (slice(gone, None) if rng.random() < 0.5 else slice(0, size - gone),)
    return image[part], label[part], np.zeros(3)


def _flipped(axis):
    def flip(image, label, rng):
        return np.flip(image, axis), np.flip(label, axis), np.zeros(3)

    return flip


# name: function of (image (D, H, W), label, rng) to (image, label, centre of the window in mm from its middle)
DEGRADATIONS = {
    "clean": lambda image, label, rng: (image, label, np.zeros(3)),
    "wrong side": _flipped(0),
    "noise": _intensities("noise", 1.5),
    "blur": _intensities("blur_mm", 4.0),
    "motion": _intensities("motion_mm", 3.0),
    "low resolution": _intensities("low_resolution_mm", 8.0),
    "bias field": _intensities("bias_field", 1.5),
    "gamma": _intensities("gamma", 4.0),
    "another contrast": _intensities("lookup_tables", 1),
    "shifted window": _shifted,
    "cut": _cut,
    "upside down": _flipped(2),
    "back to front": _flipped(1),
}
MISUSES = (
    "wrong side",
    "another contrast",
    "cut",
    "upside down",
    "back to front",
)  # what predict.py has further flags for
_FOR_ALL = ("clean", "wrong side")


def observe_all(runs, data_root, out_dir, workers):
    """The observations of all folds: a list of dicts, see observe. Observes what is missing in out_dir."""
    missing = [fold for fold in range(5) if not _file(out_dir, fold).is_file()]
    for fold in missing:
        for name in ("3d-0", "2d-0"):
            path = Path(runs) / f"fold_{fold}" / name / "last.pth"
            require(
                path.is_file(), f"{path}: no such weights; train them with: python cross_validate.py --recipe=heads"
            )
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
    """{"kind", "window", "dice", "whole", "problem", "evidence"} of one segmentation. seen: of DEGRADATIONS; window: whether
    it is found in a window, as in a head, and else in the whole crop."""
    image, label, centre_mm = seen
    scan = scan_of(np.ascontiguousarray(image), np.eye(4))
    centres = {"left": centre_mm if window else None}
    side = segment_sides(models, scan, centres, device, dtype, check=check, evidence_of=kind)["left"]
    found = np.zeros(label.shape, np.uint8)
    if not side.problem:
        found[side.bbox] = side.labels
    return {
        "kind": kind,
        "window": window,
        "dice": np.mean([dice(found == part, label == part) for part in (1, 2)]),
        "whole": dice(found > 0, label > 0),
        "problem": side.problem,
        "flags": side.flags,
        "volumes_mm3": [] if side.problem else side.volumes_mm3(scan),
        "evidence": side.evidence,
    }


def observe_heads(heads, tools):
    """{"sides": {head and side: quality, Dice with hippodeep, flags}, "spearman": of both, with an interval over heads;
    "upside_down", "elsewhere": counts of what is flagged}."""
    sides, upside_down, elsewhere = {}, [], []
    for path in find_heads(heads):
        scan, (found, located) = tools.segment_file(path)
        name = path.name.split("_")[0]
        for side in found:
            mask, truth = mask_of(side, scan), hippodeeps_mask(heads, name, side.side)
            row = {
                "quality": side.quality,
                "dice": dice(mask, truth),
                "flags": list(side.flags),
                "problem": side.problem,
            }
            sides[f"{name} {side.side}"] = {
                **row,
                "volume_mm3": sum(side.volumes_mm3(scan)) if not side.problem else None,
            }
        turned, about = tools.segment(
            scan_of(np.ascontiguousarray(scan.array[:, :, ::-1]), np.diag([*spacing(scan), 1]))
        )
        upside_down += [bool(side.problem or side.flags or about.flags) for side in turned]
        for number, side in enumerate(SIDES):
            away = np.array(_AWAY_MM[(len(elsewhere) + number) % len(_AWAY_MM)])
            elsewhere.append(look_elsewhere(tools, scan, located.centres[side] + away, side, found[number]))
        print(name, *(f"{sides[f'{name} {side}']['quality']:.3f}" for side in SIDES), flush=True)
    pairs = np.array(
        [
            [[sides[f"{name} {side}"][key] for side in SIDES] for key in ("quality", "dice")]
            for name in dict.fromkeys(key.split()[0] for key in sides)
        ]
    )  # (heads, 2, sides)
    spearman = bootstrap_of(lambda i: spearmanr(*pairs[i].transpose(1, 0, 2).reshape(2, -1)).statistic, len(pairs))
    return {"sides": sides, "spearman": spearman, "upside_down": count(upside_down), "elsewhere": count(elsewhere)}


def spacing(scan):
    return np.linalg.norm(scan.matrix, axis=0)


def count(raised):
    return {"of": len(raised), "flagged": int(sum(raised))}


def look_elsewhere(tools, scan, centre_mm, side, usual):
    """Whether a window that starts far from the hippocampus gives no result, a flag, or the usual result after all."""
    how = {"device": tools.device, "dtype": tools.dtype, "check": tools.any_contrast}
    found = segment_sides(tools.models, scan, {side: centre_mm}, **how)
    found = judge(list(found.values()), scan, tools.limits)[0]
    return bool(found.problem or found.flags) or dice(mask_of(found, scan), mask_of(usual, scan)) > 0.5
