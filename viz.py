"""Draws a head or a case in 3D, in millimetres, with PyVista. Needs no display.

    python viz.py head.nii.gz                            the brain and both hippocampi in it, in ten seconds
    python viz.py head.nii.gz --by_label=True --mesh=head.stl      anterior and posterior; and the surfaces as a file
    python viz.py                                        a validation case and its prediction, in a few seconds
    python viz.py --case=hippocampus_393 --by_label=True anterior and posterior in colours of their own
    python viz.py --checkpoint=results_hippocampus-3D/last.pth      any 3D or 2D checkpoint; --checkpoint= for none

For a head, OUT shows both hippocampi, as predict.py segments them or as SEGMENTATION has them, inside the brain (grey), from
the left and from below. Where the brain's surface cannot be told from fluid, as in T2-weighted images, grey is the intracranial
space instead, and the legend says so. MESH gets the same surfaces in the scanner's mm.
For a case, OUT shows the labelled hippocampus inside the surface of the crop's brighter tissue (Otsu's threshold, grey; a crop
holds no whole brain). <OUT>_prediction.png shows label and prediction with the Dice of each part, and the true positive,
false positive and false negative voxels of each part. If there is a display, the scenes open in windows too.
"""

from pathlib import Path
from textwrap import fill

import predict
from hippo.data.cases import LABELS, count_labels, is_synthetic, list_cases, load_case
from hippo.data.nifti import read_nifti
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import atomic
from hippo.heads.brain import find_brain
from hippo.heads.locate import load_locator, locate
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels
from hippo.models.checkpoint import load_model
from hippo.models.inference import predict_volume
from hippo.options import configure, run_script
from hippo.pictures.plots import COLOURS, source
from hippo.pictures.scenes import add_bar, add_mask, annotate, draw_scenes, surface
from hippo.scoring.metrics import dice
from hippo.segmenter import Segmenter, Settings

import numpy as np
import pyvista as pv
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

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

_HEAD_VIEWS = {"from the left": ((-1, 0.3, 0.12), (0, 0, 1)), "from below": ((0, 0, -1), (0, 1, 0))}
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
        require(located.inside.any(), f"{path}: no brain found; expected an MRI of a head")
    else:
        require(cfg.checkpoint, "--checkpoint=: expected a checkpoint, or a --segmentation")
        result = segmenter_of(cfg)(scan)
        for side in result.sides:
            require(not side.problem, f"{path}: {side.problem}")
        labels, located = joint_labels([side.found for side in result.sides], scan), result.located
        flags = [f"{side.side} {flag}" for side in result.sides for flag in side.flags]
    meshes, outline = head_meshes(scan, labels, located)
    if cfg.mesh:
        with atomic(cfg.mesh) as temporary:
            pv.merge([mesh for _, mesh in meshes]).extract_surface(algorithm=None).save(temporary)
        print(f"wrote {cfg.mesh}")
    flags = [*scan.flags, *located.flags, *flags]
    caption = fill(f"{Path(path).name}{': FLAGS ' if flags else ''}{', '.join(flags)}", 90)
    return {Path(cfg.out): ((1, 2), lambda plotter: draw_head(plotter, meshes, cfg.by_label, outline, caption))}


def segmenter_of(cfg):
    """Returns predict.py's Segmenter with the weights of a configuration."""
    checkpoint = predict.CHECKPOINT if cfg.checkpoint == "auto" else cfg.checkpoint
    names = ("partner", "any_contrast", "locate", "tta", "device", "amp")
    options = {name: getattr(cfg, name) for name in names}
    return Segmenter.load(**vars(Settings.of(configure(vars(predict), [], checkpoint=checkpoint, **options))))


def head_meshes(scan, labels, located):
    """Returns ([(label, smooth mesh in the scanner's mm)] of a head, name of what label 0 is). Label 0 is the brain or, if
    it cannot be told from fluid, the intracranial space; 1 to 4 are the parts of the hippocampi, as predict.py
    numbers them; parts without a voxel are left out.

    labels: (D, H, W) on the scan's grid; located: from heads.locate.
    """
    found = find_brain(scan, located)
    field, level, window = found or (gaussian_filter(located.inside, 0.7), 0.5, located.window)
    fields = [(0, field, level, window.steps(), window.to_mm(np.zeros(3)))]
    for label in range(1, 5):
        voxels = np.argwhere(labels == label)
        if len(voxels):
            low = voxels.min(0)
            part = labels[tuple(map(slice, low, voxels.max(0) + 1))] == label
            corner_mm = scan.matrix @ (low - (np.array(labels.shape) - 1) / 2)
            fields.append((label, part, 0.5, scan.matrix, corner_mm))
    meshes, to_world = [], np.eye(4)
    for label, field, level, steps, corner_mm in fields:
        mesh = surface(np.pad(field, 1), level, (1, 1, 1)).smooth_taubin(n_iter=20, pass_band=0.1)
        to_world[:3, :3], to_world[:3, 3] = steps, scan.middle_mm + corner_mm - steps.sum(1)
        mesh = mesh.transform(to_world, inplace=False)
        mesh.clear_data()
        mesh["label"] = np.full(mesh.n_points, label, np.uint8)
        meshes.append((label, mesh))
    return meshes, "brain" if found else "intracranial space"


def draw_head(plotter, meshes, by_label, outline, caption):
    """Draws both hippocampi inside a head, seen from the left and from below. meshes, outline: from head_meshes.

    The grey surface is drawn twice: the first time all but invisible, so that of its folds only the nearest is left to be
    drawn, half transparent, the second time.
    """
    plotter.disable_anti_aliasing(all_renderers=True)  # it takes most of the time where a CPU draws
    parts = [[name, COLOURS[label]] for label, name in LABELS.items()] if by_label else [["hippocampi", "crimson"]]
    for column, (name, view) in enumerate(_HEAD_VIEWS.items()):
        plotter.subplot(0, column)
        for label, mesh in meshes[1:]:
            colour = COLOURS[2 - label % 2] if by_label else "crimson"
            plotter.add_mesh(mesh, color=colour, ambient=0.4, smooth_shading=True)
        veil = plotter.add_mesh(meshes[0][1], color="darkgrey", opacity=0.001, specular=0.3, smooth_shading=True)
        grey = pv.Actor(mapper=veil.mapper, prop=veil.prop.copy())
        grey.prop.opacity = 0.55
        plotter.add_actor(grey)
        for actor in (veil, grey):
            actor.ForceOpaqueOn()  # drawn in this order
        legend = [[name, "black"], *parts, [outline, "grey"], add_bar(plotter, 20, view)]
        annotate(plotter, "" if column else caption, legend, view)
        plotter.enable_parallel_projection()  # so that the bar holds for what is near and far
        plotter.camera.zoom(1.25)


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
