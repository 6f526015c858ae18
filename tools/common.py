"""What several measurements need: the models and heads that they measure, and runs of scripts, several at a time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import predict
from hippo.data.nifti import read_nifti
from hippo.device import precision
from hippo.errors import require
from hippo.files import ROOT
from hippo.heads.networks import load_networks
from hippo.heads.quality import Limits, judge, limits_of
from hippo.heads.scan import Scan, read_scan
from hippo.heads.segment import segment
from hippo.models.inference import TrainedModel
from hippo.options import configure

import nibabel as nib
import numpy as np
import torch

EXAMPLE = "example_brain_t1"  # hippodeep's own head


def scan_of(array, affine):
    """The Scan of a volume (D, H, W) in RAS."""
    middle = nib.affines.apply_affine(affine, (np.array(array.shape) - 1) / 2)
    return Scan(array, affine[:3, :3], middle, None, [])


class Tools(NamedTuple):
    """What predict.py segments with, on the CPU, and the names of the weights."""

    models: list
    any_contrast: TrainedModel
    locator: TrainedModel
    device: torch.device
    dtype: torch.dtype
    names: list
    limits: Limits

    def segment(self, scan, contrast="auto"):
        """As segment.segment, judged."""
        other = {"any_contrast": self.any_contrast, "contrast": contrast}
        sides, located = segment(self.models, self.locator, scan, self.device, self.dtype, **other)
        return judge(sides, scan, self.limits), located

    def segment_file(self, path):
        """(Scan of a file, what segment.segment says of it)."""
        scan = read_scan(path)
        return scan, self.segment(scan)

    def describe(self):
        """What a file of results says of them."""
        return {"models": self.names, "threads": torch.get_num_threads(), "precision": precision(self.dtype)}


def load_tools():
    """The Tools of predict.py's default constants."""
    cfg = configure(vars(predict), [], device="cpu")
    networks = load_networks(cfg)
    names = [cfg.checkpoint, cfg.partner, cfg.any_contrast]
    used = networks.models, networks.any_contrast, networks.locator
    return Tools(*used, networks.device, networks.dtype, names, limits_of(cfg))


def find_heads(folder):
    """The paths of the T1-weighted heads of a BIDS folder."""
    paths = sorted(Path(folder).glob("sub-*/anat/*_T1w.nii.gz"))
    require(paths, f"{folder}: no sub-*/anat/*_T1w.nii.gz in it; name the folder of whole heads with --heads=")
    return paths


def hippodeeps_mask(heads, name, side):
    """hippodeep's mask (D, H, W) of one side of a head in a BIDS folder, boolean."""
    folder = Path(heads) / ("other" if name == EXAMPLE else f"derivatives/hippodeep/{name}")
    return read_nifti(folder / f"{name}_hemi-{side[0].upper()}_mask.nii.gz")[0] >= 128


def mask_of(side, scan):
    """The boolean mask (D, H, W) of a Hippocampus."""
    mask = np.zeros(scan.array.shape, bool)
    if not side.problem:
        mask[side.bbox] = side.labels > 0
    return mask


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
