"""Where torch computes, and with how many threads."""

import os
import re

import torch

from pipeline.errors import UserError


def select_device(name: str = "auto", threads: int | None = None) -> torch.device:
    """Set torch's threads and give the device that `name` stands for.

    Args:
        name: `auto` (CUDA when there is one, else the processor), `cpu`, `mps`, `cuda` or `cuda:N`.
        threads: threads on the processor; None for every core that this process may use.

    Raises:
        UserError: the name is none of these, or the named device is not there.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name, flags=re.ASCII):
        raise UserError(
            f"device {name!r} is not known; expected auto, cpu, mps, cuda or cuda:N, such as cuda:0"
        )
    torch.set_num_threads(threads or available_cores())
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device 'cuda' is asked for, but torch sees no CUDA device; use 'auto' or 'cpu'")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is asked for, but torch sees no Apple GPU; use 'auto' or 'cpu'")
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    device = torch.device(name)
    torch.use_deterministic_algorithms(device.type == "cpu")
    return device


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
