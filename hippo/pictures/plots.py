"""Figures that more than one script draws. Colours are from the Okabe-Ito palette, safe for colour-blind readers."""

from hippo.data.cases import labels_of
from hippo.files import atomic

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = {1: "#56B4E9", 2: "#E69F00"}  # anterior, posterior
SERIES = ("#000000", "#56B4E9", "#E69F00", "#009E73")  # colours of further curves in a figure
TASK04 = "Hippocampus"  # name of the data set in its dataset.json
TRAIN, VALIDATION = "#999999", "#000000"


def source(synthetic, name=TASK04):
    """Returns the description of the data for the title of a figure. name: of the data set, as in its dataset.json."""
    real = "Decathlon Task04 Hippocampus (CC-BY-SA 4.0)" if name in (TASK04, "") else name
    return "SYNTHETIC phantoms" if synthetic else real


def panels(rows, columns, size, **options):
    """Returns (figure, axes) of rows x columns panels, size in inches. Needs no display and does not change pyplot's
    state."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save(figure, path, title, dpi=130):
    """Writes a figure with a title above it, completely or not at all."""
    figure.suptitle(title, parse_math=False)  # file names may contain $
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def _draw_loss(axes, history):
    _draw(axes, "loss", history["train_loss"], "training (augmented)", TRAIN, "-")
    _draw(axes, "loss", history["val_loss"], "validation", VALIDATION, "-")


def _draw_labels(axes, history, quantity, ylabel, training):
    for i, (label, name) in enumerate(labels_of(len(history[f"train_{quantity}"][0])).items()):
        for part, text, dash in (("train", training, ":"), ("val", "validation", "-")):
            values = np.array(history[f"{part}_{quantity}"])[:, i]
            _draw(axes, ylabel, values, f"{name}, {text}", COLOURS[label], dash)


def _draw(axes, ylabel, values, label, colour, dash):
    marker = "o" if len(values) < 40 else None
    axes.plot(range(1, len(values) + 1), values, dash, color=colour, label=label, marker=marker, markersize=3)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)  # below: curves may be anywhere


CURVES = {
    "loss_train_vs_val.png": _draw_loss,
    "dice_train_vs_val.png": lambda axes, h: _draw_labels(axes, h, "dice", "mean Dice", "training (augmented)"),
    "val_nsd.png": lambda axes, h: _draw_labels(axes, h, "nsd", "mean NSD at 1 mm", "sample of training cases"),
}


def curves(history, folder, title):
    """Writes loss_train_vs_val.png, dice_train_vs_val.png and val_nsd.png of a history into `folder`."""
    for name, draw in CURVES.items():
        figure, axes = panels(1, 1, (5.4, 4.6))
        draw(axes, history)
        save(figure, folder / name, title)


def training_curves(history, path, title):
    """Draws loss, Dice and NSD of a history side by side in one figure."""
    figure, row = panels(1, 3, (12.5, 4.8))
    for axes, draw in zip(row, CURVES.values()):
        draw(axes, history)
    save(figure, path, title)


def per_case_dice(cases, path, title):
    """Draws the Dice of each case, both labels, sorted by their mean: {case: {"dice": [anterior, posterior]}}."""
    names = sorted(cases, key=lambda name: np.mean(cases[name]["dice"]))
    values = np.array([cases[name]["dice"] for name in names])
    figure, axes = panels(1, 1, (10, 4.5))
    x = np.arange(len(names))
    axes.vlines(x, values.min(1), values.max(1), color="#cccccc", zorder=1)
    for i, (label, name) in enumerate(labels_of(values.shape[1]).items()):
        mean = values[:, i].mean()
        axes.scatter(x, values[:, i], color=COLOURS[label], s=18, zorder=2, label=f"{name}, mean {mean:.4f}")
        axes.axhline(mean, color=COLOURS[label], linestyle="--", linewidth=1)
    axes.set_xticks(x, [name.split("_")[-1] for name in names], rotation=90, fontsize=7)
    axes.set(xlabel="case", ylabel="Dice", xlim=(-1, len(names)))
    axes.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside lower center", ncols=values.shape[1])  # points may be anywhere
    save(figure, path, title)


def outlines(rows, path, title, n_labels=2):
    """Draws images with the outlines of label (solid) and prediction (dashed). n_labels: number of labels.

    rows: list of (text, [(image, label, prediction), ...]), each a 2D array whose first axis points to the right in the picture.
    """
    columns = max(len(views) for _, views in rows)
    size = (3.2 * columns, 3.1 * len(rows) + 0.8)
    figure, axes = panels(len(rows), columns, size, squeeze=False)
    for line, (text, views) in zip(axes, rows):
        for axis in line:
            axis.set_axis_off()
        for axis, (image, label, prediction) in zip(line, views):
            axis.imshow(
                image.T, cmap="gray", origin="lower", interpolation="nearest", vmin=image.min(), vmax=image.max()
            )
            for value, colour in COLOURS.items():
                for mask, dash in ((label == value, "solid"), (prediction == value, "dashed")):
                    if mask.any():
                        axis.contour(mask.T.astype(float), [0.5], colors=colour, linestyles=dash, linewidths=1.6)
        line[0].set_title(text, fontsize=9, loc="left")
    handles = [
        Line2D([], [], color=COLOURS[label], linestyle=dash, label=f"{name}, {kind}")
        for label, name in labels_of(n_labels).items()
        for kind, dash in (("label", "solid"), ("prediction", "dashed"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    save(figure, path, title)


_CONFIGURATIONS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]
_MARKERS = "osD^vPX*"
_FEWEST = 10  # minimum number of heads for a fitted line and for outliers


def search_analysis(groups, path, title):
    """Draws a grid search in four panels: Dice of each configuration, Dice against parameters, Dice against minutes,
    curves.

    groups: [{"label", "runs": [entry of small_models_results.json for each seed]}, ...].
    """
    names = [g["label"] for g in groups]
    figure, ((dice, size), (time, curve)) = panels(2, 2, (12, 7.5 + 0.2 * len(groups)))
    rows = np.arange(len(groups))
    for i, (label, name) in enumerate(labels_of(len(groups[0]["runs"][0]["dice"])).items()):
        means = [np.mean([run["dice"][i] for run in g["runs"]]) for g in groups]
        spreads = [np.mean([run["dice_std"][i] for run in g["runs"]]) for g in groups]
        height = rows + (i - 0.5) * 0.3
        style = {"fmt": "s", "color": COLOURS[label], "capsize": 3, "markersize": 6}
        dice.errorbar(means, height, xerr=spreads, label=f"{name}, ± standard deviation over cases", **style)
        for at, g in zip(height, groups):
            dice.scatter([run["dice"][i] for run in g["runs"]], [at] * len(g["runs"]), color="black", s=10, zorder=3)
    dice.scatter([], [], color="black", s=10, label="each seed")
    dice.set_yticks(rows, names)
    dice.set_ylim(1.25 * len(groups) + 0.5, -0.7)  # room for the legend
    dice.set(xlabel="Dice of volumes, final weights", title="Dice by configuration")
    dice.legend(loc="lower center", fontsize=9)
    for i, g in enumerate(groups):
        style = {"color": _CONFIGURATIONS[i % 8], "marker": _MARKERS[(i + i // 8) % 8]}
        means = [np.mean(run["dice"]) for run in g["runs"]]
        size.scatter([run["parameters"] / 1e6 for run in g["runs"]], means, s=40, label=g["label"], **style)
        time.scatter([run["training_time"] / 60 for run in g["runs"]], means, s=40, **style)
        values = np.array([run["history"]["val_dice"] for run in g["runs"]], float)  # None means no validation
        epochs = np.flatnonzero(np.isfinite(values).all(0))
        values, epochs = values[:, epochs], epochs + 1
        curve.plot(epochs, np.mean(values, axis=0), markersize=4, linewidth=1.2, **style)
        curve.fill_between(epochs, *(f(values, axis=0) for f in (np.min, np.max)), color=style["color"], alpha=0.12)
    size.set(xlabel="parameters (millions)", ylabel="mean Dice of volumes", title="Dice against parameters")
    time.set(xlabel="training time (minutes)", ylabel="mean Dice of volumes", title="Dice against training time")
    seeds = ", mean and range over seeds" if max(len(g["runs"]) for g in groups) > 1 else ""
    kind = "slices" if "slices" in groups[0]["runs"][0] else "volumes"
    curve.set(xlabel="epoch", ylabel=f"mean validation Dice of {kind}, while training", title=f"Learning curves{seeds}")
    curve.xaxis.get_major_locator().set_params(integer=True)
    for axes in (dice, size, time, curve):
        axes.grid(alpha=0.3)
    columns = max(1, min(len(groups), 140 // (max(map(len, names)) + 8)))
    figure.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    save(figure, path, title)


def against_peer(pairs, path, title):
    """Draws the mean Dice of each case against another method, {case: (the other's, ours)}, and the differences."""
    other, ours = np.array(list(pairs.values())).T
    figure, (scatter, histogram) = panels(1, 2, (10, 4.6))
    low, high = min(other.min(), ours.min()) - 0.01, max(other.max(), ours.max()) + 0.01
    scatter.plot([low, high], [low, high], color="#999999", linestyle="--", linewidth=1)
    scatter.scatter(other, ours, s=16, color=COLOURS[1], edgecolor="black", linewidth=0.4)
    scatter.set(xlabel="nnU-Net, mean Dice of a case", ylabel="this repository", xlim=(low, high), ylim=(low, high))
    difference = ours - other
    histogram.hist(difference, 40, color=COLOURS[1], edgecolor="black", linewidth=0.4)
    histogram.axvline(0, color="#999999", linestyle="--", linewidth=1)
    histogram.axvline(difference.mean(), color="black", label=f"mean {difference.mean():+.4f}")
    histogram.set(xlabel="difference of mean Dice (ours - nnU-Net's)", ylabel="cases")
    histogram.legend()
    for axes in (scatter, histogram):
        axes.grid(alpha=0.3)
    save(figure, path, title)


def bland_altman(volumes, path, title):
    """Draws the agreement of volumes (Bland & Altman 1986): {label name: [(true, predicted) in mm3, ...]}."""
    figure, row = panels(1, len(volumes), (10, 4.6))
    for axes, (name, pairs), colour in zip(row, volumes.items(), COLOURS.values()):
        truth, prediction = np.array(pairs).T
        mean, difference = (truth + prediction) / 2, prediction - truth
        axes.scatter(mean, difference, s=16, color=colour, edgecolor="black", linewidth=0.4)
        bias, limit = difference.mean(), 1.96 * difference.std(ddof=1)
        axes.axhline(bias, color="black", linewidth=1, label=f"mean {bias:+.0f} mm³")
        for sign, text in (
            (-1, None),
            (1, f"± 1.96 standard deviations: {bias - limit:+.0f} to {bias + limit:+.0f} mm³"),
        ):
            axes.axhline(bias + sign * limit, color="black", linestyle="--", linewidth=1, label=text)
        axes.set(title=name, xlabel="mean of both volumes (mm³)", ylabel="predicted - true volume (mm³)")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.22 * (high - low))  # room for the legend
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    save(figure, path, title)


def uncertainty(curves, path, title):
    """Draws reliability and risk-coverage curves: {method: (sums of calibration_bins, (coverage, risk, area))}."""
    figure, (reliability, risks) = panels(1, 2, (10, 4.6))
    reliability.plot([0.3, 1], [0.3, 1], color="#999999", linestyle="--", linewidth=1)
    for (name, (bins, (coverage, risk, area))), colour in zip(curves.items(), SERIES):
        count, confidence, correct = bins[bins[:, 0] > 0].T
        reliability.plot(confidence / count, correct / count, "-o", color=colour, markersize=3, label=name)
        risks.plot(coverage, risk, color=colour, label=f"{name}, area {area:.4f}")
    reliability.set(xlabel="confidence", ylabel="share of voxels that are right")
    risks.set(xlabel="share of voxels kept, the least uncertain", ylabel="share of them that are wrong")
    for axes in (reliability, risks):
        axes.legend()
        axes.grid(alpha=0.3)
    save(figure, path, title)


def quality(cases, heads, path, title):
    """Draws the predicted Dice against the true Dice of clean and degraded cases, and against the Dice with another program on heads. Each
    is (predicted (N,), found (N,))."""
    figure, row = panels(1, 2, (10, 4.8))
    for axes, (predicted, found), colour in zip(row, (cases, heads), SERIES[1:]):
        low = min(predicted.min(), found.min()) - 0.02
        axes.plot([low, 1], [low, 1], color="#999999", linestyle="--", linewidth=1)
        axes.scatter(predicted, found, s=8, color=colour, alpha=0.5, linewidth=0)
        parts = np.array_split(np.argsort(predicted), max(1, min(12, len(predicted) // 8)))
        means = np.array([[predicted[part].mean(), found[part].mean()] for part in parts])
        axes.plot(*means.T, "-o", color="black", markersize=4, label="means of equal shares")
        axes.set(xlabel="quality: the Dice to expect", xlim=(low, 1), ylim=(low, 1))
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    row[0].set(ylabel="Dice with the labels, of models that did not see the case")
    row[1].set(ylabel="whole hippocampus: Dice with hippodeep")
    save(figure, path, title)


def memory(series, path, title):
    """Draws memory over the number of processed scans: [(number, MiB), ...]."""
    figure, axes = panels(1, 1, (7, 3.5))
    axes.plot(*np.array(series).T, color=VALIDATION)
    axes.set(xlabel="scans done", ylabel="memory in MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    save(figure, path, title)
