"""Trains a 3D U-Net on a Decathlon folder and evaluates it on the validation cases.

    python train_3d.py                  the default recipe on the real data
    python train_3d.py --resume=True    goes on with an unfinished run
    python train_3d.py --data_root=phantom --out_dir=results_phantom-3D    the same on synthetic volumes

Writes into OUT_DIR: best_model.pth, last.pth, history.json, config.json, metrics.json (per case, of the final
weights) and plots/*.png. The constants below are the options: --epochs=5 sets EPOCHS; --help lists them all.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

import plots
import unet_inr_3d
from common import (
    configure,
    describe_environment,
    load_checkpoint,
    pick_device,
    require,
    run_script,
    save_json,
    seed_everything,
)
from dataset import EpochSampler, VolumeDataset, is_synthetic, list_cases, load_case, split_cases
from engine import fit, predict_volume, start_run
from metrics import case_metrics, dice_focal_loss, summarise

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
OUT_DIR = "results_hippocampus-3D"  # folder for results; one that holds results is kept as <name>.previous-N
MAX_CASES = 0  # 0: all cases; n: the first n sorted cases, before the split
FOLD = -1  # -1: the first 80 % of the sorted cases train, the rest validate; 0-4: nnU-Net's five folds
PATCH = [40, 56, 40]  # voxels of a training patch; each a multiple of 2^DEPTH
# augmentation
ROTATION_DEGREES = 15.0  # largest rotation about each axis
SCALE = 0.15  # largest change of size, as a share
SHIFT_VOXELS = 4.0  # largest shift along each axis
FLIP_AXES = ""  # axes of "xyz" to mirror at random; all crops show the same side, so none by default
INTENSITY = 0.25  # largest change of contrast (share) and brightness (standard deviations)
GAMMA = 0.3  # largest change of the gamma exponent, as a share
NOISE = 0.1  # largest standard deviation of added noise, in those of the image
BLUR_MM = 0.7  # largest sigma of a Gaussian blur
# model
MODEL = "UNet3DWithINR"  # UNet3DWithINR (the two lines below count), UNet3DWithINRLightweight or UNet3DWithINRBalanced
BASE_CHANNELS = 16  # channels of the first stage
DEPTH = 3  # number of poolings
USE_INR = False  # add the INR (SIREN coordinate) head
INR_HIDDEN_DIM = 64  # width of the INR head
DEEP_SUPERVISION = False  # auxiliary losses at the coarser decoder stages (UNet3DWithINR only)
# optimiser
EPOCHS = 18  # passes over the training cases
BATCH_SIZE = 2  # patches per step
LEARNING_RATE = 3e-3  # peak of the schedule
WEIGHT_DECAY = 1e-2  # AdamW's
WARMUP = 0.05  # share of the schedule with a rising learning rate
GRADIENT_CLIP = 1.0  # largest norm of the gradient
FOCAL_GAMMA = 2.0  # exponent of the focal loss; 0 is cross-entropy
EMA = 0.0  # decay of the moving average of the weights, which is then evaluated; 0: none
# system
TTA = True  # evaluate the final weights with test-time augmentation
SEED = 0  # of weights, order and augmentation
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it
NUM_WORKERS = 0  # processes that augment; 0: the main one (on a CPU it has the cores anyway)
RESUME = False  # go on with the unfinished run in OUT_DIR


def main():
    run(configure(globals()))


def run(cfg):
    """Trains and evaluates with a configuration (see common.configure); returns the content of metrics.json."""
    check(cfg)
    seed_everything(cfg.seed)
    cases, info = list_cases(cfg.data_root, cfg.max_cases)
    train_cases, val_cases = split_cases(cases, cfg.fold)
    train, val = ([load_case(case) for case in part] for part in (train_cases, val_cases))
    print(
        f"data: {cfg.data_root}{' (SYNTHETIC phantoms)' if is_synthetic(info) else ''}, {len(train)} training and {len(val)} validation cases"
    )
    device, dtype = pick_device(cfg.device, cfg.amp)
    model, model_info = build_model(cfg)
    model.to(device)
    print(f"model: {model_info['name']}, {unet_inr_3d.count_parameters(model):,} parameters")

    checkpoint_info = {
        "model": model_info,
        "train_cases": [v.id for v in train],
        "val_cases": [v.id for v in val],
        "fold": cfg.fold,
        "synthetic": is_synthetic(info),
        "flip_axes": cfg.flip_axes,
    }
    config = {
        "constants": {name.upper(): value for name, value in sorted(vars(cfg).items())},
        "model": model_info,
        "parameters": unet_inr_3d.count_parameters(model),
        "data": describe_data(info, cases, train, val),
        "device": str(device),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "environment": describe_environment(),
    }
    resume_from = start_run(cfg.out_dir, config, cfg.resume)

    augmentation = {
        name: getattr(cfg, name)
        for name in ("rotation_degrees", "scale", "shift_voxels", "flip_axes", "intensity", "gamma", "noise", "blur_mm")
    }
    dataset = VolumeDataset(train, cfg.patch, cfg.seed, augmentation)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=EpochSampler(len(train), cfg.batch_size, cfg.seed),
        num_workers=cfg.num_workers,
        persistent_workers=cfg.num_workers > 0,
        pin_memory=device.type == "cuda",
    )
    loss_function = partial(dice_focal_loss, gamma=cfg.focal_gamma)
    sample = train[:: max(1, len(train) // 16)][:16]  # a fixed sample, for the training NSD

    def validate(model):
        cases, losses = evaluate(model, val, device, dtype, loss_function=loss_function)
        seen, _ = evaluate(model, sample, device, dtype)
        mean = summarise(cases)["mean"]
        return {
            "val_loss": float(np.mean(losses)),
            "val_dice": mean["dice"],
            "val_nsd": mean["nsd_1mm"],
            "train_nsd": summarise(seen)["mean"]["nsd_1mm"],
        }

    history = fit(model, loader, loss_function, validate, cfg, device, dtype, cfg.out_dir, checkpoint_info, resume_from)
    return finish(model, val, history, cfg, device, dtype, is_synthetic(info))


def check(cfg):
    """Raises UserError for constants that cannot work."""
    for name in ("epochs", "batch_size", "base_channels", "inr_hidden_dim"):
        require(getattr(cfg, name) >= 1, f"--{name}={getattr(cfg, name)}: expected 1 or more")
    for name in ("learning_rate", "gradient_clip"):
        require(getattr(cfg, name) > 0, f"--{name}={getattr(cfg, name)}: expected more than 0")
    for name in (
        "max_cases",
        "num_workers",
        "seed",
        "depth",
        "weight_decay",
        "focal_gamma",
        "rotation_degrees",
        "shift_voxels",
        "intensity",
        "gamma",
        "noise",
        "blur_mm",
    ):
        require(getattr(cfg, name) >= 0, f"--{name}={getattr(cfg, name)}: expected 0 or more")
    for name in ("warmup", "ema", "scale"):
        require(0 <= getattr(cfg, name) < 1, f"--{name}={getattr(cfg, name)}: expected at least 0 and less than 1")
    require(cfg.model in unet_inr_3d.MODELS, f"--model={cfg.model}: expected one of {', '.join(unet_inr_3d.MODELS)}")
    require(
        len(set(cfg.flip_axes)) == len(cfg.flip_axes) and set(cfg.flip_axes) <= set("xyz"),
        f"--flip_axes={cfg.flip_axes}: expected letters of xyz",
    )
    stride = 2 ** (cfg.depth if cfg.model == "UNet3DWithINR" else 3)
    require(
        len(cfg.patch) == 3 and all(p > 0 and p % stride == 0 for p in cfg.patch),
        f"--patch={cfg.patch}: expected three multiples of {stride}, as [40,56,40]",
    )


def build_model(cfg):
    """The network of a configuration, and {"name", "args"} to build it again."""
    args = {"in_channels": 1, "num_classes": 3, "use_inr": cfg.use_inr, "inr_hidden_dim": cfg.inr_hidden_dim}
    if cfg.model == "UNet3DWithINR":
        args |= {"base_channels": cfg.base_channels, "depth": cfg.depth}
    args["deep_supervision"] = cfg.deep_supervision
    return unet_inr_3d.MODELS[cfg.model](**args), {"name": cfg.model, "args": args}


def describe_data(info, cases, train, val):
    """What the run was trained on, for config.json."""
    listing = "".join(f"{case.id} {case.image.stat().st_size} {case.label.stat().st_size}\n" for case in cases)
    return {
        "name": info.get("name", ""),
        "synthetic": is_synthetic(info),
        "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "train_cases": [v.id for v in train],
        "val_cases": [v.id for v in val],
    }


def evaluate(model, volumes, device, dtype, tta=False, flip_axes="", loss_function=None):
    """Metrics of each volume on its own grid: ({id: case_metrics}, list of losses, empty without loss_function)."""
    model.eval()
    cases, losses = {}, []
    for volume in volumes:
        probabilities = predict_volume(model, volume.image, device, dtype, tta, flip_axes)
        if loss_function:
            label = torch.from_numpy(volume.label)[None].to(device)
            losses.append(loss_function(probabilities.clamp_min(1e-9).log()[None], label).item())  # softmax(log p) = p
        cases[volume.id] = case_metrics(probabilities.argmax(0).byte().cpu().numpy(), volume.label, volume.spacing_mm)
    return cases, losses


def finish(model, val, history, cfg, device, dtype, synthetic):
    """Evaluates the final and the best weights, writes metrics.json and the plots; returns the content of metrics.json."""
    out_dir = Path(cfg.out_dir)
    plot_dir = out_dir / "plots"
    final, _ = evaluate(model, val, device, dtype, cfg.tta, cfg.flip_axes)
    best = load_checkpoint(out_dir / "best_model.pth")
    final_weights = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best["model_state_dict"])
    best_cases, _ = evaluate(model, val, device, dtype, cfg.tta, cfg.flip_axes)
    model.load_state_dict(final_weights)
    metrics = {
        "synthetic": synthetic,
        "cases": final,
        **summarise(final),
        "tta": cfg.tta,
        "training_minutes": round(sum(history["seconds"]) / 60, 2),
        "best": {"epoch": best["epoch"], "mean": summarise(best_cases)["mean"]},
    }
    save_json(out_dir / "metrics.json", metrics)
    source = "SYNTHETIC phantoms" if synthetic else "Decathlon Task04 Hippocampus (CC-BY-SA 4.0)"
    plots.curves(history, plot_dir, source)
    plots.per_case_dice(
        final, plot_dir / "per_case_dice.png", f"Final weights, {len(final)} validation cases: {source}"
    )
    order = sorted(val, key=lambda v: np.mean(final[v.id]["dice"]))
    rows = []
    for text, volume in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        prediction = predict_volume(model, volume.image, device, dtype, cfg.tta, cfg.flip_axes).argmax(0).cpu().numpy()
        x, y, z = (int(round(c)) for c in np.argwhere(volume.label > 0).mean(0))
        panels = [(a[x], a[:, y], a[:, :, z]) for a in (volume.image, volume.label, prediction)]
        scores = " / ".join(f"{d:.3f}" for d in final[volume.id]["dice"])
        rows.append((f"{text}: {volume.id}, Dice {scores}", list(zip(*panels))))
    plots.outlines(rows, plot_dir / "predictions.png", f"Sagittal, coronal, axial: {source}")
    mean = metrics["mean"]
    print(
        f"final weights{' with test-time augmentation' if cfg.tta else ''}: Dice {mean['dice'][0]:.4f} anterior, {mean['dice'][1]:.4f} posterior, "
        f"mean {np.mean(mean['dice']):.4f}; NSD at 1 mm {np.mean(mean['nsd_1mm']):.4f}; HD95 {np.mean(mean['hd95_mm']):.2f} mm; "
        f"{metrics['training_minutes']} minutes of training; {out_dir / 'metrics.json'}"
    )
    return metrics


if __name__ == "__main__":
    run_script(main)
