"""Training: one loop for 2D and 3D.

`fit` trains, and writes into its folder after every epoch

    last.pth       the newest weights, and all that --resume=True needs
    best_model.pth the weights of the best mean validation Dice
    history.json   one list per quantity, one entry per epoch
"""

import copy
import itertools
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from blocks import count_parameters
from common import (
    UserError,
    autocast,
    describe_environment,
    fresh_folder,
    load_checkpoint,
    load_json,
    pick_device,
    require,
    save_checkpoint,
    save_json,
)
from dataset import EpochSampler
from metrics import LABELS

HISTORY = ("train_loss", "val_loss", "train_dice", "val_dice", "train_nsd", "val_nsd", "learning_rate", "seconds")
NOT_PART_OF_A_RUN = ("resume", "num_workers", "out_dir", "device")  # constants that --resume=True may change


def learning_rate(progress, peak, warmup):
    """Linear warm-up over the first `warmup` share of the schedule, then half a cosine to zero; progress in [0, 1)."""
    if progress < warmup:
        return peak * (progress / warmup * 0.99 + 0.01)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def check_training(cfg):
    """Raises UserError for constants of the training loop that cannot work."""
    for name in ("epochs", "min_steps", "batch_size", "base_channels", "inr_hidden_dim"):
        require(getattr(cfg, name) >= 1, f"--{name}={getattr(cfg, name)}: expected 1 or more")
    for name in ("learning_rate", "gradient_clip"):
        require(getattr(cfg, name) > 0, f"--{name}={getattr(cfg, name)}: expected more than 0")
    not_negative = ("max_cases", "num_workers", "seed", "weight_decay", "focal_gamma", "dice_smooth")
    for name in (*not_negative, "rotation_degrees", "shift_voxels", "intensity", "gamma", "noise", "blur_mm"):
        require(getattr(cfg, name, 0) >= 0, f"--{name}={getattr(cfg, name, 0)}: expected 0 or more")
    require(cfg.seed < 2**63, f"--seed={cfg.seed}: expected less than 2^63")
    for name in ("warmup", "ema", "scale"):
        require(0 <= getattr(cfg, name) < 1, f"--{name}={getattr(cfg, name)}: expected at least 0 and less than 1")


def start_run(cfg, model, model_info, data, device, dtype):
    """Prepares cfg.out_dir and writes config.json: a fresh folder, or with cfg.resume the unfinished run's own.

    model_info: {"name", "args"}; data: dataset.describe_data's. Returns (plain values for the checkpoints, content of
    last.pth to go on from or None). Raises UserError where a resumed run was started with other constants or data,
    naming the first difference.
    """
    out_dir = Path(cfg.out_dir)
    config = {
        "constants": {name.upper(): value for name, value in sorted(vars(cfg).items())},
        "model": model_info,
        "parameters": count_parameters(model),
        "data": data,
        "device": str(device),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "environment": describe_environment(),
    }
    print(f"model: {model_info['name']}, {config['parameters']:,} parameters", flush=True)
    info = {"model": model_info, **{name: data[name] for name in ("synthetic", "train_cases", "val_cases", "fold")}}
    if not (cfg.resume and (out_dir / "last.pth").is_file()):
        finished = cfg.resume and (out_dir / "metrics.json").exists()
        require(not finished, f"{out_dir} holds a finished run without its last.pth: start anew without --resume=True")
        fresh_folder(out_dir)
        save_json(out_dir / "config.json", config)
        return info, None
    before = load_json(out_dir / "config.json", "a new run without --resume=True")
    for name, value in config["constants"].items():
        if name.lower() not in NOT_PART_OF_A_RUN and before["constants"].get(name) != value:
            raise UserError(
                f"{out_dir}: this run was started with --{name.lower()}={before['constants'].get(name)}, not {value}; "
                "resume it with its own constants, or start anew without --resume=True"
            )
    other = f"{out_dir}: this run was started on other data or slices; start anew without --resume=True"
    require(before.get("data") == data, other)
    state = load_checkpoint(out_dir / "last.pth")
    require(
        "training" in state,
        f"{out_dir / 'last.pth'} holds weights only and cannot be resumed; start anew without --resume=True",
    )
    return info, state


def make_loader(data, cfg, device):
    """The batches of a training set whose items are keyed by (pass, index), in an order that depends on cfg.seed."""
    return torch.utils.data.DataLoader(
        data,
        batch_sampler=EpochSampler(len(data), cfg.batch_size, cfg.seed, cfg.min_steps),
        num_workers=cfg.num_workers,
        persistent_workers=cfg.num_workers > 0,
        multiprocessing_context="spawn" if cfg.num_workers else None,
        pin_memory=device.type == "cuda",
    )


def hard_dice(logits, target):
    """Dice of the most likely class, per sample and label: (B, C, *S) and (B, *S) to a (B, 2) array; nan where neither
    has the label."""
    prediction, target = logits.argmax(1).flatten(1), target.flatten(1)
    columns = []
    for label in LABELS:
        p, t = prediction == label, target == label
        total = p.sum(1) + t.sum(1)
        columns.append(2 * (p & t).sum(1) / total)
    return torch.stack(columns, 1).cpu().numpy()


