import json
import shutil
from pathlib import Path

import data_aug
import grid_search
import grid_search_3d
import train_3d
from hippo.files import save_json
from hippo.options import configure
from hippo.pictures import plots
from hippo.training import search
from tools import ablations

import pytest
from conftest import one_error_line
from runs import has_colour

SMALL = ("--base_channels=2", "--unet_depth=2", "--inr_hidden_dim=[8]", "--epochs=1", "--min_steps=1")
SMALL_3D = (*SMALL, "--patch=[24,32,24]", "--batch_size=4", "--max_cases=5")


def entries(out_dir):
    return json.loads((out_dir / search.RESULTS).read_text())


@pytest.mark.parametrize(
    "script, start, end",
    [(grid_search, "nnUNet_BC32_D4_", "_LR1e-04_WD1e-05"), (grid_search_3d, "nnUNet_BC16_D2_", "_LR3e-03_WD1e-02")],
)
def test_the_default_grid_has_no_redundant_points(script, start, end):
    points = list(search.grid_points(configure(vars(script), [], seeds=[0])))
    assert points == [start + v + end for v in ("NoINR", "INR32", "INR48", "INR64")] + [f"{start}NoINR{end}_DS"]
    both = list(search.grid_points(configure(vars(script), [], seeds=[0, 1])))
    assert both == points + [f"{key}_S1" for key in points]


def test_each_point_has_a_key_of_its_own():
    cfg = configure(vars(grid_search), [], learning_rate=[1e-4, 1.2e-4, 1.4e-4], base_channels=[16, 32])
    assert len(search.grid_points(cfg)) == 2 * 3 * 5


def test_attention_and_models_are_points_of_their_own(script, phantoms, tmp_path, trained):
    """One more point each, without INR; another network has its own recipe, and is compared with the plain U-Net."""
    axes = ("--attention=['none','se','cbam']", "--model=['UNet3DWithINR','UNETR']", "--deep_supervision=False")
    command = (*SMALL_3D, *axes, "--seeds=[0]", f"--data_root={phantoms}", f"--out_dir={tmp_path / 'search'}")
    code, out, err = script(grid_search_3d, *command)
    assert code == 0, err
    start, end = "nnUNet_BC2_D2_NoINR", "_LR3e-03_WD1e-02"
    own = [start + end, f"nnUNet_BC2_D2_INR8{end}", f"{start}{end}_SE", f"{start}{end}_CBAM", "nnUNet_NoINR_UNETR"]
    found = entries(tmp_path / "search")
    assert list(found) == own
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| No INR", "| INR-8", "| SE", "| CBAM", "| UNETR"]
    assert rows[0][-1].startswith("–") and all("(" in row[-1] for row in rows[1:])
    cfg = configure(vars(grid_search_3d), [], model=["UNETR"], attention=["se"], seeds=[0])
    (key, point), *_ = search.grid_points(cfg).items()
    run = search.training_config(cfg, train_3d, key, point)
    assert (run.recipe, run.model, run.attention) == ("unetr", "UNETR", "none")
    assert run.learning_rate == train_3d.RECIPES["unetr"]["learning_rate"] and run.epochs == grid_search_3d.EPOCHS


def test_a_search_of_before_these_axes_goes_on(script, phantoms, tmp_path, trained):
    command = (*SMALL_3D, "--seeds=[0]", f"--data_root={phantoms}", f"--out_dir={tmp_path / 'search'}")
    script(grid_search_3d, *command)
    path = tmp_path / "search" / "search.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("ATTENTION", "MODEL")}
    (tmp_path / "search" / search.FIGURE).unlink()  # as if it were not finished
    found = {
        k: {**v, "config": {n: x for n, x in v["config"].items() if n not in ("attention", "model")}}
        for k, v in entries(tmp_path / "search").items()
    }
    save_json(path, settings)
    save_json(tmp_path / "search" / search.RESULTS, found)
    shutil.rmtree(tmp_path / "search" / "points")
    code, out, err = script(grid_search_3d, *command)
    assert code == 0 and out.count("is done already") == 3 and list(tmp_path.iterdir()) == [tmp_path / "search"], err


