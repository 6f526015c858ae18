"""Dropout, samples of it, and what they say of a voxel, a volume and a case."""

import csv
import json
import shutil

import predict
import train_3d
from hippo.heads.uncertainty import entropies, spread
from hippo.models.checkpoint import load_model
from hippo.models.inference import TrainedModel, has_dropout, make_preprocessing, predict_volume, sample_volume
from hippo.options import configure
from hippo.scoring.calibration import calibration_bins, expected_calibration_error, risk_coverage
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from model2d import UNetnnUNetLightweight
from tools import uncertainty
from unet_inr_3d import UNETR, UNet3DWithINR

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line
from runs import SMALL_3D
from scipy.spatial.transform import Rotation

CPU = torch.device("cpu")


def model_with(dropout):
    torch.manual_seed(0)
    return TrainedModel(UNet3DWithINR(base_channels=4, depth=1, dropout=dropout).eval(), make_preprocessing())


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).standard_normal((12, 14, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def dropout_run(phantoms, tmp_path_factory):
    """Folder of a small 3D run with dropout."""
    folder = tmp_path_factory.mktemp("dropout") / "run"
    options = [*SMALL_3D, f"--data_root={phantoms}", f"--out_dir={folder}", "--dropout=0.2"]
    train_3d.run(configure(vars(train_3d), options))
    return folder


@pytest.mark.promise("dropout")
def test_dropout_is_off_outside_training(image):
    """The same weights, and the same result as without; in train mode it leaves whole channels out, in 2D too."""
    plain, dropped = model_with(0), model_with(0.5)
    assert plain.model.state_dict().keys() == dropped.model.state_dict().keys()
    assert torch.equal(*(predict_volume(model, image, CPU, None) for model in (plain, dropped)))
    for block, x in (
        (dropped.model.unet.down[0], torch.randn(1, 1, 6, 6, 6)),
        (UNetnnUNetLightweight(dropout=0.5).unet.down[0], torch.randn(1, 1, 6, 6)),
    ):
        channels = block.train()(x)[0].flatten(1)
        gone = (channels == 0).all(1)
        assert gone.any() and not (channels[~gone] == 0).all(1).any()
        block.eval()


def test_only_a_network_that_drops_something_is_one_with_dropout():
    preprocessing = make_preprocessing(window=(8, 8, 8))
    assert not has_dropout(TrainedModel(UNETR(width=12, layers=2, heads=2, features=4), preprocessing))
    assert not has_dropout(model_with(0)) and has_dropout(model_with(0.1))


@pytest.mark.promise("dropout")
def test_samples_are_repeatable_and_differ(image):
    model = model_with(0.3)
    state = torch.random.get_rng_state()
    samples = sample_volume(model, image, CPU, None, 6)
    assert samples.shape == (6, 3, *image.shape) and torch.allclose(samples.sum(1), torch.ones(6, *image.shape))
    assert torch.equal(samples, sample_volume(model, image, CPU, None, 6))
    assert not torch.equal(samples, sample_volume(model, image, CPU, None, 6, seed=1))
    assert samples.std(0).max() > 0.01
    assert torch.equal(state, torch.random.get_rng_state()) and not any(m.training for m in model.model.modules())
    with pytest.raises(ValueError, match="without dropout"):
        sample_volume(model_with(0), image, CPU, None, 2)


def test_a_run_with_dropout(script, dropout_run, tmp_path):
    model, info = load_model(dropout_run / "last.pth")
    assert info["model"]["args"]["dropout"] == 0.2
    sample_volume(model, np.zeros((8, 8, 8), np.float32), CPU, None, 2)
    one_error_line(script(train_3d, "--dropout=1", f"--out_dir={tmp_path / 'out'}"), "--dropout=1", "less than 1")


def test_entropy_and_mutual_information():
    """Samples that agree have no mutual information; samples that are sure of different classes have nothing else."""
    even, sure = np.full((2, 3, 1, 1, 1), 1 / 3), np.zeros((3, 3, 1, 1, 1))
    for number in range(3):
        sure[number, number] = 1
    for samples, expected in ((even, (1, 0)), (sure, (1, 1)), (sure[[0, 0]], (0, 0))):
        assert np.allclose([float(a.squeeze()) for a in entropies(samples)], expected, atol=1e-6)


def test_the_spread_of_volumes():
    samples = np.zeros((2, 3, 10, 1, 1))
    samples[:, 0] = 0.1
    samples[0, 1, :4], samples[1, 1, :2], samples[:, 2, 9] = 1, 1, 1
    assert spread(samples, voxel_mm3=2.0) == [2.0, 0.0, 2.0]


def test_calibration_error_of_what_is_calibrated_and_what_is_not():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 50_000)
    right = rng.uniform(size=50_000) < confidence
    assert expected_calibration_error(calibration_bins(confidence, right)) < 0.01
    assert expected_calibration_error(calibration_bins(np.full(100, 0.9), np.arange(100) < 50)) == pytest.approx(0.4)


def test_risk_and_coverage():
    risk = np.array([0.0, 0.2, 0.4, 1.0])
    coverage, mean, area = risk_coverage(np.array([1, 2, 3, 4]), risk)
    assert np.allclose(coverage, [0.25, 0.5, 0.75, 1]) and np.allclose(mean, [0, 0.1, 0.2, 0.4])
    assert area == pytest.approx(0.175)
    assert risk_coverage(np.array([4, 3, 2, 1]), risk)[2] > area
    assert risk_coverage(np.zeros(4), risk)[2] == pytest.approx(0.4)  # an uncertainty that says nothing


def test_the_interval_of_any_statistic():
    values = np.random.default_rng(0).normal(5, 1, 400)
    result = bootstrap_of(lambda index: np.median(values[index]), len(values))
    low, high = result["interval"]
    assert low < 5 < high and high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.3)
    assert result["mean"] == pytest.approx(np.median(values))


