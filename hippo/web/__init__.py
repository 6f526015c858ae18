"""The page in the browser and its API, started by serve.py."""

import sys
from importlib.util import find_spec

_missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
if _missing:  # one line instead of a traceback
    print(
        f"error: {', '.join(_missing)} not installed for {sys.executable}; pip install -r requirements-web.txt",
        file=sys.stderr,
    )
    raise SystemExit(2)
