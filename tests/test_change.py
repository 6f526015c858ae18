"""The change between visits: which scans are compared, at what times, and what is flagged."""

import csv
import json

from hippo.errors import UserError
from hippo.study.change import changes, check_prefer, choose, columns, load_times, rescans
from hippo.study.page import page
from tools.change import band, line
from tools.simulate import thinned

import numpy as np
import pytest
from conftest import one_error_line


def row(person, session, side, total, scan="", quality="0.880", flags="", **more):
    scan = scan or f"/data/{person}_{session}_T1w.nii.gz"
    parts = {"anterior_mm3": f"{0.6 * total:.1f}", "posterior_mm3": f"{0.4 * total:.1f}", "total_mm3": f"{total:.1f}"}
    values = parts if total else dict.fromkeys(parts, "")
    of = {"participant_id": person, "session_id": session, "scan": scan, "side": side, "flags": flags}
    return (
        of | {"quality": quality if total else "", "model": "m.pth", "voxel_mm": "1.00 x 1.00 x 1.00"} | values | more
    )


def change_of(rows, times=None, prefer=""):
    rows, taken = choose(rows, prefer)
    return changes(rows, taken, times or {})


def test_pairs_with_the_first_and_a_fit_over_all():
    volumes = {"ses-1": 3000.0, "ses-2": 2940.0, "ses-10": 2850.0}
    years = {"ses-1": 2010.0, "ses-2": 2012.0, "ses-10": 2014.0}
    rows = [row("sub-1", session, "left", volumes[session]) for session in ("ses-10", "ses-1", "ses-2")]
    times = {("sub-1", session): {"age": value} for session, value in years.items()}
    first, second, fit = change_of(rows, times)
    assert list(columns())[:4] == ["participant_id", "side", "session_from", "session_to"]
    assert [r["session_to"] for r in (first, second, fit)] == ["ses-2", "ses-10", "ses-10"]
    assert [r["method"] for r in (first, second, fit)] == ["pair", "pair", "fit"] and fit["visits"] == "3"
    assert (second["total_change_mm3"], second["total_change_percent"]) == ("-150.0", "-5.00")
    assert (second["years"], second["years_from"], second["total_percent_per_year"]) == ("4.000", "age", "-1.25")
    assert second["anterior_change_mm3"] == "-90.0" and second["posterior_change_percent"] == "-5.00"
    slope, start = np.polyfit([0, 2, 4], [3000, 2940, 2850], 1)
    assert float(fit["total_change_mm3"]) == pytest.approx(4 * slope, abs=0.05)
    assert float(fit["total_percent_per_year"]) == pytest.approx(100 * slope / start, abs=0.005)
    band = rescans()["band_percent"]["total"]
    assert second["total_rescan_percent"] == f"{band:.1f}" and band < 5
    assert "total" in second["beyond_rescans"]
    assert (
        change_of([row("sub-1", "ses-1", "left", 3000.0), row("sub-1", "ses-2", "left", 3001.0)])[0]["beyond_rescans"]
        == "none"
    )


def test_times_order_the_visits_and_are_not_invented():
    rows = [row("sub-1", session, "left", total) for session, total in (("ses-a", 2900.0), ("ses-b", 3000.0))]
    (pair,) = change_of(rows, {("sub-1", "ses-a"): {"acq_time": 2.0}, ("sub-1", "ses-b"): {"acq_time": 1.0}})
    assert (pair["session_from"], pair["total_change_mm3"], pair["years"]) == ("ses-b", "-100.0", "1.000")
    (pair,) = change_of(rows, {("sub-1", "ses-a"): {"acq_time": 2.0}})  # one of two is known
    assert (pair["session_from"], pair["years"], pair["total_percent_per_year"]) == ("ses-a", "", "")
    (pair,) = change_of(rows, {("sub-1", s): {"acq_time": 2.0} for s in ("ses-a", "ses-b")})  # on one day
    assert (pair["years"], pair["total_percent_per_year"]) == ("0.000", "")
    assert change_of([row("sub-1", "ses-1", "left", 3000.0), row("sub-2", "", "left", 3000.0)]) == []


@pytest.mark.promise("change")
def test_visits_of_other_voxels_scanners_or_networks_are_flagged():
    first = row("sub-1", "ses-1", "left", 3000.0, flags="sform_only;low_quality", scanner="Siemens, Trio, 3")
    for more, is_flagged in (
        ({}, False),
        ({"voxel_mm": "1.00 x 1.00 x 1.04"}, False),
        ({"voxel_mm": "1.00 x 1.00 x 1.20"}, True),
        ({"scanner": "Siemens, Trio, 3"}, False),
        ({"scanner": ""}, False),
        ({"scanner": "Siemens, Prisma, 3"}, True),
        ({"model": "any_contrast.pth"}, True),
    ):
        (pair,) = change_of([first, row("sub-1", "ses-2", "left", 3000.0, flags="in_fluid", **more)])
        assert pair["flags"] == "low_quality;in_fluid" + ";visits_differ" * is_flagged, more


