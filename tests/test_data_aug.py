import csv
import shutil

import data_aug
from data_aug import augment_slice
from hippo.data.cases import list_cases, load_case
from hippo.data.intensity import to_unit_range
from hippo.data.slices import PLANES, load_slices
from hippo.data.spatial import resample
from hippo.errors import UserError
from hippo.options import configure

import numpy as np
import pytest
from conftest import DATA, one_error_line
from scipy.ndimage import rotate
from skimage.transform import resize

SMALL = ("--size=32", "--slices_per_plane=4")


def rows_of(folder):
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "settings.json"
    }


@pytest.fixture(scope="module")
def slices(phantoms, tmp_path_factory):
    """Small slices of the phantoms, made in one process; not to be changed by a test."""
    out_dir = tmp_path_factory.mktemp("slices") / "dataset 2d"
    data_aug.run(
        configure(vars(data_aug), [*SMALL, f"--data_root={phantoms}", f"--out_dir={out_dir}", "--num_workers=1"])
    )
    return out_dir


def test_layout(slices):
    rows = rows_of(slices)
    assert (slices / "index.csv").read_text().splitlines()[
        0
    ] == "number,case,plane,position,augmentation,parameters,split"
    assert len(rows) == 8 * 3 * 4 and {r["plane"] for r in rows} == {"axial", "coronal", "sagittal"}
    for row in rows:
        image = np.load(slices / "images" / f"img_{int(row['number']):06d}.npy")
        mask = np.load(slices / "masks" / f"mask_{int(row['number']):06d}.npy")
        assert image.shape == mask.shape == (32, 32) and image.dtype == np.float32 and mask.dtype == np.uint8
        assert 0 <= image.min() <= image.max() <= 1 and mask.max() <= 2
        assert row["augmentation"] in ("none", "rotation", "affine", "flip")
        assert (row["augmentation"] in ("rotation", "affine")) == (row["parameters"] != "")
    assert len(files_of(slices)) == 2 * len(rows) + 1


def test_the_split_is_by_case_and_validation_is_not_augmented(slices):
    rows = rows_of(slices)
    train, val = ({r["case"] for r in rows if r["split"] == split} for split in ("train", "val"))
    assert train == {f"phantom_{i:03d}" for i in range(1, 7)} and val == {"phantom_007", "phantom_008"}
    assert {r["augmentation"] for r in rows if r["split"] == "val"} == {"none"}
    assert len({r["augmentation"] for r in rows if r["split"] == "train"}) == 4


def test_slices_are_those_of_the_resampled_volume(slices, phantoms):
    volume = load_case(list_cases(phantoms)[0][7])
    image, label = resample(to_unit_range(volume.image), (32,) * 3), resample(volume.label, (32,) * 3, order=0)
    for row in rows_of(slices):
        if row["case"] == "phantom_008":
            axis, position = PLANES.index(row["plane"]), int(row["position"])
            mask = np.load(slices / "masks" / f"mask_{int(row['number']):06d}.npy")
            assert np.array_equal(
                np.load(slices / "images" / f"img_{int(row['number']):06d}.npy"), image.take(position, axis)
            )
            assert np.array_equal(mask, label.take(position, axis)) and mask.any()


@pytest.mark.promise("half_a_voxel")
@pytest.mark.parametrize("shape", [(128, 128, 128), (20, 60, 17), (9, 9, 9)])
def test_resampling_is_that_of_scikit_image(phantoms, shape):
    volume = load_case(list_cases(phantoms)[0][0])
    expected = resize(volume.image, shape, order=1, mode="edge", anti_aliasing=True)
    assert np.abs(resample(volume.image, shape) - expected).max() < 1e-4
    labels = resize(volume.label, shape, order=0, mode="edge", anti_aliasing=False, preserve_range=True)
    assert np.array_equal(resample(volume.label, shape, order=0), labels)


def test_the_same_files_whatever_the_processes_and_breaks(slices, phantoms, tmp_path, script, monkeypatch):
    options = (*SMALL, f"--data_root={phantoms}", f"--out_dir={tmp_path / 'again'}")
    real, calls = data_aug.write_case, []

    def breaks_off(job):
        calls.append(job)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(data_aug, "write_case", breaks_off)
    assert script(data_aug, *options, "--num_workers=1")[0] == 130
    monkeypatch.setattr(data_aug, "write_case", real)
    assert not (tmp_path / "again" / "index.csv").exists()
    with pytest.raises(UserError, match="not finished.*data_aug.py"):
        load_slices(tmp_path / "again")
    code, out, err = script(data_aug, *options, "--num_workers=2")
    assert code == 0 and "completing" in out, err
    assert files_of(tmp_path / "again") == files_of(slices)


def test_earlier_slices_are_kept(slices, phantoms, tmp_path, script):
    folder = shutil.copytree(slices, tmp_path / "again")
    code, out, _ = script(data_aug, *SMALL, f"--data_root={phantoms}", f"--out_dir={folder}", "--num_workers=1")
    assert "again.previous-1" in out and files_of(tmp_path / "again.previous-1") == files_of(slices)


