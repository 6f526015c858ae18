"""The training loop: gradients that are not finite, the scaler of fp16, random states."""

import json
import shutil
import signal

import train2d
import train_3d
from hippo.files import save_json
from hippo.models.checkpoint import load_checkpoint
from hippo.training import engine
from hippo.training import state as training_state
from hippo.training.losses import dice_ce_loss

import numpy as np
import pytest
import torch
from conftest import one_error_line
from runs import assert_same_run, numbers


@pytest.fixture
def losses(monkeypatch):
    """Makes the loss not finite at the steps that losses(condition) says: condition(number of the step, from 0)."""

    def break_at(condition):
        calls, real = [], dice_ce_loss

        def broken(logits, label, **options):
            loss = real(logits, label, **options)
            if logits.requires_grad:
                calls.append(1)
                loss = loss * (float("nan") if condition(len(calls) - 1) else 1.0)
            return loss

        monkeypatch.setattr(train_3d, "dice_ce_loss", broken)

    return break_at


@pytest.mark.promise("not_finite")
def test_a_step_that_is_not_finite_is_skipped_and_counted(script, jobs, tmp_path, losses):
    module, options = jobs["3d"]
    options = (*options, "--max_cases=0")  # three steps an epoch
    losses(lambda step: step in (1, 4, 5))
    code, out, err = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    assert code == 0 and "1 steps skipped" in out and "2 steps skipped" in out, err
    history = numbers(tmp_path / "run")
    assert history["skipped_steps"] == [1, 2, 0] and np.isfinite(history["train_loss"]).all()
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    for weights in (state["model_state_dict"], state["training"]["weights"]):
        assert all(torch.isfinite(v).all() for v in weights.values())


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_validations_may_be_left_out(script, jobs, whole, tmp_path, kind):
    """The training is the same without them; the best epoch is one that has one, and the last one always has."""
    module, options = jobs[kind]
    code, out, err = script(module, *options, "--validate_every=2", f"--out_dir={tmp_path}")
    assert code == 0 and "nan" not in out.split("final weights")[0], err
    found, every = numbers(tmp_path), numbers(whole[kind])
    for name in ("val_dice", "val_loss", "val_nsd", "train_nsd"):
        skipped = [value is None or value == [None, None] for value in found[name]]
        assert skipped == [True, False, False] and found[name][1:] == every[name][1:]
    assert found["train_loss"] == every["train_loss"]
    means = [np.mean(dice) for dice in found["val_dice"][1:]]
    assert load_checkpoint(tmp_path / "best_model.pth")["epoch"] == 2 + int(np.argmax(means))
    weights = [load_checkpoint(folder / "last.pth")["model_state_dict"] for folder in (tmp_path, whole[kind])]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert (tmp_path / "plots").is_dir()


@pytest.mark.promise("not_finite")
def test_a_run_that_keeps_failing_stops(script, jobs, whole, tmp_path, monkeypatch, losses):
    module, options = jobs["3d"]
    options = (*options, "--max_cases=0")  # three steps an epoch
    monkeypatch.setattr(training_state, "MAX_BAD_STEPS", 4)
    losses(lambda step: step >= 5)  # the third step of the second epoch
    result = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    one_error_line(
        result, "epoch 3: stopped", "4 steps", "nan", "last.pth holds the weights after epoch 2", "--learning_rate"
    )
    monkeypatch.undo()
    history = numbers(tmp_path / "run")
    assert history["skipped_steps"] == [0, 1]
    losses(lambda step: True)
    monkeypatch.setattr(training_state, "MAX_BAD_STEPS", 2)
    result = script(module, *options, f"--out_dir={tmp_path / 'other'}")
    one_error_line(result, "epoch 1: stopped", "no good checkpoint yet")


class FakeScaler:
    """A GradScaler whose every third gradient overflows; it notes what it is asked to do."""

    log = []

    def __init__(self, device, enabled):
        assert device == "cpu" and enabled
        self.scale_, self.overflow = 8.0, False

    def is_enabled(self):
        return True

    def scale(self, loss):
        self.log.append("scale")
        self.overflow = self.log.count("scale") % 3 == 0
        return loss * (float("inf") if self.overflow else self.scale_)

    def unscale_(self, optimiser):
        self.log.append("unscale")
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.scale_

    def step(self, optimiser):
        self.log.append("step")
        if not self.overflow:
            optimiser.step()

    def update(self):
        self.log.append("update")
        self.scale_ *= 0.5 if self.overflow else 1.0

    def state_dict(self):
        return {"scale": self.scale_}

    def load_state_dict(self, state):
        self.log.append("load")
        self.scale_ = state["scale"]