def test_the_dice_to_expect():
    """Labels drawn with the probabilities have that Dice with the likeliest ones."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 30, 30, 30))
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    drawn = (rng.uniform(size=probabilities.shape[1:]) > np.cumsum(probabilities, 0)).sum(0)
    labels = probabilities.argmax(0)
    score = np.mean([dice(labels == part, drawn == part) for part in (1, 2)])
    assert uncertainty.expected_dice(probabilities) == pytest.approx(score, abs=0.01)


def test_the_comparison(whole, dropout_run, phantoms, tmp_path):
    for name in ("seed0", "seed1", "seed2", "dropout"):
        shutil.copytree(dropout_run if name == "dropout" else whole["3d"], tmp_path / f"uncertainty_{name}")
    options = [f"--ablations={tmp_path}", f"--data_root={phantoms}", "--samples=3"]
    options += [f"--out={tmp_path / 'out.json'}", f"--picture={tmp_path / 'out.png'}"]
    uncertainty.run(configure(vars(uncertainty), options))
    methods = json.loads((tmp_path / "out.json").read_text())["methods"]
    assert list(methods) == ["one model", "MC dropout, 3 samples", "ensemble of 3 seeds", "5 views"]
    assert methods["one model"]["spread_against_error"] is None and (tmp_path / "out.png").is_file()
    for method in methods.values():
        assert 0 <= method["calibration_error"]["mean"] <= 1 and method["seconds"] > 0


@pytest.mark.promise("dropout")
def test_predict_writes_maps_and_spreads(script, dropout_run, phantoms, tmp_path):
    """On the scan's own grid, oblique and of two orientations; the same again; more samples are other ones."""
    scan = next(iter(sorted((phantoms / "imagesTr").glob("*.nii.gz"))))
    image = nib.load(scan)
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", (10, -6, 8), degrees=True).as_matrix()
    image = nib.Nifti1Image(np.asarray(image.dataobj), oblique @ image.affine)
    nib.save(image, tmp_path / "oblique.nii.gz")
    ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSL"))
    nib.save(image.as_reoriented(ornt), tmp_path / "turned.nii.gz")
    weights = dropout_run / "last.pth"
    options = (f"--checkpoint={weights}", "--partner=", f"--sampler={weights}", "--pictures=False", "--side=left")
    maps = {}
    for name, stored, samples in (("a", "oblique", 4), ("b", "turned", 4), ("c", "oblique", 8)):
        code, _, err = script(
            predict, tmp_path / f"{stored}.nii.gz", *options, f"--samples={samples}", f"--out_dir={tmp_path / name}"
        )
        assert code == 0, err
        found = nib.load(next((tmp_path / name).glob("*_uncertainty.nii.gz")))
        assert found.shape[:3] == nib.load(tmp_path / f"{stored}.nii.gz").shape
        maps[name] = np.asarray(nib.as_closest_canonical(found).dataobj)
        assert maps[name].shape == (*image.shape, 2) and found.get_data_dtype() == np.float32
        with open(tmp_path / name / "volumes.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        assert list(row)[-3:] == ["anterior_sd_mm3", "posterior_sd_mm3", "total_sd_mm3"]
        assert float(row["total_sd_mm3"]) > 0
    entropy, information = np.moveaxis(maps["a"], -1, 0)
    assert information.min() >= 0 and (information <= entropy + 1e-5).all() and 0.2 < entropy.max() <= 1
    assert np.allclose(maps["a"], maps["b"], atol=1e-5) and not np.allclose(maps["a"], maps["c"], atol=1e-3)
    plain = (f"--sampler={ROOT / predict.CHECKPOINT}", f"--out_dir={tmp_path / 'd'}", "--samples=4")
    one_error_line(script(predict, scan, *plain), "trained with --dropout")
    one_error_line(script(predict, scan, *plain[:2], "--samples=1"), "expected 2 or more")
    assert not (tmp_path / "d").exists()