def test_another_seed_gives_other_slices(slices, phantoms, tmp_path, script):
    script(
        data_aug,
        *SMALL,
        f"--data_root={phantoms}",
        f"--out_dir={tmp_path / 'b'}",
        "--num_workers=1",
        "--seed=1",
        "--max_cases=5",
    )
    assert rows_of(tmp_path / "b")[:10] != rows_of(slices)[:10]


@pytest.mark.parametrize(
    "option", ["--share_none=0.5", "--size=4", "--slices_per_plane=0", "--scale=1.5", "--seed=-1", "--fold=9"]
)
def test_wrong_constants(script, phantoms, tmp_path, option):
    one_error_line(script(data_aug, option, f"--data_root={phantoms}", f"--out_dir={tmp_path / 'x'}"), "expected")
    assert not (tmp_path / "x").exists()


def test_augmentations_move_image_and_mask_together():
    rng = np.random.default_rng(0)
    image = np.kron(rng.random((8, 8)), np.ones((8, 8))).astype(np.float32)
    mask = (image > 0.5).astype(np.uint8)
    flipped = augment_slice(image, mask, "flip", {})
    assert np.array_equal(flipped[0], image[::-1]) and np.array_equal(flipped[1], mask[::-1])
    turned = augment_slice(image, mask, "rotation", {"degrees": 7.0})
    expected = [rotate(image, angle, reshape=False, order=1, mode="nearest") for angle in (7.0, -7.0)]
    assert min(np.abs(turned[0] - e).max() for e in expected) < 1e-4
    moved = augment_slice(image, mask, "affine", {"scale": 1.0, "dx": 3.0, "dy": -2.0})
    assert np.allclose(moved[0][3:, :-2], image[:-3, 2:], atol=1e-5) and np.array_equal(
        moved[1][3:, :-2], mask[:-3, 2:]
    )
    grown = augment_slice(image, mask, "affine", {"scale": 1.05, "dx": 0.0, "dy": 0.0})
    for new_image, new_mask in (turned, moved, grown):
        assert ((new_image > 0.5) == new_mask).mean() > 0.93


# ---- reading them back


def test_loads_slices(slices):
    train, val, settings = load_slices(slices)
    assert train.images.shape == (72, 32, 32) and val.masks.shape == (24, 32, 32) and settings["SIZE"] == 32
    assert not set(train.cases) & set(val.cases) and settings["DATA"]["synthetic"]


def change_split(folder):
    text = (folder / "index.csv").read_text()
    (folder / "index.csv").write_text(text.replace(",train", ",val", 1))


@pytest.mark.parametrize(
    "break_it, words",
    [
        (shutil.rmtree, "no such folder.*data_aug.py"),
        (lambda f: (f / "index.csv").unlink(), "not finished.*data_aug.py"),
        (lambda f: (f / "index.csv").write_text("number,case\nx,y\n"), "damaged"),
        (lambda f: (f / "settings.json").unlink(), "damaged"),
        (lambda f: (f / "images" / "img_000003.npy").unlink(), "img_000003.npy: missing"),
        (lambda f: np.save(f / "masks" / "mask_999999.npy", np.zeros(3)), "mask_999999.npy: not in index.csv"),
        (
            lambda f: np.save(f / "masks" / "mask_000003.npy", np.zeros((32, 31), np.uint8)),
            "mask_000003.npy: expected shape",
        ),
        (
            lambda f: np.save(f / "masks" / "mask_000003.npy", np.full((32, 32), 3, np.uint8)),
            "mask_000003.npy: expected values",
        ),
        (lambda f: np.save(f / "masks" / "mask_000003.npy", np.zeros((32, 32))), "mask_000003.npy: expected finite"),
        (
            lambda f: np.save(f / "images" / "img_000003.npy", np.full((32, 32), np.nan)),
            "img_000003.npy: expected finite",
        ),
        (lambda f: (f / "images" / "img_000003.npy").write_bytes(b"\x93NUMPY"), "img_000003.npy: not a readable"),
        (change_split, "phantom_001 is no val case"),
        (lambda f: (f / "index.csv").write_text((f / "index.csv").read_text().rstrip()[:-2]), "unknown plane or split"),
        (
            lambda f: np.save(f / "masks" / "mask_000003.npy", np.full((32, 32), 256)),
            "mask_000003.npy: expected values",
        ),
    ],
)
def test_damaged_slices(slices, tmp_path, break_it, words):
    copy = shutil.copytree(slices, tmp_path / "copy")
    break_it(copy)
    with pytest.raises(UserError, match=words):
        load_slices(copy)


@pytest.mark.data
def test_real_slices(tmp_path, script):
    options = (f"--data_root={DATA}", f"--out_dir={tmp_path / 'd'}", "--max_cases=20", "--num_workers=1")
    code, out, err = script(data_aug, *options)
    assert code == 0 and "900 slices of 20 volumes" in out, err
