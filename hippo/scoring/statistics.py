"""Means, spreads and intervals over cases."""

import numpy as np


def summarise(cases):
    """Mean and standard deviation over cases, per label, undefined values left out: {"mean": {...}, "std": {...}}."""
    names = [name for name in next(iter(cases.values()), {}) if not name.endswith("volume_mm3")]
    stacked = {
        name: np.array([case[name] for case in cases.values()], dtype=float)
        for name in names
        if all(name in case for case in cases.values())
    }
    with np.errstate(invalid="ignore"):
        return {
            "mean": {n: [_mean(c, np.mean) for c in v.T] for n, v in stacked.items()},
            "std": {n: [_mean(c, np.std) for c in v.T] for n, v in stacked.items()},
        }


def _mean(column, function):
    column = column[np.isfinite(column)]
    return float(function(column)) if len(column) else float("nan")


_RESAMPLES = 10_000


def bootstrap(values, seed=0):
    """Mean of one value a case and its 95 % interval, from resampling the cases (Efron & Tibshirani 1993)."""
    values = np.array(values)
    chosen = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}
