"""Finding hippocampi: windows in space, what is found, heads drawn from label maps, and the network's training."""

from types import SimpleNamespace

import phantom
import train_locate
from hippo.data import anatomies
from hippo.data.spatial import largest_component, shrink
from hippo.heads import locate
from hippo.heads.locate import check, load_locator
from hippo.heads.window import Window, bring_back, cut
from hippo.models.inference import TrainedModel, make_preprocessing
from tools import locating

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import one_error_line


def test_only_places_that_can_be_count():
    left, right = np.array([-25.0, 0, 0]), np.array([27.0, 3, 0])
    sure = {"left": 1.0, "right": 0.99}
    assert check({"left": left, "right": right}, sure) == ({}, [])
    assert "0.50 sure" in check({"left": left, "right": right}, {"left": 0.5, "right": 1})[0]["left"]
    assert set(check({"left": None, "right": right}, sure)[0]) == {"left"}
    assert "swapped" in check({"left": right, "right": left}, sure)[0]["right"]
    assert "apart" in check({"left": left, "right": left + 5}, sure)[0]["right"]
    assert check({"left": left, "right": np.array([5.0, 40, 0])}, sure)[1] == ["head_turned"]


def test_etiv_undoes_what_the_network_takes_from_large_heads_and_gives_to_small_ones(monkeypatch):
    """Also the tool that fits it: its constants give the true volumes."""
    true = np.array([1.1e6, 1.4e6, 1.9e6])
    rows = [{"true_mm3": value, "inside_mm3": 1.46e6 * (value / 1.5e6) ** 0.7} for value in true]
    fitted = locating.fit_etiv(rows)
    monkeypatch.setattr(locate, "ETIV_SCALE", fitted["scale"])
    monkeypatch.setattr(locate, "ETIV_POWER", fitted["power"])
    assert [locate.estimate_etiv(row["inside_mm3"]) for row in rows] == pytest.approx(true)


def test_what_is_found_belongs_to_the_window_that_was_looked_through(monkeypatch):
    """Also where the middle of the brain moves at each look."""
    seen, moves = [], iter(np.array([[40.0, 0, 0], [80, 0, 0], [120, 0, 0]]))

    def view_head(scan, window):
        seen.append(window)
        return np.zeros((128,) * 3), np.ones((64,) * 3, bool)

    monkeypatch.setattr(locate, "view_head", view_head)
    monkeypatch.setattr(locate, "_classify", lambda *_: np.full((6, 64, 64, 64), 1 / 6))
    monkeypatch.setattr(locate, "_middle", lambda *_: next(moves))
    monkeypatch.setattr(locate, "_is_t1", lambda *_: True)
    locator = TrainedModel(SimpleNamespace(in_channels=8), make_preprocessing(window=(64, 64, 64), spacing_mm=4.0))
    found = locate.locate(locator, None, None, None)
    assert len(seen) == 3 and found.window is seen[-1] and found.window.centre_mm[0] == 80


# ---- windows


def test_a_window_is_cut_and_brought_back_in_place():
    """A ball comes back where it is, through an oblique grid, a turned and mirrored window; half a voxel off would fail."""
    matrix = phantom.turn((10, -20, 15)) @ np.diag([0.9, 1.1, 1.4])
    shape, ball = (70, 64, 50), np.array([6.0, -4, 3])
    voxels = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    field = np.exp(-(((voxels @ matrix.T - ball) / 5) ** 2).sum(-1)).astype(np.float32)
    for mirrored in (False, True):
        window = Window(np.array([3.0, 2, -2]), (36, 52, 36), 1.0, mirrored, phantom.turn((5, 5, 20)))
        seen = cut(field, matrix, window)
        centre = (np.argwhere(seen > 0.5)).mean(0)
        assert np.allclose(window.to_mm(centre), ball, atol=0.15)
        back, bbox = bring_back(np.stack([1 - seen, seen]), window, shape, matrix)
        low = [part.start for part in bbox]
        centre = (np.argwhere(back[1] > 0.5) + low - (np.array(shape) - 1) / 2).mean(0) @ matrix.T
        assert np.allclose(centre, ball, atol=0.15) and np.allclose(back.sum(0), 1, atol=1e-4)


def test_a_window_beyond_the_scan_repeats_its_edge():
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    seen = cut(array, np.eye(3), Window(np.array([100.0, 0, 0]), (4, 4, 4), 1.0))
    assert np.allclose(seen, seen[:1]) and seen.min() >= array[-1].min()


def test_shrink_and_the_largest_component():
    array = np.random.default_rng(0).normal(size=(7, 9, 8)).astype(np.float32)
    expected = array[:6, :9, :8].reshape(3, 2, 3, 3, 8, 1).mean((1, 3, 5))
    assert np.allclose(shrink(array, (2, 3, 1)), expected, atol=1e-5)
    mask = np.zeros((9, 9, 9), bool)
    mask[1, 1, 1:3] = mask[5:7, 5:7, 5:7] = True
    assert largest_component(mask).sum() == 8
    weights = np.where(np.arange(9)[:, None, None] < 3, 100, 1) * np.ones((9, 9, 9))
    assert largest_component(mask, weights).sum() == 2