@pytest.mark.promise("not_finite")
def test_the_path_of_the_gradient_scaler(script, jobs, tmp_path, monkeypatch):
    """As on CUDA: fp16 with a scaler, in the right order, its state saved and resumed."""
    module, options = jobs["3d"]
    options = (*options, "--max_cases=0")  # three steps an epoch
    monkeypatch.setattr(torch.amp, "GradScaler", FakeScaler)
    monkeypatch.setattr(module, "set_up_device", lambda *_: (torch.device("cpu"), torch.float16))
    monkeypatch.setattr(FakeScaler, "log", [])
    options = (
        *options,
        "--epochs=1",
        "--patch=[8,8,8]",
        "--base_channels=2",
        "--unet_depth=1",
    )  # fp16 is slow on a CPU
    code, _, err = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    assert code == 0, err
    steps = FakeScaler.log.count("scale")
    good = ["scale", "unscale", "unscale", "step", "step", "update"]  # Muon and AdamW
    bad = [name for name in good if name != "step"]
    assert FakeScaler.log == [name for i in range(1, steps + 1) for name in (bad if i % 3 == 0 else good)]
    assert sum(numbers(tmp_path / "run")["skipped_steps"]) == steps // 3 > 0
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert state["training"]["scaler"] == {"scale": 8 * 0.5 ** (steps // 3)}
    assert all(torch.isfinite(v).all() for v in state["model_state_dict"].values())
    script(module, *options, f"--out_dir={tmp_path / 'run'}", "--resume=True")
    assert FakeScaler.log[-1] == "load"


# ---- resumed runs


@pytest.mark.promise("resume")
def test_random_numbers_go_on_where_they_stopped(script, jobs, tmp_path, monkeypatch):
    """With dropout in the network, an interrupted run still ends as one that never was."""
    module, options = jobs["3d"]
    options = (*options, "--max_cases=0")  # three steps an epoch
    build = module.build_model

    def with_dropout(*args):
        model, info = build(*args)
        model.head = torch.nn.Sequential(torch.nn.Dropout3d(0.5), model.head)
        model.head.out_channels = 3
        return model, info

    monkeypatch.setattr(module, "build_model", with_dropout)
    whole, real, calls = tmp_path / "whole", engine.dice_of_logits, []
    assert script(module, *options, f"--out_dir={whole}")[0] == 0

    def press(logits, label):
        calls.append(1)
        if len(calls) == 5:  # in the middle of the second epoch
            signal.raise_signal(signal.SIGINT)
        return real(logits, label)

    monkeypatch.setattr(engine, "dice_of_logits", press)
    codes = [script(module, *options, f"--out_dir={tmp_path / 'run'}", "--resume=True")[0] for _ in range(2)]
    assert codes == [130, 0]
    assert_same_run(whole, tmp_path / "run")
    resumed = json.loads((tmp_path / "run" / "config.json").read_text())["resumed"]
    assert [entry["epoch"] for entry in resumed] == [1]
    assert set(resumed[0]) == {"epoch", "device", "processes", "precision", "environment"}
    assert {"git_commit", "version", "torch"} <= resumed[0]["environment"].keys()


@pytest.mark.promise("other_constants")
def test_a_constant_that_an_older_run_lacks_counts_as_its_default(script, jobs, whole, tmp_path):
    module, options = jobs["3d"]
    folder = shutil.copytree(whole["3d"], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    del config["constants"]["INR_RATE"]
    save_json(folder / "config.json", config)
    resume = (*options, f"--out_dir={folder}", "--resume=True")
    assert script(module, *resume)[0] == 0
    one_error_line(script(module, *resume, "--inr_rate=0.5"), "--inr_rate=0.0001, not 0.5")
    one_error_line(script(module, *resume, "--unet_depth=3"), "--unet_depth=2, not 3")


@pytest.mark.promise("other_constants")
def test_other_data_of_the_same_size_are_noticed(script, jobs, whole, phantoms, tmp_path):
    module, options = jobs["3d"]
    folder, data = shutil.copytree(whole["3d"], tmp_path / "run"), shutil.copytree(phantoms, tmp_path / "data")
    path = data / "labelsTr" / "phantom_001.nii.gz"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time stamp of gzip: the same volume, but not the same file
    path.write_bytes(content)
    before = json.loads((folder / "config.json").read_text())
    save_json(folder / "config.json", {**before, "constants": {**before["constants"], "DATA_ROOT": str(data)}})
    options = [option for option in options if not option.startswith("--data_root")]
    result = script(module, *options, f"--data_root={data}", f"--out_dir={folder}", "--resume=True")
    one_error_line(result, "other data or slices")


@pytest.mark.parametrize(
    "name, options, words",
    [
        (
            "3d",
            ["--model=UNet3DWithINRBalanced", "--base_channels=24"],
            ["--base_channels=24", "--model=UNet3DWithINR"],
        ),
        ("3d", ["--model=UNet3DWithINRLightweight", "--unet_depth=3"], ["--unet_depth=3", "UNET_DEPTH at 2"]),
        ("2d", ["--model=UNetnnUNetBalanced", "--deep_supervision=True"], ["--deep_supervision=True"]),
        ("2d", ["--model=UNetnnUNetLightweight", "--base_channels=32", "--unet_depth=5"], ["--unet_depth=5"]),
    ],
)
def test_constants_that_a_preset_ignores_are_refused(script, tmp_path, name, options, words):
    module = {"3d": train_3d, "2d": train2d}[name]
    one_error_line(script(module, *options, f"--out_dir={tmp_path / 'run'}"), *words)
    source = {"3d": "--data_root=nowhere", "2d": "--data_dir=nowhere"}[name]
    one_error_line(script(module, options[0], source), "nowhere")  # the preset alone is taken


def test_what_presets_ignore_is_what_the_scripts_come_with():
    for module in (train_3d, train2d):
        for name, value in module._IGNORED_BY_PRESETS.items():
            assert getattr(module, name.upper()) == value
