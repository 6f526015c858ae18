"""The state of a training run: what it holds, what is saved after each epoch, and how a run goes on from it."""

import copy
import time
from pathlib import Path

from hippo.device import random_state, set_random_state
from hippo.errors import UserError
from hippo.files import save_json
from hippo.models.checkpoint import save_checkpoint
from hippo.processes import gather, on_first, rank, world_size
from hippo.training.optimiser import load_optimiser, make_optimisers

import numpy as np
import torch

HISTORY = ("train_loss", "val_loss", "train_dice", "val_dice", "train_nsd", "val_nsd", "learning_rate", "seconds")
HISTORY += ("skipped_steps",)
MAX_BAD_STEPS = 30  # this many consecutive steps without a finite gradient end a run; an fp16 scaler needs 16 to settle


def unvalidated(labels):
    """Returns the scores of an epoch without validation, for a number of labels: nan for each."""
    return {"val_loss": np.nan, "val_dice": [np.nan] * labels, "val_nsd": [np.nan] * labels}


class TrainingState:
    """The changing state of a run: weights, their average, optimisers, history, and the epoch in progress.

    average: the model that is validated and saved; with cfg.ema a moving average of the weights, else the model
    itself. unfinished_epoch: its steps so far, with the loss of each step and the Dice of each sample. info: plain
    values for the checkpoints, from run_folder.start_run.
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
        self._clear_epoch()

    def _clear_epoch(self):
        self.unfinished_epoch = {"step": 0, "losses": [], "dices": [], "skipped": 0, "seconds": 0.0}

    @property
    def epoch(self):
        """The number of finished epochs."""
        return len(self.history["seconds"])

    def start_clock(self):
        """Starts to measure the time of an epoch, including the time before an interruption."""
        self.started = time.perf_counter() - self.unfinished_epoch["seconds"]

    def seconds(self):
        """Returns the time in the epoch so far, in seconds."""
        return time.perf_counter() - self.started

    def read_steps(self):
        """Moves the losses and Dice in `unread` to `unfinished_epoch`, which waits for the device. Raises UserError
        after MAX_BAD_STEPS steps whose gradient is not finite."""
        epoch = self.unfinished_epoch
        losses, finites = (torch.stack(values).tolist() for values in list(zip(*self.unread))[:2])
        for loss, finite, (_, _, dices) in zip(losses, finites, self.unread):
            epoch["losses"].append(loss / world_size() if finite else float("nan"))
            epoch["dices"] += [] if dices is None else dices.tolist()
            epoch["skipped"] += not finite
            self.bad_steps = 0 if finite else self.bad_steps + 1
            if self.bad_steps == MAX_BAD_STEPS:
                raise UserError(self._why_it_stopped(loss))
        self.unread = []

    def end_epoch(self, learning_rate, validation):
        """Adds an epoch to the history, and writes the checkpoints and history.json. validation: None if the epoch was
        not validated."""
        losses, dices = _gather_steps(self.unfinished_epoch)
        labels = len(dices[0])
        entry = {
            **unvalidated(labels),
            "train_nsd": [np.nan] * labels,
            "train_loss": float(np.nanmean(losses)),
            "train_dice": np.nanmean(dices, axis=0).tolist(),
            "learning_rate": learning_rate,
            "skipped_steps": self.unfinished_epoch["skipped"],
            "seconds": 0.0,
            **(validation or {}),
        }
        for name in HISTORY:
            self.history[name].append(entry[name])
        mean = float(np.mean(entry["val_dice"]))
        if validation and not mean <= self.best["val_dice"]:  # always true for a run without validation cases
            self.best = {"epoch": self.epoch, "val_dice": mean}
            self._save("best_model.pth")
        self._clear_epoch()
        self.history["seconds"][-1] = round(self.seconds(), 3)  # without the time to write last.pth
        self._save_all()
        self.history["seconds"][-1] = round(self.seconds(), 3)
        on_first(save_json, self.out_dir / "history.json", self.history)
        print(summary(self.history, self.cfg.epochs), flush=True)

    def stop(self):
        """Ends a run after Ctrl-C: saves the epoch in progress, if there is one, and raises KeyboardInterrupt, which
        says how to go on."""
        epoch = self.unfinished_epoch
        if epoch["step"]:
            epoch["losses"], epoch["dices"] = _gather_steps(epoch)
            epoch["seconds"] = self.seconds()
            self._save_all()
        raise KeyboardInterrupt(
            f"all steps are saved in {self.out_dir / 'last.pth'}; to go on, run the same command with --resume=True"
        )

    def _save(self, name, **more):
        """Writes a checkpoint of the averaged weights."""
        dice = self.history["val_dice"][-1] if self.history["val_dice"] else None
        content = {**self.info, "model_state_dict": self.average.state_dict(), "epoch": self.epoch, "val_dice": dice}
        on_first(save_checkpoint, self.out_dir / name, {**content, **more})

    def _save_all(self):
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
        self._save("last.pth", training=training)

    def load(self, content):
        """Restores the state from the content of last.pth."""
        training = content["training"]
        self.average.load_state_dict(content["model_state_dict"])
        self.model.load_state_dict(training["weights"])
        for optimiser, state in zip(self.optimisers, training["optimisers"], strict=True):
            load_optimiser(optimiser, state)
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

    def _why_it_stopped(self, loss):
        """Returns the message for a run whose steps keep failing."""
        good = f"{self.out_dir / 'last.pth'} holds the weights after epoch {self.epoch}"
        return (
            f"epoch {self.epoch + 1}: stopped: the gradient was not finite in {MAX_BAD_STEPS} steps in a row (last loss: "
            f"{loss:g}); {good if self.epoch else 'there is no good checkpoint yet'}; start anew with a smaller "
            "--learning_rate or with --amp=False"
        )


def _gather_steps(epoch):
    """Gathers the steps of an epoch over all processes. Returns (sum of the losses of each step, Dice of all
    samples)."""
    parts = gather((epoch["losses"], epoch["dices"]))
    return np.sum([part[0] for part in parts], axis=0).tolist(), [dice for part in parts for dice in part[1]]


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
