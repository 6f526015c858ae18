import json
import shutil
from pathlib import Path

import cross_validate
import data_aug
import train2d
import train_3d
from hippo.data.cases import list_cases, split_cases
from hippo.files import save_json
from hippo.options import configure
from hippo.pictures import plots

import numpy as np
import pytest
from conftest import ROOT, one_error_line
from runs import has_colour


@pytest.fixture
def jobs(monkeypatch):
    """Replaces the trainings by ones that write made-up results at once; the jobs that it was asked for."""
    asked = []

    def results(out_dir, fold, root, dice):
        _, val = split_cases(list_cases(root)[0], fold)
        values = {
            "nsd_1mm": [1.0, 1.0],
            "hd95_mm": [1.0, 2.0],
            "volume_mm3": [90.0 + 3 * fold, 80.0 - 2 * fold],
            "true_volume_mm3": [100.0, 80.0],
        }
        content = {
            "synthetic": True,
            "cases": {case.id: {"dice": [dice - 0.01 * fold, 0.8], **values} for case in val},
            "tta": True,
            "training_minutes": 1.5,
            "mean": {"dice": [dice, 0.8]},
        }
        save_json(Path(out_dir) / "metrics.json", content)

    def train(name, dice):
        def run(cfg):
            fold = int(Path(cfg.out_dir).parent.name.removeprefix("fold_"))
            asked.append(f"{name}-{cfg.seed} {fold}")
            config = {"constants": {key.upper(): value for key, value in vars(cfg).items()}, "data": {}}
            if name == "2d":
                config["data"]["slices"] = json.loads((Path(cfg.data_dir) / "settings.json").read_text())
            save_json(Path(cfg.out_dir) / "config.json", config)
            results(cfg.out_dir, fold, cfg.data_root, dice)

        return run

    def slices(cfg):
        Path(cfg.out_dir).mkdir(parents=True)
        (Path(cfg.out_dir) / "index.csv").write_text("")
        save_json(Path(cfg.out_dir) / "settings.json", {key.upper(): value for key, value in vars(cfg).items()})
        asked.append(f"slices {cfg.fold}")

    def together(runs, data_root, out_dir, tta, device, dtype, border):
        fold = int(Path(out_dir).parent.name.removeprefix("fold_"))
        names = [Path(folder).name for folder in runs]
        assert names == ["3d-0", "2d-0", "3d-1", "2d-1"][: len(names)] and len(names) > 1 and tta
        results(out_dir, fold, data_root, 0.9)
        path = Path(out_dir) / "metrics.json"
        parts = {run: json.loads((Path(run) / "metrics.json").read_text()) for run in runs}
        members = {run: part["mean"] for run, part in parts.items()}
        save_json(path, {**json.loads(path.read_text()), "members": members, "border": border})
        asked.append(f"together {fold}")

    monkeypatch.setattr(train_3d, "run", train("3d", 0.88))
    monkeypatch.setattr(train2d, "run", train("2d", 0.86))
    monkeypatch.setattr(data_aug, "run", slices)
    monkeypatch.setattr(cross_validate, "score_ensemble", together)
    return asked


@pytest.fixture
def where(phantoms, tmp_path):
    """The options of a cross-validation of the phantoms; the peer has 0.8 in each case."""
    peer = tmp_path / "peer.csv"
    peer.write_text("case_id,argmax_foreground_mean_dice\n" + "".join(f"phantom_00{i},0.8\n" for i in range(1, 9)))
    out_dir = f"--out_dir={tmp_path / 'out'}"
    return [f"--data_root={phantoms}", f"--runs={tmp_path / 'runs'}", out_dir, f"--peer={peer}"]


@pytest.fixture
def finished(script, where, jobs, tmp_path):
    """The options of a finished cross-validation, and its cross_validation.json."""
    code, _, err = script(cross_validate, *where)
    assert code == 0, err
    result = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    jobs.clear()
    return where, result


