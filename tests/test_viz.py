import data_aug
import generate_architecture_diagram as diagram
import model2d
import unet_inr_3d
import viz
import viz_aug
from hippo.data.cases import list_cases, load_case
from hippo.options import configure

import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line
from runs import has_colour, share_of
from skimage.io import imread

PRETRAINED = f"--checkpoint={ROOT / 'pretrained' / 'hippocampus_3d.pth'}"


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


# ---- viz.py


@pytest.mark.promise("read_only")
def test_a_case_and_its_prediction(script, phantoms, tmp_path):
    out = tmp_path / "vue 1.png"
    code, text, err = script(
        viz, f"--data_root={phantoms}", "--case=phantom_007", PRETRAINED, f"--out={out}", "--interactive=False"
    )
    assert code == 0, err
    errors = tmp_path / "vue 1_prediction.png"
    assert f"wrote {out}" in text and f"wrote {errors}" in text and len(list(tmp_path.iterdir())) == 2
    assert reddish(out) > 0.01 and has_colour(out, "white") and imread(out).shape[:2] == (900, 1100)
    assert reddish(errors) < reddish(out) and bluish(errors) > 0.01 and orange(errors) > 0.005


def reddish(path):
    """The share of a picture's pixels whose hue is crimson, whatever the light on them."""
    r, g, b = np.moveaxis(imread(path)[..., :3].astype(int), -1, 0)
    return float(((r > 2 * g) & (r > 1.5 * b) & (r > 80)).mean())


def bluish(path):
    """The share of pixels in the hue of the anterior part, #56B4E9."""
    r, g, b = np.moveaxis(imread(path)[..., :3].astype(int), -1, 0)
    return float(((b > g + 10) & (g > r + 20)).mean())


def orange(path):
    """The share of pixels in the hue of the posterior part, #E69F00."""
    r, g, b = np.moveaxis(imread(path)[..., :3].astype(int), -1, 0)
    return float(((r > g + 20) & (g > b + 40)).mean())


def test_without_a_checkpoint_there_is_one_picture(script, phantoms, tmp_path):
    options = ("--case=phantom_007", "--checkpoint=", "--by_label=True", f"--out={tmp_path / 'a.png'}")
    code, _, err = script(viz, f"--data_root={phantoms}", "--interactive=False", *options)
    assert code == 0, err
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (
        bluish(tmp_path / "a.png") > 0.005 and orange(tmp_path / "a.png") > 0.005 and reddish(tmp_path / "a.png") < 1e-3
    )


def test_surfaces_are_in_millimetres():
    ball = np.zeros((20, 20, 20), bool)
    ball[5:15, 5:15, 5:15] = True
    bounds = viz.surface(ball, 0.5, (2.0, 1.0, 0.5)).bounds
    assert np.allclose(bounds, (2 * 4.5, 2 * 14.5, 4.5, 14.5, 2.25, 7.25))


def test_a_part_at_the_edge_of_the_crop_is_closed():
    mesh = []
    plotter = type("Plotter", (), {"add_mesh": lambda self, m, **options: mesh.append(m)})()
    viz.add_mask(plotter, np.ones((4, 4, 4), bool), (1.0, 1.0, 1.0), "red", smooth=False)
    assert mesh[0].n_open_edges == 0 and np.allclose(mesh[0].bounds, (-0.5, 3.5) * 3)
    viz.add_mask(plotter, np.zeros((4, 4, 4), bool), (1.0, 1.0, 1.0), "red")
    assert len(mesh) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data_root=nowhere"], ["nowhere", "get_data.py"]),
        (["--case=phantom_099"], ["no case phantom_099", "--case=phantom_008"]),
        (["--checkpoint=none.pth"], ["none.pth", "train_3d.py"]),
        (["--interactive=maybe"], ["auto, True or False"]),
        (["--out=picture.bmp"], [".png"]),
    ],
)
def test_mistakes_of_viz(script, phantoms, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    one_error_line(
        script(viz, f"--data_root={phantoms}", "--case=phantom_007", "--interactive=False", *options), *words
    )
    assert not list(tmp_path.iterdir())


def test_a_picture_is_the_same_twice(phantoms, tmp_path):
    volume = load_case(list_cases(phantoms)[0][0])
    assert volume.label.any()
    pictures = []
    for name in ("a.png", "b.png"):
        cfg = configure(vars(viz), [], data_root=str(phantoms), case=volume.id, checkpoint="", out=str(tmp_path / name))
        viz.run(cfg)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]


