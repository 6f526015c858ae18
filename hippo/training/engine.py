"""The training loop, for 2D and 3D: `fit` runs epochs, an epoch runs steps, a step follows one gradient.

A TrainingState (hippo/training/state.py) holds what the loop changes; its `average` is the moving average of the weights,
or the model itself without EMA. After every epoch, and on Ctrl-C, it writes last.pth: the averaged weights, which are the
result, and all that a resumed run needs. It writes best_model.pth, the averaged weights alone, when the mean validation
Dice (of one view) rises.
"""

from hippo.device import autocast
from hippo.processes import Interrupt, any_process, average_gradients, rank
from hippo.scoring.metrics import dice_of_logits
from hippo.training.optimiser import schedule
from hippo.training.state import TrainingState

import numpy as np
import torch
from tqdm import tqdm

_STEPS_AHEAD = 20  # steps that a GPU may be behind: their losses are read together, so that no step waits for another


def fit(model, loader, loss_function, validate, cfg, device, dtype, info, resume_from=None):
    """Trains `model` for cfg.epochs with Muon and AdamW, a learning rate schedule, gradient clipping and mixed
    precision.

    loader:        batches of (image (B, C, *S), label (B, *S)), see loading.make_loader.
    loss_function: (logits, label) to a scalar, a mean over the batch.
    validate:      called with the model in eval mode; returns {"val_loss", "val_dice", "val_nsd", "train_nsd"}.
    cfg:           out_dir, epochs, validate_every, gradient_clip, ema, and those of make_optimisers and schedule.
    info, resume_from: as returned by run_folder.start_run.

    Returns the history; the model ends with its final (with ema, averaged) weights. A step whose gradient is not
    finite is skipped and counted. After Ctrl-C, the current step is finished and saved. With several processes
    (torchrun), each takes its part of every batch and of the validation, and the first one writes.
    """
    state = TrainingState(model, cfg, device, dtype, info)
    if resume_from:
        state.load(resume_from)
    parallel = average_gradients(model, device)
    with Interrupt() as interrupt:
        while state.epoch < cfg.epochs:
            state.start_clock()
            learning_rate = train_epoch(state, parallel, loader, loss_function, interrupt)
            due = (state.epoch + 1) % cfg.validate_every == 0 or state.epoch + 1 == cfg.epochs
            state.end_epoch(learning_rate, validate(state.average.eval()) if due else None)
            if any_process(interrupt.asked):
                state.stop()
    if cfg.ema:
        model.load_state_dict(state.average.state_dict())
    return state.history


def train_epoch(state, parallel, loader, loss_function, interrupt):
    """Runs the remaining steps of an epoch. Returns AdamW's learning rate in the last step.

    parallel: the model, or with several processes its wrapper; interrupt: processes.Interrupt.
    """
    cfg, sampler, epoch = state.cfg, loader.batch_sampler, state.unfinished_epoch
    sampler.epoch, sampler.start, steps = state.epoch, epoch["step"], len(sampler)
    state.model.train()
    words, hidden = f"epoch {state.epoch + 1}/{cfg.epochs}", rank() > 0 or None  # None: where there is no terminal
    bar = tqdm(loader, desc=words, total=steps, leave=False, disable=hidden, initial=epoch["step"])
    for step, (image, label) in enumerate(bar, epoch["step"]):
        share_of_peak = schedule((state.epoch + step / steps) / cfg.epochs, cfg.warmup, cfg.cooldown)
        for optimiser in state.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share_of_peak
        train_step(state, parallel, loss_function, image, label, sampler.weight(step), state.epoch * steps + step)
        epoch["step"] = step + 1
        stop = any_process(interrupt.asked)
        if state.device.type == "cpu" or len(state.unread) == _STEPS_AHEAD or stop or step + 1 == steps:
            state.read_steps()
            losses, dices = epoch["losses"][-20:], epoch["dices"][-20:] or [np.nan]
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", dice=f"{np.nanmean(dices):.3f}")
        if stop and step + 1 < steps:  # after the last step, the epoch is finished first
            state.stop()
    return cfg.learning_rate * share_of_peak


def train_step(state, parallel, loss_function, image, label, weight, number):
    """Runs one optimiser step, updates the averaged weights, and adds the step's loss and Dice to state.unread.

    weight: weight of this process's mean loss, 1 for a single process; number: index of the step in the run, from 0.
    """
    cfg = state.cfg
    image, label = (x.to(state.device, non_blocking=True) for x in (image, label))
    with autocast(state.device, state.dtype):
        logits = parallel(image)  # (B, C, *S), or a list of them, finest first (deep supervision)
    loss = loss_function(logits, label) * weight
    finite = descend(state.model, loss, state.optimisers, state.scaler, cfg.gradient_clip)
    if cfg.ema:
        decay = min(cfg.ema, (1 + number) / (10 + number))  # the first steps are forgotten sooner
        with torch.no_grad():
            torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    finest = (logits[0] if isinstance(logits, list) else logits).detach()
    state.unread.append((loss.detach(), finite, dice_of_logits(finest, label) if weight else None))


def descend(model, loss, optimisers, scaler, largest_norm):
    """Takes an optimiser step with the clipped gradient of `loss`, unless the gradient is not finite. Returns whether
    it is finite, a boolean tensor on the device.

    scaler: torch.amp.GradScaler, which does nothing but for fp16. On CUDA the optimisers skip the step by themselves,
    so that the processor need not wait for the answer.
    """
    model.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    for optimiser in optimisers:
        scaler.unscale_(optimiser)
    finite = torch.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm))
    for optimiser in optimisers:
        if finite.is_cuda:
            optimiser.found_inf = (~finite).float()
        if finite.is_cuda or finite:
            scaler.step(optimiser)
    scaler.update()
    return finite