def test_folds_may_be_run_one_after_another(script, where, tmp_path, jobs):
    code, out, err = script(cross_validate, *where, "--folds=[0,1,2]")
    assert code == 0 and "fold_3" in out and not (tmp_path / "out").exists(), err
    code, out, err = script(cross_validate, *where, "--folds=[3,4]")
    assert code == 0 and jobs == [f"{job} {i}" for i in range(5) for job in ("3d-0", "slices", "2d-0", "together")], err
    assert not list((tmp_path / "runs").glob("*/slices"))


def test_each_case_is_scored_by_the_models_that_have_not_seen_it(finished, phantoms):
    _, result = finished
    assert list(result["cases"]) == [f"phantom_00{i}" for i in range(1, 9)]
    for case, values in result["cases"].items():
        _, val = split_cases([c.id for c in list_cases(phantoms)[0]], values["fold"])
        assert case in val and values["dice"][0] == pytest.approx(0.9 - 0.01 * values["fold"])


def test_means_and_differences_are_over_the_cases(finished):
    _, result = finished
    scores = [np.mean(v["dice"]) for v in result["cases"].values()]
    assert result["interval"]["mean"] == pytest.approx(np.mean(scores))
    assert np.mean(result["mean"]["dice"]) == pytest.approx(np.mean(scores))
    assert result["difference"]["mean"] == pytest.approx(np.mean(scores) - 0.8) and result["difference"]["cases"] == 8
    for name, dice in (("3d-0", 0.88), ("2d-0", 0.86)):
        alone = np.mean([dice - 0.01 * values["fold"] + 0.8 for values in result["cases"].values()]) / 2
        assert result["members"][name]["interval"]["mean"] == pytest.approx(alone)
        assert result["members"][name]["difference"]["mean"] == pytest.approx(alone - 0.8)
    assert result["gain"]["mean"] == pytest.approx(0.01)  # together, anterior: 0.9; 3D alone: 0.88


def test_a_finished_one_is_not_run_again(script, finished, tmp_path, jobs):
    where, _ = finished
    assert script(cross_validate, *where)[0] == 0
    assert not jobs and not list((tmp_path / "out").glob("*.previous-*"))


def test_folds_of_other_settings_are_refused(script, finished):
    where, _ = finished
    one_error_line(script(cross_validate, *where, "--epochs=3"), "fold_0", "--epochs")
    one_error_line(script(cross_validate, *where, "--slice_size=32"), "fold_0", "size")


def test_folds_from_before_a_constant_existed_are_taken(script, finished, tmp_path, jobs):
    where, _ = finished
    for path in (tmp_path / "runs").glob("fold_*/*d-0/config.json"):
        config = json.loads(path.read_text())
        del config["constants"]["INR_RATE"]
        save_json(path, config)
    code, _, err = script(cross_validate, *where)
    assert code == 0 and not jobs, err


def test_a_member_that_is_trained_again_is_scored_again(script, finished, tmp_path, jobs):
    where, _ = finished
    folder = tmp_path / "runs" / "fold_2"
    shutil.rmtree(folder / "3d-0")
    path = folder / "together_3d-0_2d-0" / "metrics.json"
    save_json(path, {**json.loads(path.read_text()), "members": {}})
    script(cross_validate, *where)
    assert jobs == ["3d-0 2", "together 2"]


def test_one_model_or_four(script, finished, tmp_path, jobs):
    where, _ = finished
    code, _, err = script(cross_validate, *where, "--epochs_2d=0", f"--out_dir={tmp_path / 'alone'}")
    assert code == 0 and not jobs, err
    assert list(json.loads((tmp_path / "alone" / "cross_validation.json").read_text())["members"]) == ["3d-0"]
    script(cross_validate, *where, "--seeds=[0,1]", f"--out_dir={tmp_path / 'two'}")
    assert jobs[:4] == ["3d-1 0", "slices 0", "2d-1 0", "together 0"] and len(jobs) == 20


