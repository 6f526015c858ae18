"""Trains variants side by side, and compares them; goes on where it stopped.

    python -m tools.ablations --heads=FOLDER      what each part of the augmentation for other scanners does: for harm on the 52
                                    held-out crops, for good on heads; an hour and a half on two CPU cores, two runs at a time
    python -m tools.ablations --only=networks     networks at equal epochs and at equal minutes: No INR, INR,
                                    squeeze-and-excitation, CBAM and UNETR, in 3D, three seeds
    python -m tools.ablations --only=ensemble     the 3D run and the short 2D run together, half a minute; or any RUNS

The parts are added to the default recipe one by one, and all together. A head's score is the Dice of the whole hippocampus with
hippodeep's mask, of the 3D model alone. Writes ABLATIONS/part_... (runs of train_3d.py, with heads.json) and OUT.

Equal epochs are one search of grid_search_3d.py, in NETWORKS. Then each network that takes longer than the first is trained
again, for as many epochs as come closest to the minutes of the first, in NETWORKS_minutes_NAME.

An ensemble averages the probabilities of the final weights of RUNS, which were trained on one split, and scores them on the
cases that it held out. It writes metrics.json (as a run's, and "members": the mean of each run) and plots/ into OUT_DIR.
"""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grid_search_3d
import train_3d
from hippo.data.cases import list_cases, load_case
from hippo.data.degrade import ROBUST
from hippo.device import autocast, set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json
from hippo.options import configure, run_script
from hippo.processes import refuse_several_processes
from hippo.scoring.ensemble import score_ensemble
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap, paired_differences
from hippo.segmenter import Segmenter
from hippo.training.losses import dice_ce_loss
from hippo.training.search import grid_points, results
from tools.benchmark import median_seconds
from tools.heads import find_heads, hippodeeps_mask, mask_of, segment

import numpy as np
import torch

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
ONLY = "parts"  # parts, networks or ensemble
ABLATIONS = "ablations"  # folder of the runs of the parts
OUT = "robust_parts.json"  # file to write
NETWORKS = "ablations/networks"  # folder for the search, and the first part of the names of the others
EPOCHS = 8  # of all networks in the first search
SEEDS = [0, 1, 2]  # of each
WORKERS = 2  # runs at a time, each on its share of the cores
RUNS = ["results_hippocampus-3D", "checkpoints-2d-64"]  # of the ensemble: folders of finished runs
OUT_DIR = "results_ensemble"  # of the ensemble; one that holds results is kept as <name>.previous-N

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
_NETWORKS = {  # options of grid_search_3d.py for one network alone
    "no_inr": {"use_inr": [False]},
    "inr": {"inr_hidden_dim": [64]},
    "se": {"attention": ["se"]},
    "cbam": {"attention": ["cbam"]},
    "unetr": {"model": ["UNETR"]},
}
_ALONE = {"use_inr": [True], "inr_hidden_dim": [], "deep_supervision": False}
_ALL = {"attention": ["none", "se", "cbam"], "model": ["UNet3DWithINR", "UNETR"], "inr_hidden_dim": [64]}


def main():
    cfg = configure(globals())
    measures = {"parts": compare_parts, "networks": compare_networks, "ensemble": ensemble}
    require(cfg.only in measures, f"--only={cfg.only}: expected {', '.join(measures)}")
    measures[cfg.only](cfg)


def ensemble(cfg):
    """Scores the RUNS of a configuration together."""
    refuse_several_processes("use python -m tools.ablations")
    require(cfg.runs, "--runs=[]: expected the folders of finished runs")
    score_ensemble(cfg.runs, cfg.data_root, cfg.out_dir, True, *set_up_device("auto"))


def run_all(commands, workers=2):
    """Runs commands (lists of words), `workers` at a time; raises CalledProcessError for one that fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}

    def run(command):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(f"done: {' '.join(command[1:])}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, commands))


def train_all(jobs, workers=2):
    """Trains what is missing of {folder: {option of train_3d.py: value}}; a run that was broken off goes on."""
    commands = []
    for folder, options in jobs.items():
        if not (folder / "metrics.json").is_file():
            options = {"out_dir": folder, "resume": (folder / "last.pth").is_file(), **options}
            options = [f"--{name}={value}" for name, value in options.items()]
            commands.append([sys.executable, str(ROOT / "train_3d.py"), *options])
    run_all(commands, workers)


# ---- parts of the augmentation


def compare_parts(cfg):
    """Trains what is missing, scores it, and writes the JSON file."""
    jobs = {}
    for seed, kind in itertools.product(cfg.seeds, _KINDS):
        jobs[folder_of(cfg, kind, seed)] = {"data_root": cfg.data_root, "seed": seed, **_KINDS[kind]}
    train_all(jobs, cfg.workers)
    for folder in jobs:
        score_heads(folder, find_heads(cfg.heads), cfg.heads)
    save_json(cfg.out, {"parts": collect(cfg), **cost(cfg)})
    print(f"wrote {cfg.out}")


def folder_of(cfg, kind, seed):
    """The folder of a run."""
    return Path(cfg.ablations) / f"part_{kind.replace(', ', ' ').replace(' ', '_')}_seed{seed}"


def score_heads(folder, paths, heads):
    """Writes heads.json: {head: [Dice with hippodeep of the left side, of the right side]}."""
    if (folder / "heads.json").is_file():
        return
    weights = str(folder / "last.pth")
    segmenter = Segmenter.load(checkpoint=weights, partner="", any_contrast="", device="cpu")
    scores = {}
    for path in paths:
        sides, _, scan = segment(segmenter, path)
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
            "heads": [load_json(folder / "heads.json", "tools.ablations") for folder in folders],
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


# ---- networks


def compare_networks(cfg):
    """Runs what is missing; returns {network that takes longer than the first: epochs in the minutes of the first}."""
    search(cfg, Path(cfg.networks), {**_ALL, "deep_supervision": False, "epochs": cfg.epochs})
    found, seconds = results(Path(cfg.networks)), {}
    for name, options in _NETWORKS.items():
        keys = grid_points(configure(vars(grid_search_3d), [], seeds=cfg.seeds, **{**_ALONE, **options}))
        seconds[name] = min(found[key]["training_time"] for key in keys)  # other work may have slowed a run
    first, *others = _NETWORKS
    epochs = {name: max(1, round(cfg.epochs * seconds[first] / seconds[name])) for name in others}
    epochs = {name: count for name, count in epochs.items() if count < cfg.epochs}
    for name, count in epochs.items():
        search(cfg, Path(f"{cfg.networks}_minutes_{name}"), {**_ALONE, **_NETWORKS[name], "epochs": count})
    return epochs


def search(cfg, folder, options):
    """Runs the points of a search that are not done, several at a time, and gathers them."""
    options = {"data_root": cfg.data_root, "out_dir": str(folder), "seeds": cfg.seeds, **options}
    points = grid_points(configure(vars(grid_search_3d), [], **options))
    done = results(folder)
    command = [
        sys.executable,
        str(ROOT / "grid_search_3d.py"),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    run_all([[*command, f"--only={key}"] for key in points if "dice" not in done.get(key, {})], cfg.workers)
    run_all([[*command, "--collect=True"]], 1)


if __name__ == "__main__":
    run_script(main)
