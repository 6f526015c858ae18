"""The training loop, for 2D and 3D. After every epoch it writes last.pth, history.json and, if the epoch is the best
so far, best_model.pth into the run folder."""

import copy
import time
from pathlib import Path

from hippo.device import autocast, random_state, set_random_state
from hippo.errors import UserError
from hippo.files import save_json
from hippo.models.checkpoint import save_checkpoint
from hippo.processes import Interrupt, any_process, gather, on_first, rank, world_size
from hippo.scoring.metrics import dice_of_logits
from hippo.training.optimiser import make_optimisers, schedule

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

HISTORY = ("train_loss", "val_loss", "train_dice", "val_dice", "train_nsd", "val_nsd", "learning_rate", "seconds")
HISTORY += ("skipped_steps",)
MAX_BAD_STEPS = 30  # this many consecutive steps without a finite gradient end a run; an fp16 scaler needs 16 to settle
_STEPS_AHEAD = 20  # steps that a GPU may be behind: their losses are read together, so that no step waits for another


def unvalidated(labels):
    """Returns the scores of an epoch of a run without validation cases."""
    return {"val_loss": np.nan, "val_dice": [np.nan] * labels, "val_nsd": [np.nan] * labels}


class TrainingState:
    """The changing state of a run: weights, their average, optimisers, history, and the epoch in progress.

    average: the model that is validated and saved; with cfg.ema a moving average of the weights, else the model
    itself. unfinished_epoch: its steps so far, with the loss of each step and the Dice of each sample.
    """

    def __init__(self, model, cfg, device, dtype, info):
        self.model, self.cfg, self.device, self.dtype, self.info = model, cfg, device, dtype, info
        self.out_dir = Path(cfg.out_dir)
        self.average = copy.deepcopy(model).eval() if cfg.ema else model
        self.optimisers = make_optimisers(model, cfg)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.history = {name: [] for name in HISTORY}
        self.best = {"epoch": 0, "val_dice": -1.0}
        self.bad_steps = 0  # consecutive
        self.unread = []  # (loss, whether the gradient is finite, Dice of the samples) of steps, tensors on the device
        self.begin_epoch()

    @property
    def epoch(self):
        """The number of finished epochs."""
        return len(self.history["seconds"])

    def begin_epoch(self):
        """Starts an epoch with no steps done."""
        self.unfinished_epoch = {"step": 0, "losses": [], "dices": [], "skipped": 0, "seconds": 0.0}

    def save(self, name, **more):
        """Writes a checkpoint of the averaged weights."""
        dice = self.history["val_dice"][-1] if self.history["val_dice"] else None
        content = {**self.info, "model_state_dict": self.average.state_dict(), "epoch": self.epoch, "val_dice": dice}
        on_first(save_checkpoint, self.out_dir / name, {**content, **more})

    def save_all(self):
        """Writes last.pth with everything that `load` needs."""
        training = {
            "weights": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best": self.best,
            "unfinished_epoch": self.unfinished_epoch,
            "random": gather(random_state(self.device)),
        }
        self.save("last.pth", training=training)

    def load(self, content):
        """Restores the state from the content of last.pth."""
        training = content["training"]
        self.average.load_state_dict(content["model_state_dict"])
        self.model.load_state_dict(training["weights"])
        for optimiser, state in zip(self.optimisers, training["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        if training["scaler"]:  # empty if the run began without fp16
            self.scaler.load_state_dict(training["scaler"])
        self.history, self.best = training["history"], training["best"]
        self.unfinished_epoch = training["unfinished_epoch"]
        step = self.unfinished_epoch["step"]
        if rank():  # the first process holds the sums
            self.unfinished_epoch |= {"losses": [0.0] * step, "dices": []}
        if rank() < len(training["random"]):
            set_random_state(training["random"][rank()], self.device)
        on_first(save_json, self.out_dir / "history.json", self.history)  # it may be one epoch behind last.pth
        where = f"after epoch {self.epoch}" + f" and {step} steps" * (step > 0)
        print(f"resuming {self.out_dir} {where} of {self.cfg.epochs}", flush=True)


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
    parallel = model
    if world_size() > 1:
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    with Interrupt() as interrupt:
        while state.epoch < cfg.epochs:
            start = time.perf_counter() - state.unfinished_epoch["seconds"]
            model.train()
            rate = train_epoch(state, parallel, loader, loss_function, interrupt, start)
            state.average.eval()
            due = (state.epoch + 1) % cfg.validate_every == 0 or state.epoch + 1 == cfg.epochs
            end_epoch(state, rate, validate(state.average) if due else None, start)
            if any_process(interrupt.asked):
                raise KeyboardInterrupt(how_to_go_on(state.out_dir))
    if cfg.ema:
        model.load_state_dict(state.average.state_dict())
    return state.history


def train_epoch(state, parallel, loader, loss_function, interrupt, start):
    """Runs the remaining steps of an epoch. Returns AdamW's learning rate in the last step.

    parallel: the model, or its DistributedDataParallel; start: when the epoch began (time.perf_counter).
    """
    cfg, sampler, epoch = state.cfg, loader.batch_sampler, state.unfinished_epoch
    sampler.epoch, sampler.start, steps = state.epoch, epoch["step"], len(sampler)
    words, share_of_peak = f"epoch {state.epoch + 1}/{cfg.epochs}", 0.0
    bar = tqdm(loader, words, steps, False, disable=rank() > 0 or None, initial=epoch["step"])
    for step, (image, label) in enumerate(bar, epoch["step"]):
        share_of_peak = schedule((state.epoch + step / steps) / cfg.epochs, cfg.warmup, cfg.cooldown)
        for group in (group for optimiser in state.optimisers for group in optimiser.param_groups):
            group["lr"] = group["peak"] * share_of_peak
        train_step(state, parallel, loss_function, image, label, sampler.weight(step), state.epoch * steps + step)
        epoch["step"] = step + 1
        stop = any_process(interrupt.asked)
        if state.device.type == "cpu" or len(state.unread) == _STEPS_AHEAD or stop or step + 1 == steps:
            read_steps(state)
            losses, dices = epoch["losses"][-20:], epoch["dices"][-20:] or [np.nan]
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", dice=f"{np.nanmean(dices):.3f}")
        if stop and step + 1 < steps:
            epoch["losses"], epoch["dices"] = gather_steps(epoch)
            epoch["seconds"] = time.perf_counter() - start
            state.save_all()
            raise KeyboardInterrupt(how_to_go_on(state.out_dir))
    return cfg.learning_rate * share_of_peak


def train_step(state, parallel, loss_function, image, label, weight, number):
    """Runs one optimiser step and adds its loss and Dice to state.unread.

    weight: weight of this process's mean loss, 1 for a single process; number: index of the step in the run, from 0.
    """
    cfg = state.cfg
    image, label = (x.to(state.device, non_blocking=True) for x in (image, label))
    with autocast(state.device, state.dtype):
        logits = parallel(image)
    loss = loss_function(logits, label) * weight
    finite = descend(state.model, loss, state.optimisers, state.scaler, cfg.gradient_clip)
    if cfg.ema:
        decay = min(cfg.ema, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    finest = (logits[0] if isinstance(logits, list) else logits).detach()
    state.unread.append((loss.detach(), finite, dice_of_logits(finest, label) if weight else None))


def descend(model, loss, optimisers, scaler, largest_norm):
    """Takes an optimiser step with the clipped gradient of `loss`, unless the gradient is not finite. Returns whether
    it is finite, a boolean tensor on the device.

    On CUDA the optimisers skip the step by themselves, so that the processor need not wait for the answer.
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


def read_steps(state):
    """Moves the losses and Dice in state.unread to state.unfinished_epoch. Raises UserError after MAX_BAD_STEPS steps
    whose gradient is not finite."""
    epoch = state.unfinished_epoch
    losses, finites = (torch.stack(values).tolist() for values in list(zip(*state.unread))[:2])
    for loss, finite, (_, _, dices) in zip(losses, finites, state.unread):
        epoch["losses"].append(loss / world_size() if finite else float("nan"))
        epoch["dices"] += [] if dices is None else dices.tolist()
        epoch["skipped"] += not finite
        state.bad_steps = 0 if finite else state.bad_steps + 1
        if state.bad_steps == MAX_BAD_STEPS:
            raise UserError(why_it_stopped(state, loss))
    state.unread = []


def end_epoch(state, learning_rate, validation, start):
    """Adds an epoch to the history, and writes the checkpoints and history.json. validation: None if the epoch was not
    validated."""
    losses, dices = gather_steps(state.unfinished_epoch)
    labels = len(dices[0])
    entry = {
        **unvalidated(labels),
        "train_nsd": [np.nan] * labels,
        "train_loss": float(np.nanmean(losses)),
        "train_dice": np.nanmean(dices, axis=0).tolist(),
        "learning_rate": learning_rate,
        "skipped_steps": state.unfinished_epoch["skipped"],
        "seconds": 0.0,
        **(validation or {}),
    }
    history = state.history
    for name in HISTORY:
        history[name].append(entry[name])
    mean = float(np.mean(entry["val_dice"]))
    if validation and not mean <= state.best["val_dice"]:  # always true for a run without validation cases
        state.best = {"epoch": state.epoch, "val_dice": mean}
        state.save("best_model.pth")
    state.begin_epoch()
    history["seconds"][-1] = round(time.perf_counter() - start, 3)  # without the time to write last.pth
    state.save_all()
    history["seconds"][-1] = round(time.perf_counter() - start, 3)
    on_first(save_json, state.out_dir / "history.json", history)
    print(summary(history, state.cfg.epochs), flush=True)


def summary(history, epochs):
    """Returns a one-line summary of the last epoch of a history: training / validation, if there was one."""
    last = {name: values[-1] for name, values in history.items()}
    loss, dice = ([np.atleast_1d(last[f"{part}_{name}"]) for part in ("train", "val")] for name in ("loss", "dice"))
    loss, dice = (" / ".join(_numbers(part) for part in parts if np.isfinite(part).any()) for parts in (loss, dice))
    nsd = f"NSD {np.mean(last['val_nsd']):.4f}  " if np.isfinite(last["val_nsd"]).all() else ""
    skipped = f"  {last['skipped_steps']} steps skipped: gradient not finite" * (last["skipped_steps"] > 0)
    epoch = f"epoch {len(history['seconds']):3d}/{epochs}"
    return f"{epoch}  loss {loss}  Dice {dice}  {nsd}{last['seconds']:.0f} s{skipped}"


def _numbers(values):
    return " ".join(f"{value:.4f}" for value in values)


def gather_steps(epoch):
    """Gathers over all processes. Returns (sum of the losses of each step, Dice of all samples)."""
    parts = gather((epoch["losses"], epoch["dices"]))
    return np.sum([part[0] for part in parts], axis=0).tolist(), [dice for part in parts for dice in part[1]]


def how_to_go_on(out_dir):
    """Returns the message for an interrupted run."""
    return f"all steps are saved in {out_dir / 'last.pth'}; to go on, run the same command with --resume=True"


def why_it_stopped(state, loss):
    """Returns the message for a run whose steps keep failing."""
    good = f"{state.out_dir / 'last.pth'} holds the weights after epoch {state.epoch}"
    return (
        f"epoch {state.epoch + 1}: stopped: the gradient was not finite in {MAX_BAD_STEPS} steps in a row (last loss: "
        f"{loss:g}); {good if state.epoch else 'there is no good checkpoint yet'}; start anew with a smaller "
        "--learning_rate or with --amp=False"
    )
