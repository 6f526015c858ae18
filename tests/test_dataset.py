import gzip
import json
import os
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DATA

from hippo.data.augment import augment
from hippo.data.cases import Case, is_synthetic, list_cases, load_case, split_cases
from hippo.data.intensity import normalise
from hippo.data.loading import AugmentedDataset, EpochSampler
from hippo.data.nifti import read_nifti
from hippo.errors import UserError


@pytest.fixture
def folder(phantoms, tmp_path):
    """A copy of the phantoms that a test may break."""
    return shutil.copytree(phantoms, tmp_path / "données 1")


def ids(cases):
    return [case.id for case in cases]


# ---- folders


def test_lists_sorted_cases(phantoms):
    cases, info = list_cases(phantoms)
    assert ids(cases) == [f"phantom_{i:03d}" for i in range(1, 9)] and is_synthetic(info)
    assert ids(list_cases(phantoms, max_cases=3)[0]) == ids(cases)[:3]


def test_ignores_hidden_files(folder):
    (folder / "imagesTr" / "._phantom_001.nii.gz").write_bytes(b"mac")
    assert len(list_cases(folder)[0]) == 8


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda f: shutil.rmtree(f), "no such folder.*get_data.py"),
        (lambda f: [shutil.rmtree(f), f.mkdir()], "dataset.json: missing.*get_data.py"),
        (lambda f: (f / "dataset.json").write_text("{"), "dataset.json"),
        (lambda f: (f / "dataset.json").write_text('{"training": [3]}'), "dataset.json"),
        (lambda f: shutil.rmtree(f / "imagesTr"), "imagesTr: no .nii.gz"),
        (lambda f: (f / "labelsTr" / "phantom_002.nii.gz").unlink(), "phantom_002.nii.gz has no label"),
        (
            lambda f: (f / "imagesTr" / "phantom_002.nii.gz").unlink(),
            "phantom_002.nii.gz is listed in dataset.json but missing",
        ),
    ],
)
def test_broken_folders(folder, break_it, words):
    break_it(folder)
    with pytest.raises(UserError, match=words):
        list_cases(folder)


def test_splits_are_by_case_and_disjoint():
    cases = list(range(260))
    train, validation = split_cases(cases, -1)
    assert train == cases[:208] and validation == cases[208:]
    seen = []
    for fold in range(5):
        train, validation = split_cases(cases, fold)
        assert len(validation) == 52 and not set(train) & set(validation) and sorted(train + validation) == cases
        seen += validation
    assert sorted(seen) == cases
    with pytest.raises(UserError, match="cannot be split"):
        split_cases(cases[:1], -1)


def test_folds_are_nnunets():
    order = np.arange(260)
    np.random.RandomState(12345).shuffle(order)
    for n in (260, 23):
        if n == 23:
            order = np.arange(23)
            np.random.RandomState(12345).shuffle(order)
        sizes = np.full(5, n // 5) + (np.arange(5) < n % 5)
        for fold in range(5):
            start = sizes[:fold].sum()
            assert split_cases(list(range(n)), fold)[1] == sorted(order[start : start + sizes[fold]])


# ---- NIfTI


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_reads_any_orientation_and_type(nifti, dtype):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    path = nifti("ras.nii.gz", array)
    expected, _ = read_nifti(path)
    assert np.array_equal(expected, array)
    stored = nib.load(path)
    for code in ("LPS", "PIR", "ASL"):
        turned = stored.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt(code))
        )
        nib.save(turned, path.with_name("turned.nii.gz"))
        assert np.array_equal(read_nifti(path.with_name("turned.nii.gz"))[0], array)


