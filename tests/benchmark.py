"""Measures what things cost on this machine: predictions, training steps, every model, the making of slices.

    python tests/benchmark.py        about two minutes on two CPU cores; writes tests/benchmark.json

Each measurement runs in a process of its own, on the validation volumes of Task04_Hippocampus, with the device and
precision that the scripts choose. Needs the data and the finished runs in results_hippocampus-3D and checkpoints-2d.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from common import autocast, configure, load_checkpoint, pick_device, require, run_script, save_json  # noqa: E402

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
CHECKPOINTS = ["results_hippocampus-3D/last.pth", "checkpoints-2d/last.pth"]  # trained models to measure
OUT = "tests/benchmark.json"  # file to write
ONLY = ""  # "predict", "train", "models" or "slices": measure this in this process (of the first checkpoint) and print JSON

_REPEATS = 20


def main():
    cfg = configure(globals())
    if cfg.only:
        jobs = {"predict": predict, "train": train, "models": models, "slices": slices}
        require(cfg.only in jobs, f"--only={cfg.only}: expected one of {', '.join(jobs)}")
        print(json.dumps(jobs[cfg.only](cfg.checkpoints[0], cfg.data_root)))
        return
    for checkpoint in cfg.checkpoints:
        load_checkpoint(checkpoint)
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    results |= {only: in_its_own_process(only, cfg, cfg.checkpoints[0]) for only in ("slices", "models")}
    results["runs"] = {
        c: {only: in_its_own_process(only, cfg, c) for only in ("predict", "train")} for c in cfg.checkpoints
    }
    save_json(cfg.out, results)


def in_its_own_process(only, cfg, checkpoint):
    """What `benchmark.py --only=...` prints in a new process."""
    command = [
        sys.executable,
        __file__,
        f"--only={only}",
        f"--checkpoints={[checkpoint]!r}",
        f"--data_root={cfg.data_root}",
    ]
    answer = subprocess.run(command, capture_output=True, text=True)
    require(answer.returncode == 0, f"measuring {only} of {checkpoint} failed: {answer.stderr.strip()}")
    result = json.loads(answer.stdout.splitlines()[-1])
    print(checkpoint, only, result, flush=True)
    return result


def models(checkpoint, data_root):
    """Parameters, multiply-adds and latency of every named model."""
    import model2d
    import unet_inr_3d
    from engine import describe_models

    return {
        "2d": describe_models(model2d.MODELS, model2d.INPUT),
        "3d": describe_models(unet_inr_3d.MODELS, unet_inr_3d.INPUT),
    }


def slices(checkpoint, data_root):
    """Seconds of data_aug.py for the whole data set, and of a plain one-process loop of scikit-image for as many slices."""
    from skimage.transform import AffineTransform, resize, warp

    import data_aug
    from dataset import list_cases, load_case, to_unit_range

    cases, _ = list_cases(data_root)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data_aug.run(configure(vars(data_aug), [], data_root=data_root, out_dir=f"{folder}/slices"))
        ours = time.perf_counter() - start
        rng, start = np.random.default_rng(0), time.perf_counter()
        for case in cases[:_REPEATS]:
            volume = load_case(case)
            image = resize(to_unit_range(volume.image), (128,) * 3, order=1, anti_aliasing=True)
            label = resize(volume.label, (128,) * 3, order=0, anti_aliasing=False, preserve_range=True).astype(np.uint8)
            for k in range(45):
                pair = [a.take(rng.integers(40, 90), k % 3) for a in (image, label)]
                if rng.random() < 0.6:
                    turn = AffineTransform(rotation=rng.uniform(-0.12, 0.12))
                    pair = [warp(a, turn, order=order, preserve_range=True) for a, order in zip(pair, (1, 0))]
                for name, array in zip(("img", "mask"), pair):
                    np.save(f"{folder}/{name}_{k}.npy", array)
        plain = (time.perf_counter() - start) / _REPEATS * len(cases)
    return {
        "data_aug_seconds": round(ours, 1),
        "plain_loop_seconds": round(plain, 1),
        "ratio": round(plain / ours, 1),
        "volumes": len(cases),
    }


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
