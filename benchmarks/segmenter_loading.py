"""How long the training step of a segmenter waits for its data.

    python benchmarks/segmenter_loading.py [--preset presets/drive-cpu.yaml] [--workers 1] [--threads 1]

Trains with the crops, augmentation and batches of a preset on drawn phantoms of 576 pixels, about the size of
DRIVE's images, and times every request for a batch. The first of an epoch waits for the whole of a batch, as
nothing was prepared ahead; it counts as well.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import numpy as np
import torch

from pipeline import training
from pipeline.allocation import keep_freed_memory
from pipeline.phantom import draw_phantoms
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Execution, Phase, train_segmenter
from pipeline.training_data import ValidationFrame, input_statistics, working_frame
from stages.params_file import read_yaml


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Train and time; seconds, but for the count of steps and the share of waiting."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    fixed = {"validate_every": args.epochs, "threshold": 0.5, "postprocess": "none", "views": "none"}
    params = SegmenterParams.model_validate(read_yaml(args.preset)["segmenter"] | fixed)
    frames = []
    for index, phantom in enumerate(draw_phantoms(0, range(args.frames + 1), args.size)):
        working = working_frame(str(index), phantom.image, phantom.vessels, phantom.fov, params.resolution)
        frames.append(ValidationFrame(working, phantom.vessels, phantom.fov))
    shown = [frame.working for frame in frames[1:]]
    waits: list[float] = []
    epochs: list[float] = []
    original = training.prefetch

    def timed(make: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
        batches, begin = original(make, items, workers), time.perf_counter()
        for _ in items:
            asked = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - asked)
            yield batch
        epochs.append(time.perf_counter() - begin)

    with patch.object(training, "prefetch", timed):
        train_segmenter(
            [Phase("real", shown, args.epochs, 1e-3, True)],
            frames[:1],
            params,
            input_statistics(shown),
            seed=0,
            execution=Execution(workers=args.workers, progress=False),
        )
    return {
        "steps": len(waits),
        "step_s": sum(epochs) / len(waits),
        "median_wait_s": float(np.median(waits)),
        "longest_wait_s": max(waits),
        "share_of_waiting": sum(waits) / sum(epochs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "presets/drive-cpu.yaml"
    parser.add_argument("--preset", type=Path, default=default)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{date.today()}, {platform.machine()}, {args.threads} threads, {args.workers} loader threads")
    for name, value in found.items():
        print(f"{name:>18} {value:.4g}")


if __name__ == "__main__":
    main()
