"""Augmentation and the order of batches."""

import train2d
import train_3d
from hippo.data.augment import PARTS, augment, change_intensities
from hippo.data.cases import list_cases, load_case
from hippo.data.intensity import normalise
from hippo.data.loading import AugmentedDataset, EpochSampler
from hippo.options import constants

import numpy as np
import pytest
import torch


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


def volume_of(root, i=0):
    return load_case(list_cases(root)[0][i])


NONE = {"rotation_degrees": 0, "scale": 0, "shift_voxels": 0, "intensity": 0, "gamma": 0, "noise": 0, "blur_mm": 0}


def test_no_augmentation_is_the_volume_itself(phantoms):
    volume = volume_of(phantoms)
    image, label = augment(volume.image, volume.label, volume.image.shape, np.random.default_rng(0), **NONE)
    assert np.allclose(image[0], volume.image, atol=1e-4) and np.array_equal(label, volume.label)


@pytest.mark.promise("half_a_voxel")
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


def test_flips_of_slices_mirror_the_image(phantoms):
    volume = volume_of(phantoms)
    image, label = volume.image[16], volume.label[16]
    for axis, name in enumerate("xy"):
        moved = {**NONE, "shift_voxels": 3}
        rngs = (np.random.default_rng(i) for i in range(8))
        results = [augment(image, label, image.shape, rng, flip_axes=name, **NONE)[0][0].numpy() for rng in rngs]
        flipped = [np.allclose(result, np.flip(image, axis), atol=1e-4) for result in results]
        same = [np.allclose(result, image, atol=1e-4) for result in results]
        assert 0 < sum(flipped) < 8 and sum(flipped) + sum(same) == 8
        assert (
            augment(image, label, image.shape, np.random.default_rng(0), flip_axes=name, **moved)[1].shape
            == label.shape
        )


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


STRENGTHS = {"lookup_tables": 1, "gamma": 0.8, "bias_field": 0.3, "blur_mm": 1.2, "sharpening": 1, "motion_mm": 2}
STRENGTHS |= {"noise": 0.3, "low_resolution_mm": 3, "clipping": 0.1, "intensity": 0.5}


def changed(name, image, number=0, strength=None):
    """An image after one part of the augmentation."""
    rng = np.random.default_rng(number)
    return PARTS[name][1](image.clone(), rng, STRENGTHS[name] if strength is None else strength)


def test_every_part_has_a_strength_and_a_constant():
    assert STRENGTHS.keys() == PARTS.keys()
    for module in (train_3d, train2d):
        assert {name.upper() for name in PARTS} <= constants(vars(module)).keys()


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_part_changes_the_image_in_some_patches_only(phantoms, name, dim):
    volume = volume_of(phantoms)
    image, label = (a[16] if dim == 2 else a for a in (volume.image, volume.label))
    same = 0
    for number in range(24):
        options = {**NONE, name: STRENGTHS[name]}
        patch, target = augment(image, label, image.shape, np.random.default_rng(number), **options)
        assert patch.dtype == torch.float32 and patch.isfinite().all() and np.array_equal(target, label)
        same += np.allclose(patch[0], image, atol=1e-4)
    share = PARTS[name][0]
    assert abs(24 * (1 - share) - same) <= 9 and (share == 1) == (same == 0)


def test_an_unknown_part_is_an_error():
    with pytest.raises(TypeError, match="blurr"):
        change_intensities(torch.zeros(4, 4), np.random.default_rng(0), blurr=1)


def test_what_the_parts_do(phantoms):
    image = torch.from_numpy(volume_of(phantoms).image)
    roughness = lambda x, axis=0: float(x.diff(dim=axis).abs().mean())  # noqa: E731
    for number in range(5):
        table = changed("lookup_tables", image, number)
        assert torch.allclose(table.mean(), image.mean(), atol=1e-3) and torch.allclose(
            table.std(), image.std(), atol=0.01
        )
        assert roughness(changed("blur_mm", image, number)) < roughness(image)
        assert roughness(changed("sharpening", image, number)) > roughness(image)
        assert roughness(changed("noise", image, number)) > roughness(image)
        factor = (changed("bias_field", image + 5, number) - 1e-3 - image.min() - 5) / (image - image.min() + 1e-3)
        inside = factor[image > 0]
        assert 0.7 < inside.min() < inside.max() < 1.4 and inside.std() > 0.01
        clipped = changed("clipping", image, number)
        assert 0.8 < (clipped == image).float().mean() < 1
        moved = changed("motion_mm", image, number)
        assert abs(moved.mean() - image.mean()) < 0.1 and (moved - image).abs().mean() > 1e-4
    # a magnitude image is never below its floor, and noise lifts what is dark
    half = torch.zeros(32, 32, 32)
    half[16:] = 10
    noisy = changed("noise", half)
    assert noisy.min() >= 0 and noisy[:16].mean() > 0.1


def test_low_resolution_is_along_one_axis_or_all():
    white_noise = torch.from_numpy(np.random.default_rng(0).standard_normal((36, 52, 36)).astype(np.float32))
    smooth_axes = set()
    for number in range(30):
        coarse = changed("low_resolution_mm", white_noise, number, 3.0)
        steps = [float(coarse.diff(dim=axis).std() / coarse.std()) for axis in range(3)]  # 1.41 where nothing was done
        smooth_axes.add(sum(step < 1.25 for step in steps))
    assert {1, 3} <= smooth_axes


@pytest.mark.parametrize("dim", [2, 3])
def test_atrophy_changes_the_size_in_its_place(phantoms, dim):
    volume = volume_of(phantoms)
    label = volume.label[16] if dim == 2 else volume.label
    image = (label > 0) * np.float32(10) - 3
    middle = np.argwhere(label > 0).mean(0)
    sizes = []
    for number in range(80):
        patch, target = augment(image, label, label.shape, np.random.default_rng(number), **{**NONE, "atrophy_mm": 1.5})
        target = target.numpy()
        sizes.append((target > 0).sum() / (label > 0).sum())
        assert (patch[0].numpy()[target > 0] > 0).mean() > 0.9 > 0.1 > (patch[0].numpy()[target == 0] > 3).mean()
        assert np.linalg.norm(np.argwhere(target > 0).mean(0) - middle) < 3.5
    assert min(sizes) < 0.75 and max(sizes) > 1.05 and 0.3 < np.mean(np.isclose(sizes, 1)) < 0.7


def test_the_room_of_an_atrophied_hippocampus_is_fluid(phantoms):
    """What the hippocampus leaves is as dark as the darkest, in some of the patches, and tissue in others."""
    volume = volume_of(phantoms)
    image = np.where(volume.label > 0, 5, 4).astype(np.float32)
    image[0, 0, 0] = 0
    darkest = []
    for number in range(30):
        patch, _ = augment(
            image, volume.label, image.shape, np.random.default_rng(number), **{**NONE, "atrophy_mm": 1.5}
        )
        darkest.append(float(patch[0, 8:-8, 8:-8, 8:-8].min()))
    assert min(darkest) < 1 and 0.1 < np.mean(np.array(darkest) < 2) < 0.5 and max(darkest) > 3.9
