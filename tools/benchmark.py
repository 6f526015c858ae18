"""Measures time and memory on this machine: of predictions, training steps, every model, the making of slices, the metrics,
and the same steps of nnU-Net's and MONAI's networks.

    python -m tools.benchmark       about twelve minutes on two CPU cores; writes benchmark.json
    python -m tools.benchmark --only=ordinary_cpu       trainings and networks without bf16, half an hour; see tools/speed.py

Each measurement of the first command runs in a process of its own, on the CPU, on the validation volumes of
Task04_Hippocampus, with the precision that the scripts choose; the peers in float32, the default memory layout and batches
of 9 volumes, as their own plans have it. Needs Linux or macOS, the data, the finished runs in CHECKPOINTS, and nnU-Net's
network: pip install --no-deps dynamic-network-architectures
The trainings of ordinary_cpu are train_3d.py with its defaults; finished ones are taken as they are.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import data_aug
import model2d
import unet_inr_3d
from hippo.data.cases import list_cases, load_case
from hippo.data.intensity import to_unit_range
from hippo.data.loading import AugmentedDataset
from hippo.device import autocast, precision, set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json
from hippo.models.blocks import count_parameters
from hippo.models.checkpoint import load_model
from hippo.models.describe import describe_models
from hippo.models.inference import predict_volume
from hippo.options import configure, run_script
from hippo.scoring.metrics import nsd_and_hd95
from hippo.training.losses import dice_ce_loss

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
CHECKPOINTS = [f"{run}/last.pth" for run in ("results_hippocampus-3D", "checkpoints-2d", "checkpoints-2d-64")]  # models
OUT = "benchmark.json"  # file to write
OUT_ORDINARY_CPU = "ordinary_cpu.json"  # file that --only=ordinary_cpu writes
ORDINARY_RUN = "ablations/ordinary_cpu_3d"  # of the trainings of --only=ordinary_cpu: folders, but for _seed0 and so on
SEEDS = [0, 1, 2]  # of these trainings
ONLY = ""  # measure one thing in this process and print JSON: predict, train, models, slices, metrics, products, or a peer's name

_ROUNDS, _REPEATS = 3, 20


def main():
    cfg = configure(globals())
    if cfg.only == "ordinary_cpu":
        return ordinary_cpu(cfg)
    if cfg.only:
        require(cfg.only in JOBS, f"--only={cfg.only}: expected one of {', '.join(JOBS)}")
        return print(json.dumps(JOBS[cfg.only](cfg.checkpoints[0], cfg.data_root)))
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for only in ("slices", "models", "metrics", "products"):
        results[only] = in_its_own_process(only, cfg, cfg.checkpoints[0])
    # interleaved, so that a slowdown of the machine affects all alike
    rounds = [{name: in_its_own_process(name, cfg, cfg.checkpoints[0]) for name in PEERS} for _ in range(_ROUNDS)]
    for name in PEERS:
        runs = sorted((done[name] for done in rounds), key=lambda run: run["seconds_per_training_volume"])
        results.setdefault("peers", {})[name] = runs[len(runs) // 2]
    names = ("predict", "train")
    results["runs"] = {c: {name: in_its_own_process(name, cfg, c) for name in names} for c in cfg.checkpoints}
    save_json(cfg.out, results)


def in_its_own_process(only, cfg, checkpoint):
    """What `python -m tools.benchmark --only=...` prints in a new process."""
    options = [f"--only={only}", f"--checkpoints={[checkpoint]!r}", f"--data_root={cfg.data_root}"]
    command = [sys.executable, "-m", "tools.benchmark", *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    require(answer.returncode == 0, f"measuring {only} of {checkpoint} failed: {answer.stderr.strip()}")
    result = json.loads(answer.stdout.splitlines()[-1])
    print(checkpoint, only, result, flush=True)
    return result


def ordinary_cpu(cfg):
    """Measures a training and the networks on a processor without bf16, and writes the file."""
    dtype = set_up_device("cpu")[1]
    require(dtype is None, "this processor has bf16; the other measurements are of such a one")
    runs = []
    for seed in cfg.seeds:
        run = Path(f"{cfg.ordinary_run}_seed{seed}").resolve()
        if not (run / "metrics.json").is_file():
            options = [f"--out_dir={run}", f"--seed={seed}", f"--data_root={Path(cfg.data_root).resolve()}"]
            subprocess.run([sys.executable, "train_3d.py", *options], cwd=ROOT, check=True)
        runs.append(load_json(run / "metrics.json", "the same command"))
    result = {"threads": torch.get_num_threads(), "precision": precision(dtype), "machine": platform.machine()}
    result["instructions"] = torch.backends.cpu.get_cpu_capability()
    result["training_minutes"] = np.mean([run["training_minutes"] for run in runs])
    result |= {"dice": [np.mean(run["mean"]["dice"]) for run in runs], "models": describe_all()}
    save_json(cfg.out_ordinary_cpu, result)


def describe_all():
    """Parameters, multiply-adds and latency of every named model."""
    parts = {"2d": (model2d.MODELS, model2d.INPUT), "3d": (unet_inr_3d.TABLE, unet_inr_3d.INPUT)}
    return {dim: describe_models(*part) for dim, part in parts.items()}


def slices(data_root):
    """Seconds of data_aug.py for the whole data set, and of a plain one-process loop of scikit-image for as many slices."""
    from skimage.transform import AffineTransform, resize, warp

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
                np.save(f"{folder}/{k}.npy", np.stack(pair))
        plain = (time.perf_counter() - start) / _REPEATS * len(cases)
    values = {"data_aug_seconds": ours, "plain_loop_seconds": plain, "ratio": plain / ours}
    return {name: round(value, 1) for name, value in values.items()} | {"volumes": len(cases)}


def peak_memory_mib():
    """Peak resident memory of this process, in MiB (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def predict(checkpoint, data_root):
    """Seconds a volume from the normalised volume to probabilities, with test-time augmentation in 3D."""
    trained, volumes = model_and_volumes(checkpoint, data_root, _REPEATS + 2)
    device, dtype = set_up_device("cpu")
    images = iter([volume.image for volume in volumes])
    seconds = median_seconds(lambda: predict_volume(trained, next(images), device, dtype, True).cpu(), _REPEATS)
    return {"seconds_per_volume": round(seconds, 4), "peak_memory_mib": round(peak_memory_mib())}


def model_and_volumes(checkpoint, data_root, n):
    """A trained model and the first n of its validation volumes."""
    trained, info = load_model(checkpoint)
    cases = [case for case in list_cases(data_root)[0] if case.id in info["val_cases"]]
    return trained, [load_case(case) for case in cases[:n]]


def train(checkpoint, data_root):
    """Seconds a training step of the run's own batch, forward and backward, and of the augmentation of a sample."""
    trained, volumes = model_and_volumes(checkpoint, data_root, 1)
    constants = json.loads((Path(checkpoint).parent / "config.json").read_text())["constants"]
    device, dtype = set_up_device("cpu")
    model = trained.model.train()
    size = constants["PATCH"] if model.dim == 3 else [trained.preprocessing["slice_size"]] * 2
    image = torch.randn(constants["BATCH_SIZE"], 1, *size, device=device)
    label = torch.randint(0, 3, (constants["BATCH_SIZE"], *size), device=device)

    def step():
        with autocast(device, dtype):
            logits = model(image)
        dice_ce_loss(logits, label, constants["FOCAL_GAMMA"]).backward()

    result = {"seconds_per_step": round(median_seconds(step, _REPEATS), 4), "batch": constants["BATCH_SIZE"]}
    result["peak_memory_mib"] = round(peak_memory_mib())
    if model.dim == 3:
        data = AugmentedDataset([volumes[0].image], [volumes[0].label], size, 0, {})
        numbers = iter(range(_REPEATS + 2))
        result["seconds_per_augmented_sample"] = round(median_seconds(lambda: data[next(numbers), 0], _REPEATS), 4)
    return result


def plain_conv_unet():
    """nnU-Net's network for this task, as its planner configures it."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    sizes = (1, 4, (32, 64, 128, 256), torch.nn.Conv3d, 3, (1, 2, 2, 2), (2, 2, 2, 2), 3, (2, 2, 2))
    norm = {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    activation = {"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    return PlainConvUNet(*sizes, conv_bias=True, **norm, **activation, deep_supervision=True)


def dynunet():
    """MONAI's DynUNet, as its tutorial configures it for this task."""
    from monai.networks.nets import DynUNet

    stages = ((3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), (32, 64, 128, 256))
    return DynUNet(3, 1, 3, *stages, deep_supervision=True, deep_supr_num=1)


_PATCH = (40, 56, 40)  # nnU-Net's for this task
_SMALL, _LARGE = ({"base_channels": base, "depth": depth} for base, depth in ((16, 2), (32, 3)))
PEERS = {  # name: (network, whether with our precision and layout, patch, batch)
    "ours, default: 16-32-64 channels and its own patch": (
        partial(unet_inr_3d.UNet3DWithINR, **_SMALL),
        True,
        (36, 52, 36),
        2,
    ),
    "ours, 16-32-64 channels": (partial(unet_inr_3d.UNet3DWithINR, **_SMALL), True, _PATCH, 2),
    "ours, 32-64-128-256 channels": (partial(unet_inr_3d.UNet3DWithINR, **_LARGE), True, _PATCH, 2),
    "nnU-Net's PlainConvUNet, 32-64-128-256 channels": (plain_conv_unet, False, _PATCH, 9),
    "the same in batches of 2": (plain_conv_unet, False, _PATCH, 2),
    "the same with our precision, layout and memory allocator": (plain_conv_unet, True, _PATCH, 2),
    "MONAI's DynUNet, 32-64-128-256 channels": (dynunet, False, _PATCH, 9),
}


def peer(name):
    """Seconds a volume (a patch that holds one), in training (forward, loss, backward; each in its own trainer's batch) and in
    prediction (one view)."""
    build, ours, patch, batch = PEERS[name]
    # set_up_device also tunes the memory allocator, which the peers' own trainers do not
    device, dtype = set_up_device("cpu") if ours else (torch.device("cpu"), None)
    model = build().to(device, memory_format=torch.channels_last_3d if ours else torch.contiguous_format).train()
    image, label = torch.randn(batch, 1, *patch, device=device), torch.randint(0, 3, (batch, *patch), device=device)

    def step():
        with autocast(device, dtype):
            logits = model(image)
        if torch.is_tensor(logits) and logits.ndim == 6:  # MONAI's deep supervision: (B, outputs, C, D, H, W)
            logits = list(logits.unbind(1))
        dice_ce_loss(logits, label, 0.0).backward()

    with FlopCounterMode(display=False) as counter:
        step()
    training = median_seconds(step, 6) / batch
    trained_memory = peak_memory_mib()
    with torch.inference_mode(), autocast(device, dtype):
        predicting = median_seconds(partial(model.eval(), image[:1]), 8)
    result = {"parameters": count_parameters(model), "precision": str(dtype or torch.float32).removeprefix("torch.")}
    result |= {"batch": batch, "seconds_per_training_volume": round(training, 4)}
    result |= {"seconds_per_predicted_volume": round(predicting, 4), "peak_memory_mib": round(trained_memory)}
    rate = counter.get_total_flops() / batch / training / 1e9
    return result | {"training_gflops_per_second": round(rate)}


def median_seconds(function, repeats):
    """The median time of a function over `repeats` calls, after two to warm up."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[repeats // 2]


def products():
    """GFLOP/s of this processor's matrix product of 2048 x 2048, in each precision."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        rate = 2 * 2048**3 / median_seconds(partial(torch.mm, a, b), 20) / 1e9
        rates[str(dtype).removeprefix("torch.")] = round(rate)
    return rates


def metrics(checkpoint, data_root):
    """Milliseconds a case of NSD and HD95 of both labels, ours and the surface-distance package's, on predictions."""
    import surface_distance

    trained, volumes = model_and_volumes(checkpoint, data_root, _REPEATS)
    device, dtype = set_up_device("cpu")
    pairs = []
    for volume in volumes:
        prediction = predict_volume(trained, volume.image, device, dtype).argmax(0).byte().cpu().numpy()
        pairs += [(prediction == label, volume.label == label) for label in (1, 2)]

    def theirs(p, t):
        distances = surface_distance.compute_surface_distances(t, p, (1.0, 1.0, 1.0))
        for tolerance in (1.0, 2.0):
            surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        surface_distance.compute_robust_hausdorff(distances, 95)

    ours = partial(nsd_and_hd95, spacing_mm=(1.0, 1.0, 1.0))
    cost = [median_seconds(lambda f=f: [f(p, t) for p, t in pairs], 5) / (len(pairs) / 2) for f in (ours, theirs)]
    milliseconds = {"ours_milliseconds": 1000 * cost[0], "surface_distance_milliseconds": 1000 * cost[1]}
    return {name: round(value, 2) for name, value in milliseconds.items()} | {"ratio": round(cost[1] / cost[0], 1)}


JOBS = {  # name: function of (checkpoint, data_root) to what JSON holds
    **{"predict": predict, "train": train, "metrics": metrics},
    "slices": lambda checkpoint, data_root: slices(data_root),
    "models": lambda *_: describe_all(),
    "products": lambda *_: products(),
    **{name: lambda *_, name=name: peer(name) for name in PEERS},
}


if __name__ == "__main__":
    run_script(main)
