"""The pages: their numbers are those of the published results, their links, commands, tests and code are real."""

import re
import shutil
import subprocess

from hippo.errors import UserError
from hippo.heads.flags import FLAGS
from hippo.options import configure, constants
from hippo.segmenter import Settings
from tools import report
from tools.promises import PROMISES, marked_tests, promises

import pytest
from conftest import ROOT

WRITTEN_BY_HAND = [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/dicom.md",
    "docs/tables.md",
    "docs/RESULTS.md",
    "Task04_Hippocampus/README.md",
]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in [*report.PAGES, *WRITTEN_BY_HAND]}


@pytest.mark.parametrize("name", report.PAGES)
def test_the_numbers_are_those_of_the_published_results(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    blocks = report.sections(configure(vars(report), []))
    assert report.rewrite(PAGES[name], blocks) == PAGES[name], "run: python -m tools.report"


def test_every_block_is_on_a_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    marks = set(re.findall(r"^<!-- /(\S+) -->$", "\n".join(PAGES.values()), re.M)) - {"test"}
    assert marks == set(report.sections(configure(vars(report), [])))


def test_promises_have_the_tests_that_are_marked(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "@pytest.mark.promise('seed')\n@pytest.mark.slow\ndef test_a(): pass\n"
        "@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.slow)])\n"
        '@pytest.mark.promise("seed")\ndef test_b(n): pass\n'
        "@pytest.mark.promise('seed')\ndef test_c(): pass\n"
        "def test_d(): pass\n"
    )
    tests = marked_tests(tmp_path)
    assert tests == {"seed": [("`test_a`", True), ("`test_b` (in part slow)", False), ("`test_c`", False)]}
    others = {key: [("`test_e`", False)] for key in PROMISES}
    assert "| `test_b` (in part slow), `test_c`; slow: `test_a` |\n" in promises({**others, **tests})
    with pytest.raises(UserError, match="no test shows the promise 'resume'"):
        promises(tests)
    with pytest.raises(UserError, match="`test_e`: there is no promise 'x'"):
        promises({**others, "x": others["resume"]})


def test_a_row_for_each_finished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("3d_2_b", "3d_1_a_c", "3d_1_a_c_seed1", "3d_3_not_finished", "default_1_d"):
        folder = tmp_path / "ablations" / name
        folder.mkdir(parents=True)
        if name != "3d_3_not_finished":
            (folder / "metrics.json").touch()
    found = report.Published(tmp_path).ablations("3d_*")
    assert found == {("1", "a c"): ["ablations/3d_1_a_c", "ablations/3d_1_a_c_seed1"], ("2", "b"): ["ablations/3d_2_b"]}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_the_page_names_is_there(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert (folder / link).exists(), link
    for script in re.findall(r"python (\w+\.py)", PAGES[page]):
        assert (ROOT / script).is_file(), script
    for name in re.findall(r"`((?:hippo|tools|tests|docs|results)/[\w/.-]*)`", PAGES[page]):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m (tools\.\w+)", PAGES[page]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_every_heading_that_a_page_links_to_is_there():
    def anchors(text):
        return {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
        }

    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            assert anchor in anchors(path.read_text(encoding="utf-8")), (page, target, anchor)


def test_every_test_that_a_page_names_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", "".join(PAGES.values())))
    assert len(names) > 10 and not [name for name in names if f"def {name}(" not in tests]


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_the_page_names_is_one(page):
    commands = re.split(r"&&|;|\||`|\n", PAGES[page])
    found = [re.search(r"python (?:-m )?((?:tools\.)?\w+)(?:\.py)?( .*)$", command) for command in commands]
    for script, rest in (match.groups() for match in found if match):
        if not (ROOT / f"{script.replace('.', '/')}.py").is_file():
            continue
        module = __import__(script, fromlist=["run"])
        known = {name.lower() for name in constants(vars(module))}
        for option in re.findall(r"--([\w-]+)=", rest):
            assert option.replace("-", "_") in known, (script, option)


def test_no_command_has_a_comment_behind_it():
    """An interactive zsh, the shell of macOS, and cmd take such a comment for arguments."""
    for page, text in PAGES.items():
        commands = [block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if not block.startswith("#!")]
        assert not [line for block in commands for line in block.splitlines() if re.search(r"(^|\s)#", line)], page


def test_the_code_on_the_pages_runs(capsys, brain, tmp_path, monkeypatch):
    shutil.copy(brain[1] / "whole.nii.gz", tmp_path / "head.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "least_quality", 0.0)  # it is a phantom
    for page, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(compile(block, page, "exec"), {})  # our own page
    text = capsys.readouterr().out
    assert "torch.Size([1, 3, 35, 51, 36])" in text and "['qform_only'" in text or "sform_only" in text
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {
        "head_hippocampus.nii.gz",
        "head_hippocampus.png",
    }


def test_pictures_are_small_enough_for_a_page_and_described():
    for page, text in PAGES.items():
        for mark, words, link in re.findall(r"(!?)\[([^]]*)\]\((?!http)([^)#]+\.(?:png|jpg))\)", text):
            assert words and ((ROOT / page).parent / link).stat().st_size < 600_000, link
            assert not mark or len(words) > 10, f"{page}: describe {link}"


def test_the_readme_is_short_and_segments_a_head_early():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 250 and len(PAGES["README.md"].split()) <= 2400
    assert "python predict.py head.nii.gz" in lines[:60]
    text = re.sub(r"```.*?```|`[^`]*`", "", PAGES["README.md"], flags=re.S)
    assert not re.findall(r"<(?!!--)[a-zA-Z/]", text), "HTML, which GitHub may strip"


def test_the_results_are_short_and_open_with_figures_of_their_tables():
    pages = [PAGES[f"docs/{name}.md"] for name in ("accuracy", "robustness", "ablations")]
    assert len(PAGES["docs/RESULTS.md"].splitlines()) <= 25
    assert len(" ".join([PAGES["docs/RESULTS.md"], *pages]).split()) <= 7500
    for text in pages:
        opening, rest = text.split("\n## ", 1)
        blocks = "".join(re.findall(r"^<!-- \S+ -->$.*?^<!-- /\S+ -->$", rest, re.M | re.S))
        figures = re.findall(r"[+-]?\d+\.\d+", opening)
        assert len(figures) > 8 and not [figure for figure in figures if figure not in blocks]


def test_every_flag_has_a_remedy():
    section = PAGES["docs/troubleshooting.md"].split("## Flags")[1].split("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(FLAGS), "run python -m tools.report"


def test_every_message_on_the_page_is_one_of_ours():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("hippo/**/*.py")]
    code = re.sub(r"\{[^{}\"]*\}", "...", "".join(path.read_text(encoding="utf-8") for path in sources))
    rows = re.findall(r"^\| `([^`]*)` \|", PAGES["docs/troubleshooting.md"].split("## Options")[1], re.M)
    parts = [part.strip() for message in rows for part in message.split("...") if len(part.strip()) > 3]
    assert len(rows) >= 40 and not [part for part in parts if part not in code]


def test_no_volumes_are_committed():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()
    assert not [name for name in tracked if name.endswith((".nii", ".nii.gz", ".mgz", ".npy", ".npz"))]
