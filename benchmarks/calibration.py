"""The unit of cost: seconds that this machine takes for a fixed piece of work, so that ratios travel.

One unit is the sum of three pieces, float32, forward and backward where there is one: a 3×3 convolution of
64 to 64 channels over 8 images of 64×64, four products of 1024×1024 matrices, and a scaled, shifted, leaky
rectification of 8·64 maps of 128×128. Each piece counts with its median time.

    python benchmarks/calibration.py [--rounds 15] [--threads 2]
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

BATCH, CHANNELS = 8, 64
SMALL_SIDE, LARGE_SIDE = 64, 128
MATRIX_SIDE, PRODUCTS = 1024, 4


class Calibration:
    """The three pieces with their data; every call of `measure` times each of them once."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.images = torch.randn(BATCH, CHANNELS, SMALL_SIDE, SMALL_SIDE, generator=rng).requires_grad_()
        self.kernels = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=rng).requires_grad_()
        self.matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=rng)
        self.maps = torch.randn(BATCH, CHANNELS, LARGE_SIDE, LARGE_SIDE, generator=rng).requires_grad_()
        self.pieces = {"convolution": self.convolve, "matrices": self.multiply, "pointwise": self.rectify}
        self.times: dict[str, list[float]] = defaultdict(list)
        for piece in self.pieces.values():  # warm-up
            piece()

    def convolve(self) -> None:
        """Convolve; differentiate by images and by kernels."""
        F.conv2d(self.images, self.kernels, padding=1).sum().backward()
        self.images.grad = self.kernels.grad = None

    def multiply(self) -> None:
        """Square a matrix a few times over."""
        for _ in range(PRODUCTS):
            torch.mm(self.matrix, self.matrix)

    def rectify(self) -> None:
        """Four element-wise operations and their derivative: memory traffic."""
        activated = F.leaky_relu(1.5 * self.maps + 0.1, 0.2) * math.sqrt(2)
        activated.sum().backward()
        self.maps.grad = None

    def measure(self) -> None:
        """Time every piece once."""
        for name, piece in self.pieces.items():
            start = time.perf_counter()
            piece()
            self.times[name].append(time.perf_counter() - start)

    def take(self) -> dict[str, list[float]]:
        """Give the times since the last `take`, by piece."""
        taken = dict(self.times)
        self.times = defaultdict(list)
        return taken


def unit_seconds(times: Mapping[str, Sequence[float]]) -> float:
    """One unit in seconds, from the times of each piece."""
    return sum(statistics.median(seconds) for seconds in times.values())


def calibrate(threads: int, rounds: int = 6) -> dict[str, list[float]]:
    """Time the pieces in a process of its own.

    What a process has allocated before decides whether new tensors are fresh pages, which is most of the time
    of the element-wise piece; the baseline's unit was measured in a process that does nothing else, whose
    threads wait in OpenMP's own way.
    """
    command = [sys.executable, __file__, "--threads", str(threads), "--rounds", str(rounds), "--times"]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    times: dict[str, list[float]] = json.loads(
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Print this machine's unit of cost as JSON.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", action="store_true", help="print every time instead of medians")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    calibration = Calibration()
    for _ in range(args.rounds):
        calibration.measure()
    times = calibration.take()
    if args.times:
        print(json.dumps(times))
        return
    pieces = {f"{name}_s": statistics.median(seconds) for name, seconds in times.items()}
    print(json.dumps({"unit_s": unit_seconds(times), **pieces, "threads": args.threads}))


if __name__ == "__main__":
    main()
