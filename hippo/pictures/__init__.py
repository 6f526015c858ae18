"""Pictures need no display: the backend that MPLBACKEND names, a notebook's for instance, need not be there."""

import contextlib
import os
import sys

if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)) is not None:
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
