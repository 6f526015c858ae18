"""Draws a head or a case in 3D, in millimetres, with PyVista. Needs no display.

    python viz.py head.nii.gz                            both hippocampi inside the brain's surface, in ten seconds
    python viz.py head.nii.gz --by_label=True --mesh=head.stl      anterior and posterior; and the surfaces as a file
    python viz.py                                        a validation case and its prediction, in a few seconds
    python viz.py --case=hippocampus_393 --by_label=True anterior and posterior in colours of their own
    python viz.py --checkpoint=results_hippocampus-3D/last.pth      any 3D or 2D checkpoint; --checkpoint= for none

For a head, OUT shows both hippocampi, as predict.py segments them or as SEGMENTATION has them, inside the surface of the
intracranial space that the locating network finds (grey). MESH gets the same surfaces in the scanner's mm.
For a case, OUT shows the labelled hippocampus inside the surface of the crop's brighter tissue (Otsu's threshold, grey; a crop
holds no whole brain). <OUT>_prediction.png shows label and prediction with the Dice of each part, and the true positive,
false positive and false negative voxels of each part. If there is a display, the scenes open in windows too.
"""

import os
import sys
from pathlib import Path

import predict
from hippo.data.cases import LABELS, count_labels, is_synthetic, list_cases, load_case
from hippo.data.nifti import read_nifti
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import atomic
from hippo.heads.locate import load_locator, locate
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels
from hippo.models.checkpoint import load_model
from hippo.models.inference import predict_volume
from hippo.options import configure, run_script
from hippo.pictures.plots import COLOURS, source
from hippo.scoring.metrics import dice
from hippo.segmenter import Segmenter, Settings

import numpy as np
import pyvista as pv
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from vtkmodules.vtkCommonCore import vtkLogger

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
CASE = "hippocampus_338"  # case to draw; the default is a validation case
CHECKPOINT = "auto"  # weights: auto (of a head predict.py's, of a case HELD_OUT), or a file; empty: none (of a case)
HELD_OUT = "pretrained/hippocampus_3d.pth"  # weights that have not seen the validation cases
PARTNER = predict.PARTNER  # of a head: a second one, averaged with the first; empty: none
ANY_CONTRAST = predict.ANY_CONTRAST  # of a head: weights for what is not T1-weighted; empty: none
LOCATE = "pretrained/locate.pth"  # of a head: weights of the network that finds hippocampi
SEGMENTATION = ""  # of a head: a label map of predict.py (1 to 4) to draw; empty: the head is segmented
MESH = ""  # of a head: file for the surfaces, .stl, or .vtk with a number for each (0 brain, 1 to 4 as predict.py's labels)
OUT = "3D_vis.png"  # picture to write, overwritten
BY_LABEL = False  # True: anterior and posterior in colours of their own; False: all crimson
INTERACTIVE = "auto"  # open windows too: auto (where there is a display), True or False
TTA = True  # predict with test-time augmentation
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs

_TRUE_POSITIVE, _FALSE_POSITIVE, _FALSE_NEGATIVE = "#999999", "#D55E00", "#0072B2"


def main():
    run(configure(globals(), inputs="a whole head (.nii, .nii.gz, .mgz, ...); none: a case of DATA_ROOT"))


def run(cfg):
    """Writes the pictures of a configuration. Returns their paths."""
    interactive = cfg.interactive.lower()
    require(interactive in ("auto", "true", "false"), f"--interactive={cfg.interactive}: expected auto, True or False")
    require(Path(cfg.out).suffix == ".png", f"--out={cfg.out}: expected a name that ends in .png")
    inputs = getattr(cfg, "inputs", [])
    require(len(inputs) <= 1, f"{' '.join(inputs)}: expected one head at a time")
    scenes = head_scenes(cfg, inputs[0]) if inputs else case_scenes(cfg)
    draw_scenes(scenes, interactive)
    return list(scenes)


