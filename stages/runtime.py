"""The `runtime` section: how to run. No stage lists it in its DVC params, so that no change re-runs a stage.

On the CPU results are the same bits for one number of threads; another number, like another device, moves
the last digits of every sum, and training carries them on.
"""

import os
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.schema import Strict

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Field(ge=1)]


class Runtime(Strict):
    """Device, threads and processes of this machine.

    Attributes:
        precision: the segmenter's, on CUDA only.
        ops: implementation of the GAN's operations; auto leaves it to $STYLEGAN2_OPS, and to what can run.
        convolution: algorithm of the GAN's 3×3 convolutions; winograd is part of the CPU kernels; auto leaves
            it to $STYLEGAN2_CONVOLUTION, and to where it pays.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Literal["auto"] | Count = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    processes: Literal["auto"] | Count = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    ops: Literal["auto", "cuda", "cpu", "reference"] = "auto"
    convolution: Literal["auto", "direct", "winograd"] = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0

    @model_validator(mode="after")
    def _winograd_on_the_cpu(self) -> Self:
        if self.convolution == "winograd":
            wrong = [f"device: {self.device}"] if self.device not in ("auto", "cpu") else []
            wrong += [f"ops: {self.ops}"] if self.ops not in ("auto", "cpu") else []
            if wrong:
                raise ValueError(
                    f"convolution: got 'winograd', which is part of the compiled CPU kernels, with "
                    f"{' and '.join(wrong)}; expected auto or direct, or device and ops auto or cpu"
                )
        return self

    def process_count(self) -> int:
        """Number of processes for work that is split over processes."""
        return _available_cores() if self.processes == "auto" else self.processes

    def thread_count(self) -> int:
        """Number of threads that torch computes with."""
        return _available_cores() if self.threads == "auto" else self.threads

    def torch_device(self) -> "torch.device":
        """Give the torch device to use, and set torch's threads.

        Raises:
            UserError: when the named device is not there.
        """
        from pipeline.device import select_device  # torch takes seconds to load and not every stage needs it

        return select_device(self.device, self.thread_count())


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
