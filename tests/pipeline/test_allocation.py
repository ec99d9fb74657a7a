import platform
import subprocess
import sys

import pytest

from pipeline.allocation import keep_freed_memory

_FAULTS = """
import resource, sys
import torch
from pipeline.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(20):  # blocks settle: aligned ones do not fit into the first holes
    torch.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**23)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_comes_without_page_faults() -> None:
    faults = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", _FAULTS, mode]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        faults[mode] = int(result.stdout)
    assert faults["keep"] < 0.1 * faults["default"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
