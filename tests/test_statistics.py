"""Means, intervals, and what a search says of its configurations."""

import itertools

from hippo.scoring.statistics import bootstrap, paired_differences, summarise
from hippo.training.grid import GRID, search_comparisons, search_conclusion, search_groups, search_table

import numpy as np
import pytest


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.88, 0.03, 260)
    error = values.std() / 260**0.5
    for level, width in ((0.95, 1.96), (0.99, 2.576)):
        interval = bootstrap(values, level)["interval"]
        assert np.allclose(interval, values.mean() + np.array([-width, width]) * error, atol=0.3 * error)


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (1, 200))
    alike, apart = (noise + np.array(shifts)[:, None] for shifts in ([0, 0, 0], [-0.02, 0, 0.02]))
    (low, high), (wide_low, wide_high) = (bootstrap(values)["interval"] for values in (alike, apart))
    assert wide_high - wide_low > 5 * (high - low)
    assert bootstrap(apart)["mean"] == pytest.approx(bootstrap(alike)["mean"])


def test_differences_are_paired_by_case_and_seed():
    plain = [{"seed": s, "case_dice": {"a": [0.8, 0.6], "b": [0.9, 0.7]}} for s in (0, 1)]
    better = [
        {"seed": 1, "case_dice": {"b": [0.94, 0.74], "a": [0.82, 0.62]}},  # another order of seeds and of cases
        {"seed": 0, "case_dice": {"a": [0.81, 0.61], "b": [0.9, 0.7], "c": [0, 0]}},
        {"seed": 2, "case_dice": {"a": [0, 0], "b": [0, 0]}},  # nothing to pair it with
    ]
    assert np.allclose(paired_differences(better, plain), [[0.01, 0.0], [0.02, 0.04]])
    with pytest.raises(ValueError, match="no seed or no case"):
        paired_differences(better[2:], plain)


def test_a_summary_says_how_many_values_it_is_of():
    cases = {"a": {"dice": [0.8, 0.0], "hd95_mm": [1.0, np.nan]}, "b": {"dice": [0.6, 0.5], "hd95_mm": [2.0, 3.0]}}
    summary = summarise(cases)
    assert summary["mean"] == {"dice": pytest.approx([0.7, 0.25]), "hd95_mm": [1.5, 3.0]}
    assert summary["std"]["dice"] == pytest.approx([0.1 * 2**0.5, 0.25 * 2**0.5]) and summary["n"] == {
        "dice": [2, 2],
        "hd95_mm": [2, 1],
    }
    nothing = summarise({"a": {"hd95_mm": [np.nan, 1.0]}})
    assert np.isnan(nothing["mean"]["hd95_mm"][0]) and nothing["n"]["hd95_mm"] == [0, 1]


# ---- searches


def made_up_search(gains, cases=12):
    """Entries of a search with and without an INR head; gains[seed]: what the head adds to each case's Dice."""
    rng, found = np.random.default_rng(0), {}
    for use_inr, seed in itertools.product((False, True), range(len(gains))):
        point = {**dict.fromkeys(GRID[:4], 1), "use_inr": use_inr, "inr_hidden_dim": 32 if use_inr else None}
        point["deep_supervision"] = False
        scores = {
            f"case_{i}": [0.8 + 0.01 * i + gains[seed] * use_inr + rng.normal(0, 0.001)] * 2 for i in range(cases)
        }
        mean = np.mean(list(scores.values()), 0)
        entry = {"config": point, "seed": seed, "case_dice": scores, "dice": mean, "dice_std": mean, "nsd_1mm": mean}
        found[f"{use_inr}{seed}"] = {**entry, "parameters": 1000, "training_time": 60.0}
    return found


@pytest.mark.parametrize(
    "gains, words",
    [
        ([0.010], ["higher", "+0.010", "cases only, for there is one seed"]),
        ([0.010, 0.009], ["higher", "cases and 2 seeds"]),
        ([-0.010, -0.011], ["lower", "-0.010"]),
        ([0.0, 0.0], ["no difference was found", "("]),
        ([0.010, -0.010], ["no difference was found"]),
        ([-0.003, -0.026], ["lower", "-0.01"]),  # a run that diverged hides nothing
    ],
)
def test_the_conclusion_of_a_search(gains, words):
    conclusion = search_conclusion(made_up_search(gains))
    for word in words:
        assert word in conclusion, conclusion
    assert not [word for word in ("help", "harm", "makes") if word in conclusion]


def test_the_intervals_of_a_search_hold_together():
    """With more configurations each interval is wider."""
    found = made_up_search([0.0])
    (alone,) = search_comparisons(search_groups(found)).values()
    for width in range(33, 40):
        config = {**found["True0"]["config"], "inr_hidden_dim": width}
        found[f"other {width}"] = {**found["True0"], "config": config}
    many = list(search_comparisons(search_groups(found)).values())
    assert len(many) == 8 and all(np.ptp(part["interval"]) > np.ptp(alone["interval"]) for part in many)
    assert search_table(found).count("| INR-") == 8


def test_a_search_that_is_not_finished_has_a_table():
    """As gathered from a cluster: a configuration may share no seed with the one that it is compared to yet."""
    found = made_up_search([0.01, 0.01])
    for key in ("False1", "True0"):
        del found[key]
    assert "no pair" in search_conclusion(found) and "INR-32" in search_table(found)


def test_without_a_pair_there_is_nothing_to_conclude():
    found = {key: entry for key, entry in made_up_search([0.0]).items() if key.startswith("True")}
    assert "no pair" in search_conclusion(found) and "–" in search_table(found)
