"""Draws a case in 3D, in millimetres, with PyVista; needs no display.

    python viz.py                                        a validation case and its prediction, in a few seconds
    python viz.py --case=hippocampus_393 --by_label=True anterior and posterior in colours of their own
    python viz.py --checkpoint=results_hippocampus-3D/last.pth      any 3D or 2D checkpoint; --checkpoint= for none

Writes OUT: the labelled hippocampus inside the surface of the crop's brighter tissue (Otsu's threshold, grey; a crop
holds no whole brain). Writes <OUT>_prediction.png: label and prediction with the Dice of each part, and the true
positive, false positive and false negative voxels of each part. Where there is a display, the scenes open as windows.
"""

import os
import sys
from pathlib import Path

from hippo.data.cases import LABELS, is_synthetic, list_cases, load_case
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import atomic
from hippo.models.checkpoint import load_model
from hippo.models.inference import predict_volume
from hippo.options import configure, run_script
from hippo.pictures.plots import COLOURS, source
from hippo.scoring.metrics import dice

import numpy as np
import pyvista as pv
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from vtkmodules.vtkCommonCore import vtkLogger

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
CASE = "hippocampus_338"  # case to draw; the default is a validation case
CHECKPOINT = "pretrained/hippocampus_3d.pth"  # weights for the prediction; empty: none
OUT = "3D_vis.png"  # picture to write, overwritten
BY_LABEL = False  # True: anterior and posterior in colours of their own; False: all crimson
INTERACTIVE = "auto"  # open windows too: auto (where there is a display), True or False
TTA = True  # predict with test-time augmentation
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it

_TRUE_POSITIVE, _FALSE_POSITIVE, _FALSE_NEGATIVE = "#999999", "#D55E00", "#0072B2"


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the pictures of a configuration; returns their paths."""
    interactive = cfg.interactive.lower()
    require(interactive in ("auto", "true", "false"), f"--interactive={cfg.interactive}: expected auto, True or False")
    require(Path(cfg.out).suffix == ".png", f"--out={cfg.out}: expected a name that ends in .png")
    cases, info = list_cases(cfg.data_root)
    names = [case.id for case in cases]
    require(cfg.case in names, f"{cfg.data_root}: no case {cfg.case}; expected one such as --case={names[-1]}")
    volume = load_case(cases[names.index(cfg.case)])
    data = source(is_synthetic(info))
    scenes = {Path(cfg.out): ((1, 1), lambda plotter: draw_anatomy(plotter, volume, cfg.by_label, data))}
    if cfg.checkpoint:
        trained, checkpoint = load_model(cfg.checkpoint)
        device, dtype = set_up_device(cfg.device, cfg.amp)
        probabilities = predict_volume(trained.to(device), volume.image, device, dtype, cfg.tta)
        prediction = probabilities.argmax(0).byte().cpu().numpy()
        seen = " (A TRAINING CASE)" if volume.id in checkpoint.get("train_cases", ()) else ""
        path = Path(cfg.out).with_name(f"{Path(cfg.out).stem}_prediction.png")
        scenes[path] = ((2, 2), lambda plotter: draw_prediction(plotter, volume, prediction, seen, data))
    if not has_display():
        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)  # else VTK warns that there is none
    for path, (shape, draw) in scenes.items():
        plotter = pv.Plotter(off_screen=True, shape=shape, window_size=(1100, 900), border=False)
        draw(plotter)
        with atomic(path) as temporary:
            plotter.screenshot(temporary)
        plotter.close()
        print(f"wrote {path}")
    if interactive == "true" or (interactive == "auto" and has_display()):
        for path, (shape, draw) in scenes.items():
            plotter = pv.Plotter(shape=shape, title=path.stem)
            draw(plotter)
            plotter.show()
    return list(scenes)


def has_display():
    """Whether a window can be opened here."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def surface(field, level, spacing_mm):
    """The surface field = level of an array (D, H, W), as a mesh in mm from the crop's first voxel."""
    grid = pv.ImageData(dimensions=field.shape, spacing=spacing_mm)
    grid["value"] = field.astype(np.float32).ravel(order="F")
    return grid.contour([level], scalars="value")


