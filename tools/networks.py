"""Compares networks at equal epochs and at equal minutes: No INR, INR, squeeze-and-excitation, CBAM and UNETR.

    python -m tools.networks        3D, three seeds, WORKERS runs at a time, each on its share of the cores

Equal epochs are one search of grid_search_3d.py, in OUT_DIR. Then each network that takes longer than the first is trained
again, for as many epochs as come closest to the minutes of the first, in OUT_DIR_minutes_NAME. A broken comparison goes on
where it stopped.
"""

import sys
from pathlib import Path

import grid_search_3d
from hippo.files import ROOT
from hippo.options import configure, run_script
from hippo.training.search import grid_points, results
from tools.common import run_all

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
OUT_DIR = "ablations/networks"  # folder for the search, and the first part of the names of the others
EPOCHS = 8  # of all networks in the first search
SEEDS = [0, 1, 2]  # of each
WORKERS = 2  # runs at a time

NETWORKS = {  # options of grid_search_3d.py for one network alone
    "no_inr": {"use_inr": [False]},
    "inr": {"inr_hidden_dim": [64]},
    "se": {"attention": ["se"]},
    "cbam": {"attention": ["cbam"]},
    "unetr": {"model": ["UNETR"]},
}
_ALONE = {"use_inr": [True], "inr_hidden_dim": [], "deep_supervision": False}
_ALL = {"attention": ["none", "se", "cbam"], "model": ["UNet3DWithINR", "UNETR"], "inr_hidden_dim": [64]}


def main():
    run(configure(globals()))


def run(cfg):
    """Runs what is missing; returns {network that takes longer than the first: epochs in the minutes of the first}."""
    search(cfg, Path(cfg.out_dir), {**_ALL, "deep_supervision": False, "epochs": cfg.epochs})
    found, seconds = results(Path(cfg.out_dir)), {}
    for name, options in NETWORKS.items():
        keys = grid_points(configure(vars(grid_search_3d), [], seeds=cfg.seeds, **{**_ALONE, **options}))
        seconds[name] = min(found[key]["training_time"] for key in keys)  # other work may have slowed a run
    first, *others = NETWORKS
    epochs = {name: max(1, round(cfg.epochs * seconds[first] / seconds[name])) for name in others}
    epochs = {name: count for name, count in epochs.items() if count < cfg.epochs}
    for name, count in epochs.items():
        search(cfg, Path(f"{cfg.out_dir}_minutes_{name}"), {**_ALONE, **NETWORKS[name], "epochs": count})
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
