"""FOLD=-2: every case trains, none validates, for a model to ship."""

import json

import data_aug
import train2d
import train_3d
from hippo.data.cases import split_cases
from hippo.models.checkpoint import load_checkpoint
from hippo.options import configure
from hippo.training.state import HISTORY

import pytest
import torch
from runs import SMALL_2D, SMALL_3D, numbers


def test_all_cases_train():
    assert split_cases([1, 2, 3], -2) == ([1, 2, 3], [])


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """{dimensions: folder of a run on all cases}."""
    folder = tmp_path_factory.mktemp("all")
    options = [f"--data_root={phantoms}", "--fold=-2"]
    slices = ["--size=32", "--slices_per_plane=2", f"--out_dir={folder / 'slices'}", "--num_workers=1"]
    data_aug.run(configure(vars(data_aug), [*options, *slices]))
    train_3d.run(configure(vars(train_3d), [*SMALL_3D, *options, f"--out_dir={folder / '3d'}"]))
    options = [f"--data_root={phantoms}", f"--data_dir={folder / 'slices'}", f"--out_dir={folder / '2d'}"]
    train2d.run(configure(vars(train2d), [*SMALL_2D, *options]))
    return {"3d": folder / "3d", "2d": folder / "2d"}


@pytest.mark.promise("all_cases")
@pytest.mark.parametrize("kind, cases", [("3d", 5), ("2d", 8)])
def test_a_run_on_all_cases(finished, kind, cases):
    folder = finished[kind]
    metrics, history = (json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "history"))
    assert metrics["cases"] == {} and metrics["best"]["epoch"] == 3  # the newest weights count as the best
    assert (
        history.keys() == set(HISTORY)
        and history["val_dice"] == [[None, None]] * 3
        and history["val_loss"] == [None] * 3
    )
    assert all(value > 0 for value in history["train_loss"])
    last, best = (load_checkpoint(folder / name) for name in ("last.pth", "best_model.pth"))
    assert last["fold"] == -2 and last["val_cases"] == [] and len(last["train_cases"]) == cases
    assert all(torch.equal(last["model_state_dict"][k], v) for k, v in best["model_state_dict"].items())


@pytest.mark.promise("all_cases")
def test_an_unfinished_run_on_all_cases_goes_on(finished, script, phantoms):
    folder = finished["3d"]
    before = numbers(folder)
    (folder / "metrics.json").unlink()
    options = (*SMALL_3D, f"--data_root={phantoms}", "--fold=-2", f"--out_dir={folder}", "--resume=True")
    code, out, err = script(train_3d, *options)
    assert code == 0 and (folder / "metrics.json").is_file() and numbers(folder) == before, err