def test_a_search_in_3d(script, phantoms, tmp_path):
    out_dir = tmp_path / "search"
    command = (*SMALL_3D, "--seeds=[3]", f"--data_root={phantoms}", f"--out_dir={out_dir}")
    code, out, err = script(grid_search_3d, *command)
    assert code == 0, err
    found = entries(out_dir)
    keys = [f"nnUNet_BC2_D2_{v}_LR3e-03_WD1e-02" for v in ("NoINR", "INR8")] + [
        "nnUNet_BC2_D2_NoINR_LR3e-03_WD1e-02_DS"
    ]
    assert list(found) == [f"{key}_S3" for key in keys]
    for key, entry in found.items():
        assert entry["config"]["use_inr"] == ("INR8" in key) and entry["seed"] == 3
        for name in ("final_train_dice", "final_val_dice", "best_val_dice", "training_time"):
            assert isinstance(entry[name], float)
        assert entry["parameters"] > 0 and entry["best_epoch"] == 1 and len(entry["dice"]) == len(entry["nsd_1mm"]) == 2
        metrics = json.loads((out_dir / "runs" / key / "metrics.json").read_text())
        assert entry["dice"] == metrics["mean"]["dice"]
        config = json.loads((out_dir / "runs" / key / "config.json").read_text())["constants"]
        assert config["DEEP_SUPERVISION"] == key.removesuffix("_S3").endswith("DS") and config["UNET_DEPTH"] == 2
        assert config["SEED"] == entry["seed"] and config["EPOCHS"] == 1
    figure = out_dir / search.FIGURE
    assert has_colour(figure, plots.COLOURS[1]) and has_colour(figure, plots._CONFIGURATIONS[2])  # three groups
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| No INR", "| INR-8", "| No INR, deep supervision"]


def test_one_point_in_2d(script, phantoms, tmp_path):
    slices, out_dir = tmp_path / "slices", tmp_path / "search"
    script(data_aug, "--size=32", "--slices_per_plane=3", f"--data_root={phantoms}", f"--out_dir={slices}")
    key = "nnUNet_BC2_D2_INR8_LR1e-04_WD1e-05"
    where = (f"--data_root={phantoms}", f"--data_dir={slices}", f"--out_dir={out_dir}", "--max_cases=0")
    code, _, err = script(grid_search, *SMALL, *where, f"--only={key}")
    assert code == 0, err
    assert [p.stem for p in (out_dir / "points").iterdir()] == [key] and not (out_dir / search.RESULTS).exists()
    code, out, _ = script(grid_search, *SMALL, *where, "--collect=True")
    assert code == 0 and list(entries(out_dir)) == [key] and "2 of 3 points are not there yet" in out
    config = json.loads((out_dir / "runs" / key / "config.json").read_text())
    assert config["model"]["args"]["base_channels"] == 2 and config["model"]["args"]["use_inr"]
    assert set(entries(out_dir)[key]["slices"]) == {"dice", "nsd_1mm", "dice_original", "nsd_1mm_original"}


# ---- what happens when something breaks: with a stand-in for the training


@pytest.fixture
def trained(monkeypatch):
    """Replaces the training by one that writes made-up results at once; the keys of its runs, in order."""
    keys = []

    def run(cfg):
        out_dir = Path(cfg.out_dir)
        keys.append(out_dir.name)
        if cfg.use_inr and run.broken:
            raise run.broken
        dice = [0.8 + 0.01 * cfg.seed, 0.7]
        history = {"train_dice": [dice], "val_dice": [dice], "seconds": [2.5]}
        save_json(out_dir / "history.json", history)
        save_json(out_dir / "config.json", {"parameters": 1000})
        scores = {"dice": dice, "nsd_1mm": dice}
        cases = {f"case_{i}": {"dice": [d + 0.01 * i for d in dice]} for i in range(3)}
        return {"synthetic": True, "mean": scores, "std": scores, "cases": cases}

    run.broken, keys_and_run = None, (keys, run)
    monkeypatch.setattr(train_3d, "run", run)
    return keys_and_run


def test_a_broken_off_search_goes_on_and_a_finished_one_is_kept(script, phantoms, tmp_path, trained):
    keys, run = trained
    out_dir = tmp_path / "search"
    command = (*SMALL_3D, "--seeds=0", f"--data_root={phantoms}", f"--out_dir={out_dir}")
    run.broken = KeyboardInterrupt()
    assert script(grid_search_3d, *command)[0] == 130
    assert len(keys) == 2 and list(entries(out_dir)) == keys[:1]
    run.broken = None
    code, out, _ = script(grid_search_3d, *command)
    assert code == 0 and len(keys) == 4 and f"{keys[0]} is done already" in out and len(entries(out_dir)) == 3
    code, out, _ = script(grid_search_3d, *command)
    assert code == 0 and len(keys) == 7 and "search.previous-1" in out
    assert len(entries(tmp_path / "search.previous-1")) == 3


def test_a_search_with_other_settings_is_kept_aside(script, phantoms, tmp_path, trained):
    out_dir = tmp_path / "search"
    command = (*SMALL_3D, "--seeds=0", f"--data_root={phantoms}", f"--out_dir={out_dir}")
    trained[1].broken = KeyboardInterrupt()
    script(grid_search_3d, *command)
    script(grid_search_3d, *command, "--epochs=2")
    assert len(entries(tmp_path / "search.previous-1")) == 1
    one_error_line(
        script(grid_search_3d, *command, "--only=nnUNet_BC2_D2_NoINR_LR3e-03_WD1e-02"), "other settings", "--out_dir"
    )


