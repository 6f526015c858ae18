"""What a study's table says of all of its heads, and its page, in Chromium."""

import os

from hippo.heads.flags import FLAGS
from hippo.study import volumes
from hippo.study.page import page
from tools.cohort import browser, launch

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.image import imsave


def row(side, total="3000.0", quality="0.900", flags="", name="x"):
    parts = {"anterior_mm3": total, "posterior_mm3": total, "total_mm3": total, "quality": quality}
    return {
        "scan": f"/data/{name}.nii.gz",
        "side": side,
        "flags": flags,
        "etiv_mm3": "1500000",
        "asymmetry": "0.01",
        **parts,
    }


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """{name: (rows, picture)} of five scans, among them a failure and a name that is no HTML."""
    path = tmp_path_factory.mktemp("picture") / "picture.webp"
    imsave(path, np.zeros((60, 72, 3)))
    picture = path.read_bytes()
    failed = {**row("", "", "", "failed: a <b>mask</b>"), "etiv_mm3": "", "asymmetry": ""}
    return {
        "good": ([row("left", "3100.0"), row("right")], picture),
        "better": (
            [row("left", "900.0", "0.910", "sform_only"), row("right", "2900.0", "0.920", "sform_only")],
            picture,
        ),
        "poor": ([row("left", quality="0.600", flags="low_quality;touches_window"), row("right")], picture),
        'odd <i>&"': ([row("left", "4000.0", "0.870", "asymmetric"), row("right", quality="0.880")], picture),
        "broken": ([failed], None),
    }


@pytest.fixture
def opened(scans, tmp_path):
    """The page in Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not browser():
        pytest.skip("no Chromium")
    path = tmp_path / "report.html"
    path.write_text(page("A study", scans, None, {"version": "1"}), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        chromium = launch(driver)
        context = chromium.new_context(accept_downloads=True, offline=True)
        tab, errors = context.new_page(), []
        tab.on("pageerror", lambda error: errors.append(error))
        tab.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
        tab.goto(path.as_uri())
        yield tab
        assert not errors
        chromium.close()


def names(tab):
    return tab.locator("tbody tr:visible .name").all_inner_texts()


def test_the_worst_come_first_and_the_table_sorts(opened):
    assert names(opened) == ["broken", "poor", 'odd <i>&"', "good", "better"]
    assert "5 scans: 2 without doubts, 1 to look at, 2 doubtful or failed" in opened.inner_text("body")
    opened.click("th:has-text('left') button")
    assert names(opened) == ["better", "poor", "good", 'odd <i>&"', "broken"]
    opened.click("th:has-text('left') button")
    assert names(opened)[1:] == ['odd <i>&"', "good", "poor", "better"]
    opened.click("th:has-text('scan') button")
    assert names(opened) == ["better", "broken", "good", 'odd <i>&"', "poor"]
    opened.fill("#search", "low_q")
    assert names(opened) == ["poor"]


@pytest.mark.promise("report")
def test_keys_lead_through_the_scans_and_ticks_are_kept(opened, tmp_path):
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("Space")
    assert opened.locator("tr.current .name").inner_text() == "poor" and opened.locator("tr.ticked").count() == 1
    opened.keyboard.press("Enter")
    assert opened.is_visible("#large img") and opened.inner_text("#caption") == "poor" and opened.is_checked("#tick")
    opened.keyboard.press("ArrowDown")
    assert opened.inner_text("#caption") == 'odd <i>&"'
    opened.keyboard.press("Space")
    opened.keyboard.press("Escape")
    assert not opened.is_visible("#large")
    opened.reload()
    assert opened.locator("tr.ticked .name").all_inner_texts() == ["poor", 'odd <i>&"']
    opened.check("#open")
    assert names(opened) == ["broken", "good", "better"] and "2 of 5 looked at" in opened.inner_text("#count")
    with opened.expect_download() as download:
        opened.click("#export")
    download.value.save_as(tmp_path / "looked_at.csv")
    lines = (tmp_path / "looked_at.csv").read_text().splitlines()
    assert lines == [
        "scan,looked_at",
        '"better",false',
        '"broken",false',
        '"good",false',
        '"odd <i>&""",true',
        '"poor",true',
    ]


def test_pictures_are_loaded_and_enlarged(opened):
    opened.wait_for_function("document.querySelectorAll('.thumb img[src]').length == 8")
    opened.click("tr:has-text('good') .thumb.right")
    assert opened.inner_text("#caption") == "good"
    assert opened.evaluate("document.querySelector('#large img').naturalWidth") == 72


@pytest.mark.promise("report")
def test_a_thousand_scans_open_in_seconds(scans, tmp_path):
    """With pictures of 60 kB each; tools.cohort measures it without other work beside it."""
    rows, _ = scans["good"]
    path = tmp_path / "report.html"
    many = {f"{i:04d}": (rows, os.urandom(60_000)) for i in range(1000)}
    path.write_text(page("Many", many, None, {}), encoding="utf-8")
    playwright = pytest.importorskip("playwright.sync_api")
    if not browser():
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        tab = launch(driver).new_page()
        loaded = []
        for _ in range(3):  # other work may slow one of them
            tab.goto(path.as_uri(), wait_until="load")
            loaded.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        tab.click("th:has-text('scan') button")
        tab.click("th:has-text('scan') button")
        assert names(tab)[0] == "0999" and 0 < min(loaded) < 10_000
        assert tab.locator(".thumb img[src]").count() < 200  # the others when they come into view


