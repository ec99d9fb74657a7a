"""The most memory that this process ever held."""

import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not begin at the size of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
