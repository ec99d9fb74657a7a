"""One click command per DVC stage, named like the stage.

`dvc` started by its full path, without activating the environment, runs stages with the system's Python:
say so before the first import fails.
"""

import os
import sys
from importlib.util import find_spec

# Before torch loads its OpenMP: by default a thread that waits for another spins for long, which makes
# training up to ten times slower as soon as anything else wants one of the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_MISSING = [name for name in ("click", "numpy", "pydantic", "torch", "yaml") if find_spec(name) is None]
if _MISSING:
    sys.exit(
        f"Error: {sys.executable} lacks {', '.join(_MISSING)}. Activate the project's environment first "
        "(. .venv/bin/activate) or use `make repro`, which does."
    )
