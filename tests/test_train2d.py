import json
import shutil

import data_aug
import model2d
import predict
import train2d
from hippo.data.cases import list_cases, load_case, load_volumes
from hippo.data.slices import PLANES, load_slices
from hippo.models.blocks import count_parameters
from hippo.models.checkpoint import load_checkpoint, load_model
from hippo.models.inference import TrainedModel, make_preprocessing, predict_volume
from hippo.options import configure
from hippo.pictures.plots import COLOURS

import numpy as np
import pytest
import torch
from conftest import one_error_line
from runs import has_colour

SMALL = ("--model=UNetnnUNetWithINR", "--base_channels=4", "--unet_depth=2", "--epochs=2", "--min_steps=1")


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("UNetnnUNetWithINR", 7.76e6),
        ("UNetnnUNetSmall", 0.439e6),
        ("UNetnnUNetLightweight", 1.75e6),
        ("UNetnnUNetBalanced", 3.94e6),
        ("UNetnnUNetDeepSupervision", 3.94e6),
    ],
)
def test_models(name, parameters):
    model = model2d.MODELS[name]()
    assert count_parameters(model) == pytest.approx(parameters, rel=3e-3)
    y = model.train()(torch.randn(1, 1, 64, 64))
    assert isinstance(y, list) == (name == "UNetnnUNetDeepSupervision")
    assert model.eval()(torch.randn(1, 1, 50, 33)).shape == (1, 3, 50, 33)


def test_the_inr_head_adds_little():
    assert count_parameters(model2d.UNetnnUNetWithINR(use_inr=True)) == pytest.approx(7.77e6, rel=1e-3)