def test_nothing_of_a_scan_is_html(scans):
    text = page("A <study>", scans, None, {"a": "<b>"})
    assert "<i>" not in text and "<b>mask" not in text and "<study>" not in text and "http" not in text


def test_every_flag_on_the_page_is_raised_somewhere():
    paths = [path for path in (ROOT / "hippo").rglob("*.py") if path.name != "flags.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    assert not [flag for flag in FLAGS if f'"{flag}"' not in code]


def records_of_a_cohort(n=30, slope=0.002, seed=0):
    """Records of heads whose volumes follow eTIV, but for the first three, which are flagged and off."""
    rng, records = np.random.default_rng(seed), []
    for i in range(n):
        etiv, rows = rng.uniform(1.2e6, 1.8e6), []
        for side, more in (("left", 0), ("right", 100)):
            anterior, posterior = 1500 + slope * etiv / 2 + more, 1200 + slope * etiv / 2
            row = dict(zip(volumes.PARTS, (anterior, posterior, anterior + posterior)))
            row = {f"{part}_mm3": f"{value * (3 if i < 3 else 1):.1f}" for part, value in row.items()}
            flags = ("low_quality", "etiv_implausible", "intracranial_space_cut")[i] if i < 3 else "sform_only"
            row |= {"side": side, "etiv_mm3": f"{etiv:.0f}", "flags": flags}
            rows.append(volumes.empty_row(f"{i}.nii") | row)
        records.append({"name": str(i), "participant_id": f"sub-{i}", "session_id": "", "rows": rows})
    return records


def test_volumes_are_adjusted_for_etiv():
    records = records_of_a_cohort()
    fit = volumes.fit_adjustment(records)
    assert fit["n"] == 27 and fit["slopes"]["left"]["total"] == pytest.approx(0.002, rel=1e-3)
    rows = volumes.add_statistics(records, fit)
    left = [float(row["total_adjusted_mm3"]) for row in rows[6:] if row["side"] == "left"]
    assert np.ptp(left) < 0.5  # what is left where eTIV explains all
    assert np.mean(left) == pytest.approx(2700 + 0.002 * fit["mean_etiv_mm3"], abs=0.5)
    assert [bool(row["total_adjusted_mm3"]) for row in rows[:6:2]] == [True, False, False]  # of no good eTIV none
    other = volumes.add_statistics(records[5:7], fit)  # given coefficients: a study too small for a fit of its own
    assert [row["total_adjusted_mm3"] for row in other] == [row["total_adjusted_mm3"] for row in rows[10:14]]
    assert volumes.fit_adjustment(records[: volumes.FEWEST]) == {}
    for record in records[3:20]:  # all of one person
        record["participant_id"] = "sub-1"
    assert volumes.fit_adjustment(records)["n"] == 11
    assert not any(row["total_adjusted_mm3"] for row in volumes.add_statistics(records, {}))


def test_sources_of_etiv_do_not_mix():
    records = records_of_a_cohort()
    for number, record in enumerate(records):
        for row in record["rows"]:
            row["etiv_source"] = "given" if number < 13 else "network"
            if number < 13:
                row["etiv_mm3"] = f"{1.3 * float(row['etiv_mm3']):.0f}"
    fit = volumes.fit_adjustment(records)
    assert fit["n"] == 17 and fit["etiv_source"] == "network"
    assert fit["slopes"]["left"]["total"] == pytest.approx(0.002, rel=1e-3)
    rows = volumes.add_statistics(records, fit)
    assert [bool(row["total_adjusted_mm3"]) for row in rows] == [False] * 26 + [True] * 34
    of_unknown = {name: value for name, value in fit.items() if name != "etiv_source"}  # a file of an earlier version
    assert all(row["total_adjusted_mm3"] for row in volumes.add_statistics(records, of_unknown)[6:])


def test_a_slope_has_its_standard_error():
    rng, records = np.random.default_rng(1), records_of_a_cohort(400)
    for record in records:
        for row in record["rows"]:
            row["total_mm3"] = f"{float(row['total_mm3']) + rng.normal(0, 300):.1f}"
    fit = volumes.fit_adjustment(records)
    expected = 300 / np.sqrt(397) / 1.732e5  # the standard deviation of eTIV between 1.2 and 1.8 l
    assert fit["standard_errors"]["right"]["total"] == pytest.approx(expected, rel=0.15)
    assert abs(fit["slopes"]["right"]["total"] - 0.002) < 4 * expected


def test_asymmetry():
    records = records_of_a_cohort(2)
    rows = volumes.add_statistics(records, {})
    left, right = (float(row["total_mm3"]) for row in rows[2:])
    assert (
        float(rows[2]["asymmetry"])
        == float(rows[3]["asymmetry"])
        == pytest.approx(2 * (left - right) / (left + right), abs=1e-4)
    )
    records[1]["rows"][0]["total_mm3"] = ""
    assert not volumes.add_statistics(records, {})[2]["asymmetry"]
