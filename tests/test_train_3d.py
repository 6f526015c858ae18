import json
import shutil
from types import SimpleNamespace

import train_3d
from hippo.errors import UserError
from hippo.models.checkpoint import load_checkpoint
from hippo.models.inference import TrainedModel, make_preprocessing, predict_volume
from hippo.options import configure, constants
from hippo.pictures.plots import COLOURS

import numpy as np
import pytest
import torch
from conftest import one_error_line
from runs import has_colour

SMALL = ("--base_channels=4", "--unet_depth=2", "--patch=[24,32,24]", "--epochs=2", "--min_steps=1")
RUN = (*SMALL, "--use_inr=True", "--inr_hidden_dim=8", "--deep_supervision=True", "--ema=0.9", "--flip_axes=x")


def numbers(path):
    """history.json without the times."""
    history = json.loads((path / "history.json").read_text())
    return {name: values for name, values in history.items() if name != "seconds"}


def weights(path, key="model_state_dict"):
    return load_checkpoint(path)[key]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def run_folder(phantoms, tmp_path_factory):
    """A finished run on the phantoms, with everything switched on; not to be changed by a test."""
    out_dir = tmp_path_factory.mktemp("runs") / "results"
    train_3d.run(configure(vars(train_3d), [*RUN, f"--data_root={phantoms}", f"--out_dir={out_dir}"]))
    return out_dir


def test_a_run_writes_everything(run_folder):
    names = {p.relative_to(run_folder).as_posix() for p in run_folder.rglob("*") if p.is_file()}
    assert names == {
        "best_model.pth",
        "last.pth",
        "history.json",
        "config.json",
        "metrics.json",
        *(
            f"plots/{n}.png"
            for n in ("loss_train_vs_val", "dice_train_vs_val", "val_nsd", "per_case_dice", "predictions")
        ),
    }
    for path in (run_folder / "plots").iterdir():
        if path.stem != "loss_train_vs_val":
            assert has_colour(path, COLOURS[1]) and has_colour(path, COLOURS[2]), path


def test_history(run_folder):
    history = json.loads((run_folder / "history.json").read_text())
    assert set(history) == {
        "train_loss",
        "val_loss",
        "train_dice",
        "val_dice",
        "train_nsd",
        "val_nsd",
        "learning_rate",
        "seconds",
        "skipped_steps",
    }
    assert all(len(values) == 2 for values in history.values())
    assert np.shape(history["val_dice"]) == np.shape(history["train_nsd"]) == (2, 2) and np.shape(
        history["val_loss"]
    ) == (2,)
    assert min(history["seconds"]) > 0 and 0 <= np.min(history["val_nsd"]) <= np.max(history["val_nsd"]) <= 1