@pytest.fixture(scope="module")
def slices(phantoms, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("slices") / "dataset_2d"
    data_aug.run(
        configure(
            vars(data_aug),
            ["--size=32", "--slices_per_plane=4", f"--data_root={phantoms}", f"--out_dir={out_dir}", "--num_workers=1"],
        )
    )
    return out_dir


@pytest.fixture(scope="module")
def run_folder(phantoms, slices, tmp_path_factory):
    """A finished run; not to be changed by a test."""
    out_dir = tmp_path_factory.mktemp("runs") / "checkpoints-2d"
    train2d.run(
        configure(vars(train2d), [*SMALL, f"--data_dir={slices}", f"--data_root={phantoms}", f"--out_dir={out_dir}"])
    )
    return out_dir


def test_a_run_writes_everything(run_folder):
    names = {p.relative_to(run_folder).as_posix() for p in run_folder.rglob("*") if p.is_file()}
    assert names == {
        "best_model.pth",
        "last.pth",
        "history.json",
        "config.json",
        "metrics.json",
        "plots/training_curves.png",
        "plots/predictions.png",
        "plots/per_case_dice.png",
    }
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert set(metrics["cases"]) == {"phantom_007", "phantom_008"} and metrics["synthetic"] and metrics["tta"] is False
    assert (
        set(metrics["slices"])
        == set(metrics["slices_by_pixel"])
        == {"dice", "nsd_1mm", "dice_original", "nsd_1mm_original"}
    )
    assert all(a <= b for a, b in zip(metrics["slices"]["dice"], metrics["slices"]["dice_original"]))
    history = json.loads((run_folder / "history.json").read_text())
    assert np.shape(history["val_dice"]) == np.shape(history["train_nsd"]) == (2, 2)
    for path in (run_folder / "plots").iterdir():
        if path.stem != "loss_train_vs_val":
            assert has_colour(path, COLOURS[1]) and has_colour(path, COLOURS[2]), path


def test_a_slice_counts_where_truth_or_prediction_has_the_label(slices):
    _, val, _ = load_slices(slices)
    grids = {case: dict.fromkeys(PLANES, ((1, 1), (20, 24))) for case in val.cases}

    def scores(predicted, own_grid=False):
        model = lambda x: torch.nn.functional.one_hot(predicted[: len(x)].long(), 3).movedim(-1, 1) * 9.0  # noqa: E731
        return train2d.evaluate_slices(
            model, val, grids, len(val.cases), torch.device("cpu"), None, lambda a, b: a.mean(), own_grid
        )[0]

    truth = torch.from_numpy(val.masks)
    nothing = scores(torch.zeros_like(truth))
    absent = [float((val.masks != label).all(axis=(1, 2)).mean()) for label in (1, 2)]
    assert max(absent) > 0 and nothing["dice"] == [0, 0] and nothing["dice_original"] == pytest.approx(absent)
    perfect = scores(truth)
    assert perfect["dice"] == perfect["dice_original"] == perfect["nsd_1mm"] == [1, 1]
    assert 0.8 < min(scores(truth, own_grid=True)["dice"]) < 1  # the grid is not the truth's own


def test_on_its_own_grid_a_slice_is_what_the_volume_is(slices, phantoms):
    """The truth of a validation slice survives the way to its own grid and back."""
    _, val, settings = load_slices(slices)
    volumes = load_volumes(phantoms, sorted(set(val.cases)))
    grids = train2d.slice_grids(phantoms, volumes, set(), settings["SIZE"])
    model = lambda x: torch.nn.functional.one_hot(torch.from_numpy(val.masks).long(), 3).movedim(-1, 1) * 30.0  # noqa: E731
    own = train2d.evaluate_slices(
        model, val, grids, len(val.cases), torch.device("cpu"), None, lambda a, b: a.mean(), own_grid=True
    )[0]
    assert min(own["dice"]) > 0.9


def test_a_slice_of_a_validation_case_is_never_trained_on(slices, run_folder):
    train, val, _ = load_slices(slices)
    checkpoint = load_checkpoint(run_folder / "last.pth")
    assert set(train.cases) == set(checkpoint["train_cases"]) and set(val.cases) == set(checkpoint["val_cases"])
    assert not set(train.cases) & set(val.cases)


@pytest.mark.promise("half_a_voxel")
@pytest.mark.parametrize("size", [128, 40, 24])
def test_volumes_are_fused_from_slices_in_place(size):
    """A model that only looks at its own pixel gives each voxel back its own value: half a voxel off would fail."""
    model = torch.nn.Conv2d(1, 3, 1)
    model.dim = 2
    with torch.no_grad():
        model.weight[:, 0, 0, 0], model.bias[:] = torch.tensor([0.0, 0.5, -0.5]), 0.0
    axes = [np.linspace(0, 1, n, dtype=np.float32) for n in (35, 51, 30)]
    image = sum(np.meshgrid(*axes, indexing="ij"))  # a ramp along each axis, which interpolation keeps
    trained = TrainedModel(model, make_preprocessing(slice_size=size))
    result = predict_volume(trained, image, torch.device("cpu"), None)
    unit = torch.from_numpy(image / image.max())
    expected = torch.stack([0 * unit, 0.5 * unit, -0.5 * unit]).softmax(0)
    assert result.shape == expected.shape and torch.allclose(result.sum(0), torch.ones(unit.shape), atol=1e-4)
    inner = (slice(None), *(slice(4, -4),) * 3)  # edges are replicated
    assert (result[inner] - expected[inner]).abs().max() < 3e-4
    half_a_voxel = (expected[:, 1:] - expected[:, :-1]).abs()[inner].mean(dim=(1, 2, 3)).max() / 2
    assert half_a_voxel > 6e-4  # what the tolerance must see


def test_volumes_are_predicted_at_the_size_of_the_training_slices(run_folder, phantoms):
    sizes = set()

    def watch(module, inputs):
        sizes.add(tuple(inputs[0].shape[2:]))

    model, _ = load_model(run_folder / "last.pth")
    model.model.register_forward_pre_hook(watch)
    volume = load_case(list_cases(phantoms)[0][0])
    assert predict_volume(model, volume.image, torch.device("cpu"), None).shape == (3, *volume.image.shape)
    assert sizes == {(32, 32)}


def test_predict_takes_a_2d_checkpoint(script, run_folder, phantoms, tmp_path):
    code, _, err = script(
        predict,
        f"--checkpoint={run_folder / 'last.pth'}",
        f"--out_dir={tmp_path / 'out'}",
        phantoms / "imagesTr" / "phantom_007.nii.gz",
    )
    assert code == 0 and (tmp_path / "out" / "phantom_007_seg.nii.gz").is_file(), err


@pytest.mark.promise("other_constants")
def test_resume_on_other_slices_is_refused(script, run_folder, phantoms, slices, tmp_path):
    folder, other = shutil.copytree(run_folder, tmp_path / "r"), tmp_path / "other"
    script(
        data_aug,
        "--size=32",
        "--slices_per_plane=4",
        f"--data_root={phantoms}",
        f"--out_dir={other}",
        "--num_workers=1",
        "--fold=0",
    )
    shutil.move(slices, tmp_path / "kept")
    shutil.move(other, slices)
    try:
        result = script(
            train2d, *SMALL, f"--data_dir={slices}", f"--data_root={phantoms}", f"--out_dir={folder}", "--resume=True"
        )
    finally:
        shutil.move(slices, other)
        shutil.move(tmp_path / "kept", slices)
    one_error_line(result, "other data or slices")


def test_bad_input_is_one_line(script, phantoms, slices, tmp_path):
    out = f"--out_dir={tmp_path / 'out'}"
    one_error_line(script(train2d, f"--data_dir={tmp_path / 'none'}", out), "none", "data_aug.py")
    one_error_line(script(train2d, f"--data_dir={slices}", f"--data_root={tmp_path / 'gone'}", out), "gone")
    one_error_line(script(train2d, "--model=UNet", f"--data_dir={slices}", out), "expected one of")
    assert not (tmp_path / "out").exists()