def test_a_visit_without_a_result_is_a_row():
    rows = [
        row("sub-1", session, "right", total) for session, total in (("ses-1", 0), ("ses-2", 3000.0), ("ses-3", 2970.0))
    ]
    rows[0]["flags"] = "failed: perhaps no hippocampus"
    pair, failed = change_of(rows)
    assert (pair["session_from"], pair["session_to"], pair["total_change_percent"]) == ("ses-2", "ses-3", "-1.00")
    assert failed["session_to"] == "ses-1" and failed["flags"] == "failed: perhaps no hippocampus"
    assert "total_change_mm3" not in failed
    rows[0]["side"] = ""  # the scan failed as a whole
    assert [(r["side"], r["session_to"]) for r in change_of(rows)] == [("right", "ses-3"), ("right", "ses-1")]


def test_of_several_scans_the_best_or_the_preferred_one_counts():
    names = [f"/data/sub-1_ses-1_{entity}_T1w.nii.gz" for entity in ("run-1", "run-2", "acq-low_run-3")]
    rows = [
        row("sub-1", "ses-1", side, total, name, quality)
        for name, total, qualities in zip(
            names, (3000.0, 3100.0, 3200.0), (("0.90", "0.80"), ("0.85", "0.86"), ("0.7", "0.7"))
        )
        for side, quality in zip(("left", "right"), qualities)
    ]
    rows.append(row("sub-1", "ses-2", "left", 3100.0))
    chosen, taken = choose(rows)
    assert taken["sub-1", "ses-1"] == names[1]  # the worse side counts
    assert [r["chosen"] for r in chosen[::2]] == [
        "no: sub-1_ses-1_run-2_T1w.nii.gz (highest quality of 3)",
        "yes: highest quality of 3",
        "no: sub-1_ses-1_run-2_T1w.nii.gz (highest quality of 3)",
        "",
    ]
    assert change_of(rows)[0]["total_change_mm3"] == "0.0" and change_of(rows)[0]["scan_from"] == names[1]
    assert change_of(rows, prefer="run-1")[0]["total_change_mm3"] == "100.0"
    chosen, _ = choose(rows, "run-1")
    assert [r["chosen"] for r in chosen[:4:2]] == [
        "yes: --prefer=run-1",
        "no: sub-1_ses-1_run-1_T1w.nii.gz (--prefer=run-1)",
    ]
    check_prefer("run-1", names)
    for prefer, words in (("run1", "expected entities"), ("run-7", "no scan has run-7")):
        with pytest.raises(UserError, match=words):
            check_prefer(prefer, names)


def test_times_are_dates_or_ages_in_any_unit(tmp_path, capsys):
    for person, table in (
        (
            "sub-1",
            "session_id\tacq_time\tage\nses-1\t2010-01-01T10:00:00.5Z\t70\nses-2\t2011-01-01\tn/a\nses-3\tsoon\t71\nses-4\tn/a\tnan\n",
        ),
        ("sub-2", "session_id\tage\nses-1\t6\nses-2\t18\n"),
        ("sub-4", "no table\n"),
    ):
        (tmp_path / person).mkdir()
        (tmp_path / person / f"{person}_sessions.tsv").write_text(table)
    (tmp_path / "sub-2" / "sub-2_sessions.json").write_text('{"age": {"Units": "months"}}')
    times = load_times(tmp_path, ["sub-1", "sub-2", "sub-3", "sub-4"])
    one, two = times["sub-1", "ses-1"], times["sub-1", "ses-2"]
    assert two["acq_time"] - one["acq_time"] == pytest.approx(1, abs=0.01) and (one["age"], two.get("age")) == (
        70,
        None,
    )
    assert times["sub-1", "ses-3"] == {"age": 71} and "acq_time 'soon'" in capsys.readouterr().err
    assert times["sub-1", "ses-4"] == {}
    assert times["sub-2", "ses-2"]["age"] - times["sub-2", "ses-1"]["age"] == pytest.approx(1)
    (tmp_path / "sub-2" / "sub-2_sessions.json").write_text('{"age": {"Units": "moons"}}')
    assert load_times(tmp_path, ["sub-2"])["sub-2", "ses-1"] == {} and "age '6'" in capsys.readouterr().err
    assert load_times(tmp_path / "gone", ["sub-1"]) == {} and "is not there" in capsys.readouterr().err