def case_scenes(cfg):
    """Predicts a case of a Decathlon folder. Returns its scenes, {path: ((rows, columns), function that draws into a
    plotter)}."""
    cases, info = list_cases(cfg.data_root)
    names = [case.id for case in cases]
    require(cfg.case in names, f"{cfg.data_root}: no case {cfg.case}; expected one such as --case={names[-1]}")
    require(
        count_labels(info, cfg.data_root) == 2,
        f"{cfg.data_root}: viz.py draws cases of both parts; look at the plots of the run",
    )
    volume = load_case(cases[names.index(cfg.case)])
    data = source(is_synthetic(info))
    scenes = {Path(cfg.out): ((1, 1), lambda plotter: draw_anatomy(plotter, volume, cfg.by_label, data))}
    if cfg.checkpoint:
        trained, checkpoint = load_model(cfg.held_out if cfg.checkpoint == "auto" else cfg.checkpoint)
        device, dtype = set_up_device(cfg.device, cfg.amp)
        probabilities = predict_volume(trained.to(device), volume.image, device, dtype, cfg.tta)
        prediction = probabilities.argmax(0).byte().cpu().numpy()
        seen = " (A TRAINING CASE)" if volume.id in checkpoint.get("train_cases", ()) else ""
        path = Path(cfg.out).with_name(f"{Path(cfg.out).stem}_prediction.png")
        scenes[path] = ((2, 2), lambda plotter: draw_prediction(plotter, volume, prediction, seen, data))
    return scenes


def head_scenes(cfg, path):
    """Segments a whole head and writes its meshes. Returns its scene, as in case_scenes. Raises UserError if the file is
    no head, or a hippocampus is not found."""
    require(
        not cfg.mesh or Path(cfg.mesh).suffix in (".stl", ".vtk"),
        f"--mesh={cfg.mesh}: expected a name that ends in .stl or .vtk",
    )
    scan = read_scan(path)
    require(not scan.is_crop, f"{path}: a crop; expected a whole head")
    if cfg.segmentation:
        device, dtype = set_up_device(cfg.device, cfg.amp)
        locator = load_locator(cfg.locate).to(device)
        labels, image = read_nifti(cfg.segmentation)
        fits = labels.shape == scan.array.shape and np.allclose(image.affine, scan.image.affine, atol=1e-2)
        fits = fits and np.isin(np.unique(labels), range(5)).all()
        require(fits, f"{cfg.segmentation}: expected labels 0 to 4 on the grid of {path}, as predict.py writes them")
        located, flags = locate(locator, scan, device, dtype), []
    else:
        require(cfg.checkpoint, "--checkpoint=: expected a checkpoint, or a --segmentation")
        result = segmenter_of(cfg)(path)
        for side in result.sides:
            require(not side.problem, f"{path}: {side.problem}")
        labels, located = joint_labels([side.found for side in result.sides], scan), result.located
        flags = [f"{side.side} {flag}" for side in result.sides for flag in side.flags]
    meshes = head_meshes(scan, labels, located)
    if cfg.mesh:
        with atomic(cfg.mesh) as temporary:
            pv.merge([mesh for _, mesh in meshes]).extract_surface(algorithm=None).save(temporary)
        print(f"wrote {cfg.mesh}")
    flags = [*scan.flags, *located.flags, *flags]
    caption = f"{Path(path).name}{': FLAGS ' if flags else ''}{', '.join(flags)}"
    return {Path(cfg.out): ((1, 1), lambda plotter: draw_head(plotter, meshes, cfg.by_label, caption))}


def segmenter_of(cfg):
    """Returns predict.py's Segmenter with the weights of a configuration."""
    checkpoint = predict.CHECKPOINT if cfg.checkpoint == "auto" else cfg.checkpoint
    names = ("partner", "any_contrast", "locate", "tta", "device", "amp")
    options = {name: getattr(cfg, name) for name in names}
    return Segmenter.load(**vars(Settings.of(configure(vars(predict), [], checkpoint=checkpoint, **options))))