def header_with(path, **values):
    """Rewrites fields of a .nii file's header in place."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in values.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(content[348:]))


VOLUME = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "30000 x 30000"),
        ({"dim": [3, -6, 7, 8, 1, 1, 1, 1]}, ""),
        ({"dim": [3, 0, 7, 8, 1, 1, 1, 1]}, ""),
        ({"pixdim": [1, 1, 1, np.nan, 1, 1, 1, 1], "sform_code": 0}, ""),
        ({"srow_x": [0, 0, 0, 0]}, "affine"),
        ({"srow_x": [np.nan, 0, 0, 0]}, ""),
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"dim": [2, 6, 7, 1, 1, 1, 1, 1]}, "2D"),
        ({"vox_offset": 1e9}, ""),
    ],
)
def test_hostile_headers(nifti, values, words):
    path = nifti("hostile.nii", VOLUME)
    header_with(path, **values)
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"hostile.nii.*{words}"):
        read_nifti(path)
    assert time.perf_counter() - start < 2


def test_bad_files(nifti, tmp_path):
    whole = nifti("whole.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.nii.gz").write_text("not a volume")
    with gzip.open(tmp_path / "zipped_text.nii.gz", "wt") as file:
        file.write("not a volume" * 100)
    (tmp_path / "empty.nii.gz").touch()
    for name in ("cut", "text", "zipped_text", "empty", "absent"):
        with pytest.raises(UserError, match=f"{name}.nii.gz"):
            read_nifti(tmp_path / f"{name}.nii.gz")
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(UserError, match="1 voxels are NaN or infinite"):
            read_nifti(nifti("bad.nii.gz", np.where(np.arange(60).reshape(3, 4, 5) == 7, value, 1.0)))
    with pytest.raises(UserError, match="4D"):
        read_nifti(nifti("four.nii.gz", np.zeros((4, 4, 4, 2))))


@pytest.mark.parametrize(
    "label, words",
    [
        (np.zeros((6, 7, 9), np.uint8), "shape"),
        (np.full((6, 7, 8), 3, np.uint8), "expected the values 0, 1 and 2"),
        (np.full((6, 7, 8), 0.5), "expected the values 0, 1 and 2"),
        (np.full((6, 7, 8), -1, np.int16), "expected the values 0, 1 and 2"),
    ],
)
def test_bad_labels(nifti, label, words):
    with pytest.raises(UserError, match=f"label.nii.gz.*{words}"):
        load_case(Case("x", nifti("image.nii.gz", VOLUME), nifti("label.nii.gz", label)))


def test_bad_images(nifti):
    label = nifti("label.nii.gz", np.zeros((6, 7, 8), np.uint8))
    with pytest.raises(UserError, match="flat.nii.gz.*same value"):
        load_case(Case("x", nifti("flat.nii.gz", VOLUME * 0 + 3), label))
    with pytest.raises(UserError, match="affine is not that of"):
        load_case(Case("x", nifti("image.nii.gz", VOLUME, np.diag([1, 1, -1, 1])), label))
    coarse = np.diag([1, 1, 3, 1])
    with pytest.raises(UserError, match="1 mm isotropic"):
        load_case(
            Case(
                "x", nifti("image.nii.gz", VOLUME, coarse), nifti("label.nii.gz", np.zeros((6, 7, 8), np.uint8), coarse)
            )
        )


def test_float_labels_with_whole_values_are_fine(nifti):
    label = np.zeros((6, 7, 8), np.float32)
    label[2:4, 3, 3] = 1, 2
    volume = load_case(Case("x", nifti("image.nii.gz", VOLUME), nifti("label.nii.gz", label)))
    assert volume.label.dtype == np.uint8 and np.array_equal(volume.label, label)


def test_inputs_are_never_modified(folder):
    for path in folder.rglob("*.nii.gz"):
        os.chmod(path, 0o444)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for case in list_cases(folder)[0]:
        load_case(case)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_normalise():
    array = np.random.default_rng(0).normal(500, 100, (20, 20, 20))
    array[3, 3, 3] = 1e6
    result = normalise(array)
    assert (
        result.dtype == np.float32 and result.max() < 4 and abs(result.mean()) < 1e-5 and abs(result.std() - 1) < 1e-5
    )
    assert np.allclose(normalise(array * 1e4 + 7), result, atol=1e-3)
    flat = np.full((20, 20, 20), 1000.1)
    flat[0, 0, :10] = 5000
    assert not normalise(flat).any()


@pytest.mark.data
def test_the_real_data():
    cases, info = list_cases(DATA)
    assert len(cases) == 260 and not is_synthetic(info)
    train, validation = split_cases(cases, -1)
    assert validation[0].id == "hippocampus_322" and "hippocampus_338" in ids(validation)
    for case in cases[::20]:
        volume = load_case(case)
        assert set(np.unique(volume.label)) == {0, 1, 2} and volume.spacing_mm == (1, 1, 1)


# ---- augmentation


def volume_of(root, i=0):
    return load_case(list_cases(root)[0][i])


NONE = {"rotation_degrees": 0, "scale": 0, "shift_voxels": 0, "intensity": 0, "gamma": 0, "noise": 0, "blur_mm": 0}


def test_no_augmentation_is_the_volume_itself(phantoms):
    volume = volume_of(phantoms)
    image, label = augment(volume.image, volume.label, volume.image.shape, np.random.default_rng(0), **NONE)
    assert np.allclose(image[0], volume.image, atol=1e-4) and np.array_equal(label, volume.label)


def test_a_larger_patch_replicates_edges(phantoms):
    volume = volume_of(phantoms)
    patch = [s + 4 for s in volume.image.shape]
    image, label = augment(volume.image, volume.label, patch, np.random.default_rng(0), **NONE)
    assert np.allclose(image[0], np.pad(volume.image, 2, mode="edge"), atol=1e-4)
    assert np.array_equal(label, np.pad(volume.label, 2, mode="edge"))


def test_flips_mirror_image_and_label_together(phantoms):
    volume = volume_of(phantoms)
    for axis, name in enumerate("xyz"):
        results = [
            augment(volume.image, volume.label, volume.image.shape, np.random.default_rng(i), flip_axes=name, **NONE)
            for i in range(8)
        ]
        flipped = [np.array_equal(label, np.flip(volume.label, axis)) for _, label in results]
        assert 0 < sum(flipped) < 8
        for (image, label), is_flipped in zip(results, flipped):
            assert np.allclose(image[0], np.flip(volume.image, axis) if is_flipped else volume.image, atol=1e-4)
            assert is_flipped or np.array_equal(label, volume.label)


def test_rotation_moves_image_and_label_together(phantoms):
    volume = volume_of(phantoms)
    marked = volume.label.astype(np.float32) * 10
    image, label = augment(
        marked,
        volume.label,
        (40, 56, 40),
        np.random.default_rng(3),
        **{**NONE, "rotation_degrees": 15, "scale": 0.15, "shift_voxels": 4},
    )
    inside = image[0].numpy()[label.numpy() == 2]
    assert np.median(inside) > 19 and (label > 0).sum() > 0.5 * (volume.label > 0).sum()
    assert not np.array_equal(label.shape, volume.label.shape)


def test_slices_are_augmented_like_volumes(phantoms):
    volume = volume_of(phantoms)
    image, label = volume.image[16], volume.label[16]
    same, same_label = augment(image, label, image.shape, np.random.default_rng(0), **NONE)
    assert np.allclose(same[0], image, atol=1e-4) and np.array_equal(same_label, label)
    turned, turned_label = augment(
        label * np.float32(10),
        label,
        (48, 48),
        np.random.default_rng(1),
        **{**NONE, "rotation_degrees": 90, "shift_voxels": 4},
    )
    assert turned.shape == (1, 48, 48) and turned_label.sum() > 0 and not np.array_equal(turned_label[:40], label[:40])
    assert (turned[0].round() == turned_label * 10).float().mean() > 0.9


def patches(root, cases, patch, seed):
    volumes = [volume_of(root, i) for i in range(cases)]
    return AugmentedDataset([v.image for v in volumes], [v.label for v in volumes], patch, seed, {})


def test_items_depend_on_seed_epoch_and_index_only(phantoms):
    data, again, other = (patches(phantoms, 3, (32, 40, 32), seed) for seed in (5, 5, 6))
    for key in ((0, 1), (3, 2)):
        assert all(torch.equal(a, b) for a, b in zip(data[key], again[key]))
    assert not torch.equal(data[0, 1][0], data[1, 1][0]) and not torch.equal(data[0, 1][0], other[0, 1][0])
    image, label = data[0, 0]
    assert (
        image.shape == (1, 32, 40, 32)
        and image.dtype == torch.float32
        and label.shape == (32, 40, 32)
        and label.dtype == torch.uint8
    )


def test_workers_give_the_same_batches(phantoms):
    data = patches(phantoms, 4, (24, 32, 24), 0)
    batches = []
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            data,
            batch_sampler=EpochSampler(4, 2, 0),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        batches.append(list(loader))
    assert all(torch.equal(a, b) for one, two in zip(*batches) for a, b in zip(one, two))


def test_sampler_visits_each_case_once_an_epoch():
    sampler = EpochSampler(7, 2, 0)
    orders = []
    for sampler.epoch in (0, 1):
        keys = [key for batch in sampler for key in batch]
        assert {e for e, _ in keys} == {sampler.epoch} and sorted(i for _, i in keys) == list(range(7))
        orders.append([i for _, i in keys])
    assert len(sampler) == 4 and orders[0] != orders[1]


def test_few_cases_make_several_passes():
    sampler = EpochSampler(5, 2, 0, min_steps=7)
    seen = []
    for sampler.epoch in (0, 1):
        batches = list(sampler)
        assert len(batches) == len(sampler) == 9
        seen += [key for batch in batches for key in batch]
    assert sorted(seen) == [(number, i) for number in range(6) for i in range(5)]


def test_dataset_json_is_not_trusted_for_paths(folder):
    info = json.loads((folder / "dataset.json").read_text())
    info["training"].append({"image": "../../etc/passwd", "label": "x"})
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="passwd"):
        list_cases(folder)
