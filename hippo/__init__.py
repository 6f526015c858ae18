"""Code shared by the scripts, in packages ordered by data flow; docs/DEVELOPING.md gives an overview."""

import sys
from importlib.util import find_spec

__version__ = "0.6.0"

_PACKAGES = ("torch", "numpy", "nibabel", "scipy", "skimage", "matplotlib", "tqdm", "pyvista", "filelock")

_missing = [name for name in _PACKAGES if find_spec(name) is None]
if _missing:  # one line instead of a traceback: every script imports this package before any of these
    print(
        f"error: {', '.join(_missing)} not installed for {sys.executable}; activate .venv, or: "
        "pip install -r requirements.txt",
        file=sys.stderr,
    )
    raise SystemExit(2)
