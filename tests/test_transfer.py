"""Fine-tuning: other weights to begin with, frozen ones, and data sets that do not tell the parts apart."""

import csv
import io
import json
import shutil

import predict
import train2d
import train_3d
from hippo.models.checkpoint import load_checkpoint

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import one_error_line

SMALL = ("--base_channels=4", "--unet_depth=1", "--patch=[24,32,24]", "--epochs=1", "--min_steps=1", "--ema=0")


@pytest.fixture(scope="module")
def whole_only(phantoms, tmp_path_factory):
    """The phantoms, with the hippocampus as one label."""
    root = tmp_path_factory.mktemp("whole") / "data"
    shutil.copytree(phantoms, root)
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine), path)
    info = json.loads((root / "dataset.json").read_text())
    info["labels"] = {"0": "background", "1": "hippocampus"}
    (root / "dataset.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def parts(phantoms, tmp_path_factory):
    """A small network of both parts: last.pth."""
    out = tmp_path_factory.mktemp("parts") / "run"
    train_3d.run(train_3d.configure(vars(train_3d), [*SMALL, f"--data_root={phantoms}", f"--out_dir={out}"]))
    return out / "last.pth"


@pytest.mark.promise("fine_tuning")
def test_from_two_labels_to_one(script, whole_only, parts, tmp_path):
    """The body is kept, the head starts from the sum of both parts', and all files speak of one label."""
    out, how = tmp_path / "run", (*SMALL, f"--data_root={whole_only}", f"--init={parts}")
    code, text, err = script(
        train_3d, *how, f"--out_dir={out}", "--learning_rate=1e-12", "--muon_rate=0", "--weight_decay=0"
    )
    assert code == 0, err
    before, after = (load_checkpoint(path)["model_state_dict"] for path in (parts, out / "last.pth"))
    assert after["head.weight"].shape[0] == 2
    for key in before:
        if key.startswith("unet."):
            assert torch.allclose(before[key], after[key], atol=1e-6), key
    for key in ("head.weight", "head.bias"):
        assert torch.allclose(after[key][1], before[key][1] + before[key][2], atol=1e-6)
    metrics, history = (json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "history"))
    assert metrics["labels"] == ["hippocampus"] and len(metrics["mean"]["dice"]) == 1
    assert len(history["val_dice"][0]) == len(history["train_nsd"][0]) == 1 and "hippocampus" in text
    config = json.loads((out / "config.json").read_text())
    assert config["constants"]["INIT"] == str(parts) and config["data"]["labels"] == 1

    # predict.py with it: the whole hippocampus, FreeSurfer's numbers, no parts in the table
    crop = sorted((whole_only / "imagesTr").iterdir())[0]
    how = (f"--checkpoint={out / 'last.pth'}", "--partner=", "--side=left", f"--out_dir={tmp_path / 'predicted'}")
    code, text, err = script(predict, crop, *how)
    assert code == 0 and "tells no parts apart" in text, err
    row = next(csv.DictReader(io.StringIO((tmp_path / "predicted/volumes.csv").read_text())))
    assert float(row["total_mm3"]) > 0 and row["anterior_mm3"] == row["posterior_mm3"] == ""
    found = np.asarray(nib.load(tmp_path / "predicted" / f"{crop.name[:-7]}_seg.nii.gz").dataobj)
    assert set(np.unique(found)) == {0, 17} and float(row["total_mm3"]) == np.count_nonzero(found)
    one_error_line(script(predict, crop, how[0], *how[2:]), "heads_2d.pth", "it has other labels", "--partner=")
    one_error_line(script(predict, crop, *how, "--probabilities=True"), "need a model of both parts")


@pytest.mark.promise("fine_tuning")
def test_a_frozen_encoder_stays_as_it_is(script, phantoms, parts, tmp_path):
    out = tmp_path / "run"
    how = (*SMALL, f"--data_root={phantoms}", f"--init={parts}", "--freeze=encoder", f"--out_dir={out}")
    code, _, err = script(train_3d, *how)
    assert code == 0, err
    before, after = (load_checkpoint(path)["model_state_dict"] for path in (parts, out / "last.pth"))
    frozen = {key for key in before if torch.equal(before[key], after[key])}
    assert frozen == {key for key in before if key.startswith("unet.down.")}