def test_a_point_that_fails_is_recorded_and_tried_again(script, phantoms, tmp_path, trained):
    keys, run = trained
    out_dir = tmp_path / "search"
    command = (*SMALL_3D, "--seeds=0", f"--data_root={phantoms}", f"--out_dir={out_dir}")
    run.broken = RuntimeError("out of\nmemory")
    result = script(grid_search_3d, *command)
    one_error_line(result, "INR8", "RuntimeError: out of memory", "tries it again")
    found = entries(out_dir)
    assert len(found) == 3 and [key for key in found if "error" in found[key]] == [keys[1]]
    assert found[keys[1]]["config"]["inr_hidden_dim"] == 8
    run.broken = None
    assert script(grid_search_3d, *command)[0] == 0 and keys[3:] == [keys[1]]
    assert not any("error" in entry for entry in entries(out_dir).values())


def test_single_points_and_collecting_give_what_one_search_gives(script, phantoms, tmp_path, trained):
    command = (*SMALL_3D, "--seeds=[0,1]", f"--data_root={phantoms}")
    code, listed, _ = script(grid_search_3d, *command, "--only=list")
    assert code == 0 and len(listed.split()) == 6
    for key in reversed(listed.split()):
        assert script(grid_search_3d, *command, f"--out_dir={tmp_path / 'parts'}", f"--only={key}")[0] == 0
    assert script(grid_search_3d, *command, f"--out_dir={tmp_path / 'parts'}", "--collect=True")[0] == 0
    assert script(grid_search_3d, *command, f"--out_dir={tmp_path / 'whole'}")[0] == 0
    assert list(entries(tmp_path / "parts").items()) == list(entries(tmp_path / "whole").items())


@pytest.mark.parametrize(
    "options, words",
    [
        (["--only=nnUNet_BC2_D2_INR8_LR3e-03"], ["did you mean nnUNet_BC2_D2_INR8_LR3e-03_WD1e-02"]),
        (["--collect=True"], ["no results to collect"]),
        (["--epochs=0"], ["--epochs=0"]),
        (["--use_inr=[]", "--deep_supervision=False"], ["the grid is empty"]),
        (["--data_root=nowhere"], ["nowhere", "get_data.py"]),
        (["--fold=-2"], ["holds no case out"]),
        (["--seed=1"], ["--seeds"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(script, phantoms, tmp_path, options, words):
    out_dir = tmp_path / "search"
    result = script(grid_search_3d, *SMALL_3D, f"--data_root={phantoms}", f"--out_dir={out_dir}", *options)
    one_error_line(result, *words)
    assert not out_dir.exists()


def test_slices_that_are_missing_are_one_line(script, tmp_path):
    result = script(grid_search, f"--data_dir={tmp_path / 'none'}", f"--out_dir={tmp_path / 'search'}")
    one_error_line(result, "data_aug.py")
    assert not (tmp_path / "search").exists()


def test_networks_at_equal_epochs_and_at_equal_minutes(tmp_path, monkeypatch):
    """The points of each search, and as many epochs as come closest to the minutes of the first network."""
    minutes, asked = {"INR64": 2.0, "_SE": 1.05, "CBAM": 3.9, "UNETR": 1.9}, []

    def fake(commands, workers):
        for options in (dict(word[2:].split("=", 1) for word in command[2:]) for command in commands):
            if "only" in options:
                key, cost = options["only"], [cost for name, cost in minutes.items() if name in options["only"]]
                entry = {"dice": [0.8, 0.8], "training_time": int(options["epochs"]) * (cost or [1.0])[0]}
                save_json(Path(options["out_dir"]) / "points" / f"{key}.json", entry)
                asked.append((Path(options["out_dir"]).name, key, int(options["epochs"])))

    monkeypatch.setattr(ablations, "run_all", fake)
    cfg = configure(vars(ablations), [], networks=str(tmp_path / "networks"), seeds=[0, 1])
    assert ablations.compare_networks(cfg) == {"inr": 4, "cbam": 2, "unetr": 4}  # squeeze-and-excitation: all 8 epochs
    equal = [(key, epochs) for folder, key, epochs in asked if folder == "networks"]
    assert len(set(equal)) == 10 and {epochs for _, epochs in equal} == {8}
    others = {folder: {k.removesuffix("_S1") for f, k, _ in asked if f == folder} for folder, _, _ in asked[10:]}
    assert [len(keys) for keys in others.values()] == [1, 1, 1] and "UNETR" in min(others["networks_minutes_unetr"])
    asked.clear()
    ablations.compare_networks(cfg)
    assert asked == []  # all is done
