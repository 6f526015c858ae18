"""Training: one loop for 2D and 3D, and the prediction of a volume, which validation and predict.py share.

`fit` trains, and writes into its folder after every epoch

    last.pth       the newest weights, and all that --resume=True needs
    best_model.pth the weights of the best mean validation Dice
    history.json   one list per quantity, one entry per epoch
"""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import UserError, autocast, fresh_folder, load_checkpoint, load_json, require, save_checkpoint, save_json
from metrics import LABELS

HISTORY = ("train_loss", "val_loss", "train_dice", "val_dice", "train_nsd", "val_nsd", "learning_rate", "seconds")
NOT_PART_OF_A_RUN = ("resume", "num_workers", "out_dir", "device")  # constants that --resume=True may change


def learning_rate(progress, peak, warmup):
    """Linear warm-up over the first `warmup` share of the schedule, then half a cosine to zero; progress in [0, 1)."""
    if progress < warmup:
        return peak * (progress / warmup * 0.99 + 0.01)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def start_run(out_dir, config, resume):
    """Prepares a run's folder and writes config.json: a fresh folder, or with `resume` the unfinished run's own.

    config: {"constants": {...}, ...}. Returns the content of last.pth to go on from, or None. Raises UserError where
    a resumed run was started with other constants, naming the first difference.
    """
    out_dir = Path(out_dir)
    if not (resume and (out_dir / "last.pth").is_file()):
        fresh_folder(out_dir)
        save_json(out_dir / "config.json", config)
        return None
    before = load_json(out_dir / "config.json", "a new run without --resume=True")["constants"]
    for name, value in config["constants"].items():
        if name.lower() not in NOT_PART_OF_A_RUN and before.get(name) != value:
            raise UserError(
                f"{out_dir}: this run was started with --{name.lower()}={before.get(name)}, not {value}; "
                "resume it with its own constants, or start anew without --resume=True"
            )
    state = load_checkpoint(out_dir / "last.pth")
    require(
        "training" in state,
        f"{out_dir / 'last.pth'} holds weights only and cannot be resumed; start anew without --resume=True",
    )
    return state


def hard_dice(logits, target):
    """Dice of the most likely class, per sample and label: (B, C, *S) and (B, *S) to a (B, 2) array."""
    prediction, target = logits.argmax(1).flatten(1), target.flatten(1)
    columns = []
    for label in LABELS:
        p, t = prediction == label, target == label
        total = p.sum(1) + t.sum(1)
        columns.append(torch.where(total > 0, 2 * (p & t).sum(1) / total.clamp_min(1), 1.0))
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
        scaler.load_state_dict(training["scaler"])
        history, best = training["history"], training["best"]
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
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", dice=f"{np.concatenate(dices[-20:]).mean():.3f}")
        average.eval()
        entry = {
            "train_loss": float(np.mean(losses)),
            "train_dice": np.concatenate(dices).mean(0).tolist(),
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
        history["seconds"][-1] = round(time.perf_counter() - start, 3)
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


# ---- prediction of a volume


def tta_views(flip_axes=""):
    """Test-time augmentation: (shift in voxels, axes to flip) of each view of a volume.

    A shift moves the volume against the grid of the poolings by padding with replicated edges, without interpolation.
    Flips are of use only along axes that training flipped too.
    """
    shifts = [(0, 0, 0), (4, 4, 4)]
    flips = [()] + [(axis,) for axis in ("xyz".index(a) for a in flip_axes)]
    return [(shift, flip) for shift in shifts for flip in flips]


@torch.inference_mode()
def predict_volume(model, image, device, dtype, tta=False, flip_axes=""):
    """Class probabilities of one volume: image (D, H, W) float32, normalised, to a (C, D, H, W) float32 tensor on
    `device`, with tta averaged over tta_views(flip_axes). The model must be in eval mode.
    """
    x = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device)
    views = tta_views(flip_axes) if tta else [((0, 0, 0), ())]
    total = 0
    for shift, flip in views:
        axes = [a + 2 for a in flip]
        view = F.pad(x.flip(axes), [p for s in reversed(shift) for p in (s, 0)], mode="replicate")
        with autocast(device, dtype):
            logits = model(view)
        logits = logits[(0, slice(None), *(slice(s, None) for s in shift))].float()
        total = total + logits.softmax(0).flip([a - 1 for a in axes])
    return total / len(views)
