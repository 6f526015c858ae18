"""Training: one loop for 2D and 3D.

`fit` trains, and writes into its folder after every epoch

    last.pth       the newest weights, and all that --resume=True needs
    best_model.pth the weights of the best mean validation Dice
    history.json   one list per quantity, one entry per epoch
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from hippo.device import autocast
from hippo.errors import UserError
from hippo.files import save_json
from hippo.models.checkpoint import save_checkpoint
from hippo.processes import Interrupt, any_process, gather, on_first, rank, world_size
from hippo.scoring.metrics import hard_dice
from hippo.training.optimiser import make_optimisers, schedule

HISTORY = ("train_loss", "val_loss", "train_dice", "val_dice", "train_nsd", "val_nsd", "learning_rate", "seconds")


HISTORY += ("skipped_steps",)


MAX_BAD_STEPS = 30  # steps in a row without a finite gradient that end a run; an fp16 scaler needs 16 to settle


def fit(model, loader, loss_function, validate, cfg, device, dtype, out_dir, info, resume_from=None):
    """Trains `model` for cfg.epochs with Muon and AdamW, a schedule of their rates, gradient clipping and mixed precision.

    loader:        batches of (image (B, C, *S), label (B, *S)), as make_loader makes it.
    loss_function: (logits, label) to a scalar, a mean over the batch.
    validate:      called with the model in eval mode; returns {"val_loss", "val_dice", "val_nsd", "train_nsd"}.
    cfg:           epochs, gradient_clip, those of optimiser.make_optimisers, those of optimiser.schedule, and ema (0: none;
                   else the decay of a moving average of the weights, which is then what is validated and saved).
    info:          plain values for the checkpoints: "model" (name and arguments), "train_cases", ...
    resume_from:   what start_run returned.

    Returns the history; the model ends with its final (with ema, averaged) weights. A step whose gradient is not finite
    is skipped and counted. A Ctrl-C is answered after the step, which is saved. With several processes (torchrun), each
    takes its share of every batch and of the validation, and the first one writes.
    """
    out_dir = Path(out_dir)
    optimisers = make_optimisers(model, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = copy.deepcopy(model).eval() if cfg.ema else model
    history, best = {name: [] for name in HISTORY}, {"epoch": 0, "val_dice": -1.0}
    begun = {"step": 0, "losses": [], "dices": [], "skipped": 0, "seconds": 0.0}  # of the unfinished epoch
    if resume_from:
        training = resume_from["training"]
        average.load_state_dict(resume_from["model_state_dict"])
        model.load_state_dict(training["weights"])
        for optimiser, state in zip(optimisers, training["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        if training["scaler"]:  # empty where the run began without fp16
            scaler.load_state_dict(training["scaler"])
        history, best, begun = training["history"], training["best"], training["begun"]
        where = f"after epoch {len(history['seconds'])}" + f" and {begun['step']} steps" * (begun["step"] > 0)
        if rank():  # the first process holds the sums
            begun = {**begun, "losses": [0.0] * begun["step"], "dices": []}
        on_first(save_json, out_dir / "history.json", history)  # it may be an epoch behind last.pth
        print(f"resuming {out_dir} {where} of {cfg.epochs}", flush=True)
    parallel = model
    if world_size() > 1:
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    sampler, bad, interrupt = loader.batch_sampler, 0, Interrupt()

    def save(name, **more):
        epoch, dice = len(history["seconds"]), history["val_dice"][-1] if history["val_dice"] else None
        content = {**info, "model_state_dict": average.state_dict(), "epoch": epoch, "val_dice": dice, **more}
        on_first(save_checkpoint, out_dir / name, content)

    def save_all():
        parts = {"weights": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
        parts |= {"scaler": scaler.state_dict(), "history": history, "best": best, "begun": begun}
        save("last.pth", training=parts)

    for epoch in range(len(history["seconds"]), cfg.epochs):
        start, (losses, dices, skipped) = time.perf_counter(), (begun[name] for name in ("losses", "dices", "skipped"))
        model.train()
        sampler.epoch, sampler.start, steps = epoch, begun["step"], len(sampler)
        bar = tqdm(
            loader, f"epoch {epoch + 1}/{cfg.epochs}", steps, False, disable=rank() > 0 or None, initial=begun["step"]
        )
        with interrupt:
            for step, (image, label) in enumerate(bar, begun["step"]):
                share_of_peak = schedule((epoch + step / steps) / cfg.epochs, cfg.warmup, cfg.cooldown)
                for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                    group["lr"] = group["peak"] * share_of_peak
                image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
                share = sampler.share(step)  # of this process in the batch, 1 when it is alone
                with autocast(device, dtype):
                    logits = parallel(image)
                loss = loss_function(logits, label) * share
                finite = descend(model, loss, optimisers, scaler, cfg.gradient_clip)
                if cfg.ema and finite:
                    decay = min(cfg.ema, (1 + epoch * steps + step) / (10 + epoch * steps + step))
                    with torch.no_grad():
                        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
                losses.append(loss.item() / world_size() if finite else float("nan"))
                if share:
                    dices += hard_dice(logits[0] if isinstance(logits, list) else logits, label).tolist()
                skipped, bad = skipped + (not finite), 0 if finite else bad + 1
                if bad == MAX_BAD_STEPS:
                    raise UserError(bad_steps(epoch, loss.item(), out_dir))
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", dice=f"{np.nanmean(dices[-20:] or [np.nan]):.3f}")
                if any_process(interrupt.asked) and step + 1 < steps:
                    losses, dices = together(losses, dices)
                    seconds = begun["seconds"] + time.perf_counter() - start
                    begun = {"step": step + 1, "losses": losses, "dices": dices, "skipped": skipped, "seconds": seconds}
                    save_all()
                    raise KeyboardInterrupt(saved(out_dir))
            average.eval()
            losses, dices = together(losses, dices)
            entry = {
                "train_loss": float(np.nanmean(losses)),
                "train_dice": np.nanmean(dices, axis=0).tolist(),
                "learning_rate": cfg.learning_rate * share_of_peak,
                "skipped_steps": skipped,
                **validate(average),
            }
            entry["seconds"] = 0.0
            for name in HISTORY:
                history[name].append(entry[name])
            if np.mean(entry["val_dice"]) > best["val_dice"]:
                best = {"epoch": epoch + 1, "val_dice": float(np.mean(entry["val_dice"]))}
                save("best_model.pth")
            before = begun["seconds"]
            begun = {"step": 0, "losses": [], "dices": [], "skipped": 0, "seconds": 0.0}
            history["seconds"][-1] = round(before + time.perf_counter() - start, 3)  # nearly: last.pth is to be written
            save_all()
            history["seconds"][-1] = round(before + time.perf_counter() - start, 3)
            on_first(save_json, out_dir / "history.json", history)
            print(summary(history, cfg.epochs), flush=True)
            if any_process(interrupt.asked):
                raise KeyboardInterrupt(saved(out_dir))
    if cfg.ema:
        model.load_state_dict(average.state_dict())
    return history


def descend(model, loss, optimisers, scaler, largest_norm):
    """A step of the optimisers down the gradient of `loss`, clipped; none where it is not finite. Returns whether it was."""
    model.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    for optimiser in optimisers:
        scaler.unscale_(optimiser)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    finite = bool(torch.isfinite(norm))
    if finite:
        for optimiser in optimisers:
            scaler.step(optimiser)
    scaler.update()
    return finite


def summary(history, epochs):
    """One line on the last epoch of a history: training / validation."""
    last = {name: values[-1] for name, values in history.items()}
    train, val = (" ".join(f"{d:.4f}" for d in last[f"{part}_dice"]) for part in ("train", "val"))
    skipped = last["skipped_steps"]
    return (
        f"epoch {len(history['seconds']):3d}/{epochs}  loss {last['train_loss']:.4f} / {last['val_loss']:.4f}  Dice {train} / {val}  "
        f"NSD {np.mean(last['val_nsd']):.4f}  {last['seconds']:.0f} s"
        + f"  {skipped} steps skipped: gradient not finite"
        * (skipped > 0)
    )


def together(losses, dices):
    """The losses of each step summed, and the Dice of all samples, over all processes."""
    parts = gather((losses, dices))
    return np.sum([part[0] for part in parts], axis=0).tolist(), [dice for part in parts for dice in part[1]]


def saved(out_dir):
    return f"all steps are saved in {out_dir / 'last.pth'}; to go on, run the same command with --resume=True"


def bad_steps(epoch, loss, out_dir):
    """What to say when a run keeps failing."""
    good = f"{out_dir / 'last.pth'} holds the weights after epoch {epoch}, which are good"
    return (
        f"epoch {epoch + 1}: stopped, for the gradient was not finite in {MAX_BAD_STEPS} steps one after the other (last "
        f"loss: {loss:g}); {good if epoch else 'there is no good checkpoint yet'}; start anew with a smaller "
        "--learning_rate or with --amp=False"
    )
