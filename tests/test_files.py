"""Files, folders, checkpoints and devices."""

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import predict
from hippo import device
from hippo.device import autocast, pick_device, set_up_device
from hippo.errors import UserError
from hippo.files import atomic, fresh_folder, machine, save_json, set_aside, work_folder
from hippo.models.checkpoint import load_checkpoint, load_model

import numpy as np
import pytest
import torch


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "result.json"
    save_json(path, {"a": float("nan"), "b": np.float32(1.5), "c": [np.int64(2), np.inf]})
    assert json.loads(path.read_text()) == {"a": None, "b": 1.5, "c": [2, None]}
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["b"] == 1.5 and list(tmp_path.iterdir()) == [path]


@pytest.mark.promise("files")
def test_threads_that_write_one_file_do_not_meet(tmp_path):
    """Each writes a file of its own beside the target; one whole content remains, and nothing else."""
    path, texts, seen = tmp_path / "result.txt", [str(n) * 100_000 for n in range(8)], set()
    barrier = threading.Barrier(len(texts))

    def write(text):
        for _ in range(5):
            with atomic(path, durable=False) as temporary:
                barrier.wait()  # all are in the block at once
                seen.add(temporary)
                temporary.write_text(text)
                barrier.wait()
                assert temporary.read_text() == text

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert len(seen) == len(texts) and path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_set_aside_takes_the_first_free_name(tmp_path):
    for n in range(2):
        (tmp_path / "data.json").write_text(str(n))
        (tmp_path / "v1.0").mkdir()
        for name in ("data.json", "v1.0", "absent"):
            set_aside(tmp_path / name)
    names = ["data.previous-1.json", "data.previous-2.json", "v1.0.previous-1", "v1.0.previous-2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "data.previous-2.json").read_text() == "1"


def test_fresh_folder_keeps_earlier_results(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    for n in range(3):
        fresh_folder(folder)
        assert not list(folder.iterdir())
        (folder / "run.txt").write_text(str(n))
    assert [(tmp_path / f"results.previous-{n + 1}" / "run.txt").read_text() for n in range(2)] == ["0", "1"]
    assert capsys.readouterr().out.count("was there before") == 2
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


def test_the_shipped_models_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, info = load_model(predict.CHECKPOINT)
    assert trained.preprocessing["flip_axes"] == "" and info["fold"] == -2
    with pytest.raises(UserError, match="no such checkpoint"):
        load_model("pretrained/none.pth")


def test_a_cuda_device_has_its_number(monkeypatch):
    """torch.cuda.set_device takes no device without one. CUDA itself is not here: torch's functions are replaced."""
    current = []
    answers = {"is_available": True, "current_device": 0, "get_device_name": "a GPU", "is_bf16_supported": False}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    for name in ("auto", "cuda", "cuda:0"):
        assert set_up_device(name) == (torch.device("cuda:0"), torch.float16)
    assert current == [torch.device("cuda:0")] * 3 and set_up_device("cuda", amp=False)[1] is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert pick_device("cuda")[1] == torch.bfloat16
    monkeypatch.setattr(device, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("cuda")[0] == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device=cuda:0 is one device"):
        pick_device("cuda:0")


def test_apples_gpu_is_taken_when_it_is_named(monkeypatch, capsys):
    """There is none here: the one function that asks for it is replaced."""
    with pytest.raises(UserError, match="--device=mps is not available here"):
        pick_device("mps")
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    assert set_up_device("mps") == (torch.device("mps"), None) and "Apple's GPU" in capsys.readouterr().out
    assert pick_device("auto")[0].type == "cpu"


def test_devices():
    cpu, dtype = pick_device("cpu", amp=True)
    assert cpu.type == "cpu" and dtype in (None, torch.bfloat16)
    assert pick_device("cpu", amp=False)[1] is None
    with autocast(cpu, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_work_folder_is_removed_and_so_are_those_of_killed_processes(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for pid in (int(dead.stdout), os.getppid()):
        (tmp_path / f".half-{machine()}-{pid}-x").mkdir()
    with pytest.raises(ZeroDivisionError), work_folder(tmp_path) as folder:
        (folder / "scan").write_text("x")
        assert 1 / 0
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [f".half-{machine()}-{os.getppid()}-x"] if os.name == "posix" else len(left) == 2
