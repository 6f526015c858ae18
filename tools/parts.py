"""Measures what each part of the augmentation for other scanners does: for harm on the 52 held-out crops, for good on heads.

    python -m tools.parts --heads=FOLDER       three seeds of the default recipe, with one part added each, and with all; an
                                               hour and a half on two CPU cores, two runs at a time; goes on where it stopped

A head's score is the Dice of the whole hippocampus with hippodeep's mask, of the 3D model alone. Writes ABLATIONS/part_...
(runs of train_3d.py, with heads.json) and OUT.
"""

import itertools
from pathlib import Path

import train_3d
from hippo.data.augment import ROBUST
from hippo.data.cases import list_cases, load_case
from hippo.device import autocast, set_up_device
from hippo.files import load_json, save_json
from hippo.models.checkpoint import load_model
from hippo.options import configure, run_script
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap, paired_differences
from hippo.training.losses import dice_ce_loss
from tools.common import find_heads, hippodeeps_mask, load_tools, mask_of, train_all
from tools.speed import median_seconds

import numpy as np
import torch

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
ABLATIONS = "ablations"  # folder of the runs
OUT = "robust_parts.json"  # file to write
SEEDS = [0, 1, 2]  # of the training
WORKERS = 2  # runs at a time, each on its share of the cores

_REPEATS = 30  # of a timing

_ADDED = {
    "rotation, scale, shift": {"rotation_degrees": 20.0, "scale": 0.2, "shift_voxels": 5.0},
    "motion": {"motion_mm": 1.0},
}
_GAMMA = {"gamma and contrast": {name: ROBUST[name] for name in ("gamma", "intensity")}}
_SINGLE = {
    name.removesuffix("_mm").replace("_", " "): {name: ROBUST[name]}
    for name in ROBUST
    if name not in ("gamma", "intensity")
}
_KINDS = {"default": {}, **_GAMMA, **_SINGLE, "all of these": ROBUST, **_ADDED}


def main():
    run(configure(globals()))


def run(cfg):
    """Trains what is missing, scores it, and writes the JSON file."""
    jobs = {}
    for seed, kind in itertools.product(cfg.seeds, _KINDS):
        jobs[folder_of(cfg, kind, seed)] = {"data_root": cfg.data_root, "seed": seed, **_KINDS[kind]}
    train_all(jobs, cfg.workers)
    tools, paths = load_tools(), find_heads(cfg.heads)
    for folder in jobs:
        score_heads(folder, paths, cfg.heads, tools)
    save_json(cfg.out, {"parts": collect(cfg), **cost(cfg)})
    print(f"wrote {cfg.out}")


def folder_of(cfg, kind, seed):
    """The folder of a run."""
    return Path(cfg.ablations) / f"part_{kind.replace(', ', ' ').replace(' ', '_')}_seed{seed}"


def score_heads(folder, paths, heads, tools):
    """Writes heads.json: {head: [Dice with hippodeep of the left side, of the right side]}."""
    if (folder / "heads.json").is_file():
        return
    tools = tools._replace(models=[load_model(folder / "last.pth")[0]], any_contrast=None)
    scores = {}
    for path in paths:
        scan, (sides, _) = tools.segment_file(path)
        name, row = path.name.split("_")[0], []
        for side in sides:
            row.append(dice(mask_of(side, scan), hippodeeps_mask(heads, name, side.side)))
        scores[name] = row
    save_json(folder / "heads.json", scores)
    print(folder, f"{np.mean(list(scores.values())):.4f}", flush=True)


def collect(cfg):
    """{part: {"strengths", "crops" and "heads": {"seeds": mean Dice of each, "difference" from the default}}}."""
    scores = {}
    for kind in _KINDS:
        folders = [folder_of(cfg, kind, seed) for seed in cfg.seeds]
        cases = [load_json(folder / "metrics.json", "train_3d.py")["cases"] for folder in folders]
        crops = [{name: case["dice"] for name, case in part.items()} for part in cases]
        scores[kind] = {
            "crops": crops,
            "heads": [load_json(folder / "heads.json", "tools.parts") for folder in folders],
        }
    result = {}
    for kind, parts in scores.items():
        result[kind] = {"strengths": _KINDS[kind]}
        for name, runs in parts.items():
            pairs = [
                [{"seed": s, "case_dice": run} for s, run in zip(cfg.seeds, part[name])]
                for part in (parts, scores["default"])
            ]
            result[kind][name] = {
                "seeds": [float(np.mean(list(run.values()))) for run in runs],
                "difference": bootstrap(paired_differences(*pairs)),
            }
    return result


def cost(cfg):
    """{"batch_ms": {part: ms that a batch of patches takes}, "step_ms": ms of a step of training, forward and backward},
    medians on all cores."""
    options = configure(vars(train_3d), [], data_root=cfg.data_root)
    (device, dtype), batch_ms = set_up_device("cpu"), {}
    volumes = [load_case(case) for case in list_cases(cfg.data_root, options.batch_size)[0]]
    for kind, strengths in _KINDS.items():
        data = train_3d.augmented(configure(vars(train_3d), [], **strengths), volumes)
        numbers = itertools.count()

        def batch(data=data, numbers=numbers):
            number = next(numbers)
            return [data[number, i] for i in range(len(data))]

        batch_ms[kind] = 1000 * median_seconds(batch, _REPEATS)
    model = train_3d.build_model(options)[0].train()
    image, label = (torch.stack(part) for part in zip(*batch()))

    def step():
        with autocast(device, dtype):
            logits = model(image)
        dice_ce_loss(logits, label.long(), options.focal_gamma).backward()

    return {"batch_ms": batch_ms, "step_ms": 1000 * median_seconds(step, _REPEATS), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    run_script(main)
