"""Measures what a reader of the README asks first, on a processor without bf16: how long a head takes, a training, and each
network.

    python -m tools.ordinary_cpu --heads=FOLDER      half an hour on two cores; writes ordinary_cpu.json
    python -m tools.ordinary_cpu --only=models       the networks anew, in the same file

FOLDER is a BIDS data set of heads. The training is train_3d.py with its defaults, into RUN; a finished one is taken as it is.
"""

import platform
import subprocess
import sys
from pathlib import Path

import model2d
import unet_inr_3d
from hippo.device import precision, set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json
from hippo.models.describe import describe_models
from hippo.options import configure, run_script
from tools.heads import find_heads, speed

import numpy as np
import torch

HEADS = "heads"  # BIDS folder of whole heads
RUN = "ablations/ordinary_cpu_3d"  # folder of the training
OUT = "ordinary_cpu.json"  # file to write
ONLY = ""  # models: measure these alone, and keep what else the file has


def main():
    run(configure(globals()))


def run(cfg):
    """Measures everything and writes the file."""
    _, dtype = set_up_device("cpu")
    require(dtype is None, "this processor has bf16; the other measurements are of such a one")
    if cfg.only != "models":
        save_json(cfg.out, scans_and_training(cfg, find_heads(cfg.heads), dtype))
    result = load_json(cfg.out, "the same command without --only")
    parts = {"2d": (model2d.MODELS, model2d.INPUT), "3d": (unet_inr_3d.TABLE, unet_inr_3d.INPUT)}
    save_json(cfg.out, {**result, "models": {name: describe_models(*part) for name, part in parts.items()}})


def scans_and_training(cfg, paths, dtype):
    """Seconds a head, and minutes and Dice of a training."""
    if not (Path(cfg.run) / "metrics.json").is_file():
        subprocess.run([sys.executable, "train_3d.py", f"--out_dir={Path(cfg.run).resolve()}"], cwd=ROOT, check=True)
    metrics = load_json(Path(cfg.run) / "metrics.json", "the same command")
    result = {"threads": torch.get_num_threads(), "precision": precision(dtype), "machine": platform.machine()}
    result["instructions"] = torch.backends.cpu.get_cpu_capability()
    result |= {"training_minutes": metrics["training_minutes"], "dice": np.mean(metrics["mean"]["dice"])}
    return {**result, "speed": speed(paths, "")}


if __name__ == "__main__":
    run_script(main)