def test_a_border_is_scored_anew(script, finished, tmp_path, jobs):
    where, _ = finished
    one_error_line(script(cross_validate, *where, "--border=plane", "--folds=[0]"), "fold_1", "--border=voxel")
    jobs.clear()
    (tmp_path / "runs" / "fold_0" / "together_3d-0_2d-0" / "metrics.json").unlink()
    assert script(cross_validate, *where, "--border=plane")[0] == 0 and jobs == [f"together {i}" for i in range(5)]


def test_the_ensemble_is_of_four_models_of_the_default_recipes(phantoms):
    cfg = configure(vars(cross_validate), ["--recipe=ensemble", f"--data_root={phantoms}"])
    options = [job for module, job in cross_validate.jobs(cfg, 0) if module is not data_aug]
    assert cross_validate.member_names(cfg) == ["3d-0", "2d-0", "3d-1", "2d-1"]
    assert [job["recipe"] for job in options] == ["crops", "short"] * 2
    assert {job["model"] for job in options[1::2]} == {"UNetnnUNetSmall"}


def test_another_result_is_set_aside(script, finished, tmp_path):
    where, _ = finished
    (tmp_path / "out" / "cross_validation.json").write_text("{}")
    script(cross_validate, *where)
    assert (tmp_path / "out" / "cross_validation.previous-1.json").read_text() == "{}"


def test_the_figures_of_a_cross_validation(finished, tmp_path):
    pictures = {p.stem: p for p in (tmp_path / "out" / "plots").iterdir()}
    assert set(pictures) == {f"cross_validation_{n}" for n in ("peer", "worst", "volumes")}
    for name, path in pictures.items():
        assert has_colour(path, plots.COLOURS[1] if name.endswith("peer") else plots.COLOURS[2]), name


def test_nnunets_figures_are_there():
    peer = cross_validate.read_peer(ROOT / cross_validate.PEER)
    assert len(peer) == 260 and np.mean(list(peer.values())) == pytest.approx(0.8891, abs=5e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--folds=[5]"], ["0 to 4"]),
        (["--peer=none.csv"], ["none.csv"]),
        ([f"--peer={__file__}"], ["case_id"]),
        (["--seeds=[0,0]"], ["each once"]),
        (["--epochs_2d=-1"], ["--epochs_2d"]),
        (["--slice_size=3"], ["--size=3"]),
        (["--border=line"], ["--border=line", "plane"]),
        (["--border=plane", "--epochs_2d=0"], ["--border=plane", "several models"]),
        (["--epochs=0"], ["--epochs=0"]),
    ],
)
def test_mistakes(script, phantoms, tmp_path, options, words):
    one_error_line(script(cross_validate, f"--data_root={phantoms}", f"--runs={tmp_path / 'runs'}", *options), *words)
    assert not (tmp_path / "runs").exists()


def test_the_recipe_of_heads_is_that_of_both_scripts():
    cfg = configure(vars(cross_validate), ["--recipe=heads"])
    assert cfg.out_dir == f"{cross_validate.OUT_DIR}_heads" and cfg.runs == f"{cross_validate.RUNS}_heads"
    (_, three), (_, two) = [job for job in cross_validate.jobs(cfg, 0) if job[0] is not cross_validate.data_aug]
    configurations = configure(vars(train_3d), [], **three), configure(vars(train2d), [], **two)
    for script, made in zip((train_3d, train2d), configurations):
        expected = {**script.RECIPES["heads"], "recipe": "heads", "fold": 0}
        assert {name: getattr(made, name) for name in expected if hasattr(made, name)}.items() <= expected.items()
        assert made.noise == script.RECIPES["heads"]["noise"] > 0
    plain = dict(cross_validate.jobs(configure(vars(cross_validate), []), 0))
    assert (
        plain[train2d]["recipe"] == "short" and configure(vars(train_3d), [], **plain[train_3d]).noise == train_3d.NOISE
    )


def test_the_first_cases_alone_in_folds_of_their_own():
    jobs = dict(cross_validate.jobs(configure(vars(cross_validate), ["--max_cases=200"]), 0))
    assert jobs[data_aug]["max_cases"] == jobs[train_3d]["max_cases"] == 200 and "max_cases" not in jobs[train2d]
