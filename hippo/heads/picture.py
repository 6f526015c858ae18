"""Draws the picture by which a user checks the segmentation of a scan."""

from hippo.data.cases import labels_of
from hippo.files import atomic
from hippo.heads.flags import AMBER, GREEN, RED, flags_in, verdict
from hippo.pictures.plots import COLOURS

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

_DPI, _THUMBNAIL = 110, 0.7  # resolution of the picture, and the scale of the thumbnails on a page
_PALETTE = 256  # number of colours in the file, so that it stays below 250 kB
_WIDTH_IN, _GAP_IN, _TITLE_IN, _TEXT_IN, _LEGEND_IN = 9.6, 0.08, 0.46, 0.5, 0.4  # sizes in the picture, in inches
_PLANE_IN, _STRIP_IN = 3.09, 1.35
_SIDE_IN = _TEXT_IN + _PLANE_IN + _STRIP_IN + 3 * _GAP_IN
_HALF_MM = 38  # half the side of the region shown around a hippocampus
_GREYS = matplotlib.colormaps["gray"].resampled(64)  # as many levels as leave room for colours in the palette
_LONGEST_NAME = 68  # maximum number of characters of a file name in the title
_SECTIONS, _SECTION_MM = 7, 34  # number of coronal sections, and the side of each
_INSET = 0.03  # distance of the first and the last section from the ends, as a share of the length
_PLANES = ("sagittal", "coronal", "axial")
_COLOURS = {GREEN: "#BFE8CF", AMBER: "#FFE2A8", RED: "#F7B9AE"}
_OUTLINED = [withStroke(linewidth=2, foreground="black")]  # dark outline for bright letters
_LETTERS = (("P", "A"), ("L", "R"), ("L", "R"))  # letters at the left and right edge of each plane


def picture_of_scan(path, scan, sides, rows):
    """Draws three planes through the centre of each hippocampus of a scan and a strip of coronal sections from tail to
    head below them, with outlines, volumes and flags.

    scan: hippo.heads.scan.Scan; sides: list of hippo.heads.segment.Hippocampus; rows: their rows of volumes.csv.
    """
    height = _TITLE_IN + len(sides) * _SIDE_IN + _LEGEND_IN
    # places are fixed: a layout engine takes as long as all the rest
    figure = Figure(figsize=(_WIDTH_IN, height), dpi=_DPI)

    def panel(top, left, size):
        box = (left / _WIDTH_IN, 1 - (top + size[1]) / height, size[0] / _WIDTH_IN, size[1] / height)
        axis = figure.add_axes(box)
        axis.set_axis_off()
        return axis

    for number, (side, row) in enumerate(zip(sides, rows)):
        top = _TITLE_IN + number * _SIDE_IN
        text, colour = caption(side, row)
        box = {"facecolor": colour, "edgecolor": "none", "pad": 3}
        figure.text(_GAP_IN / _WIDTH_IN, 1 - (top + _TEXT_IN / 2) / height, text, va="center", fontsize=10, bbox=box)
        if side.labels is None or not side.labels.any():
            continue
        for plane in range(3):
            place = _GAP_IN + plane * (_PLANE_IN + _GAP_IN)
            _draw_plane(panel(top + _TEXT_IN, place, (_PLANE_IN, _PLANE_IN)), scan, side, plane)
        strip = (_WIDTH_IN - 2 * _GAP_IN, _STRIP_IN)
        _draw_sections(panel(top + _TEXT_IN + _PLANE_IN + _GAP_IN, _GAP_IN, strip), scan, side)
    names = labels_of(2 if any(row["anterior_mm3"] for row in rows) else 1)
    handles = [Line2D([], [], color=COLOURS[label], label=name) for label, name in names.items()]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=9)
    etiv = f", eTIV {float(rows[0]['etiv_mm3']) / 1000:,.0f} ml" if rows[0]["etiv_mm3"] else ""
    name = rows[0]["scan"].replace("\\", "/").rsplit("/", 1)[-1]
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"
    figure.suptitle(name + etiv, parse_math=False)  # file names may contain $
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with atomic(path) as temporary:
        pixels.quantize(_PALETTE, dither=Image.Dither.NONE).save(temporary)


def thumbnail(picture, path):
    """Writes a smaller copy of a picture. The extension of the path sets the format."""
    with Image.open(picture) as image:
        size = [round(_THUMBNAIL * length) for length in image.size]
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path)


