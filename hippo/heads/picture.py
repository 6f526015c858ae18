"""Draws the picture by which a user checks the segmentation of a scan."""

from hippo.data.cases import labels_of
from hippo.heads.flags import AMBER, GREEN, RED, flags_in, verdict
from hippo.pictures.plots import COLOURS, panels, save

import matplotlib.image
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

_THUMBNAIL = 0.6  # scale of the thumbnails on a page, relative to the full picture
_HALF_MM = 38  # half the side of the region shown around a hippocampus
_PLANES = ("sagittal", "coronal", "axial")
_COLOURS = {GREEN: "#BFE8CF", AMBER: "#FFE2A8", RED: "#F7B9AE"}
_OUTLINED = [withStroke(linewidth=2, foreground="black")]  # dark outline for bright letters
_LETTERS = (("P", "A"), ("L", "R"), ("L", "R"))  # letters at the left and right edge of each plane


def picture_of_scan(path, scan, sides, rows):
    """Draws three planes through the centre of each hippocampus of a scan, with outlines, volumes and flags.

    scan: hippo.heads.scan.Scan; sides: list of hippo.heads.segment.Hippocampus; rows: their rows of volumes.csv.
    """
    heights = {"height_ratios": [0.14, 1] * len(sides)}  # a row of text above each row of planes
    figure, axes = panels(2 * len(sides), 3, (9.6, 3.8 * len(sides) + 0.7), squeeze=False, gridspec_kw=heights)
    for axis in axes.flat:
        axis.set_axis_off()
    for above, line, side, row in zip(axes[::2], axes[1::2], sides, rows):
        text, colour = caption(side, row)
        box = {"facecolor": colour, "edgecolor": "none", "pad": 3}
        words = above[0].text(0, 0.5, text, transform=above[0].transAxes, va="center", fontsize=10, bbox=box)
        words.set_in_layout(False)  # the text may extend over the neighbouring panels
        if side.labels is None or not side.labels.any():
            continue
        for plane, axis in enumerate(line):
            _draw_plane(axis, scan, side, plane)
    names = labels_of(2 if any(row["anterior_mm3"] for row in rows) else 1)
    handles = [Line2D([], [], color=COLOURS[label], label=name) for label, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    etiv = f", eTIV {float(rows[0]['etiv_mm3']) / 1000:,.0f} ml" if rows[0]["etiv_mm3"] else ""
    save(figure, path, rows[0]["scan"].replace("\\", "/").rsplit("/", 1)[-1] + etiv)


def thumbnail(picture, path):
    """Writes a smaller copy of a picture. The extension of the path sets the format."""
    matplotlib.image.thumbnail(picture, path, _THUMBNAIL, interpolation="antialiased")


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
    bottom, top = np.percentile(image, (1, 99.5))
    axis.imshow(image.T, cmap="gray", origin="lower", aspect=spacing[up] / spacing[across], vmin=bottom, vmax=top)
    for label, colour in COLOURS.items():
        if (labels == label).any():
            axis.contour((labels == label).T.astype(float), [0.5], colors=colour, linewidths=1.3)
    for x, letter in zip((0.03, 0.97), _LETTERS[plane]):
        style = {"color": "yellow", "fontsize": 12, "fontweight": "bold", "va": "center", "path_effects": _OUTLINED}
        ha = "left" if x < 0.5 else "right"
        axis.text(x, 0.5, letter, transform=axis.transAxes, ha=ha, **style)
    style = {"color": "white", "fontsize": 8, "ha": "center", "path_effects": _OUTLINED}
    axis.text(0.5, 0.02, _PLANES[plane], transform=axis.transAxes, **style)
