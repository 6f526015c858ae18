"""Draws slices that data_aug.py wrote, to show what the 2D network learns from.

    python viz_aug.py        writes four figures into dataset2d_vis/, in about ten seconds

Writes into OUT_DIR: viz_elegant_grid.png (9 slices: image, overlay, mask), viz_detailed_sample.png (one slice with the
pixels of each part and their intensities), viz_dataset_overview.png (20 slices) and viz_augmentations.png (one slice
under each augmentation). Cyan is anterior, magenta posterior. The same seed chooses the same slices.
"""

from hippo.data.cases import LABELS
from hippo.data.slices import PLANES, augment_slice, load_slice, read_index
from hippo.errors import require
from hippo.files import fresh_folder
from hippo.options import configure, run_script
from hippo.pictures import plots

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

DATA_DIR = "dataset_2d"  # slices, as data_aug.py writes them
OUT_DIR = "dataset2d_vis"  # folder for the figures; one that holds results is kept as <name>.previous-N
SEED = 0  # of the choice of slices

_BACKGROUND, _COLOURS = "#1A1A1A", {1: "#00E5FF", 2: "#FF2BD6"}  # anterior cyan, posterior magenta
_MASK = ListedColormap([_BACKGROUND, *_COLOURS.values()])


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the figures of a configuration. Returns their folder."""
    require(cfg.seed >= 0, f"--seed={cfg.seed}: expected 0 or more")
    rows, settings = read_index(cfg.data_dir)
    order = np.random.default_rng(cfg.seed).permutation(len(rows))

    def load(row):
        return row, *load_slice(cfg.data_dir, row["number"], settings["SIZE"])

    shuffled = [rows[i] for i in order]
    grid = [load(row) for plane in PLANES for row in [r for r in shuffled if r["plane"] == plane][:3]]
    overview = [load(row) for row in shuffled[:20]]
    plain = (load(row) for row in shuffled if row["augmentation"] == "none")
    sample = next((s for s in plain if len(np.unique(s[2])) == 3), overview[0])
    both = settings["DATA"].get("labels", 2) == 2
    require(both, f"{cfg.data_dir}: viz_aug.py draws slices of both parts; these are of the whole hippocampus")
    out_dir, source = fresh_folder(cfg.out_dir), plots.source(settings["DATA"]["synthetic"])
    elegant_grid(grid, out_dir / "viz_elegant_grid.png", f"Slices, three of each plane: {source}")
    detailed_sample(sample, out_dir / "viz_detailed_sample.png", source)
    dataset_overview(overview, out_dir / "viz_dataset_overview.png", f"Twenty of {len(rows):,} slices: {source}")
    augmentations(sample, settings, out_dir / "viz_augmentations.png", f"One slice under each augmentation: {source}")
    print(f"four figures in {out_dir}")
    return out_dir


def show(axes, image, mask=None, title=""):
    """Draws an image (H, W) with values in [0, 1] and, over it, the labels of a mask (H, W). The first axis points to the
    right of the picture, the second up."""
    axes.set_axis_off()
    axes.imshow(image.T, cmap="gray", origin="lower", vmin=0, vmax=1)
    if mask is not None:
        axes.imshow(np.ma.masked_equal(mask, 0).T, cmap=_MASK, origin="lower", vmin=0, vmax=2, alpha=0.45)
    axes.set_title(title, fontsize=9)


def show_mask(axes, mask, title=""):
    """Draws the labels of a mask (H, W) on a dark background."""
    axes.set_axis_off()
    axes.imshow(mask.T, cmap=_MASK, origin="lower", vmin=0, vmax=2, interpolation="nearest")
    axes.set_title(title, fontsize=9)


def legend(figure):
    """Adds a legend with the colour of each label below a figure."""
    handles = [Patch(color=_COLOURS[label], label=name) for label, name in LABELS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def describe(row):
    """Returns two lines with the case, split, plane, position and augmentation of a slice. row: of slices.read_index."""
    kind = row["augmentation"].replace("none", "not augmented")
    return f"{row['case']}, {row['split']}\n{row['plane']} {row['position']}, {kind}"


def elegant_grid(samples, path, title):
    """Draws nine slices, each as image, overlay and mask side by side. samples: [(row of the index, image, mask)]."""
    figure, axes = plots.panels(3, 9, (17, 7.3))
    for triple, (row, image, mask) in zip(axes.reshape(9, 3), samples):
        show(triple[0], image, title=describe(row))
        show(triple[1], image, mask, "overlay")
        show_mask(triple[2], mask, "mask")
    legend(figure)
    plots.save(figure, path, title, dpi=80)  # many slices: a small file


def dataset_overview(samples, path, title):
    """Draws up to twenty slices with their masks. samples: as in elegant_grid."""
    figure, axes = plots.panels(4, 5, (12, 11.5))
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (row, image, mask) in zip(axes.flat, samples):
        show(panel, image, mask, describe(row))
    legend(figure)
    plots.save(figure, path, title, dpi=80)  # many slices: a small file


def detailed_sample(sample, path, source):
    """Draws one slice: image, overlay, mask, the share of the pixels that have each label, and histograms of their
    intensities. sample: (row of the index, image, mask)."""
    row, image, mask = sample
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    axes = figure.subplot_mosaic("IOM;CHH")
    show(axes["I"], image, title="image")
    show(axes["O"], image, mask, "overlay")
    show_mask(axes["M"], mask, "mask")
    names = {0: "background", **LABELS}
    colours = {0: "#777777", **_COLOURS}
    counts = [int((mask == label).sum()) for label in LABELS]
    bars = axes["C"].bar(list(LABELS.values()), [100 * n / mask.size for n in counts], color=list(_COLOURS.values()))
    axes["C"].bar_label(bars, [f"{n:,} px" for n in counts])
    axes["C"].set(ylabel="share of the slice (%)", title=f"coverage, of {mask.size:,} pixels")
    axes["C"].margins(y=0.15)
    for label, name in names.items():
        values = image[mask == label]
        if len(values):
            style = {"color": colours[label], "histtype": "stepfilled" if label == 0 else "step", "linewidth": 2.5}
            alpha = 0.4 if label == 0 else 1
            axes["H"].hist(values, np.linspace(0, 1, 41), density=True, alpha=alpha, label=name, **style)
    axes["H"].set(xlabel="intensity", ylabel="density", title="intensities by label")
    axes["H"].legend()
    plots.save(figure, path, f"{describe(row).replace(chr(10), ', ')}: {source}")


def augmentations(sample, settings, path, title):
    """Draws one slice unchanged, and under each augmentation at its largest strength.

    sample: (row of the index, image, mask); settings: of slices.read_index; the title names the share of the training
    slices that each augmentation changes.
    """
    _, image, mask = sample
    degrees, scale, shift = settings["ROTATION_DEGREES"], settings["SCALE"], settings["SHIFT_PIXELS"]
    kinds = [
        ("none", "none", {}),
        ("flip", "flip", {}),
        (f"rotation, {degrees:+g}°", "rotation", {"degrees": degrees}),
        (f"rotation, {-degrees:+g}°", "rotation", {"degrees": -degrees}),
        (f"affine, x{1 + scale:g}, {shift:+g} px", "affine", {"scale": 1 + scale, "dx": shift, "dy": shift}),
        (f"affine, x{1 - scale:g}, {-shift:+g} px", "affine", {"scale": 1 - scale, "dx": -shift, "dy": -shift}),
    ]
    shares = [f"{kind} {settings[f'SHARE_{kind.upper()}']:.0%}" for kind in ("none", "flip", "rotation", "affine")]
    figure, axes = plots.panels(2, 3, (10, 8))
    for panel, (text, kind, parameters) in zip(axes.T.flat, kinds):
        show(panel, *augment_slice(image, mask, kind, parameters), text)
    legend(figure)
    plots.save(figure, path, f"{title}\nof the training slices: {', '.join(shares)}, of any size up to these")


if __name__ == "__main__":
    run_script(main)
