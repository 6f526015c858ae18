"""What python -m tools.benchmark times, each in a process of its own: predictions, training steps, every model, the making of
slices, the metrics, products of matrices, and the same steps of nnU-Net's and MONAI's networks."""

import json
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
from hippo.device import autocast, set_up_device
from hippo.errors import UserError
from hippo.models.blocks import count_parameters
from hippo.models.checkpoint import load_model
from hippo.models.describe import describe_models
from hippo.models.inference import predict_volume
from hippo.options import configure
from hippo.scoring.metrics import nsd_and_hd95
from hippo.training.losses import dice_ce_loss

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

_REPEATS = 20


def describe_all():
    """Parameters, multiply-adds and latency of every named model."""
    return {
        "2d": describe_models(model2d.MODELS, model2d.INPUT),
        "3d": describe_models(unet_inr_3d.TABLE, unet_inr_3d.INPUT),
    }


def models(checkpoint, data_root):
    """describe_all, as a measurement of the benchmark."""
    return describe_all()


def slices(checkpoint, data_root):
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
    """Seconds a volume from the normalised volume to probabilities, with test-time augmentation in 3D."""
    trained, volumes = model_and_volumes(checkpoint, data_root, _REPEATS + 3)
    device, dtype = set_up_device("cpu")
    seconds = []
    for volume in volumes:
        start = time.perf_counter()
        predict_volume(trained, volume.image, device, dtype, True).cpu()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[3:])  # the first ones warm up
    return {"seconds_per_volume": round(seconds[len(seconds) // 2], 4), "peak_memory_mib": round(peak_memory_mib())}


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


# ---- peers


def our_network(base_channels, depth):
    """Our 3D network of a size."""
    return unet_inr_3d.UNet3DWithINR(base_channels=base_channels, depth=depth)


def plain_conv_unet():
    """nnU-Net's network for this task, as its planner configures it."""
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
    except ImportError:
        raise UserError(
            "nnU-Net's network is missing; get it with: pip install --no-deps dynamic-network-architectures"
        ) from None

    return PlainConvUNet(
        1,
        4,
        (32, 64, 128, 256),
        torch.nn.Conv3d,
        3,
        (1, 2, 2, 2),
        (2, 2, 2, 2),
        3,
        (2, 2, 2),
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def dynunet():
    """MONAI's DynUNet, as its tutorial configures it for this task."""
    from monai.networks.nets import DynUNet

    stages = ((3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), (32, 64, 128, 256))
    return DynUNet(3, 1, 3, *stages, deep_supervision=True, deep_supr_num=1)


_PATCH = (40, 56, 40)  # nnU-Net's for this task
PEERS = {  # name: (network, whether with our precision and layout, patch, batch)
    "ours, default: 16-32-64 channels and its own patch": (partial(our_network, 16, 2), True, (36, 52, 36), 2),
    "ours, 16-32-64 channels": (partial(our_network, 16, 2), True, _PATCH, 2),
    "ours, 32-64-128-256 channels": (partial(our_network, 32, 3), True, _PATCH, 2),
    "nnU-Net's PlainConvUNet, 32-64-128-256 channels": (plain_conv_unet, False, _PATCH, 9),
    "the same in batches of 2": (plain_conv_unet, False, _PATCH, 2),
    "the same with our precision, layout and memory allocator": (
        lambda: plain_conv_unet().to(memory_format=torch.channels_last_3d),
        True,
        _PATCH,
        2,
    ),
    "MONAI's DynUNet, 32-64-128-256 channels": (dynunet, False, _PATCH, 9),
}


def peer(name, checkpoint, data_root):
    """Seconds a volume (a patch that holds one), in training (forward, loss, backward; each in its own trainer's batch) and in
    prediction (one view)."""
    build, ours, patch, batch = PEERS[name]
    # set_up_device also tunes the memory allocator, which the peers' own trainers do not
    device, dtype = set_up_device("cpu") if ours else (torch.device("cpu"), None)
    model = build().to(device).train()
    image, label = torch.randn(batch, 1, *patch, device=device), torch.randint(0, 3, (batch, *patch), device=device)

    def step():
        with autocast(device, dtype):
            logits = model(image)
        if isinstance(logits, (list, tuple)):
            logits = list(logits)
        elif logits.ndim == 6:  # MONAI's deep supervision: (B, outputs, C, D, H, W)
            logits = list(logits.unbind(1))
        dice_ce_loss(logits, label, 0.0).backward()

    with FlopCounterMode(display=False) as counter:
        step()
    training = median_seconds(step, 6) / batch
    trained_memory = peak_memory_mib()
    model.eval()
    with torch.inference_mode(), autocast(device, dtype):
        predicting = median_seconds(lambda: model(image[:1]), 8)
    return {
        "parameters": count_parameters(model),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "batch": batch,
        "seconds_per_training_volume": round(training, 4),
        "seconds_per_predicted_volume": round(predicting, 4),
        "peak_memory_mib": round(trained_memory),
        "training_gflops_per_second": round(counter.get_total_flops() / batch / training / 1e9),
    }


def median_seconds(function, repeats):
    """The median time of a function over `repeats` calls, after two to warm up."""
    seconds = []
    for _ in range(repeats + 2):  # two to warm up
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[repeats // 2]


def products(checkpoint, data_root):
    """GFLOP/s of this processor's matrix product of 2048 x 2048, in each precision."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = round(
            2 * 2048**3 / median_seconds(partial(torch.mm, a, b), 20) / 1e9
        )
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

    def ours(p, t):
        nsd_and_hd95(p, t, (1.0, 1.0, 1.0))

    cost = [median_seconds(lambda f=f: [f(p, t) for p, t in pairs], 5) / (len(pairs) / 2) for f in (ours, theirs)]
    return {
        "ours_milliseconds": round(1000 * cost[0], 2),
        "surface_distance_milliseconds": round(1000 * cost[1], 2),
        "ratio": round(cost[1] / cost[0], 1),
    }


JOBS = {
    "predict": predict,
    "train": train,
    "models": models,
    "slices": slices,
    "metrics": metrics,
    "products": products,
}
JOBS |= {name: partial(peer, name) for name in PEERS}  # name: function of (checkpoint, data_root) to what JSON holds
