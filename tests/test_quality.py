"""The Dice to expect, what is flagged and refused, and how they were learned and measured."""

import json
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import predict
from hippo.heads import quality
from hippo.heads.picture import caption
from hippo.heads.quality import limits_of
from hippo.heads.segment import Hippocampus
from hippo.options import configure
from tools import quality as learning
from tools import simulate

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
    agreed = quality.collect_evidence([sure, sure], np.stack([sure] * 5), labels, [1600, 1700], sure)
    apart = quality.collect_evidence([sure, moved], np.stack([sure, *[moved] * 4]), labels, [100, 500], moved)
    assert agreed["models"] == agreed["views"] == agreed["contrast"] == agreed["component"] == 1
    assert all(apart[name] <= value for name, value in agreed.items())
    for name in ("models", "views", "contrast", "size", "expected"):
        assert apart[name] < agreed[name], name


@pytest.mark.promise("quality")
@pytest.mark.parametrize("kind", ["two_models", "one_model", "any_contrast"])
def test_less_agreement_never_raises_the_expected_dice(kind):
    coefficients = json.loads((ROOT / quality.COEFFICIENTS).read_text())[kind]
    assert 0.8 < coefficients["most"] <= 1 and all(weight > 0 for _, _, weight in coefficients["steps"])
    best = {name: 1.0 for name, _, _ in coefficients["steps"]}
    assert quality.predict_dice(best, kind) == coefficients["most"]
    for name in best:
        values = [quality.predict_dice({**best, name: value}, kind) for value in (1.0, 0.9, 0.5, 0.0, -5.0)]
        assert values == sorted(values, reverse=True) and 0 <= values[-1] < values[0], name


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
    """Observations whose Dice is 0.9, less what two kinds of evidence take away, and noise."""
    rng = np.random.default_rng(seed)
    names = ("clean", "noise", "blur")
    for i in range(n):
        views, contrast = 1 - rng.uniform(0, 0.5, 2) * (i % 3 > 0)
        loss = 0.8 * max(0, 0.9 - views) + 0.5 * max(0, 0.95 - contrast)
        evidence = {name: rng.uniform(0.8, 1) for name in ["confidence", *learning._EVIDENCE["two_models"]]}
        evidence |= {"views": views, "contrast": contrast}
        truth = float(np.clip(0.9 - loss + rng.normal(0, 0.01), 0, 1))
        yield {"case": f"c{i % 40}", "fold": i % 5, "degradation": names[i % 3], "dice": truth, "evidence": evidence}


def test_the_fit_finds_what_counts_and_predicts_it_of_folds_and_degradations_that_it_has_not_seen():
    rows, names = list(rows_like(600)), learning._EVIDENCE["two_models"]
    coefficients = learning.fit(rows, names)
    assert {"views", "contrast"} <= {name for name, _, _ in coefficients["steps"]}
    assert coefficients["most"] == pytest.approx(0.9, abs=0.02)
    predicted = learning.left_out(rows, names)
    result = learning.measure(rows, predicted)
    assert result["mae"]["mean"] < 0.02 and result["auroc"]["mean"] > 0.97 and result["failures"] > 20
    assert result["auroc_of_confidence"] < 0.7
    costs = result["thresholds"]
    assert costs[0.85]["bad_missed"] == 0 < costs[0.85]["good_flagged"] and costs[0.6]["good_flagged"] == 0
    assert np.allclose(
        learning.predict_all(coefficients, rows[:3], names),
        [
            np.clip(
                coefficients["most"] - sum(w * max(0, t - row["evidence"][n]) for n, t, w in coefficients["steps"]),
                0,
                1,
            )
            for row in rows[:3]
        ],
    )


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
        else:
            assert (moved == label).all() and not np.allclose(changed, image), name


@pytest.mark.slow
def test_from_runs_to_coefficients(script, whole, phantoms, tmp_path, monkeypatch):
    """The whole tool on runs of phantoms; its heads are made up."""
    for fold in range(5):
        for name, kind in (("3d-0", "3d"), ("2d-0", "2d")):
            folder = tmp_path / f"runs/fold_{fold}" / name
            folder.mkdir(parents=True)
            (folder / "last.pth").write_bytes((whole[kind] / "last.pth").read_bytes())
    found = {
        "sides": {
            "a left": {"quality": 0.8, "dice": 0.9, "flags": []},
            "a right": {"quality": 0.7, "dice": 0.8, "flags": []},
        }
    }
    monkeypatch.setattr(learning, "observe_heads", lambda *_: found)
    monkeypatch.setattr(learning.quality, "COEFFICIENTS", tmp_path / "coefficients.json")
    monkeypatch.setattr(learning, "ProcessPoolExecutor", lambda *_: ThreadPool(1))
    few = {name: simulate.DEGRADATIONS[name] for name in ("clean", "wrong side", "noise", "blur")}
    monkeypatch.setattr(learning, "DEGRADATIONS", few)
    monkeypatch.setattr(learning, "_HELD_OUT", whole["3d"] / "last.pth")
    options = (f"--data_root={phantoms}", f"--observations={tmp_path / 'seen'}", f"--out={tmp_path / 'out.json'}")
    one_error_line(script(learning, f"--runs={tmp_path / 'none'}", *options), "cross_validate.py --recipe=heads")
    code, _, err = script(learning, f"--runs={tmp_path / 'runs'}", f"--picture={tmp_path / 'a.png'}", *options)
    assert code == 0, err
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["sides"]["of"] == 1 and result["kinds"]["two_models"]["observations"] > 10
    assert json.loads((tmp_path / "coefficients.json").read_text()).keys() == {
        "two_models",
        "one_model",
        "any_contrast",
    }