def fit(model, loader, loss_function, validate, cfg, device, dtype, out_dir, info, resume_from=None):
    """Trains `model` for cfg.epochs with AdamW, a cosine schedule with warm-up, gradient clipping and mixed precision.

    loader:        batches of (image (B, C, *S), label (B, *S)); its batch_sampler has an `epoch` to set.
    loss_function: (logits, label) to a scalar.
    validate:      called with the model in eval mode; returns {"val_loss", "val_dice", "val_nsd", "train_nsd"}.
    cfg:           epochs, learning_rate, weight_decay, warmup, gradient_clip, and ema (0: none; else the decay of a
                   moving average of the weights, which is then what is validated and saved).
    info:          plain values for the checkpoints: "model" (name and arguments), "train_cases", ...
    resume_from:   what start_run returned.

    Returns the history; the model ends with its final (with ema, averaged) weights.
    """
    out_dir = Path(out_dir)
    optimiser = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = copy.deepcopy(model).eval() if cfg.ema else model
    history, best = {name: [] for name in HISTORY}, {"epoch": 0, "val_dice": -1.0}
    if resume_from:
        training = resume_from["training"]
        average.load_state_dict(resume_from["model_state_dict"])
        model.load_state_dict(training["weights"])
        optimiser.load_state_dict(training["optimiser"])
        if training["scaler"]:  # empty where the run began without fp16
            scaler.load_state_dict(training["scaler"])
        history, best = training["history"], training["best"]
        save_json(out_dir / "history.json", history)  # it may be an epoch behind last.pth
        print(f"resuming {out_dir} after epoch {len(history['seconds'])} of {cfg.epochs}", flush=True)
    steps = len(loader)
    for epoch in range(len(history["seconds"]), cfg.epochs):
        start, losses, dices = time.perf_counter(), [], []
        model.train()
        loader.batch_sampler.epoch = epoch
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{cfg.epochs}", leave=False, disable=None)
        for step, (image, label) in enumerate(bar):
            rate = learning_rate((epoch + step / steps) / cfg.epochs, cfg.learning_rate, cfg.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate
            image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
            with autocast(device, dtype):
                logits = model(image)
            loss = loss_function(logits, label)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.gradient_clip)
            if scaler.is_enabled() or torch.isfinite(norm):
                scaler.step(optimiser)
            scaler.update()
            if cfg.ema:
                decay = min(cfg.ema, (1 + epoch * steps + step) / (10 + epoch * steps + step))
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            losses.append(loss.item())
            dices.append(hard_dice(logits[0] if isinstance(logits, list) else logits, label))
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", dice=f"{np.nanmean(np.concatenate(dices[-20:])):.3f}")
        average.eval()
        entry = {
            "train_loss": float(np.mean(losses)),
            "train_dice": np.nanmean(np.concatenate(dices), axis=0).tolist(),
            "learning_rate": rate,
            **validate(average),
        }
        entry["seconds"] = 0.0
        for name in HISTORY:
            history[name].append(entry[name])
        content = {**info, "model_state_dict": average.state_dict(), "epoch": epoch + 1, "val_dice": entry["val_dice"]}
        if np.mean(entry["val_dice"]) > best["val_dice"]:
            best = {"epoch": epoch + 1, "val_dice": float(np.mean(entry["val_dice"]))}
            save_checkpoint(out_dir / "best_model.pth", content)
        history["seconds"][-1] = round(time.perf_counter() - start, 3)  # nearly: last.pth is still to be written
        save_checkpoint(
            out_dir / "last.pth",
            {
                **content,
                "training": {
                    "weights": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scaler": scaler.state_dict(),
                    "history": history,
                    "best": best,
                },
            },
        )
        history["seconds"][-1] = round(time.perf_counter() - start, 3)
        save_json(out_dir / "history.json", history)
        print(
            f"epoch {epoch + 1:3d}/{cfg.epochs}  loss {entry['train_loss']:.4f} / {entry['val_loss']:.4f}  "
            f"Dice {' '.join(f'{d:.4f}' for d in entry['train_dice'])} / {' '.join(f'{d:.4f}' for d in entry['val_dice'])}  "
            f"NSD {np.mean(entry['val_nsd']):.4f}  {history['seconds'][-1]:.0f} s",
            flush=True,
        )
    if cfg.ema:
        model.load_state_dict(average.state_dict())
    return history


# ---- description of models


def describe_models(models, shape):
    """Rows [name, parameters, multiply-adds, CPU milliseconds] of models {name: class}, each without and with the INR
    head, on one input of `shape`."""
    device, dtype = pick_device("cpu")
    rows = []
    for name, use_inr in itertools.product(models, (False, True)):
        model, x, seconds = models[name](use_inr=use_inr), torch.zeros(shape), []
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model.eval()(x)
        with torch.inference_mode(), autocast(device, dtype):
            for _ in range(10):
                start = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - start)
        name += " + INR" * use_inr
        rows.append([name, count_parameters(model), counter.get_total_flops() // 2, round(1000 * min(seconds), 1)])
    return rows


def print_models(models, shape):
    """Prints describe_models as a table."""
    rows = describe_models(models, shape)
    print(
        f"{'model':<36} {'parameters':>11} {'multiply-adds':>15} {'ms on the CPU':>14}   at {' x '.join(map(str, shape[2:]))}"
    )
    for name, parameters, multiply_adds, milliseconds in rows:
        print(f"{name:<36} {parameters:>11,} {multiply_adds / 1e9:>13.2f} G {milliseconds:>14.1f}")
