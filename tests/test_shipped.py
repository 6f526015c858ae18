"""The shipped models: their files, and what they score on the real volumes."""

import csv
import json

import predict
from hippo.data.cases import list_cases, load_volumes
from hippo.heads.flags import FLAGS
from hippo.heads.locate import ETIV_POWER, ETIV_SCALE
from hippo.models.checkpoint import load_checkpoint, load_model
from hippo.models.inference import predict_volume
from hippo.scoring.metrics import dice
from tools.stability import table

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT

HELD_OUT = ROOT / "pretrained/hippocampus_3d.pth"  # of FOLD=-1, for the 52 cases that they did not see
HELD_OUT_2D = ROOT / "pretrained/hippocampus_2d.pth"
ANY_CONTRAST = ROOT / predict.ANY_CONTRAST


def rows_of(folder):
    with open(folder / "volumes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_models_of_heads():
    """Small, of half precision, trained on all cases, and ready to use."""
    for path in (predict.CHECKPOINT, predict.PARTNER, predict.ANY_CONTRAST):
        content = load_checkpoint(ROOT / path)
        weights = content["model_state_dict"].values()
        assert (ROOT / path).stat().st_size < 4e6 and {v.dtype for v in weights} == {torch.float16}
        assert content["fold"] == -2 and len(content["train_cases"]) == 260 and content["val_cases"] == []
        assert not content["synthetic"] and "training" not in content
        load_model(ROOT / path)


@pytest.mark.parametrize("path", [HELD_OUT, HELD_OUT_2D], ids=["3d", "2d"])
def test_the_models_of_the_default_split(path):
    """Small, of half precision, trained on FOLD=-1's training cases only, and ready to use."""
    content = load_checkpoint(path)
    assert path.stat().st_size < 4e6 and {v.dtype for v in content["model_state_dict"].values()} == {torch.float16}
    assert (
        content["fold"] == -1 and len(content["train_cases"]) == 208 and max(content["train_cases"]) < "hippocampus_322"
    )
    assert not content["synthetic"] and "training" not in content
    load_model(path)


@pytest.mark.data
@pytest.mark.parametrize("folder, partner", [("3d", ""), ("ensemble", HELD_OUT_2D)])
def test_the_shipped_models_give_the_committed_results(script, tmp_path, folder, partner):
    """The Dice of their NIfTI files for every 16th of the 52 held-out volumes is that of metrics.json."""
    metrics = json.loads((ROOT / "results" / folder / "metrics.json").read_text())
    cases = [case for case in list_cases(ROOT / "Task04_Hippocampus")[0] if case.id in metrics["cases"]][::16]
    assert not set(metrics["cases"]) & set(load_checkpoint(HELD_OUT)["train_cases"])
    images = [case.image for case in cases]
    options = [f"--checkpoint={HELD_OUT}", f"--partner={partner}", f"--tta={metrics['tta']}", "--pictures=False"]
    options += ["--side=left"] if partner else []  # the first run finds the sides
    code, _, err = script(predict, *options, f"--out_dir={tmp_path / 'out'}", *images)
    assert code == 0, err
    assert {row["side"] for row in rows_of(tmp_path / "out")} == {"left"}
    scores = []
    for case in cases:
        truth, prediction = (
            np.asarray(nib.load(p).dataobj) for p in (case.label, tmp_path / "out" / f"{case.id}_seg.nii.gz")
        )
        scores.append([dice(prediction == label, truth == label) for label in (1, 2)])
    published = [metrics["cases"][case.id]["dice"] for case in cases]
    assert np.mean(scores, axis=0) == pytest.approx(np.mean(published, axis=0), abs=1e-3)


def test_the_shipped_locator():
    assert (ROOT / predict.LOCATE).stat().st_size < 1e6
    (locating,) = json.loads((ROOT / "results/locating.json").read_text()).values()
    assert pytest.approx((locating["etiv"]["scale"], locating["etiv"]["power"]), abs=0.006) == (ETIV_SCALE, ETIV_POWER)
    heads = json.loads((ROOT / "results/skull.json").read_text())["heads"].values()
    ratios = [np.mean([h[kind]["etiv_mm3"] / h["intracranial_mm3"] for h in heads]) for kind in ("whole head", "brain")]
    assert ratios == pytest.approx([1, 1], abs=0.04) and ratios[0] == pytest.approx(ratios[1], abs=0.02)  # one scale


@pytest.mark.data
def test_a_crops_side_and_its_mirror_image(script, nifti, tmp_path):
    """Task04's crops show what looks like a left hippocampus; mirrored, a right one with the same volumes."""
    source = nib.load(ROOT / "Task04_Hippocampus/imagesTr/hippocampus_338.nii.gz")
    array = np.asarray(source.dataobj)
    files = nifti("as_it_is.nii.gz", array), nifti("mirrored.nii.gz", np.ascontiguousarray(array[::-1]))
    code, _, err = script(predict, *files, f"--out_dir={tmp_path / 'out'}")
    assert code == 0, err
    rows = rows_of(tmp_path / "out")
    assert [row["side"] for row in rows] == ["left", "right"] and not any(
        str(FLAGS["side_doubtful"]) in row["flags"] for row in rows
    )
    assert rows[0]["total_mm3"] == rows[1]["total_mm3"] and rows[0]["etiv_mm3"] == ""
    labels = [np.asarray(nib.load(tmp_path / "out" / f"{n}_seg.nii.gz").dataobj) for n in ("as_it_is", "mirrored")]
    assert np.array_equal(labels[0], labels[1][::-1]) and set(np.unique(labels[0])) == {0, 1, 2}
    assert (tmp_path / "out" / "mirrored_hippocampus.png").is_file()


@pytest.mark.promise("contrasts")
@pytest.mark.data
def test_an_inverted_crop_is_for_the_model_of_any_contrast(script, nifti, tmp_path):
    """The choice, and that the models of T1 alone do not pass without a word on another contrast."""
    source = ROOT / "Task04_Hippocampus/imagesTr/hippocampus_338.nii.gz"
    truth = np.asarray(nib.load(str(source).replace("imagesTr", "labelsTr")).dataobj) > 0
    array = np.asarray(nib.load(source).dataobj)
    plain, inverted = nifti("plain.nii.gz", array), nifti("inverted.nii.gz", array.max() - array)
    rows = {}
    for contrast in ("auto", "t1", "any"):
        out = tmp_path / contrast
        scans = (plain, inverted) if contrast == "auto" else (inverted,)
        script(predict, *scans, f"--out_dir={out}", f"--contrast={contrast}", "--pictures=False")
        rows[contrast] = rows_of(out)
        for scan in scans if contrast != "t1" else ():
            found = np.asarray(nib.load(out / scan.name.replace(".nii.gz", "_seg.nii.gz")).dataobj)
            assert dice(found > 0, truth) > 0.85
    (as_it_is, other), (doubtful,), (by_any,) = rows["auto"], rows["t1"], rows["any"]
    assert as_it_is["model"] == "heads_3d.pth+heads_2d.pth" and "contrast" not in as_it_is["flags"]
    assert other["model"] == by_any["model"] == "any_contrast.pth"
    assert "any_contrast" in other["flags"] and "any_contrast" in by_any["flags"]
    assert "contrast_doubtful" in doubtful["flags"] or "failed" in doubtful["flags"]


@pytest.mark.promise("contrasts")
@pytest.mark.data
def test_the_model_of_any_contrast_is_not_below_its_published_results():
    """On every eighth of 52 crops, as they are, inverted and through random tables. The published results are of a model
    of the same recipe that had not seen them; the shipped one has."""
    published = json.loads((ROOT / "results/any_contrast.json").read_text())["cases"]
    model, _ = load_model(ANY_CONTRAST)
    changes = {
        "as they are": lambda image, number: image,
        "inverted": lambda image, number: -image,
        "random tables": table,
    }
    for kind, change in changes.items():
        volumes = list(enumerate(load_volumes(ROOT / "Task04_Hippocampus", sorted(published[kind]["cases"]))))[::8]
        scores = {}
        for number, volume in volumes:
            probabilities = predict_volume(model, change(volume.image, number), torch.device("cpu"), None, tta=True)
            found = probabilities.argmax(0).numpy()
            scores[volume.id] = [dice(found == label, volume.label == label) for label in (1, 2)]
        expected = np.mean([published[kind]["cases"][name] for name in scores])
        assert expected - 0.005 < np.mean(list(scores.values())) < 0.95, kind