def test_metrics_are_per_case_means_of_the_final_weights(run_folder):
    text = (run_folder / "metrics.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    metrics = json.loads(text)
    assert metrics["synthetic"] is True and metrics["tta"] is True and metrics["training_minutes"] > 0
    assert set(metrics["cases"]) == {"phantom_007", "phantom_008"}
    dice = [case["dice"] for case in metrics["cases"].values()]
    assert np.allclose(metrics["mean"]["dice"], np.mean(dice, axis=0)) and np.allclose(
        metrics["std"]["dice"], np.std(dice, axis=0, ddof=1)
    )
    for case in metrics["cases"].values():
        assert {"dice", "nsd_1mm", "nsd_2mm", "hd95_mm"} <= set(case)
    history = json.loads((run_folder / "history.json").read_text())
    means = np.mean(history["val_dice"], axis=1)
    assert metrics["best"]["epoch"] == np.argmax(means) + 1 and len(metrics["best"]["mean"]["dice"]) == 2
    assert load_checkpoint(run_folder / "last.pth")["epoch"] == 2


@pytest.mark.promise("seed")
def test_config_holds_what_a_repeat_needs(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    assert set(config["constants"]) == set(constants(vars(train_3d))) and config["constants"]["EMA"] == 0.9
    assert (
        config["data"]["synthetic"]
        and config["data"]["listing_sha256"]
        and config["environment"]["torch"] == torch.__version__
    )
    assert not set(config["data"]["train_cases"]) & set(config["data"]["val_cases"])
    checkpoint = load_checkpoint(run_folder / "last.pth")
    assert (
        checkpoint["train_cases"] == config["data"]["train_cases"]
        and checkpoint["synthetic"]
        and checkpoint["preprocessing"]["flip_axes"] == "x"
        and checkpoint["preprocessing"]["window"] == [24, 32, 24]
    )


@pytest.mark.promise("seed")
def test_the_same_seed_gives_the_same_history_and_weights(script, phantoms, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ("--epochs=1", "--max_cases=5", f"--data_root={phantoms}", f"--out_dir={tmp_path / name}")
        code, _, err = script(train_3d, *SMALL, *options, f"--seed={seed}")
        assert code == 0, err
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b") != numbers(tmp_path / "c")
    assert same(weights(tmp_path / "a" / "last.pth"), weights(tmp_path / "b" / "last.pth"))


@pytest.mark.promise("other_constants")
def test_resume_with_other_constants_is_refused(script, run_folder, phantoms, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    options = (*RUN, f"--data_root={phantoms}", f"--out_dir={copy}", "--resume=True")
    one_error_line(script(train_3d, *options, "--learning_rate=0.5"), "--learning_rate=0.003, not 0.5")
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}


def test_an_earlier_run_is_kept(script, run_folder, phantoms, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    code, out, _ = script(train_3d, *SMALL, f"--data_root={phantoms}", f"--out_dir={copy}", "--epochs=1")
    assert code == 0 and "copy.previous-1" in out
    assert same(weights(tmp_path / "copy.previous-1" / "last.pth"), weights(run_folder / "last.pth"))


def test_folds_and_max_cases(script, phantoms, tmp_path):
    script(
        train_3d,
        *SMALL,
        f"--data_root={phantoms}",
        f"--out_dir={tmp_path / 'f'}",
        "--epochs=1",
        "--fold=2",
        "--max_cases=5",
    )
    config = json.loads((tmp_path / "f" / "config.json").read_text())["data"]
    assert (
        len(config["val_cases"]) == 1
        and len(config["train_cases"]) == 4
        and max(config["train_cases"] + config["val_cases"]) == "phantom_005"
    )


def test_presets_and_float32(script, phantoms, tmp_path):
    code, out, err = script(
        train_3d,
        "--model=UNet3DWithINRLightweight",
        "--patch=[16,16,16]",
        "--epochs=1",
        "--min_steps=1",
        "--max_cases=5",
        "--amp=False",
        "--tta=False",
        f"--data_root={phantoms}",
        f"--out_dir={tmp_path / 'p'}",
        "--num_workers=1",
    )
    assert code == 0 and "float32" in out and "1,401,299" in out, err


def test_bad_data_is_one_line_and_leaves_nothing(script, phantoms, tmp_path):
    out = tmp_path / "out"
    one_error_line(script(train_3d, f"--data_root={tmp_path / 'none'}", f"--out_dir={out}"), "none", "get_data.py")
    folder = shutil.copytree(phantoms, tmp_path / "data")
    image = folder / "imagesTr" / "phantom_003.nii.gz"
    image.write_bytes(image.read_bytes()[:3000])
    one_error_line(script(train_3d, f"--data_root={folder}", f"--out_dir={out}"), "phantom_003.nii.gz")
    assert not out.exists()


def test_deep_supervision_names_a_patch_that_fits():
    def check(*argv):
        train_3d.check(configure(vars(train_3d), ["--patch=[30,52,36]", *argv]))

    check("--unet_depth=3")
    with pytest.raises(UserError, match=r"multiples of 8, as \[32, 56, 40\]"):
        check("--unet_depth=3", "--deep_supervision=True")
    with pytest.raises(UserError, match=r"multiples of 4, as \[32, 52, 36\]"):
        check("--deep_supervision=True")


def test_predictions_with_augmentation_come_back_in_place():
    """A model that only looks at its own voxel gives the same probabilities whatever the shift or flip."""
    model = torch.nn.Conv3d(1, 3, 1)
    model.dim, model.unet = 3, SimpleNamespace(stride=8)
    trained = TrainedModel(model, make_preprocessing(flip_axes="xyz"))
    image = np.random.default_rng(0).standard_normal((9, 10, 11)).astype(np.float32)
    plain, augmented = (predict_volume(trained, image, torch.device("cpu"), None, tta) for tta in (False, True))
    assert (
        plain.shape == (3, 9, 10, 11)
        and torch.allclose(plain, augmented, atol=1e-6)
        and torch.allclose(plain.sum(0), torch.ones(9, 10, 11))
    )
