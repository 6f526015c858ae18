"""The Dice to expect, what is flagged and refused, and how they were learned and measured."""

import json
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import predict
from hippo.data.cases import list_cases, load_volumes
from hippo.heads import quality
from hippo.heads.picture import caption
from hippo.heads.quality import limits_of
from hippo.heads.segment import Hippocampus
from hippo.options import configure
from tools import observations, simulate
from tools import quality as learning

import numpy as np
import pytest
from conftest import ROOT, one_error_line

LIMITS = quality.Limits(0.75, 0.5, 0.25, (1500, 6000), (300, 12_000))
GOOD = {"settled": 1.0, "inside_window": 1.0}


def side(mm3=3000, dice=0.85, name="left", **more):
    labels = np.zeros(12_000 + 1000, np.uint8)
    labels[:mm3] = 1
    return Hippocampus(name, "", dice, labels=labels.reshape(-1, 1, 1), **more)


def judged(*sides, strict=True):
    scan = SimpleNamespace(matrix=np.eye(3))
    return quality.judge(list(sides), scan, LIMITS, strict)


# ---- what is flagged


def test_evidence_of_what_agrees_and_of_what_does_not():
    labels = np.zeros((12, 20, 12), np.uint8)
    labels[3:9, 4:10, 3:9], labels[3:9, 10:16, 3:9] = 2, 1
    sure = np.stack([0.05 + 0.85 * (labels == part) for part in range(3)]).astype(np.float32)
    moved = np.roll(sure, 3, 1)
    agreed = quality.collect_evidence([sure, sure], np.stack([sure] * 5), labels, sure)
    apart = quality.collect_evidence([sure, moved], np.stack([sure, *[moved] * 4]), labels, moved)
    assert agreed["models"] == agreed["views"] == agreed["contrast"] == 1 and 0.8 < agreed["confidence"] < 1
    for name in ("models", "views", "contrast"):
        assert apart[name] < agreed[name], name
    assert quality.certainty(agreed) == (1 + agreed["confidence"]) / 2


@pytest.mark.promise("quality")
@pytest.mark.parametrize("kind", ["one_model", "two_models", "any_contrast"])
@pytest.mark.parametrize("name", ["confidence", "views"])
def test_less_agreement_never_raises_the_expected_dice(name, kind):
    fit = json.loads((ROOT / quality.FIT).read_text())[kind]
    for values in fit.values():
        assert values == sorted(values) and 0 <= values[0] < values[-1] < 1
    assert fit["dice"][-1] > 0.85 and len(fit["certainty"]) == len(fit["dice"])
    best = {"confidence": 1.0, "views": 1.0}
    values = [quality.predict_dice({**best, name: value}, kind) for value in (1.0, 0.95, 0.9, 0.5, 0.0)]
    assert values == sorted(values, reverse=True) and values[0] == fit["dice"][-1] and values[-1] < 0.5


@pytest.mark.promise("quality")
def test_flags_and_refusals():
    assert [s.flags for s in judged(side(), side(3300, name="right"))] == [(), ()]
    assert [s.flags for s in judged(side(2000), side(3000, name="right"))] == [("asymmetric",)] * 2
    assert judged(side(dice=0.74))[0].flags == ("low_quality",)
    assert judged(side(1400))[0].flags == judged(side(6100))[0].flags == ("implausible_volume",)
    assert "0.49" in judged(side(dice=0.49))[0].problem and "12500 mm3" in judged(side(12_500))[0].problem
    assert judged(side(dice=0.49), strict=False)[0].problem == ""
    failed = Hippocampus("right", "no right hippocampus found")
    assert judged(side(), failed)[1] == failed and judged(side(), failed)[0].flags == ()


@pytest.mark.promise("quality")
def test_the_thresholds_are_constants_of_predict(script, tmp_path, phantoms):
    cfg = configure(vars(predict), ["--low_quality=0.9", "--usual_mm3=[2000, 5000]"], inputs="scans")
    assert limits_of(cfg) == LIMITS._replace(low_quality=0.9, usual_mm3=[2000, 5000], possible_mm3=[300, 12_000])


def test_the_picture_says_it_in_words_and_colour():
    row = {"anterior_mm3": "1500", "posterior_mm3": "1600", "total_mm3": "3100", "flags": "sform_only"}
    texts, colours = zip(
        caption(side(), row),
        caption(side(), {**row, "flags": "sform_only;asymmetric"}),
        caption(side(dice=0.6), {**row, "flags": "low_quality"}),
        caption(Hippocampus("left", "no left hippocampus found"), row),
    )
    assert len({*colours}) == 3 and colours[2] == colours[3]
    assert "no doubts" in texts[0] and "0.85" in texts[0]
    assert "LOOK: asymmetric" in texts[1] and "DOUBTFUL: low_quality" in texts[2] and "FAILED, no left" in texts[3]


# ---- how it was learned


def rows_like(n, seed=0):
    """Observations whose Dice rises with the mean of two kinds of evidence up to 0.9, with noise."""
    rng = np.random.default_rng(seed)
    names = ("clean", "noise", "blur")
    for i in range(n):
        confidence, views = 1 - rng.uniform(0, 0.3, 2) * (i % 3 > 0)
        truth = float(np.clip(0.9 - 2 * max(0, 0.95 - (confidence + views) / 2) + rng.normal(0, 0.01), 0, 1))
        evidence = {"confidence": confidence, "views": views}
        row = {"case": f"c{i % 40}", "degradation": names[i % 3], "dice": truth, "evidence": evidence}
        yield row | {"problem": "", "flags": [], "volumes_mm3": [1500, 1500]}


