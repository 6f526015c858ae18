"""Profiles along the long axis: lengths, areas and borders that are known, in every orientation; and the picture's strip."""

import csv
import itertools

import phantom
from hippo.heads.picture import picture_of_scan
from hippo.heads.profile import COLUMNS, STEPS, in_steps, load_profiles, profile, save_profiles
from hippo.heads.segment import Hippocampus
from tools.simulate import scan_of

import numpy as np
import pytest
from matplotlib.image import imsave
from runs import has_colour
from scipy.spatial.transform import Rotation
from skimage.io import imread

RADII_MM = np.array([6, 20, 5])


def ellipsoid(spacing_mm, degrees=(25, 5, -5)):
    """(label map, matrix) of an ellipsoid of RADII_MM, 40 mm long, cut 4 mm in front of its middle."""
    size = np.ceil(np.array([40, 60, 40]) / spacing_mm).astype(int)
    points = (np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) - (size - 1) / 2) * spacing_mm
    points = points @ Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    inside = ((points / RADII_MM) ** 2).sum(-1) < 1
    return np.where(inside, np.where(points[..., 1] > 4, 1, 2), 0), np.diag(np.broadcast_to(spacing_mm, 3)).astype(
        float
    )


@pytest.mark.promise("profile")
@pytest.mark.parametrize("spacing_mm", [1.0, (0.87, 0.87, 1.0), (0.9, 0.9, 3.0), 0.6])
def test_length_areas_and_border_of_a_known_shape(spacing_mm):
    labels, matrix = ellipsoid(np.array(spacing_mm))
    found = profile(labels, matrix)
    volume = np.count_nonzero(labels) * np.linalg.det(matrix)
    assert found.areas_mm2.sum() * 1.0 == pytest.approx(volume, rel=1e-6)
    steps = in_steps(found)
    assert steps.sum() * found.length_mm / STEPS == pytest.approx(volume, rel=1e-6)
    assert found.length_mm == pytest.approx(40, abs=1.5) and found.border_mm == pytest.approx(24, abs=1)
    places = (np.arange(STEPS) + 0.5) / STEPS * 2 - 1
    expected = np.pi * RADII_MM[0] * RADII_MM[2] * (1 - places**2)
    assert np.corrcoef(steps, expected)[0, 1] > 0.98 and np.abs(steps - expected).max() < 12
    assert found.anterior_mm2[: int(found.border_mm) - 2].sum() < 0.05 * found.anterior_mm2.sum()


def test_the_length_of_a_phantom():
    rng = np.random.default_rng(1)
    points = np.stack(np.meshgrid(*(np.arange(n) for n in (44, 66, 48)), indexing="ij"), -1) - np.array(
        [21.5, 32.5, 23.5]
    )
    labels, line = phantom.make_hippocampus(points, rng)
    chord = (line[-1] - line[0]) / np.linalg.norm(line[-1] - line[0])
    along = points[labels > 0] @ chord
    assert profile(labels, np.eye(3)).length_mm == pytest.approx(np.ptp(along), abs=2)


@pytest.mark.promise("profile")
def test_every_orientation_gives_the_same_profile():
    labels, matrix = ellipsoid(np.array((0.9, 1.0, 1.2)))
    first = profile(labels, matrix)
    for axes in itertools.permutations(range(3)):
        for flips in np.ndindex(2, 2, 2):
            signs = np.array([-1.0 if flip else 1.0 for flip in flips])
            turned = np.flip(labels.transpose(axes), [axis for axis in range(3) if flips[axis]])
            found = profile(turned, matrix[:, list(axes)] * signs)
            assert found.length_mm == pytest.approx(first.length_mm, abs=1e-6)
            assert found.border_mm == pytest.approx(first.border_mm, abs=1e-6)
            assert np.allclose(found.areas_mm2, first.areas_mm2, atol=2)  # a part of a voxel on an edge


def test_a_rescan_has_nearly_the_same_profile():
    one, other = (profile(*ellipsoid(np.array(mm), degrees)) for mm, degrees in ((1.0, (20, 0, 0)), (0.8, (28, 6, -4))))
    assert one.length_mm == pytest.approx(other.length_mm, abs=0.7)
    a, b = in_steps(one), in_steps(other)
    assert np.corrcoef(a, b)[0, 1] > 0.995 and np.median(np.abs(b / a - 1)) < 0.03


def test_a_whole_hippocampus_has_no_border_and_files_come_back(tmp_path):
    labels, matrix = ellipsoid(1.0)
    profiles = {"left": profile(labels, matrix), "right": profile(labels > 0, matrix)}
    assert np.isnan(profiles["right"].border_mm) and np.isnan(profiles["right"].anterior_mm2).all()
    save_profiles(tmp_path / "x_profile.tsv", profiles)
    with open(tmp_path / "x_profile.tsv", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert list(rows[0]) == list(COLUMNS) and rows[-1]["border_mm"] == rows[-1]["anterior_area_mm2"] == "n/a"
    back = load_profiles(tmp_path / "x_profile.tsv")
    for side, found in profiles.items():
        assert np.allclose(in_steps(back[side]), in_steps(found), atol=0.5)
        assert back[side].length_mm == pytest.approx(found.length_mm, abs=0.01)


def test_a_study_has_profiles_of_all(run_study, scans, tmp_path):
    code, _, err = run_study(scans, "--profile=True")
    assert code == 0, err
    out = tmp_path / "out"
    with open(out / "profiles.tsv", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    with open(out / "volumes.csv", newline="") as file:
        volumes = {row["scan"]: float(row["total_mm3"]) for row in csv.DictReader(file)}
    assert len(rows) == 3 and len(list(out.glob("*_profile.tsv"))) == 3
    for row in rows:
        areas = [float(row[f"area_{step:02d}_mm2"]) for step in range(1, STEPS + 1)]
        assert sum(areas) * float(row["length_mm"]) / STEPS == pytest.approx(volumes[row["scan"]], rel=0.01)
    assert "Along the long axis" in (out / "report.html").read_text() and (out / "profiles.json").is_file()
    assert run_study(scans)[0] == 0  # other settings: in a folder of their own
    assert not list(out.glob("profiles.*"))


def test_the_picture_has_a_strip_of_sections_and_stays_small(tmp_path):
    labels, _ = ellipsoid(1.0)
    array = np.random.default_rng(0).uniform(0, 100, (160, 160, 160)).astype(np.float32)
    bbox = tuple(slice(30, 30 + n) for n in labels.shape)
    array[bbox] += 100 * (labels > 0)
    scan = scan_of(array, np.eye(4))
    sides = [Hippocampus(side, "", 0.9, (), labels, None, bbox) for side in ("left", "right")]
    volumes = {"anterior_mm3": "900.0", "posterior_mm3": "1600.0", "total_mm3": "2500.0"}
    rows = [{"scan": "x.nii.gz", "side": side.side, "etiv_mm3": "1500000", "flags": "", **volumes} for side in sides]
    picture_of_scan(tmp_path / "x.png", scan, sides, rows)
    assert (tmp_path / "x.png").stat().st_size < 250_000
    pixels = imread(tmp_path / "x.png")[..., :3]
    strip = pixels[int(0.375 * len(pixels)) : int(0.475 * len(pixels))]  # of the left side
    for number, colour in ((0, "#E69F00"), (6, "#56B4E9")):
        path = tmp_path / f"{number}.png"
        width = strip.shape[1] // 7
        imsave(path, strip[:, number * width : (number + 1) * width])
        assert has_colour(path, colour), number
