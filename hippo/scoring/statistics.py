"""Means, standard deviations and confidence intervals over cases and seeds."""

import numpy as np

_RESAMPLES = 10_000


def summarise(cases):
    """Computes mean, standard deviation (ddof 1, as everywhere over cases) and number of values, for each label.

    cases: {id: case_metrics}. Returns {"mean": {name: [anterior, posterior]}, "std": ..., "n": ...}. Undefined values,
    such as the distance to a structure that was missed, are left out; n is the number of remaining values.
    """
    names = [name for name in next(iter(cases.values()), {}) if not name.endswith("volume_mm3")]
    columns = {
        name: np.array([case[name] for case in cases.values()], dtype=float).T
        for name in names
        if all(name in case for case in cases.values())
    }
    functions = {"mean": np.mean, "std": spread, "n": len}
    return {
        key: {name: [_of_finite(function, column) for column in values] for name, values in columns.items()}
        for key, function in functions.items()
    }


def spread(values):
    """Returns the standard deviation over cases (ddof 1); 0 for a single one."""
    return np.std(values, ddof=min(1, len(values) - 1))


def _of_finite(function, column):
    """Applies a function to the finite values of a column; nan if there are none."""
    column = column[np.isfinite(column)]
    return function(column) if function is len else float(function(column)) if len(column) else float("nan")


def bootstrap(values, level=0.95, seed=0):
    """Returns {"mean", "interval": [low, high]} of values (cases,) or (seeds, cases), by resampling cases and seeds
    independently (Efron & Tibshirani 1993).

    With few seeds, the bootstrap estimates their spread poorly. With one seed, the interval covers cases only.
    """
    values, rng = np.atleast_2d(values), np.random.default_rng(seed)
    n_seeds, n_cases = values.shape
    cases = rng.integers(0, n_cases, (_RESAMPLES, n_cases))
    seeds = rng.integers(0, n_seeds, (_RESAMPLES, n_seeds))
    counts = np.stack([(seeds == s).sum(1) for s in range(n_seeds)], 1)  # how often each seed was drawn
    means = np.take_along_axis(counts / n_seeds @ values, cases, 1).mean(1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}


def bootstrap_of(function, n, resamples=1000, level=0.95, seed=0):
    """Returns {"mean", "interval": [low, high]} of function(indices (n,) of cases): the value for all cases, and an
    interval from resampled cases."""
    rng = np.random.default_rng(seed)
    values = [function(rng.integers(0, n, n)) for _ in range(resamples)]
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return {"mean": float(function(np.arange(n))), "interval": [float(low), float(high)]}


def paired_differences(runs, others):
    """Returns the differences of mean Dice, paired by case and seed: a (seeds, cases) array.

    runs, others: lists of {"seed", "case_dice": {case: [anterior, posterior]}}. Raises ValueError if they share no
    seed or no case.
    """
    ours, theirs = ({run["seed"]: run["case_dice"] for run in part} for part in (runs, others))
    seeds = sorted(ours.keys() & theirs.keys())
    cases = sorted(set.intersection(*(set(part[s]) for part in (ours, theirs) for s in seeds))) if seeds else []
    if not cases:
        raise ValueError("no seed or no case in common")
    return np.array([[np.mean(ours[s][c]) - np.mean(theirs[s][c]) for c in cases] for s in seeds])