def test_unetr_and_attention_train_and_freeze(script, phantoms, tmp_path):
    for name, options in (("unetr", ["--recipe=unetr"]), ("cbam", ["--attention=cbam", *SMALL[:2]])):
        out = tmp_path / name
        how = (*options, *SMALL[2:], f"--data_root={phantoms}", "--max_cases=5", "--tta=False")
        code, _, err = script(train_3d, *how, f"--out_dir={out}")
        assert code == 0, err
        code, _, err = script(train_3d, *how, f"--init={out / 'last.pth'}", "--freeze=encoder", f"--out_dir={out}_2")
        assert code == 0, err


def test_it_is_said_where_the_validation_cases_were_learned_from(script, phantoms, parts, tmp_path):
    code, text, err = script(
        train_3d, *SMALL, f"--data_root={phantoms}", f"--init={parts}", f"--out_dir={tmp_path / 'a'}", "--fold=0"
    )
    assert code == 0 and "validation cases were learned from by" in text, err
    code, text, err = script(
        train_3d, *SMALL, f"--data_root={phantoms}", f"--init={parts}", f"--out_dir={tmp_path / 'b'}"
    )
    assert code == 0 and "learned from" not in text, err


def test_in_2d(script, whole_only, tmp_path):
    import data_aug

    data, small = tmp_path / "slices", ("--epochs=1", "--min_steps=1", "--model=UNetnnUNetWithINR", "--base_channels=4")
    script(
        data_aug, f"--data_root={whole_only}", f"--out_dir={data}", "--size=32", "--slices_per_plane=2", "--max_cases=6"
    )
    how = (*small, "--unet_depth=2", f"--data_dir={data}", f"--data_root={whole_only}")
    code, _, err = script(train2d, *how, f"--out_dir={tmp_path / 'a'}")
    assert code == 0, err
    code, text, err = script(train2d, *how, f"--init={tmp_path / 'a' / 'last.pth'}", f"--out_dir={tmp_path / 'b'}")
    assert code == 0 and "heads anew: none" in text, err
    assert len(json.loads((tmp_path / "b" / "metrics.json").read_text())["mean"]["dice"]) == 1


def test_mistakes_are_one_line(script, phantoms, whole_only, parts, tmp_path):
    how = (f"--data_root={phantoms}", f"--out_dir={tmp_path / 'run'}")
    one_error_line(script(train_3d, *how, "--freeze=encoder"), "--freeze=encoder", "give --init=FILE")
    one_error_line(script(train_3d, *how, "--freeze=all"), "--freeze=all", "none, encoder")
    one_error_line(script(train_3d, *how, f"--init={parts}"), "base_channels 4", "--base_channels=4")
    one_error_line(script(train_3d, *how, "--model=UNETR", f"--init={parts}"), "--model=UNet3DWithINR")
    one_error_line(script(train_3d, *how, *SMALL, f"--init={parts}", "--attention=se"), "attention none", "not se")
    one_error_line(script(train_3d, *how, "--init=none.pth"), "none.pth", "no such checkpoint")
    odd = tmp_path / "odd.pth"
    for content in (
        {"model": 3, "model_state_dict": {}, "preprocessing": {}},
        {"model": {"name": "UNet3DWithINR", "args": {}}, "model_state_dict": 3, "preprocessing": {}},
    ):
        torch.save(content, odd)
        one_error_line(script(train_3d, *how, f"--init={odd}"), "odd.pth")
    one_error_line(script(train_3d, *how, "--attention=sum"), "--attention=sum", "none, se, cbam")
    one_error_line(script(train_3d, *how, "--model=UNETR", "--attention=se"), "--attention=se", "UNETR")
    wrong = tmp_path / "wrong"
    shutil.copytree(whole_only, wrong)
    info = json.loads((wrong / "dataset.json").read_text())
    for labels in ({"0": "background", "1": "a", "2": "b", "3": "c"}, {"1": "a"}, "many"):
        (wrong / "dataset.json").write_text(json.dumps(info | {"labels": labels}))
        one_error_line(script(train_3d, f"--data_root={wrong}", how[1]), "dataset.json", "expected labels")
    (wrong / "dataset.json").write_text(json.dumps(info))
    shutil.copy(next((phantoms / "labelsTr").iterdir()), wrong / "labelsTr")
    one_error_line(script(train_3d, f"--data_root={wrong}", how[1]), "expected the values 0 and 1")
