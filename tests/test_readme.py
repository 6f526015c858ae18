import re
from pathlib import Path

import pytest
from conftest import ROOT

from hippo.options import configure, constants
from tools import report

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in report.PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_the_numbers_are_those_of_the_result_files(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    blocks = report.sections(configure(vars(report), []))
    assert report.rewrite(PAGES[name], blocks) == PAGES[name], "run: python report.py"


def test_a_row_for_each_finished_run(tmp_path):
    for name in ("3d_2_b", "3d_1_a_c", "3d_1_a_c_seed1", "3d_1_a_c.previous-1", "3d_3_begun", "default_1_d"):
        (tmp_path / name).mkdir()
        if name != "3d_3_begun":
            (tmp_path / name / "metrics.json").touch()
    found = {key: [folder.name for folder in folders] for key, folders in report.groups(tmp_path, "3d_*").items()}
    assert found == {("1", "a c"): ["3d_1_a_c", "3d_1_a_c_seed1"], ("2", "b"): ["3d_2_b"]}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_the_page_names_is_there(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page])
    scripts = set(re.findall(r"`(\w+\.py)`|python (\w+\.py)", PAGES[page]))
    for name in [*links, *(a or b for a, b in scripts)]:
        assert (ROOT / name).is_file() or (ROOT / "tests" / name).is_file(), name


@pytest.mark.parametrize("name", ["predictions", "training_curves"])
def test_the_improved_2d_model_is_the_default_run(name):
    copy = (ROOT / "improved_model_results-2D" / f"{name}.png").read_bytes()
    assert copy == (ROOT / "checkpoints-2d/plots" / f"{name}.png").read_bytes(), "MODEL_IMPROVEMENTS.md has the command"


def test_every_test_that_the_page_names_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", README))
    assert len(names) > 10 and not [name for name in names if f"def {name}(" not in tests]


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_the_page_names_is_one(page):
    for line in re.findall(r"^python (\w+\.py)(.*)$", PAGES[page], re.M):
        module = __import__(line[0].removesuffix(".py"))
        known = {name.lower() for name in constants(vars(module))}
        for option in re.findall(r"--(\w+)=", line[1]):
            assert option in known, (line[0], option)


def test_the_code_on_the_page_runs(capsys):
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), {})  # our own page
    assert "torch.Size([1, 3, 35, 51, 36])" in capsys.readouterr().out


def test_importing_a_script_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in sorted(Path(ROOT).glob("*.py")):
        __import__(path.stem)
    assert not list(tmp_path.iterdir())


def test_no_volumes_are_committed():
    import subprocess

    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()
    assert not [name for name in tracked if name.endswith((".nii", ".nii.gz", ".npy", ".npz"))]
