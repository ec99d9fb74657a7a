"""One click command per DVC stage, named like the stage.

`dvc` started by its full path, without activating the environment, runs stages with the system's Python:
say so before the first import fails.
"""

import sys
from importlib.util import find_spec

_MISSING = [name for name in ("click", "numpy", "pydantic", "torch", "yaml") if find_spec(name) is None]
if _MISSING:
    sys.exit(
        f"Error: {sys.executable} lacks {', '.join(_MISSING)}. Activate the project's environment first "
        "(. .venv/bin/activate) or use `make repro`, which does."
    )
