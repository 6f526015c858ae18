"""Runs scored together, and predict.py with two checkpoints."""

import json

import data_aug
import predict
import train2d
import train_3d
from hippo.data.cases import list_cases, load_case
from hippo.data.nifti import read_nifti
from hippo.data.spatial import largest_component
from hippo.device import pick_device
from hippo.models.checkpoint import load_model
from hippo.models.inference import decide, predict_volume
from hippo.options import configure
from hippo.scoring.ensemble import score_ensemble
from hippo.scoring.metrics import case_metrics
from tools import ablations

import numpy as np
import pytest
import torch
from conftest import one_error_line

SMALL = ("--base_channels=4", "--epochs=1", "--min_steps=1")


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """A 3D and a 2D run on the same split; not to be changed by a test."""
    folder, data = tmp_path_factory.mktemp("runs"), f"--data_root={phantoms}"
    options = [*SMALL, data, "--unet_depth=2", "--patch=[24,32,24]", f"--out_dir={folder / '3d'}"]
    train_3d.run(configure(vars(train_3d), options))
    options = ["--size=32", "--slices_per_plane=2", "--num_workers=1", data, f"--out_dir={folder / 'slices'}"]
    data_aug.run(configure(vars(data_aug), options))
    options = [*SMALL, data, "--model=UNetnnUNetWithINR", "--unet_depth=2", f"--out_dir={folder / '2d'}"]
    train2d.run(configure(vars(train2d), [*options, f"--data_dir={folder / 'slices'}"]))
    return folder


def test_the_border_as_the_likeliest_plane():
    logits = torch.randn(3, 9, 12, 7, generator=torch.Generator().manual_seed(0))
    logits[1] += torch.linspace(-2, 2, 12)[:, None]  # anterior in front
    p = logits.softmax(0)
    labels, plane = decide(p), decide(p, "plane")
    assert torch.equal(labels > 0, plane > 0) and not torch.equal(labels, plane)
    behind = torch.arange(12)[:, None]
    candidates = [torch.where(labels > 0, torch.where(behind < n, 2, 1), 0) for n in range(13)]
    likely = [sum((p[2, :, :n].sum(), p[1, :, n:].sum())).item() for n in range(13)]
    assert torch.equal(plane, candidates[int(np.argmax(likely))]) and 0 < np.argmax(likely) < 12
    assert set(decide(torch.stack([p[0], p[0] * 0, 1 - p[0]]), "plane").unique().tolist()) == {0, 2}  # no anterior part


def test_a_border_as_a_plane_is_scored_beside_that_of_each_voxel(runs, phantoms, tmp_path):
    folders = [str(runs / name) for name in ("3d", "2d")]
    plane, voxel = (
        score_ensemble(folders, phantoms, tmp_path / border, True, *pick_device("cpu"), border)
        for border in ("plane", "voxel")
    )
    for case, values in plane["cases"].items():
        assert values["dice_voxel_border"] == voxel["cases"][case]["dice"]
        assert values["dice_whole"] == voxel["cases"][case]["dice_whole"]
    assert "dice_voxel_border" not in voxel["mean"] and plane["border"] == "plane"


def test_probabilities_are_averaged(runs, phantoms, script, tmp_path):
    paths = [runs / name / "last.pth" for name in ("3d", "2d")]
    where = [f"--runs={[str(p.parent) for p in paths]}", f"--data_root={phantoms}", f"--out_dir={tmp_path / 'out'}"]
    code, out, err = script(ablations, "--only=ensemble", *where)
    assert code == 0 and "together" in out, err
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    parts = [json.loads((p.parent / "metrics.json").read_text()) for p in paths]
    assert list(result["cases"]) == list(parts[0]["cases"]) and result["synthetic"]
    assert list(result["members"].values()) == [part["mean"] for part in parts]
    assert result["training_minutes"] == pytest.approx(sum(part["training_minutes"] for part in parts))
    assert len(list((tmp_path / "out" / "plots").glob("*.png"))) == 2

    models, (device, dtype) = [load_model(path)[0] for path in paths], pick_device("cpu")
    case = next(case for case in list_cases(phantoms)[0] if case.id in result["cases"])
    volume = load_case(case)
    one, two, both = (predict_volume(m, volume.image, device, dtype, True) for m in (models[0], models[1], models))
    assert torch.allclose(both, (one + two) / 2, atol=1e-6) and not torch.equal(one, two)

    code, _, err = script(
        predict,
        case.image,
        f"--checkpoint={paths[0]}",
        f"--partner={paths[1]}",
        "--side=left",
        f"--out_dir={tmp_path / 'predictions'}",
    )
    assert code == 0, err
    array, _ = read_nifti(tmp_path / "predictions" / f"{case.id}_seg.nii.gz")
    expected = both.argmax(0).numpy()
    assert result["cases"][case.id]["dice"] == case_metrics(expected, volume.label, volume.spacing_mm)["dice"]
    assert np.array_equal(
        array, expected * largest_component(expected > 0)
    )  # predict.py leaves out the other components


def test_mistakes(runs, phantoms, script, tmp_path):
    out = f"--out_dir={tmp_path / 'out'}"
    one_error_line(script(ablations, "--only=ensemble", "--runs=['none']", out), "none", "train_3d.py")
    one_error_line(script(ablations, "--only=ensemble", "--runs=[]", out), "--runs")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.json").write_text("{}")
    (broken / "last.pth").write_bytes((runs / "3d" / "last.pth").read_bytes())
    one_error_line(script(ablations, "--only=ensemble", f"--runs={[str(broken)]}", out), "broken holds no finished run")
    options = [*SMALL, f"--data_root={phantoms}", "--unet_depth=2", "--patch=[24,32,24]", "--fold=0"]
    train_3d.run(configure(vars(train_3d), [*options, f"--out_dir={tmp_path / 'other'}"]))
    one_error_line(
        script(
            ablations,
            "--only=ensemble",
            f"--runs={[str(runs / '3d'), str(tmp_path / 'other')]}",
            f"--data_root={phantoms}",
            out,
        ),
        "other cases",
    )
    assert not (tmp_path / "out").exists()
