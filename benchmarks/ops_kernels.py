"""The compiled operations alone against PyTorch's: seconds per call, side by side in one process.

    python benchmarks/ops_kernels.py [--rounds 15] [--threads 1 2] [--keep-memory] [--size 8 64 128]

`compiled` and `reference` are `stylegan2.ops` with that implementation. `plain` is how the operations are
written straight from their definition: an image with zeros between its pixels, padded, a depth-wise
convolution, every second pixel; bias, activation and gain one after the other. Every round times all three
once, in turn. The tables show medians, and how many times faster than each of the others the compiled
operation is.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import stylegan2  # noqa: F401  (sets how OpenMP's threads wait, before torch is loaded)

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.selection import use
from stylegan2.ops.upfirdn2d import setup_filter, upfirdn2d

Operation = Callable[[Tensor], Tensor]
WAYS = ("compiled", "reference", "plain")


def plain_upfirdn2d(x: Tensor, f: Tensor, up: int, down: int, padding: tuple[int, ...]) -> Tensor:
    """The definition's steps, one after the other."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height, 1, width, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1])
    x = x.reshape(batch, channels, height * up, width * up)  # zeros between the pixels
    x = F.pad(x, list(padding))
    kernel = f.flip([0, 1])[None, None].repeat(channels, 1, 1, 1)
    return F.conv2d(x, kernel, groups=channels)[:, :, ::down, ::down]


def plain_bias_act(x: Tensor, b: Tensor, clamp: float | None) -> Tensor:
    """The definition's steps, one after the other."""
    y = F.leaky_relu(x + b.reshape(1, -1, 1, 1), 0.2) * math.sqrt(2)
    return y if clamp is None else y.clamp(-clamp, clamp)


def operations(channels: int) -> dict[str, dict[str, Operation]]:
    """The three ways of each operation, by name."""
    f = setup_filter([1, 3, 3, 1])
    b = torch.linspace(-1, 1, channels).requires_grad_()
    table: dict[str, dict[str, Operation]] = {}
    for name, up, down, padding in (
        ("upfirdn2d, up 2", 2, 1, (2, 1, 2, 1)),
        ("upfirdn2d, down 2", 1, 2, (1, 1, 1, 1)),
        ("upfirdn2d, filter only", 1, 1, (2, 1, 2, 1)),
    ):

        def ours(x: Tensor, up: int = up, down: int = down, padding: tuple[int, ...] = padding) -> Tensor:
            return upfirdn2d(x, f, up=up, down=down, padding=padding)

        def plain(x: Tensor, up: int = up, down: int = down, padding: tuple[int, ...] = padding) -> Tensor:
            return plain_upfirdn2d(x, f, up, down, padding)

        table[name] = {"compiled": ours, "reference": ours, "plain": plain}
    for name, clamp in (("bias_act, lrelu", None), ("bias_act, lrelu, clamp", 256.0)):

        def ours(x: Tensor, clamp: float | None = clamp) -> Tensor:
            return bias_act(x, b, act="lrelu", clamp=clamp)

        def plain(x: Tensor, clamp: float | None = clamp) -> Tensor:
            return plain_bias_act(x, b, clamp)

        table[name] = {"compiled": ours, "reference": ours, "plain": plain}
    return table


def seconds(way: str, operation: Operation, x: Tensor, gradient: Tensor | None) -> float:
    """One call; with `gradient`, forward and backward."""
    with use("cpu" if way == "compiled" else "reference"):
        start = time.perf_counter()
        if gradient is None:
            with torch.no_grad():
                operation(x)
        else:
            operation(x).backward(gradient)
            x.grad = None
        return time.perf_counter() - start


def compare(ways: dict[str, Operation], x: Tensor, backward: bool, rounds: int) -> dict[str, float]:
    """Median seconds of each way, after checking that all give the same."""
    results: dict[str, Tensor] = {}
    for way in WAYS:
        with use("cpu" if way == "compiled" else "reference"), torch.no_grad():
            results[way] = ways[way](x)
        torch.testing.assert_close(results[way], results["compiled"], rtol=1e-4, atol=1e-4)
    gradient = torch.randn_like(results["plain"]) if backward else None
    del results
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            elapsed = seconds(way, ways[way], x, gradient)
            if number > 0:  # the first is a warm-up
                times[way].append(elapsed)
    return {way: statistics.median(values) for way, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--size", type=int, nargs=3, default=(8, 64, 128), metavar=("BATCH", "CHANNELS", "SIDE")
    )
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory in the process")
    options = parser.parse_args()
    if options.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory: the C library is not glibc")
    torch.manual_seed(0)
    batch, channels, side = options.size
    x = torch.randn(batch, channels, side, side).requires_grad_()
    table = operations(channels)
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{batch}×{channels}×{side}², {threads} thread(s), ms; median of {options.rounds} rounds")
        print(f"{'':42}{'compiled':>9}{'reference':>11}{'plain':>9}{'× reference':>13}{'× plain':>9}")
        for name, ways in table.items():
            for backward in (False, True):
                took = compare(ways, x, backward, options.rounds)
                title = f"{name}, {'forward + backward' if backward else 'forward'}"
                compiled, reference, plain = (1000 * took[way] for way in WAYS)
                ratios = f"{reference / compiled:13.1f}{plain / compiled:9.1f}"
                print(f"{title:42}{compiled:9.1f}{reference:11.1f}{plain:9.1f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