def head_meshes(scan, labels, located):
    """Returns [(label, smooth mesh in the scanner's mm)] of a head: 0 is the intracranial space, 1 to 4 are the parts of
    the hippocampi, as predict.py numbers them; parts without a voxel are left out.

    labels: (D, H, W) on the scan's grid; located: from heads.locate.
    """
    window = located.window
    inside = np.pad(gaussian_filter(located.inside, 0.7), 1)
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = window.steps(), window.to_mm(np.array([-1.0] * 3)) + scan.middle_mm
    meshes = [(0, surface(inside, 0.5, (1, 1, 1)).transform(to_world, inplace=False))]
    to_world[:3, :3] = scan.matrix
    for label in range(1, 5):
        voxels = np.argwhere(labels == label)
        if len(voxels):
            low = voxels.min(0) - 1
            part = np.pad(labels[tuple(map(slice, low + 1, voxels.max(0) + 1))] == label, 1)
            to_world[:3, 3] = scan.middle_mm + scan.matrix @ (low - (np.array(labels.shape) - 1) / 2)
            mesh = surface(part, 0.5, (1, 1, 1)).smooth_taubin(n_iter=20, pass_band=0.1)
            meshes.append((label, mesh.transform(to_world, inplace=False)))
    for label, mesh in meshes:
        mesh.clear_data()
        mesh["label"] = np.full(mesh.n_points, label, np.uint8)
    return meshes


def draw_head(plotter, meshes, by_label, caption):
    """Draws both hippocampi inside the surface of the intracranial space. meshes: from head_meshes."""
    for label, mesh in meshes:
        colour = ("crimson" if not by_label else COLOURS[2 - label % 2]) if label else "grey"
        plotter.add_mesh(mesh, color=colour, opacity=1.0 if label else 0.15, smooth_shading=True)
    parts = [[name, COLOURS[label]] for label, name in LABELS.items()] if by_label else [["hippocampi", "crimson"]]
    annotate(plotter, caption, [*parts, ["intracranial space", "grey"], add_bar(plotter, 50)])
    plotter.camera.zoom(1.3)


def draw_scenes(scenes, interactive):
    """Writes the pictures of scenes and opens them in windows, if `interactive` is "true", or "auto" and there is a
    display."""
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


def has_display():
    """Whether this machine can open a window."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def surface(field, level, spacing_mm):
    """Returns the isosurface of an array (D, H, W) at a level, as a mesh in mm from the centre of its first voxel."""
    grid = pv.ImageData(dimensions=field.shape, spacing=spacing_mm)
    grid["value"] = field.astype(np.float32).ravel(order="F")
    return grid.contour([level], scalars="value")


def add_mask(plotter, mask, spacing_mm, colour, opacity=1.0, smooth=True):
    """Draws the surface of a boolean array (D, H, W), closed at its edges too; nothing if it is empty."""
    mesh = surface(np.pad(mask, 1), 0.5, spacing_mm)
    if mesh.n_points:
        mesh = mesh.translate([-s for s in spacing_mm])
        mesh = mesh.smooth_taubin(n_iter=20, pass_band=0.1) if smooth else mesh
        plotter.add_mesh(mesh, color=colour, opacity=opacity, smooth_shading=smooth)


def annotate(plotter, text, legend):
    """Adds a caption, a legend and axes to a panel, and places its camera. legend: [[name, colour]]."""
    plotter.set_background("white")
    plotter.add_text(text, position="upper_edge", font_size=9, color="black")
    height = plotter.renderer.GetSize()[1]
    for line, (name, colour) in enumerate(reversed(legend)):  # VTK's own legend cuts long names off
        plotter.add_text(name, position=(0.7, (10 + 24 * line) / height), viewport=True, font_size=9, color=colour)
    plotter.add_axes(
        xlabel="right", ylabel="front", zlabel="up", color="black", line_width=3, viewport=(0, 0, 0.25, 0.25)
    )
    plotter.view_vector((1, 0.45, 0.35), viewup=(0, 0, 1))


def add_bar(plotter, length_mm=10):
    """Draws a scale bar below the meshes of a panel. Returns its entry in the legend."""
    _, x, y, _, z, _ = plotter.bounds
    start, end = y + 0.8 * length_mm, y + 1.8 * length_mm
    plotter.add_mesh(pv.Line((x, start, z - 2), (x, end, z - 2)), color="black", line_width=4)
    return [f"bar: {length_mm} mm", "black"]


def draw_anatomy(plotter, volume, by_label, data):
    """Draws the labelled hippocampus of a case inside the surface of the crop's brighter tissue.

    volume: cases.Volume; by_label: whether its parts have colours of their own; data: description for the caption.
    """
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
    """Draws four panels with one camera: label, prediction, and the errors of each part.

    volume: cases.Volume; prediction: label map on its grid; seen, data: text for the caption.
    """
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
