import json
import pickle

import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line

import train_3d
from hippo import options
from hippo.device import autocast, pick_device
from hippo.errors import UserError
from hippo.files import atomic, fresh_folder, save_json
from hippo.models.checkpoint import load_checkpoint
from hippo.options import constants


def configure(*argv, **overrides):
    return options.configure(vars(train_3d), list(argv), **overrides)


def test_constants_become_options():
    cfg = configure("--epochs=5", "--learning_rate", "1e-4", "--use_inr=True", "--patch=[32,40,32]", "--flip_axes=xy")
    assert (cfg.epochs, cfg.learning_rate, cfg.use_inr, cfg.patch, cfg.flip_axes) == (5, 1e-4, True, [32, 40, 32], "xy")
    assert cfg.weight_decay == train_3d.WEIGHT_DECAY


def test_edited_constants_count(monkeypatch):
    monkeypatch.setattr(train_3d, "EPOCHS", 7)
    assert configure().epochs == 7


def test_overrides_from_another_script():
    assert configure(epochs=3).epochs == 3
    with pytest.raises(UserError, match="did you mean --epochs"):
        configure(epoch=3)


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--epoch=5", ["--epoch", "did you mean --epochs"]),
        ("--learning-rates=1", ["did you mean --learning_rate"]),
        ("--epochs=five", ["--epochs", "a whole number", "'five'"]),
        ("--epochs=2.5", ["a whole number"]),
        ("--amp=1", ["--amp", "True or False"]),
        ("--learning_rate=fast", ["a number"]),
        ("--learning_rate=nan", ["a number"]),
        ("--patch=big", ["--patch", "a list"]),
        ("--patch=[1.5,2,3]", ["a list"]),
        ("stray", ["stray"]),
        ("--epochs", ["--epochs"]),
        ("--epochs=0", ["--epochs=0", "1 or more"]),
        ("--fold=7", ["--fold=7"]),
        ("--patch=[0,40,40]", ["--patch=[0, 40, 40]", "as [1, 40, 40]"]),
        ("--patch=[40,40]", ["three", "as [36, 52, 36]"]),
        ("--model=UNet", ["expected one of UNet3DWithINR"]),
        ("--device=tpu9", ["--device=tpu9"]),
    ],
)
def test_wrong_options_are_one_line(script, phantoms, tmp_path, argument, words):
    one_error_line(
        script(
            train_3d, argument, f"--data_root={phantoms}", *[f"--out_dir={tmp_path / 'out'}"][argument == "stray" :]
        ),
        *words,
    )
    assert not (tmp_path / "out").exists()


def test_help_lists_every_constant(script):
    code, out, _ = script(train_3d, "--help")
    assert code == 0
    for name, (value, comment) in constants(vars(train_3d)).items():
        assert f"--{name.lower()} " in out and str(value) in out and comment, name


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "result.json"
    save_json(path, {"a": float("nan"), "b": np.float32(1.5), "c": [np.int64(2), np.inf]})
    assert json.loads(path.read_text()) == {"a": None, "b": 1.5, "c": [2, None]}
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["b"] == 1.5 and list(tmp_path.iterdir()) == [path]


def test_fresh_folder_keeps_earlier_results(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    for n in range(3):
        fresh_folder(folder)
        assert not list(folder.iterdir())
        (folder / "run.txt").write_text(str(n))
    assert [(tmp_path / f"results.previous-{n + 1}" / "run.txt").read_text() for n in range(2)] == ["0", "1"]
    assert capsys.readouterr().out.count("held earlier results") == 2
    monkeypatch.chdir(folder)
    for own in (".", ".."):
        with pytest.raises(UserError, match="a folder of their own"):
            fresh_folder(own)


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('pwned').touch()",)


def test_checkpoints_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda f: torch.save(Evil(), f), lambda f: pickle.dump({"model": Evil(), "model_state_dict": 1}, f)):
        with open("evil.pth", "wb") as file:
            write(file)
        with pytest.raises(UserError, match="evil.pth"):
            load_checkpoint("evil.pth")
        assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}", None])
def test_bad_checkpoints_are_one_line(tmp_path, content):
    path = tmp_path / "model.pth"
    if content is None:
        torch.save({"weights": 1}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="model.pth"):
        load_checkpoint(path)


def test_devices():
    device, dtype = pick_device("cpu", amp=True)
    assert device.type == "cpu" and dtype in (None, torch.bfloat16)
    assert pick_device("cpu", amp=False)[1] is None
    with autocast(device, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_every_option_of_every_script_says_what_it_means():
    for path in sorted(ROOT.glob("*.py")):
        module = __import__(path.stem)
        if hasattr(module, "main") and hasattr(module, "configure"):
            for name, (_, comment) in constants(vars(module)).items():
                assert comment, (path.name, name)