@pytest.mark.promise("change")
def test_the_table_of_a_study_is_that_of_its_volumes(run_study, study, tmp_path):
    (study / "sub-01/sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-1\t2010-01-01\nses-2\t2014-01-01\n")
    (study / "T1w.json").write_text('{"Manufacturer": "Siemens", "MagneticFieldStrength": 3}')
    (study / "sub-01/ses-2/anat/sub-01_ses-2_T1w.json").write_text('{"MagneticFieldStrength": 1.5}')
    one_error_line(run_study(study, "--prefer=run-9"), "no scan has run-9")
    code, _, err = run_study(study, "--prefer=run-1")
    assert code == 0, err
    out, tables = tmp_path / "out", {}
    for name in ("volumes", "change"):
        with open(out / f"{name}.tsv", newline="") as file:
            tables[name] = list(csv.DictReader(file, dialect="excel-tab"))
        described = json.loads((out / f"{name}.json").read_text())
        assert list(described) == list(tables[name][0]) and all(d["Description"] for d in described.values())
    assert described["total_change_percent"]["Units"] == "%" and described["total_rescan_percent"]["Method"]
    first, other, later, alone = tables["volumes"]
    assert first["chosen"] == "yes: --prefer=run-1" and other["chosen"].startswith("no: ") and later["chosen"] == "n/a"
    assert (first["scanner"], later["scanner"], alone["scanner"]) == ("Siemens, 3", "Siemens, 1.5", "Siemens, 3")
    (pair,) = tables["change"]
    before, after = (float(r["total_mm3"]) for r in (first, later))
    assert float(pair["total_change_mm3"]) == pytest.approx(after - before, abs=0.05)
    assert float(pair["total_change_percent"]) == pytest.approx(100 * (after / before - 1), abs=0.005)
    assert float(pair["total_percent_per_year"]) == pytest.approx(25 * (after / before - 1), abs=0.01)
    assert pair["flags"].endswith("visits_differ") and pair["scan_from"] == first["scan"]
    assert "Change between visits" in (out / "report.html").read_text()
    (study / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz").unlink()
    assert run_study(study)[0] == 0 and not list(out.glob("change.*"))


def test_the_page_has_a_line_for_each_person():
    rows = [
        row("sub-<1>", session, side, total)
        for session, total in (("ses-1", 3000.0), ("ses-2", 2700.0))
        for side in ("left", "right")
    ]
    rows += [row("sub-2", session, "left", total) for session, total in (("ses-1", 0), ("ses-2", 3000.0))]
    text = page(
        "A study", {"x": ([rows[0] | {"asymmetry": "", "etiv_mm3": ""}], None)}, None, {}, None, change_of(rows)
    )
    assert text.count("<svg") == 2 and text.count("<circle") == 2 and "sub-&lt;1&gt;" in text
    assert text.count("<b>-10.00</b>") == 2 and "<details open>" in text


@pytest.mark.parametrize("share", [0, 0.03, 0.1])
def test_a_hippocampus_is_made_thinner_by_a_known_share(share):
    affine = np.diag([0.9, 1.0, 1.2, 1.0])
    points = np.stack(np.meshgrid(*(np.arange(n) for n in (60, 80, 50)), indexing="ij"), -1) * np.diag(affine)[:3]
    distance = np.sqrt((((points - (27, 40, 30)) / (6, 16, 7)) ** 2).sum(-1))
    labels = np.where(distance < 1, np.where(points[..., 1] > 44, 1, 2), 0)
    image = (100 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)  # a soft edge where the label ends
    changed, volumes_mm3 = thinned(image, affine, labels, share)
    before_mm3 = np.count_nonzero(labels) * 0.9 * 1.2
    assert sum(volumes_mm3.values()) == pytest.approx((1 - share) * before_mm3, rel=5e-4)
    assert volumes_mm3.keys() == {1, 2}
    seen = [np.count_nonzero(array > 50) for array in (image, changed)]  # in the image itself
    assert seen[1] / seen[0] == pytest.approx(1 - share, abs=0.012)
    assert np.allclose(changed[distance > 4], image[distance > 4], atol=1) and not np.shares_memory(changed, image)


def test_the_line_of_found_on_made_and_the_band():
    made = np.array([0.0, -2, -5, -10])
    points = [np.stack([made, 0.9 * made + 0.5 + shift * np.array([1, -1, -1, 1])], 1) for shift in (-0.1, 0.1)]
    found = line(points)
    assert found["slope"] == pytest.approx(0.9) and found["intercept_percent"] == pytest.approx(0.5)
    assert found["scatter_percent"] == pytest.approx(np.sqrt(8 * 0.01 / 6))
    volumes = {
        part: {"median": 0.4, "percentile_95": 2.0, "largest": 9.0} for part in ("anterior", "posterior", "total")
    }
    results = {"simulated": {"volumes": volumes, "pairs": 480}}
    assert band(results)["band_percent"]["total"] == 2.0 and "480 simulated" in band(results)["band_of"]
    results["real"] = {"volumes": {part: v | {"largest": 2.8} for part, v in volumes.items()}, "pairs": 10}
    assert band(results)["band_percent"]["total"] == 2.8 and "10 hippocampi" in band(results)["band_of"]