# ---- viz_aug.py


@pytest.fixture(scope="module")
def slices(phantoms, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("slices") / "dataset_2d"
    options = ["--size=32", "--slices_per_plane=4", f"--data_root={phantoms}", f"--out_dir={out_dir}"]
    data_aug.run(configure(vars(data_aug), [*options, "--num_workers=1"]))
    return out_dir


FIGURES = ("viz_elegant_grid", "viz_detailed_sample", "viz_dataset_overview", "viz_augmentations")


def test_four_figures_that_the_seed_decides(script, slices, tmp_path):
    for seed in (0, 0):  # earlier figures are kept aside
        code, _, err = script(viz_aug, f"--data_dir={slices}", f"--out_dir={tmp_path / 'vis'}", f"--seed={seed}")
        assert code == 0, err
    first, again = ({p.stem: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("vis.previous-1", "vis"))
    assert set(first) == set(FIGURES) and first == again
    for name in FIGURES:
        path = tmp_path / "vis" / f"{name}.png"
        assert has_colour(path, viz_aug._COLOURS[1]) and has_colour(path, viz_aug._COLOURS[2]), name  # of the legend
    elegant, overview = (tmp_path / "vis" / f"{name}.png" for name in (FIGURES[0], FIGURES[2]))
    assert share_of(elegant, viz_aug._BACKGROUND) > 0.1  # nine masks on a dark ground
    for label in (1, 2):
        assert share_of(elegant, viz_aug._COLOURS[label]) > 3e-3
    assert share_of(overview, "white") < 0.6  # twenty images


def test_missing_slices(script, tmp_path):
    one_error_line(script(viz_aug, f"--data_dir={tmp_path / 'none'}", f"--out_dir={tmp_path / 'vis'}"), "data_aug.py")
    assert not (tmp_path / "vis").exists()


# ---- generate_architecture_diagram.py


@pytest.mark.parametrize(
    "name, attention", [("UNet3DWithINR", "se"), ("UNetnnUNetDeepSupervision", "none"), ("UNETR", "none")]
)
def test_the_diagram_is_drawn_from_the_model(script, tmp_path, name, attention):
    out = tmp_path / "architecture.jpg"
    code, _, err = script(
        diagram, f"--model={name}", f"--attention={attention}", f"--use_inr={name == 'UNet3DWithINR'}", f"--out={out}"
    )
    assert code == 0, err
    for colour in (diagram._ENCODER, diagram._DECODER, diagram._HEAD):
        assert share_of(out, colour) > 2e-3
    assert (share_of(out, "#E6BDD3") > 0.01) == (
        name != "UNETR" and "3D" in name
    )  # the box of the INR head, half transparent


def test_the_diagram_knows_what_each_stage_puts_out():
    model = unet_inr_3d.UNet3DWithINR(base_channels=4, depth=2, use_inr=True)
    shapes = diagram.outputs(model, (1, 1, 16, 24, 16))
    assert [shapes[f"unet.down.{i}"][1:] for i in range(3)] == [(4, 16, 24, 16), (8, 8, 12, 8), (16, 4, 6, 4)]
    assert shapes["unet.merge.1"][1:] == (4, 16, 24, 16) and shapes["inr"][1:] == (3, 16, 24, 16)
    assert model(torch.zeros(1, 1, 16, 24, 16)).shape == (1, 3, 16, 24, 16)  # the hooks are gone and changed nothing
    assert diagram.convolutions(model2d.UNetnnUNetLightweight().unet.down[0]).startswith("1 x conv 3x3, ")
    assert diagram.convolutions(model2d.UNetnnUNetLightweight(attention="se").unet.down[0]).endswith("excitation")
    shapes = diagram.outputs(unet_inr_3d.UNETR(width=16, layers=2, heads=2, features=4), (1, 1, 16, 24, 16))
    assert shapes["unet.vit"][1:] == (16, 4, 6, 4) and shapes["unet.skips.0"][1:] == (8, 8, 12, 8)


def test_mistakes_of_the_diagram(script, tmp_path):
    one_error_line(script(diagram, "--model=VNet"), "UNet3DWithINRBalanced", "UNetnnUNetLightweight")
    one_error_line(script(diagram, f"--out={tmp_path / 'a.gif'}"), ".jpg")
