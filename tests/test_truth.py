"""The comparison with hippocampi drawn by hand: its statistics, and its figures."""

from tools import truth

import numpy as np
import pytest


def rows_of(volumes, error, change):
    """Rows of people whose drawn volumes are given; ours are 0.8 of the distance from 3000 mm3, times 1 + error; the second
    scan of every other person differs by `change`."""
    rows = []
    for number, volume in enumerate(volumes):
        for session in ("ses-1", "ses-2") if number % 2 else ("",):
            for side, sign in (("left", 1), ("right", -1)):
                factor = 1 + (change if session == "ses-2" else 0)
                row = {"person": f"sub-{number}", "session": session, "age": 20 + 10 * number, "side": side}
                drawn = volume + 50 * sign
                ours = (3000 + 0.8 * (drawn - 3000)) * (1 + sign * error) * factor
                rows.append(
                    row | {"manual_mm3": drawn, "ours_mm3": ours, "ours_dice": 0.8 + number / 100, "quality": 0.9}
                )
    return rows


def test_agreement_is_known_and_its_interval_is_of_people():
    rows = rows_of(np.linspace(2400, 3600, 9), 0.0, 0.0)
    found = truth.summarise(rows, "ours")
    assert found["all"]["slope"]["mean"] == pytest.approx(0.8) and found["all"]["correlation"]["mean"] == pytest.approx(
        1
    )
    assert found["all"]["spreads"]["mean"] == pytest.approx(0.8)
    assert found["all"]["difference_mm3"]["mean"] == pytest.approx(
        np.mean([0.2 * (3000 - r["manual_mm3"]) for r in rows])
    )
    assert found["worst_dice"] == 0.8 and found["n"] == len(rows) == 26
    assert found["young"]["dice"]["mean"] < 0.835 < found["old"]["dice"]["mean"]
    # both sides and both scans of a person say the same, so that twice the rows are no more evidence
    twice = truth.summarise(rows + rows, "ours")
    assert twice["all"]["dice"]["interval"] == pytest.approx(found["all"]["dice"]["interval"])


def test_the_change_between_two_scans_is_of_the_people_who_have_two():
    rows = rows_of(np.linspace(2400, 3600, 9), 0.1, 0.02)
    found = truth.summarise_rescans(rows, "ours")
    assert len(found["percent"]) == 8 and np.allclose(found["percent"], 200 * 0.02 / 2.02)
    assert found["median_percent"]["interval"] == pytest.approx([found["largest_percent"]] * 2)
    assert truth.summarise_rescans(rows, "manual")["largest_percent"] == 0


def test_the_figures_are_drawn(tmp_path):
    truth.draw(rows_of(np.linspace(2400, 3600, 9), 0.1, 0.02), ["ours"], tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000 and (tmp_path / "b.png").stat().st_size > 5_000
