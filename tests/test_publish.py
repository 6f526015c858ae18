"""Published results apart from runs: what a user runs leaves the repository clean; publishing is on purpose."""

import json
import shutil
import subprocess

import data_aug
import generate_architecture_diagram
import grid_search_3d
import predict
import train_3d
import viz
import viz_aug
from hippo.files import save_json
from hippo.options import configure
from hippo.training import search
from tools import publish

import pytest
from conftest import ROOT

SMALL = ("--base_channels=2", "--patch=[24,32,24]", "--max_cases=5", "--epochs=1", "--min_steps=1")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of the repository as it is now, with git; the working directory."""
    git = ["git", "-C", str(ROOT)]
    listing = [*git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listing, capture_output=True, text=True).stdout.split("\0")
    if not any(files):
        pytest.skip("no git here")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    monkeypatch.chdir(tmp_path / "clone")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    return tmp_path / "clone"


def git_status():
    return subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout


@pytest.mark.promise("clean")
def test_what_a_user_runs_leaves_the_repository_clean(clone, script, phantoms):
    """Every script with its default folders; twice where a folder is renamed the second time."""
    data = f"--data_root={phantoms}"
    grid = ("--base_channels=2", "--use_inr=[False]", "--deep_supervision=False", "--seeds=[0]", *SMALL[1:])
    for module, *options in (
        (train_3d, *SMALL, data),
        (train_3d, *SMALL, data),
        (data_aug, data, "--size=32", "--slices_per_plane=4", "--max_cases=5", "--num_workers=1"),
        (viz_aug,),
        (viz, data, "--case=phantom_005", "--interactive=False", "--checkpoint=results_hippocampus-3D/last.pth"),
        (grid_search_3d, *grid, data),
        (predict, phantoms / "imagesTr" / "phantom_001.nii.gz"),
        (generate_architecture_diagram,),
    ):
        code, _, err = script(module, *options)
        assert code == 0, err
    for name in ("results_hippocampus-3D.previous-1", "dataset2d_vis", "3D_vis_prediction.png", "predictions"):
        assert (clone / name).exists()
    assert git_status() == ""


def finished_run(folder, **changes):
    """Made-up files of a finished run of real data."""
    metrics = {"synthetic": False, "cases": {}, "mean": {"dice": [0.8, 0.7]}}
    config = {"constants": {"MAX_CASES": 0, "EPOCHS": 8, "DATA_ROOT": "elsewhere"}, "data": {}}
    config["environment"] = {"git_commit": "abc"}
    for name, content in (("metrics", metrics), ("config", config), ("history", {})):
        save_json(folder / f"{name}.json", {**content, **changes.get(name, {})})
    for name in ("dice_train_vs_val", "loss_train_vs_val", "val_nsd", "per_case_dice", "predictions"):
        (folder / "plots").mkdir(exist_ok=True)
        (folder / "plots" / f"{name}.png").write_bytes(name.encode())


def test_publishing_copies_json_and_pictures(clone, script, monkeypatch):
    monkeypatch.setattr(publish, "draw", lambda *folders: [])
    finished_run(clone / "results_hippocampus-3D")
    finished_run(clone / "ablations" / "3d_9_something_else")
    finished_run(clone / "ablations" / "3d_9_something_else.previous-1")
    save_json(clone / "benchmark.json", {"new": 1})
    code, out, err = script(publish)
    assert code == 0 and "not published: checkpoints-2d: no config.json in it" in out, err
    assert json.loads((clone / "results/3d/metrics.json").read_text())["mean"]["dice"] == [0.8, 0.7]
    assert (clone / "docs/pictures/3d_predictions.png").read_bytes() == b"predictions"
    assert sorted(p.name for p in (clone / "results/ablations/3d_9_something_else").iterdir()) == [
        "config.json",
        "history.json",
        "metrics.json",
    ]
    assert not list((clone / "results/ablations").glob("*.previous-*"))
    assert json.loads((clone / "results/benchmark.json").read_text()) == {"new": 1}
    changed = {line[3:] for line in git_status().splitlines()}
    assert changed and all(name.startswith(("results/", "docs/pictures/")) for name in changed)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"metrics": {"synthetic": True}}, "SYNTHETIC"),
        ({"config": {"constants": {"MAX_CASES": 40}}}, "40 cases only"),
        ({"config": {"constants": {"MAX_CASES": 0, "EPOCHS": 2}}}, "--epochs=2, not 8"),
    ],
)
def test_other_runs_are_not_published(clone, script, monkeypatch, changes, words):
    monkeypatch.setattr(publish, "draw", lambda *folders: [])
    finished_run(clone / "results_hippocampus-3D", **changes)
    code, out, err = script(publish)
    assert code == 0 and words in out and git_status() == "", err


@pytest.mark.parametrize(
    "settings, keys, words",
    [
        ({}, [], "points of this search are missing"),
        ({"EPOCHS": 1}, None, "other settings (EPOCHS)"),
        ({"MAX_CASES": 6}, None, "other settings (MAX_CASES)"),
    ],
)
def test_other_searches_are_not_published(clone, script, monkeypatch, settings, keys, words):
    monkeypatch.setattr(publish, "draw", lambda *folders: [])
    folder, cfg = clone / "finetuning_results-3d", configure(vars(grid_search_3d), [])
    points = search.grid_points(cfg) if keys is None else dict.fromkeys(keys)
    save_json(folder / "search.json", {**search.settings(cfg), **settings})
    save_json(folder / search.RESULTS, {key: {"synthetic": False} for key in points})
    (folder / search.FIGURE).write_bytes(b"figure")
    code, out, err = script(publish)
    assert code == 0 and words in out and git_status() == "", err