# ---- the locator's training


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A folder of two small label maps with FreeSurfer's numbers."""
    folder = tmp_path_factory.mktemp("anatomies")
    x, y, z = np.indices((96, 96, 96)) - 48
    for number in range(2):
        labels = np.where(x**2 + y**2 + z**2 < 40**2, np.where(x < 0, 3, 42), 0)
        labels[x**2 + y**2 + z**2 < (28 + number) ** 2] = 2
        for side, label in ((-1, 17), (1, 53)):
            labels[((x - 14 * side) / 5) ** 2 + (y / 12) ** 2 + (z / 5) ** 2 < 1] = label
        nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), folder / f"map_{number}.nii.gz")
    return folder


def test_heads_are_drawn_from_anatomies(maps):
    labels = anatomies.load_anatomies(maps)["map_0"]
    assert labels.shape == (48, 48, 48)
    again = anatomies.swap_sides(anatomies.swap_sides(labels))
    assert torch.equal(labels, again) and (anatomies.swap_sides(labels)[labels.flip(0) == 17] == 53).all()
    for seed in range(24):
        image, shares = anatomies.draw_head(labels, np.random.default_rng(seed))
        assert image.shape == (128, 128, 128) and shares.shape == (6, 64, 64, 64) and np.isfinite(image).all()
        assert torch.allclose(shares.sum(0), torch.ones(64, 64, 64), atol=1e-5) and shares.min() >= 0
    first, second = (anatomies.draw_head(labels, np.random.default_rng(5), whole=True) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[1][1].sum() > 5 and first[1][2].sum() > 5


def test_an_image_is_rearranged_so_that_each_voxel_keeps_its_details():
    image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    channels = anatomies.to_channels(image)
    assert channels.shape == (8, 4, 4, 4) and np.allclose(channels.mean(0), shrink(image, (2, 2, 2)), atol=1e-6)
    assert set(channels[:, 1, 2, 3]) == set(image[2:4, 4:6, 6:8].flat)


def test_the_intracranial_space_has_dura_and_ends_below_the_cerebellum():
    labels = np.zeros((40, 40, 40), np.int16)
    labels[10:30, 10:30, 12:30], labels[10:30, 10:30, 12:15] = 2, 8  # a brain on a cerebellum
    labels[19:21, 19:21, 2:12], labels[19:21, 19:21, 30:32], labels[0, 0, 39] = 16, 514, 514
    bounded = anatomies.bound(labels, 2)
    assert (bounded[19:21, 19:21, 30:32] == anatomies.DURA).all() and bounded[0, 0, 39] == 514
    inside = (bounded > 0) & (bounded < anatomies.OUTSIDE)
    assert not inside[:, :, :12].any() and inside[20, 20, 12:32].all() and (bounded[20, 20, 2:12] == 16 + 600).all()


def test_the_loss_of_the_size_is_zero_for_the_true_space():
    shares = torch.zeros(2, 6, 8, 8, 8)
    shares[:, 0], shares[0, 0, :4], shares[0, 4, :4] = 1, 0, 1
    assert train_locate.size_loss(100 * shares, shares) < 1e-5
    halves = torch.full_like(shares, -100.0)  # as sure as half and half, of a voxel that is half inside
    halves[:, 0], halves[:, 4] = 0, 0
    mixed = torch.zeros_like(shares)
    mixed[:, 0], mixed[:, 4] = 0.5, 0.5
    assert train_locate.size_loss(halves, mixed) < 1e-5
    larger = 100 * shares.clone()
    larger[0, 0, 4:6], larger[0, 4, 4:6] = 0, 100
    wrong = 512 / 4 / 512 * 100 / 0.1  # a quarter of the voxels, each by 100 nats
    expected = (wrong + np.log(0.76 / 0.51)) / 2
    assert train_locate.size_loss(larger, shares) == pytest.approx(expected, rel=1e-3)


def test_the_locator_trains_and_goes_on(script, maps, tmp_path):
    options = (f"--anatomies={maps}", "--base_channels=2", "--unet_depth=1", "--min_steps=2", "--val_heads=1")
    out = tmp_path / "out"
    code, _, err = script(train_locate, *options, "--epochs=1", f"--out_dir={out}")
    assert code == 0, err
    assert {p.name for p in out.iterdir()} == {
        "best_model.pth",
        "last.pth",
        "config.json",
        "history.json",
        "metrics.json",
    }
    code, text, err = script(train_locate, *options, "--epochs=1", f"--out_dir={out}", "--resume=True")
    assert code == 0 and "after epoch 1 of 1" in text, err
    model = load_locator(out / "last.pth")
    assert model.preprocessing["spacing_mm"] == 4.0 and model.preprocessing["window"] == [64, 64, 64]
    one_error_line(script(train_locate, f"--anatomies={tmp_path}", f"--out_dir={tmp_path / 'x'}"), "get_data.py")
