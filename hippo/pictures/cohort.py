"""Plots of a study: volumes, change between visits, and profiles along the long axis."""

from hippo.pictures.plots import COLOURS, SERIES, panels, save

import numpy as np

_FEWEST = 10  # minimum number of heads for a fitted line and for outliers
_MOST_NAMED = 8  # maximum number of outliers that are numbered in a panel, for each side


def volumes(names, sides, path, title):
    """Draws the volumes of a study against eTIV, left against right, and the anterior share, and numbers outliers.
    Returns {number: name} of these.

    names: of at least three heads; sides: {left or right: {"etiv_ml", "total_mm3", "anterior_mm3": (N,)}}.
    """
    figure, (etiv, both, share) = panels(1, 3, (15, 4.8))
    numbers = {}
    for (side, of), colour in zip(sides.items(), COLOURS.values()):
        style = {"s": 16, "color": colour, "edgecolor": "black", "linewidth": 0.4, "label": side}
        volume, shares = of["total_mm3"], 100 * of["anterior_mm3"] / of["total_mm3"]
        etiv.scatter(of["etiv_ml"], volume, **style)
        share.scatter(volume, shares, **style)
        expected = np.full(len(names), volume.mean())
        if len(names) >= _FEWEST and np.ptp(of["etiv_ml"]) > 0:
            line = np.polyfit(of["etiv_ml"], volume, 1)
            expected = np.polyval(line, of["etiv_ml"])
            etiv.plot(of["etiv_ml"], expected, color=colour)
        _number_outliers(etiv, names, of["etiv_ml"], volume, expected, numbers)
        _number_outliers(share, names, volume, shares, np.median(shares), numbers)
    left, right = (sides[side]["total_mm3"] for side in ("left", "right"))
    both.scatter(left, right, s=16, color=SERIES[3], edgecolor="black", linewidth=0.4)
    both.axline(2 * [left.mean()], slope=1, color="#999999", linestyle="--", linewidth=1)
    _number_outliers(both, names, left, right, np.median(right / left) * left, numbers)
    etiv.set(xlabel="eTIV in ml", ylabel="hippocampus in mm³")
    both.set(xlabel="left hippocampus in mm³", ylabel="right hippocampus in mm³")
    share.set(xlabel="hippocampus in mm³", ylabel="anterior share, %")
    for axes in (etiv, share):
        axes.legend()
    for axes in (etiv, both, share):
        axes.grid(alpha=0.3)
    save(figure, path, title)
    return {number: name for name, number in numbers.items()}


def _number_outliers(axes, names, x, y, expected, numbers):
    """Numbers the points that deviate from the expected value by more than 3.5 robust standard deviations (1.48 times the
    median absolute deviation). numbers: {name: number}, which grows."""
    off = np.abs(y - expected)
    limit = 3.5 * 1.4826 * np.median(off) if len(names) >= _FEWEST else np.inf
    for i in [i for i in np.argsort(-off)[:_MOST_NAMED] if off[i] > limit]:
        _write_number(axes, x[i], y[i], numbers.setdefault(names[i], len(numbers) + 1))


def _write_number(axes, x, y, number):
    """Writes a number beside a point: on the other side than the last one, so that fewer meet."""
    right = len(axes.texts) % 2 == 0
    style = {"textcoords": "offset points", "fontsize": 8, "ha": "left" if right else "right", "va": "center"}
    axes.annotate(str(number), (x, y), xytext=(4 if right else -4, 0), **style)


def change(people, band_percent, in_years, path, title):
    """Draws the change of the whole hippocampus since the first visit, a line for each person, over the grey band of what
    rescans change. Numbers the persons that leave the band most. Returns {number: person} of these.

    people: {side: {person: (times (N,) from 0 on, changes in % (N,))}}; in_years: whether times are years, or else
    numbers of visits.
    """
    figure, row = panels(1, 2, (15, 4.8), sharex=True, sharey=True)
    numbers = {}
    for axes, (side, lines), colour in zip(row, people.items(), COLOURS.values()):
        axes.axhspan(-band_percent, band_percent, color="#dddddd", label=f"rescans: up to {band_percent:.1f} %")
        axes.axhline(0, color="#999999", linewidth=1)
        for times, percent in lines.values():
            axes.plot(times, percent, "-o", color=colour, markersize=3, linewidth=1)
        last = {person: percent[-1] for person, (_, percent) in lines.items()}
        for person in sorted(last, key=lambda person: -abs(last[person]))[:_MOST_NAMED]:
            if abs(last[person]) > band_percent:
                number = numbers.setdefault(person, len(numbers) + 1)
                _write_number(axes, lines[person][0][-1], last[person], number)
        axes.set(title=side, xlabel="years since the first visit" if in_years else "visit", ylabel="change, %")
        if not in_years:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    save(figure, path, title)
    return {number: person for person, number in numbers.items()}


def profiles(sides, path, title):
    """Draws mean and standard deviation of the area of the cross-section along the long axis. sides: {left or right: areas
    in mm2 (N, steps)}."""
    figure, row = panels(1, 2, (15, 4.2), sharey=True)
    for axes, (side, areas), colour in zip(row, sides.items(), COLOURS.values()):
        place = 100 * (np.arange(areas.shape[1]) + 0.5) / areas.shape[1]
        mean, spread = areas.mean(0), areas.std(0)
        axes.fill_between(place, mean - spread, mean + spread, color=colour, alpha=0.3, linewidth=0)
        axes.plot(place, mean, color=colour, label=f"mean ± standard deviation of {len(areas)}")
        axes.set(title=side, xlabel="place from tail (0) to head (100), % of the length", xlim=(0, 100))
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3)
    row[0].set(ylabel="area of the cross-section, mm²", ylim=(0, None))
    save(figure, path, title)
