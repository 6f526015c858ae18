"""The house: which room may import which, and how long a file and a function may be."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT

ROOMS = [
    "errors",
    "",
    "data",
    "models",
    "pictures",
    "scoring",
    "training",
    "heads",
    "segmenter",
    "study",
    "web",
]  # "": hippo/*.py
MODEL_MODULES = {"model2d", "unet_inr_3d"}
PYTHON = sorted(p for p in ROOT.rglob("*.py") if not set(p.relative_to(ROOT).parts) & {".venv", "build"})
SOURCES = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in PYTHON}


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path, everywhere=True):
    """The modules of this repository that a file imports, inside functions too unless everywhere is False."""
    nodes = ast.walk(SOURCES[path]) if everywhere else SOURCES[path].body
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & {module_name(p) for p in SOURCES}


def level(module):
    """0: hippo itself and its errors, 1: files, processes, ..., then one number a room; scripts, and tools above them."""
    parts = module.split(".")
    if parts[0] == "hippo":
        room = parts[1] if len(parts) > 1 else "errors"
        return ROOMS.index(room if room in ROOMS else "")
    return len(ROOMS) + {"tools": 1, "tests": 2}.get(parts[0], 0)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.startswith("hippo/")])
def test_arrows_run_one_way(path):
    """Nothing in hippo imports a room above its own, a script or a tool; only checkpoint imports the model modules."""
    allowed = MODEL_MODULES if path == "hippo/models/checkpoint.py" else set()
    above = {name for name in imports(path) - allowed if level(name) > level(module_name(path))}
    assert not above


def test_scripts_import_no_tool():
    for path in SOURCES:
        if not path.startswith(("hippo/", "tools/", "tests/")):
            assert not {name for name in imports(path) if name.startswith(("tools", "tests"))}, path
    for name in MODEL_MODULES:
        assert imports(f"{name}.py") <= {
            "hippo.models",
            "hippo.models.blocks",
            "hippo.models.describe",
            "hippo.models.unetr",
            "hippo.options",
        }


def test_no_circles():
    graph = {module_name(p): imports(p, everywhere=False) - {module_name(p)} for p in SOURCES}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_the_root_holds_scripts_only():
    at_root = {p for p in SOURCES if "/" not in p}
    for path in at_root - {"model2d.py", "unet_inr_3d.py"}:
        assert 'if __name__ == "__main__"' in (ROOT / path).read_text(encoding="utf-8"), path


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_are_short(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_essential_path_is_an_hour_long():
    """The files that docs/DEVELOPING.md lists first, one on each numbered line."""
    page = (ROOT / "docs" / "DEVELOPING.md").read_text(encoding="utf-8")
    section = page.split("## Reading it in an hour\n")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([^`]+)`: ", section, re.M)
    assert len(re.findall(r"`[\w/]+\.py`", section)) == len(set(files)) and "train_3d.py" in files
    lines = [len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files]
    assert len(files) <= 10 and sum(lines) <= 1500


def test_importing_changes_nothing(tmp_path):
    """Every module can be imported anywhere; it writes no file, prints nothing, and leaves stdout, signals and logging."""
    web = () if find_spec("fastapi") else ("hippo/web/", "serve.py")  # of requirements-web.txt
    modules = [module_name(p) for p in SOURCES if not p.startswith(("tests/", *web))]
    program = (
        "import importlib, logging, signal, sys\n"
        "import matplotlib, nibabel\n"
        "before = sys.stdout, signal.getsignal(signal.SIGINT), nibabel.imageglobals.logger.level, logging.root.level\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert before == (sys.stdout, signal.getsignal(signal.SIGINT), nibabel.imageglobals.logger.level, logging.root.level)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_a_head_imports_only_what_it_needs():
    """What draws, and what measures surfaces, would make each run start later."""
    heavy = ("matplotlib", "scipy.spatial", "skimage", "pyvista", "torch._dynamo")
    program = f"import sys, predict; assert not [name for name in {heavy!r} if name in sys.modules]"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_missing_package_is_one_line(tmp_path):
    """As without an active .venv: one line, whichever package is missing first."""
    command = [sys.executable, "-S", str(ROOT / "train_3d.py"), "--help"]  # -S: no site-packages
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: torch, numpy") and "pip install -r requirements.txt" in result.stderr


def test_the_workflow_tries_the_versions_of_python_that_the_pages_name():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tried = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1])
    assert [f"3.{minor}" for minor in range(10, 10 + len(tried))] == tried
    for name in ("README.md", "docs/troubleshooting.md"):
        assert f"Python {tried[0]} to {tried[-1]}" in (ROOT / name).read_text(encoding="utf-8"), name
    for mark in (
        "<!-- test command -->",
        "ubuntu",
        "macos",
        "windows",
        "schedule:",
        "-m slow",
        "get_data.py",
        "chromium",
    ):
        assert mark in workflow, mark


def test_the_version_is_in_one_place():
    from hippo import __version__

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__}" in changes
    for name in ("pyproject.toml", "CITATION.cff"):
        assert __version__ not in (ROOT / name).read_text(encoding="utf-8")
