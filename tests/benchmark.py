"""Measures what the trained models cost on this machine: seconds and peak memory of a prediction and of a training step.

    python tests/benchmark.py        about a minute on two CPU cores; writes tests/benchmark.json

Each measurement runs in a process of its own, on the validation volumes of Task04_Hippocampus, with the device and
precision that the scripts choose. Needs the data and the finished runs in results_hippocampus-3D and checkpoints-2d.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from common import autocast, configure, load_checkpoint, pick_device, require, run_script, save_json  # noqa: E402

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
CHECKPOINTS = ["results_hippocampus-3D/last.pth", "checkpoints-2d/last.pth"]  # trained models to measure
OUT = "tests/benchmark.json"  # file to write
ONLY = ""  # "predict" or "train": measure the first checkpoint in this process and print the result as JSON

_REPEATS = 20


def main():
    cfg = configure(globals())
    if cfg.only:
        print(json.dumps({"predict": predict, "train": train}[cfg.only](cfg.checkpoints[0], cfg.data_root)))
        return
    results = {}
    for checkpoint in cfg.checkpoints:
        load_checkpoint(checkpoint)
        results[checkpoint] = {}
        for only in ("predict", "train"):
            command = [
                sys.executable,
                __file__,
                f"--only={only}",
                f"--checkpoints={[checkpoint]!r}",
                f"--data_root={cfg.data_root}",
            ]
            answer = subprocess.run(command, capture_output=True, text=True)
            require(answer.returncode == 0, f"measuring {checkpoint} failed: {answer.stderr.strip()}")
            results[checkpoint][only] = json.loads(answer.stdout.splitlines()[-1])
            print(checkpoint, only, results[checkpoint][only], flush=True)
    save_json(cfg.out, {"threads": torch.get_num_threads(), "torch": torch.__version__, "models": results})


def peak_memory_mib():
    """Peak resident memory of this process, in MiB (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def predict(checkpoint, data_root):
    """Seconds a volume from the normalised volume to probabilities, with the shipped test-time augmentation."""
    from dataset import list_cases, load_case
    from evaluation import predict_volume
    from predict import load_model

    model, info = load_model(checkpoint)
    device, dtype = pick_device()
    model.to(device)
    volumes = [load_case(case) for case in list_cases(data_root)[0] if case.id in info["val_cases"]][: _REPEATS + 3]
    seconds = []
    for volume in volumes:
        start = time.perf_counter()
        predict_volume(model, volume.image, device, dtype, True, info.get("flip_axes", "")).cpu()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[3:])  # the first ones warm up
    return {"seconds_per_volume": round(seconds[len(seconds) // 2], 4), "peak_memory_mib": round(peak_memory_mib())}


def train(checkpoint, data_root):
    """Seconds a training step of the run's own batch, forward and backward."""
    from metrics import dice_focal_loss
    from predict import load_model

    model, info = load_model(checkpoint)
    constants = json.loads((Path(checkpoint).parent / "config.json").read_text())["constants"]
    device, dtype = pick_device()
    model.to(device).train()
    size = constants["PATCH"] if model.dim == 3 else [info["slice_size"]] * 2
    image = torch.randn(constants["BATCH_SIZE"], 1, *size, device=device)
    label = torch.randint(0, 3, (constants["BATCH_SIZE"], *size), device=device)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        with autocast(device, dtype):
            logits = model(image)
        dice_focal_loss(logits, label, constants["FOCAL_GAMMA"]).backward()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[3:])
    return {
        "seconds_per_step": round(seconds[len(seconds) // 2], 4),
        "batch": constants["BATCH_SIZE"],
        "peak_memory_mib": round(peak_memory_mib()),
    }


if __name__ == "__main__":
    run_script(main)
