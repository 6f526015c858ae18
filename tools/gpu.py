"""Tries the scripts on a GPU and compares them with the CPU beside it: training in 3D and 2D, torchrun, whole heads, tests.

    python -m tools.gpu                                 phantoms and what lies in the repository
    python -m tools.gpu --data_root=Task04_Hippocampus --cpu=False      the trainings on the real data, on the GPU alone,
                                                        with all epochs of their recipes

Writes OUT: the card, seconds and Dice of each device, the Dice between their label maps, and the last lines of the tests.
Without a GPU both devices are the CPU: that only tries the script.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data_aug
import phantom
import train2d
import train_3d
from hippo.data.nifti import read_nifti
from hippo.device import describe_environment, pick_device, precision
from hippo.files import ROOT, load_json, save_json
from hippo.options import configure, run_script
from hippo.scoring.metrics import dice
from hippo.segmenter import Segmenter

import numpy as np
import torch

DATA_ROOT = ""  # Decathlon folder to train on; empty: phantoms
OUT = "gpu.json"  # file to write
CASES = 24  # phantoms to train on
EPOCHS = 0  # epochs of each training; 0: those of the recipe, and with phantoms 3
MIN_STEPS = 80  # of an epoch
CPU = True  # train on the CPU too
HEADS = 3  # phantom heads to segment
NUM_WORKERS = 4  # processes that augment, of the trainings on the GPU
TESTS = ["test_training.py", "test_optimiser.py", "test_blocks.py", "test_ensemble.py"]  # of tests/, to run there


def main():
    run(configure(globals()))


def run(cfg):
    """Measures, and writes the file of a configuration after each measurement. Returns its content."""
    (device, dtype), (cpu, cpu_dtype) = pick_device(), pick_device("cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    result = {**describe_environment(), "card": card, "cuda": torch.version.cuda, "synthetic": not cfg.data_root}
    result |= {"gpu_precision": precision(dtype), "cpu_precision": precision(cpu_dtype), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data_root = cfg.data_root or phantom.run(configure(vars(phantom), [], out_dir=folder / "data", cases=cfg.cases))
        for name, measure in {"train_3d": in_3d, "train_2d_short": in_2d, "torchrun": torchrun}.items():
            result[name] = measure(cfg, str(data_root), folder, device, cpu)
            save_json(cfg.out, result)
        result["heads"] = heads(cfg, folder, device, cpu)
        save_json(cfg.out, result)
    result["tests"] = tests(cfg.tests)
    save_json(cfg.out, result)
    print(f"{card}: {cfg.out}")
    return result


def length(cfg, epochs_of_recipe):
    """Returns the options for the length of a training."""
    epochs = cfg.epochs or (epochs_of_recipe if cfg.data_root else 3)
    return {"epochs": epochs, "min_steps": cfg.min_steps}


def in_3d(cfg, data_root, folder, device, cpu):
    """Trains in 3D with each device; on a GPU of bf16 with fp16 too."""
    options = {"data_root": data_root, **length(cfg, train_3d.EPOCHS)}
    result = {"gpu": train(train_3d, folder / "3d-gpu", device, num_workers=cfg.num_workers, **options)}
    if device.type == "cuda":
        with fp16():
            result["gpu_fp16"] = train(train_3d, folder / "3d-fp16", device, num_workers=cfg.num_workers, **options)
        result["gpu_one_process"] = train(train_3d, folder / "3d-one", device, **options)
    if cfg.cpu:
        result["cpu"] = train(train_3d, folder / "3d-cpu", cpu, **options)
    return result


def in_2d(cfg, data_root, folder, device, cpu):
    """Trains the short recipe in 2D with each device."""
    slices = {"share_none": 1.0, "share_rotation": 0.0, "share_affine": 0.0, "share_flip": 0.0}
    slices |= {"size": 64, "slices_per_plane": 30, "data_root": data_root, "out_dir": str(folder / "slices")}
    data_aug.run(configure(vars(data_aug), [], **slices))
    options = {"data_root": data_root, "data_dir": slices["out_dir"], **train2d.RECIPES["short"]}
    options |= length(cfg, options["epochs"])
    result = {"gpu": train(train2d, folder / "2d-gpu", device, num_workers=cfg.num_workers, **options)}
    if cfg.cpu:
        result["cpu"] = train(train2d, folder / "2d-cpu", cpu, **options)
    return result


def train(script, out_dir, device, **options):
    """Trains with a script. Returns seconds of all epochs with their validations, the mean of all but the first, Dice of
    the final weights, and the number of skipped steps."""
    metrics = script.run(configure(vars(script), [], out_dir=str(out_dir), device=str(device), **options))
    history = load_json(out_dir / "history.json", "the same command")
    return {
        "seconds": round(sum(history["seconds"]), 1),
        "seconds_of_later_epochs": round(float(np.mean(history["seconds"][1:] or history["seconds"])), 2),
        "epochs": len(history["seconds"]),
        "dice": [round(value, 4) for value in metrics["mean"]["dice"]],
        "skipped_steps": sum(history["skipped_steps"]),
    }


@contextlib.contextmanager
def fp16():
    """Trains as on a GPU without bf16 while the block runs."""
    supported, torch.cuda.is_bf16_supported = torch.cuda.is_bf16_supported, lambda **_: False
    try:
        yield
    finally:
        torch.cuda.is_bf16_supported = supported


def torchrun(cfg, data_root, folder, device, cpu):
    """Trains an epoch under torchrun with one process. Returns its exit code, seconds and Dice."""
    out_dir, start = folder / "torchrun", time.perf_counter()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "train_3d.py", "--epochs=1"]
    command += [f"--data_root={Path(data_root).resolve()}", f"--out_dir={out_dir}", f"--device={device.type}"]
    command += [f"--min_steps={cfg.min_steps}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = {"exit_code": done.returncode, "seconds": round(time.perf_counter() - start, 1)}
    if done.returncode:
        return {**result, "error": done.stderr[-2000:]}
    return {**result, "dice": load_json(out_dir / "metrics.json", "the same command")["mean"]["dice"]}


def heads(cfg, folder, device, cpu):
    """Segments phantom heads with each device. Returns seconds to load, seconds of the first head and the median of the
    others, and the Dice between the labels of both devices."""
    heads = (
        phantom.run(configure(vars(phantom), [], out_dir=folder / "heads", heads=cfg.heads)) if cfg.heads else folder
    )
    paths, result, labels = sorted(Path(heads).glob("*.nii.gz")), {}, {}
    for name, where in {"gpu": device, "cpu": cpu}.items():
        start = time.perf_counter()
        segmenter, seconds, labels[name] = Segmenter.load(device=str(where)), [time.perf_counter() - start], []
        for path in paths:
            start = time.perf_counter()
            labels[name].append(segmenter(path).labels())
            seconds.append(time.perf_counter() - start)
        first, *others = seconds[1:] or [np.nan]
        median = float(np.median(others or [first]))
        result[name] = {"load_seconds": seconds[0], "first_head_seconds": first, "further_head_seconds": median}
    pairs = zip(labels["gpu"], labels["cpu"])
    agreement = [[dice(a == label, b == label) for label in range(1, 5)] for a, b in pairs]
    truth = [read_nifti(Path(heads) / "labels" / path.name)[0] for path in paths]
    found = [[dice(a > 0, t > 0) for a, t in zip(labels[name], truth)] for name in ("gpu", "cpu")]
    return {**result, "dice_between_devices": agreement, "dice_with_truth_gpu_cpu": found}


def tests(files):
    """Runs test files with the scripts' default device. Returns their summary and the names of what failed."""
    if not files:
        return {}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(f"tests/{name}" for name in files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print(done.stdout[-6000:])
    return {"files": files, "summary": lines[-1] if lines else done.stderr[-500:], "failed": failed}


if __name__ == "__main__":
    run_script(main)