def test_the_fit_finds_the_function_and_predicts_cases_and_degradations_that_it_has_not_seen():
    rows = list(rows_like(600))
    fit = learning.fit(rows)
    assert fit["dice"] == sorted(fit["dice"]) and fit["dice"][-1] == pytest.approx(0.9, abs=0.02)
    assert np.interp([0.8, 0.9], *fit.values()) == pytest.approx([0.6, 0.8], abs=0.02)
    predicted = learning.left_out(rows)
    result = learning.measure(rows, predicted, LIMITS)
    assert result["mae"]["mean"] < 0.03 and result["auroc"]["mean"] > 0.97 and result["failures"] > 20
    assert result["auroc"]["mean"] > max(result["auroc_of_parts"].values()) and result["green_failures"] < 0.05
    costs = result["thresholds"]
    assert costs[0.85]["bad_missed"] == 0 < costs[0.85]["good_flagged"] and costs[0.6]["good_flagged"] < 0.01


def test_what_is_green_has_no_flag_and_a_result():
    row = {"problem": "", "flags": [], "volumes_mm3": [1500, 1500]}
    assert learning.flags_of(row, 0.8, LIMITS) == []
    for change, value in (
        ({"problem": "none"}, 0.8),
        ({"flags": ["head_turned"]}, 0.8),
        ({"volumes_mm3": [1]}, 0.8),
        ({}, 0.7),
    ):
        assert learning.flags_of({**row, **change}, value, LIMITS)


def test_auroc():
    assert learning.auroc(np.array([3.0, 2, 1, 0]), np.array([True, True, False, False])) == 1
    assert learning.auroc(np.array([1.0, 1, 1, 1]), np.array([True, False, True, False])) == 0.5
    assert np.isnan(learning.auroc(np.array([1.0, 2]), np.array([False, False])))


def test_degradations_leave_labels_in_place():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 24, 18)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[8:12, 9:14, 7:11] = 1
    for name, change in simulate.DEGRADATIONS.items():
        changed, moved, centre = change(image, label, np.random.default_rng(1))
        assert changed.shape == moved.shape, name
        assert (6 <= np.linalg.norm(centre) <= 22) == (name == "shifted window"), name
        if name in ("wrong side", "upside down", "back to front", "cut", "clean", "shifted window"):
            assert set(np.unique(np.round(changed, 4))) <= set(np.unique(np.round(image, 4)))
        elif name == "lesion":
            assert not moved.any() and np.allclose(changed[0], image[0]) and not np.allclose(changed[10], image[10])
        else:
            assert (moved == label).all() and not np.allclose(changed, image), name


@pytest.mark.slow
def test_from_runs_to_coefficients(script, whole, phantoms, tmp_path, monkeypatch):
    """The whole tool on runs of phantoms; its heads are made up."""
    for name in observations._MODELS:
        folder = tmp_path / "runs/fold_0" / name
        folder.mkdir(parents=True)
        (folder / "last.pth").write_bytes((whole["3d"] / "last.pth").read_bytes())
    found = {
        "sides": {
            "a left": {"quality": 0.8, "dice": 0.9, "flags": []},
            "a right": {"quality": 0.7, "dice": 0.8, "flags": []},
        }
    }
    monkeypatch.setattr(learning, "observe_heads", lambda *_: found)
    monkeypatch.setattr(learning.quality, "FIT", tmp_path / "fit.json")
    monkeypatch.setattr(observations, "ProcessPoolExecutor", lambda *_: ThreadPool(1))
    few = {name: simulate.DEGRADATIONS[name] for name in ("clean", "wrong side", "noise", "blur")}
    monkeypatch.setattr(learning, "DEGRADATIONS", few)
    monkeypatch.setattr(observations, "DEGRADATIONS", few)
    everyone, observe, made_up = [case.id for case in list_cases(phantoms)[0]], observations.observe, rows_like(1000)
    monkeypatch.setattr(observations, "load_volumes", lambda root, _: load_volumes(root, everyone))
    # models of phantoms find next to nothing
    monkeypatch.setattr(observations, "observe", lambda *seen: observe(*seen) | {**next(made_up), "case": ""})
    options = (f"--data_root={phantoms}", f"--observations={tmp_path / 'seen'}", f"--out={tmp_path / 'out.json'}")
    one_error_line(script(learning, f"--runs={tmp_path / 'none'}", *options), "tools/quality.py")
    code, _, err = script(learning, f"--runs={tmp_path / 'runs'}", f"--picture={tmp_path / 'a.png'}", *options)
    assert code == 0, err
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["sides"]["of"] == len(everyone) and set(result["kinds"]) == {
        "one_model",
        "two_models",
        "any_contrast",
    }
    assert result["kinds"]["one_model"]["observations"] == 4 * len(everyone)
    fits = json.loads((tmp_path / "fit.json").read_text())
    assert fits.keys() == result["kinds"].keys() and fits["one_model"].keys() == {"certainty", "dice"}
