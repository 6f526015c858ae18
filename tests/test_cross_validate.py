import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_error_line

import common
import cross_validate
import train_3d
from dataset import list_cases, split_cases


@pytest.fixture
def folds(monkeypatch):
    """Replaces the training by one that writes made-up results at once; the folds that it was asked for."""
    asked = []

    def run(cfg):
        asked.append(cfg.fold)
        _, val = split_cases(list_cases(cfg.data_root)[0], cfg.fold)
        values = {
            "nsd_1mm": [1.0, 1.0],
            "hd95_mm": [1.0, 2.0],
            "volume_mm3": [90.0, 80.0],
            "true_volume_mm3": [100.0, 80.0],
        }
        cases = {case.id: {"dice": [0.9 - 0.01 * cfg.fold, 0.8], **values} for case in val}
        content = {
            "synthetic": True,
            "cases": cases,
            "tta": True,
            "training_minutes": 1.5,
            "mean": {"dice": [0.9, 0.8]},
        }
        common.save_json(Path(cfg.out_dir) / "metrics.json", content)

    monkeypatch.setattr(train_3d, "run", run)
    return asked


def test_all_cases_are_scored_once(script, phantoms, tmp_path, folds):
    peer = tmp_path / "peer.csv"
    peer.write_text("case_id,argmax_foreground_mean_dice\n" + "".join(f"phantom_00{i},0.8\n" for i in range(1, 9)))
    where = [
        f"--data_root={phantoms}",
        f"--runs={tmp_path / 'runs'}",
        f"--out_dir={tmp_path / 'out'}",
        f"--peer={peer}",
    ]
    code, out, err = script(cross_validate, *where, "--folds=[0,1,2]")
    assert code == 0 and "fold_3" in out and not (tmp_path / "out").exists(), err
    code, out, err = script(cross_validate, *where, "--folds=[3,4]")
    assert code == 0 and folds == [0, 1, 2, 3, 4], err
    result = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert list(result["cases"]) == [f"phantom_00{i}" for i in range(1, 9)]
    for case, values in result["cases"].items():
        _, val = split_cases([c.id for c in list_cases(phantoms)[0]], values["fold"])
        assert case in val and values["dice"][0] == pytest.approx(0.9 - 0.01 * values["fold"])
    scores = [np.mean(v["dice"]) for v in result["cases"].values()]
    assert (
        result["interval"]["mean"] == pytest.approx(np.mean(scores)) == pytest.approx(np.mean(result["mean"]["dice"]))
    )
    assert result["difference"]["mean"] == pytest.approx(np.mean(scores) - 0.8) and result["difference"]["cases"] == 8
    assert f"{np.mean(scores):.4f}" in out
    script(cross_validate, *where)
    assert not list((tmp_path / "out").glob("*.previous-*"))
    (tmp_path / "out" / "cross_validation.json").write_text("{}")
    script(cross_validate, *where)
    assert (tmp_path / "out" / "cross_validation.previous-1.json").read_text() == "{}"
    names = {p.name for p in (tmp_path / "out" / "plots").iterdir()}
    assert names == {f"cross_validation_{n}.png" for n in ("peer", "worst", "volumes")}


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.88, 0.03, 260)
    result = cross_validate.bootstrap(values, 0)
    error = values.std() / 260**0.5
    assert np.allclose(result["interval"], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.3 * error)


def test_nnunets_figures_are_there():
    peer = cross_validate.read_peer(ROOT / cross_validate.PEER)
    assert len(peer) == 260 and np.mean(list(peer.values())) == pytest.approx(0.8891, abs=5e-5)


@pytest.mark.parametrize("options, words", [(["--folds=[5]"], ["0 to 4"]), (["--peer=none.csv"], ["none.csv"])])
def test_mistakes(script, phantoms, tmp_path, options, words):
    one_error_line(script(cross_validate, f"--data_root={phantoms}", f"--runs={tmp_path / 'runs'}", *options), *words)
    assert not (tmp_path / "runs").exists()