def caption(side, row):
    """Returns (text of one or two lines, background colour) for one side. The text gives the volumes and the doubts,
    or why there is no result."""
    name = (side.side or "side unknown").upper()
    colour, doubts = verdict(flags_in(row["flags"]), bool(row["total_mm3"]))
    doubts = ", ".join(map(str, doubts))
    if side.problem:
        return f"{name}: FAILED, {side.problem}", _COLOURS[RED]
    parts = [part for part in ("anterior", "posterior", "total") if row[f"{part}_mm3"]]
    text = ", ".join(f"{part} {float(row[f'{part}_mm3']):,.0f}" for part in parts)
    text = f"{name}: {text} mm³, quality {side.quality:.3f}"
    words = {RED: f"DOUBTFUL: {doubts}", AMBER: f"LOOK: {doubts}", GREEN: "no doubts"}
    return f"{text}\n{words[colour]}", _COLOURS[colour]


def _draw_sections(panel, scan, side):
    """Draws coronal sections at equal distances from tail to head, side by side. Each is centred on the labels of its
    slice."""
    spacing = np.linalg.norm(scan.matrix, axis=0)
    start = np.array([part.start for part in side.bbox])
    slices = np.flatnonzero(side.labels.any((0, 2)))
    half = np.maximum(np.round(_SECTION_MM / 2 / spacing[[0, 2]]), 1).astype(int)
    grid = np.mgrid[-half[0] : half[0] + 1, -half[1] : half[1] + 1]
    images, labels = [], []
    inset = _INSET * (slices[-1] - slices[0])
    for at in np.round(np.linspace(slices[0] + inset, slices[-1] - inset, _SECTIONS)).astype(int):
        found = np.argwhere(side.labels[:, slices[np.abs(slices - at).argmin()]])
        x, z = grid + ((found.min(0) + found.max(0)) // 2).reshape(2, 1, 1)  # in the box of the labels
        inside = (x >= 0) & (x < side.labels.shape[0]) & (z >= 0) & (z < side.labels.shape[2])
        labels.append(np.where(inside, side.labels[x * inside, at, z * inside], 0))
        x, z = (np.clip(i + start[axis], 0, scan.array.shape[axis] - 1) for axis, i in ((0, x), (2, z)))
        images.append(scan.array[x, at + start[1], z])
    image, labels = np.concatenate(images).astype(np.float32), np.concatenate(labels)
    _show(panel, image, labels, spacing[2] / spacing[0], 0.9)
    for edge in range(1, _SECTIONS):
        panel.axvline(edge * len(images[0]) - 0.5, color="white", linewidth=1)
    style = {"color": "white", "fontsize": 8, "va": "top", "path_effects": _OUTLINED, "transform": panel.transAxes}
    for x, word, ha in ((0.005, "tail", "left"), (0.995, "head", "right")):
        panel.text(x, 0.96, word, ha=ha, **style)


def _show(axis, image, labels, aspect, linewidth):
    """Draws an image, (x, z) for instance, with the outlines of its labels."""
    bottom, top = np.percentile(image, (1, 99.5))
    axis.set_axis_off()
    axis.imshow(image.T, _GREYS, origin="lower", aspect=aspect, vmin=bottom, vmax=top, interpolation="nearest")
    for label, colour in COLOURS.items():
        if (labels == label).any():
            axis.contour((labels == label).T.astype(float), [0.5], colors=colour, linewidths=linewidth)


def _draw_plane(axis, scan, side, plane):
    """Draws one plane of the scan with the outlines of both parts. x points to the right, y to the front, z up."""
    spacing = np.linalg.norm(scan.matrix, axis=0)
    offset = np.array([part.start for part in side.bbox])
    voxels = np.argwhere(side.labels) + offset
    middle = np.median(voxels, axis=0).astype(int)
    centre = (voxels.min(0) + voxels.max(0)) / 2
    low = np.clip(np.floor(centre - _HALF_MM / spacing), 0, None).astype(int)
    high = np.minimum(np.ceil(centre + _HALF_MM / spacing) + 1, scan.array.shape).astype(int)
    box = [slice(a, b) for a, b in zip(low, high)]
    box[plane] = middle[plane]
    image = scan.array[tuple(box)].astype(np.float32)
    labels = np.zeros(scan.array.shape, np.uint8)
    labels[side.bbox] = side.labels
    labels = labels[tuple(box)]
    across, up = (a for a in range(3) if a != plane)
    _show(axis, image, labels, spacing[up] / spacing[across], 1.3)
    for x, letter in zip((0.03, 0.97), _LETTERS[plane]):
        style = {"color": "yellow", "fontsize": 12, "fontweight": "bold", "va": "center", "path_effects": _OUTLINED}
        ha = "left" if x < 0.5 else "right"
        axis.text(x, 0.5, letter, transform=axis.transAxes, ha=ha, **style)
    style = {"color": "white", "fontsize": 8, "ha": "center", "path_effects": _OUTLINED}
    axis.text(0.5, 0.02, _PLANES[plane], transform=axis.transAxes, **style)