def add_mask(plotter, mask, spacing_mm, colour, opacity=1.0, smooth=True):
    """Adds the surface of a boolean array, closed at the crop's edge too."""
    mesh = surface(np.pad(mask, 1), 0.5, spacing_mm)
    if mesh.n_points:
        mesh = mesh.translate([-s for s in spacing_mm])
        mesh = mesh.smooth_taubin(n_iter=20, pass_band=0.1) if smooth else mesh
        plotter.add_mesh(mesh, color=colour, opacity=opacity, smooth_shading=smooth)


def annotate(plotter, text, legend):
    """The caption, legend (names in their colours), axes and camera of a panel."""
    plotter.set_background("white")
    plotter.add_text(text, position="upper_edge", font_size=9, color="black")
    height = plotter.renderer.GetSize()[1]
    for line, (name, colour) in enumerate(reversed(legend)):  # VTK's own legend cuts long names off
        plotter.add_text(name, position=(0.7, (10 + 24 * line) / height), viewport=True, font_size=9, color=colour)
    plotter.add_axes(
        xlabel="right", ylabel="front", zlabel="up", color="black", line_width=3, viewport=(0, 0, 0.25, 0.25)
    )
    plotter.view_vector((1, 0.45, 0.35), viewup=(0, 0, 1))


def add_bar(plotter):
    """A bar of 10 mm below what the panel holds, and its line in the legend."""
    _, x, y, _, z, _ = plotter.bounds
    plotter.add_mesh(pv.Line((x, y + 8, z - 2), (x, y + 18, z - 2)), color="black", line_width=4)
    return ["bar: 10 mm", "black"]


def draw_anatomy(plotter, volume, by_label, data):
    """The hippocampus inside the surface of the crop's brighter tissue."""
    smooth = gaussian_filter(volume.image, 1)
    tissue = surface(smooth, threshold_otsu(smooth), volume.spacing_mm)
    plotter.add_mesh(tissue, color="grey", opacity=0.15, smooth_shading=True)
    if by_label:
        legend = [[name, COLOURS[label]] for label, name in LABELS.items()]
        for label in LABELS:
            add_mask(plotter, volume.label == label, volume.spacing_mm, COLOURS[label])
    else:
        legend = [["hippocampus", "crimson"]]
        add_mask(plotter, volume.label > 0, volume.spacing_mm, "crimson")
    legend += [["brighter tissue in the crop", "grey"], add_bar(plotter)]
    annotate(plotter, f"{volume.id}: {data}", legend)
    plotter.camera.zoom(1.2)


def draw_prediction(plotter, volume, prediction, seen, data):
    """Four panels with one camera: label, prediction, and the errors of each part."""
    parts = [[name, COLOURS[label]] for label, name in LABELS.items()]
    scores = {label: dice(prediction == label, volume.label == label) for label in LABELS}
    text = ", ".join(f"{name} {scores[label]:.3f}" for label, name in LABELS.items())
    panels = ((volume.label, f"{volume.id}{seen}, label\n{data}"), (prediction, f"prediction\nDice: {text}"))
    for column, (labels, caption) in enumerate(panels):
        plotter.subplot(0, column)
        for label in LABELS:
            add_mask(plotter, labels == label, volume.spacing_mm, COLOURS[label])
        annotate(plotter, caption, parts if column else [*parts, add_bar(plotter)])
    for column, (label, name) in enumerate(LABELS.items()):
        plotter.subplot(1, column)
        p, t = prediction == label, volume.label == label
        for mask, colour, opacity in (
            (p & t, _TRUE_POSITIVE, 0.25),
            (p & ~t, _FALSE_POSITIVE, 1.0),
            (t & ~p, _FALSE_NEGATIVE, 1.0),
        ):
            add_mask(plotter, mask, volume.spacing_mm, colour, opacity, smooth=False)
        legend = [
            ["true positive", _TRUE_POSITIVE],
            ["false positive", _FALSE_POSITIVE],
            ["false negative", _FALSE_NEGATIVE],
        ]
        annotate(plotter, f"errors, {name}", legend)
    plotter.link_views()


if __name__ == "__main__":
    run_script(main)
