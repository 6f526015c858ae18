"""Cuts the labelled volumes into augmented 2D slices: the data set of train2d.py.

    python data_aug.py        260 volumes to about 11,700 slices in dataset_2d/, in 10 to 20 seconds on two cores

Each volume is clipped, brought to [0, 1] and resampled to SIZE^3 (image linearly, label to the nearest voxel). Among the
axial, coronal and sagittal slices that contain hippocampus, at most SLICES_PER_PLANE are drawn of each plane. A training
slice is kept as it is, rotated, scaled and shifted, or mirrored. A validation slice is always kept as it is. Cases, not
slices, are split.

Writes images/img_XXXXXX.npy (float32), masks/mask_XXXXXX.npy (uint8, 0-2) and, last, index.csv. The same constants give
the same files, whatever the number of processes. Started again after a break, it completes the folder.
"""

import csv
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from hippo.data.cases import count_labels, describe_data, list_cases, load_case, split_cases
from hippo.data.intensity import to_unit_range
from hippo.data.slices import INDEX_COLUMNS, PLANES, augment_slice
from hippo.data.spatial import resample
from hippo.errors import UserError, require
from hippo.files import atomic, fresh_folder, save_json
from hippo.options import configure, run_script
from hippo.processes import ignore_interrupts

import numpy as np
import torch
from tqdm import tqdm

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
OUT_DIR = "dataset_2d"  # folder to write; one that holds a finished data set is kept as <name>.previous-N
MAX_CASES = 0  # 0: all cases; n: the first n sorted cases, before the split
FOLD = -1  # -1: the first 80 % of the sorted cases train, the rest validate; 0-4: nnU-Net's folds; -2: all train
# slices
SIZE = 128  # voxels along each side of the resampled volume
SLICES_PER_PLANE = 15  # slices of each plane of a volume, at most
# augmentation of training slices: the shares add up to 1
SHARE_NONE = 0.40  # kept as they are
SHARE_ROTATION = 0.25  # rotated
SHARE_AFFINE = 0.25  # scaled and shifted
SHARE_FLIP = 0.10  # mirrored, left to right of the slice
ROTATION_DEGREES = 7.0  # largest rotation
SCALE = 0.05  # largest change of size, as a share
SHIFT_PIXELS = 5.0  # largest shift along each axis
# system
SEED = 0  # of the choice of slices and of their augmentation
NUM_WORKERS = 0  # processes; 0: one for each CPU core


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the data set of a configuration. Returns its folder."""
    check(cfg)
    cases, info = list_cases(cfg.data_root, cfg.max_cases)
    train, val = split_cases(cases, cfg.fold, info)
    training = {case.id for case in train}
    labels = count_labels(info, cfg.data_root)
    volumes = [load_case(case, labels) for case in cases]  # all of them checked before anything is written
    settings = {
        name.upper(): value for name, value in sorted(vars(cfg).items()) if name not in ("out_dir", "num_workers")
    }
    settings["DATA"] = describe_data(info, cases, train, val)
    out_dir = Path(cfg.out_dir)
    if is_unfinished(out_dir, settings):
        print(f"{out_dir} is not finished: completing it")
        for path in [*out_dir.glob("images/.*"), *out_dir.glob("masks/.*")]:
            path.unlink()  # half-written
    else:
        fresh_folder(out_dir)
        for name in ("images", "masks"):
            (out_dir / name).mkdir()
        save_json(out_dir / "settings.json", settings)

    jobs = [(cfg, volume, i, volume.id in training) for i, volume in enumerate(volumes)]
    rows = []
    with workers(cfg, len(jobs)) as pool:
        parts = pool.map(write_case, jobs, chunksize=4) if pool else map(write_case, jobs)
        for part in tqdm(parts, total=len(jobs), desc="volumes", disable=None):
            rows += part
    with atomic(out_dir / "index.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([INDEX_COLUMNS, *rows])
    n_train = sum(row[-1] == "train" for row in rows)
    places = {"data_root": (cfg.data_root, DATA_ROOT), "data_dir": (cfg.out_dir, OUT_DIR)}
    there = "".join(f" --{name}={value}" for name, (value, default) in places.items() if value != default)
    text = f"{len(rows)} slices of {len(cases)} volumes in {out_dir}, {n_train} of them to train on"
    print(f"{text}; next: python train2d.py{there}")
    return out_dir


def check(cfg):
    """Raises UserError for invalid constants."""
    shares = [cfg.share_none, cfg.share_rotation, cfg.share_affine, cfg.share_flip]
    require(min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, f"the four shares are {shares}; expected a sum of 1")
    require(16 <= cfg.size <= 1024, f"--size={cfg.size}: expected 16 to 1024")
    require(cfg.slices_per_plane >= 1, f"--slices_per_plane={cfg.slices_per_plane}: expected 1 or more")
    require(0 <= cfg.scale < 1, f"--scale={cfg.scale}: expected at least 0 and less than 1")
    for name in ("max_cases", "num_workers", "seed", "rotation_degrees", "shift_pixels"):
        require(getattr(cfg, name) >= 0, f"--{name}={getattr(cfg, name)}: expected 0 or more")


def is_unfinished(out_dir, settings):
    """Whether a folder has the same settings and data, but no index.csv yet."""
    try:
        earlier = json.loads((out_dir / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return earlier == settings and not (out_dir / "index.csv").exists()


@contextmanager
def workers(cfg, n_jobs):
    """Provides a pool of cfg.num_workers processes, at most one per job, or None for one. Raises UserError if a
    process dies."""
    n = min(cfg.num_workers or available_cores(), n_jobs, 61)  # Windows allows no more
    if n == 1:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n, mp_context=spawn, initializer=start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            f"{cfg.out_dir}: a process was ended from outside (memory?); run it again, or with --num_workers=1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores():
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker():
    """Prepares a worker process."""
    ignore_interrupts()
    torch.set_num_threads(1)  # the processes share the cores between them


def write_case(job):
    """Writes the slices of one case. Returns its rows of index.csv. Existing files are complete, and are kept.

    The random numbers of a case depend only on the seed and its position in the list, its file numbers only on its
    position.
    """
    cfg, volume, index, trains = job
    rng = np.random.default_rng([cfg.seed, index])
    image = resample(to_unit_range(volume.image), [cfg.size] * 3)
    label = resample(volume.label, [cfg.size] * 3, order=0)
    rows = []
    for axis, plane in enumerate(PLANES):
        there = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        for position in sorted(rng.choice(there, min(len(there), cfg.slices_per_plane), replace=False).tolist()):
            number = index * len(PLANES) * cfg.slices_per_plane + len(rows)
            kind, parameters = draw_augmentation(rng, cfg) if trains else ("none", {})
            slices = augment_slice(image.take(position, axis), label.take(position, axis), kind, parameters)
            for array, folder, name in zip(slices, ("images", "masks"), ("img", "mask")):
                path = Path(cfg.out_dir) / folder / f"{name}_{number:06d}.npy"
                if not path.exists():
                    with atomic(path, durable=False) as temporary, open(temporary, "wb") as file:
                        np.save(file, array)
            text = " ".join(f"{name}={value:.3f}" for name, value in parameters.items())
            rows.append([number, volume.id, plane, position, kind, text, "train" if trains else "val"])
    return rows


def draw_augmentation(rng, cfg):
    """Draws a random augmentation. Returns (kind, parameters as a dict)."""
    shares = [cfg.share_none, cfg.share_rotation, cfg.share_affine, cfg.share_flip]
    kind = str(rng.choice(("none", "rotation", "affine", "flip"), p=shares))
    turn, grow, dx, dy = rng.uniform(-1, 1, 4)
    if kind == "rotation":
        return kind, {"degrees": turn * cfg.rotation_degrees}
    if kind == "affine":
        return kind, {"scale": 1 + grow * cfg.scale, "dx": dx * cfg.shift_pixels, "dy": dy * cfg.shift_pixels}
    return kind, {}


if __name__ == "__main__":
    run_script(main)
