"""What it costs to train a segmenter and to predict with it, against the plain way of doing both.

    python benchmarks/segmenter_training.py [--size 512] [--batch 2] [--threads 1] [--rounds 5] [--json]

The plain way is written out here: contiguous tensors, DropBlock from a random number for every place of
every channel and a 7 × 7 maximum, batch normalisation left as it is, eager, memory handed back to the system.
Ours is what training and the predictor do. How freed memory is treated holds for a whole process, and what a
process did before decides how much it has: so each way trains in one process and predicts in another, and the
two ways take turns, step by step, on the same input and from the same weights.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.allocation import keep_freed_memory
from pipeline.augment import Augmentation, make_example
from pipeline.frames import VIEW_COUNT, Statistics, network_input
from pipeline.inference import SegmenterPredictor
from pipeline.losses import LossWeights, segmentation_loss
from pipeline.model_folder import ModelConfig
from pipeline.models.folding import folded
from pipeline.models.registry import Architecture, build_model
from pipeline.models.sa_unet import SAUNet
from pipeline.training_data import working_frame

WAYS = ("plain", "ours")
DRIVE_SIZE = (584, 565)
STATISTICS = Statistics(mean=(0.5, 0.3, 0.2), std=(0.3, 0.2, 0.1))
TASKS = ("training step", "inference")
Times = dict[str, list[tuple[float, float]]]
Job = Callable[[], Any]


class PlainDropBlock(nn.Module):
    """Ghiasi et al. 2018, Algorithm 1, as one would write it down."""

    def __init__(self, block: int, keep: float) -> None:
        super().__init__()
        self.block, self.keep = block, keep

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        if not self.training or self.keep == 1:
            return x
        n, c, height, width = x.shape
        block = min(self.block, height, width)
        rows, columns = height - block + 1, width - block + 1
        gamma = (1 - self.keep) / block**2 * (height * width) / (rows * columns)
        seeds = (torch.rand(n, c, rows, columns) < gamma).to(x.dtype)
        mask = 1 - F.max_pool2d(F.pad(seeds, (block - 1,) * 4), block, stride=1)
        return x * mask * (mask.numel() / mask.sum())


class PlainSAUNet(SAUNet):
    """The same network on contiguous tensors with the plain DropBlock."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.base_width, architecture.dropblock_size, architecture.dropblock_keep)
        for module in list(self.modules()):
            if hasattr(module, "drop"):
                module.drop = PlainDropBlock(architecture.dropblock_size, architecture.dropblock_keep)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [N, 3, H, W] to logits [N, 1, H, W]."""
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


def make_network(way: str, keep: float, base_width: int) -> nn.Module:
    torch.manual_seed(0)
    architecture = Architecture(base_width=base_width, dropblock_keep=keep)
    network = build_model(architecture)
    if way == "ours":
        return network
    plain = PlainSAUNet(architecture)
    plain.load_state_dict(network.state_dict())
    return plain


def make_jobs(way: str, task: str, args: argparse.Namespace) -> dict[str, Job]:
    """Prepare what is timed: one training step, or one prediction without gradients; and what is compared."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=rng)
    targets = (torch.rand(args.batch, 1, args.size, args.size, generator=rng) < 0.1).float()
    if task == "inference":
        network = with_statistics(make_network(way, 1.0, args.base_width)).eval()
        predicting = folded(network) if way == "ours" else network

        @torch.inference_mode()
        def predict() -> Tensor:
            return predicting(images)

        return {task: predict, "compare": lambda: {"logits": predict().numpy()}}

    network = make_network(way, args.keep, args.base_width).train()
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        loss = segmentation_loss(network(images), targets, LossWeights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    def compare() -> dict[str, Any]:
        undropped = make_network(way, 1.0, args.base_width).train()  # DropBlock draws differ between the ways
        loss = segmentation_loss(undropped(images), targets, LossWeights())
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in undropped.parameters()]
        return {"loss": loss.item(), "gradients": torch.cat(gradients).numpy()}

    return {task: step, "compare": compare}


def with_statistics(network: nn.Module) -> nn.Module:
    """Give batch normalisation other values than at the start, where folding would do nothing."""
    torch.manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.1, 1)
    return network


def work(way: str, task: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Run one way's jobs on demand; answer with wall seconds, processor seconds and, to compare, results."""
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    torch.use_deterministic_algorithms(True)
    if way == "ours" and not args.hand_back:
        keep_freed_memory()
    jobs = make_jobs(way, task, args)
    if (way, task) == ("ours", "inference"):
        jobs |= extra_jobs(args)
    while (name := pipe.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        result = jobs[name]()
        seconds = (time.perf_counter() - wall, time.process_time() - cpu)
        pipe.send((*seconds, result if name == "compare" else None))


def extra_jobs(args: argparse.Namespace) -> dict[str, Job]:
    """One image of DRIVE's size, photograph to probability; and the examples of one training batch."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*DRIVE_SIZE, 3), dtype=np.uint8)
    config = ModelConfig(
        architecture=Architecture(base_width=args.base_width),
        resolution="native",
        statistics=STATISTICS,
        threshold=0.5,
        params={},
        versions={},
        git_commit=None,
        data_sha256="",
    )
    predictor = SegmenterPredictor(make_network("ours", 1.0, args.base_width), config)
    frame = working_frame("one", image, image[..., 0] < 30, None, "native")
    settings = Augmentation(
        flips=True, rotation=180, scale=0.15, brightness=0.1, contrast=0.2, saturation=0.2, gamma=0.2,
        colour=0.05, noise=0.02,
    )  # fmt: skip

    def load_batch() -> None:
        examples = [make_example(frame, args.size, settings, rng) for _ in range(args.batch)]
        network_input([example.image for example in examples], STATISTICS)

    jobs: dict[str, Job] = {
        f"DRIVE image, views: {views}": lambda views=views: predictor.predict(image, views=views)
        for views in VIEW_COUNT
    }
    return {**jobs, "preparing a batch": load_batch}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Let the two ways take turns and gather medians."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[tuple[str, str], Connection] = {}
    processes = []
    for way in WAYS:
        for task in TASKS:
            pipes[way, task], theirs = context.Pipe()
            processes.append(context.Process(target=work, args=(way, task, args, theirs), daemon=True))
            processes[-1].start()
            theirs.close()

    def ask(way: str, task: str, job: str) -> tuple[float, float, Any]:
        pipes[way, task].send(job)
        answer: tuple[float, float, Any] = pipes[way, task].recv()
        return answer

    results = {way: {k: v for task in TASKS for k, v in ask(way, task, "compare")[2].items()} for way in WAYS}
    compared: dict[str, Times] = {task: {way: [] for way in WAYS} for task in TASKS}
    for index in range(args.rounds + 1):
        for task, times in compared.items():
            for way in WAYS:
                seconds = ask(way, task, task)[:2]
                if index:  # the first is the warm-up
                    times[way].append(seconds)
    alone = [f"DRIVE image, views: {views}" for views in VIEW_COUNT] + ["preparing a batch"]
    single = {job: [ask("ours", "inference", job)[:2] for _ in range(args.rounds + 1)][1:] for job in alone}
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return {
        "config": {key: value for key, value in vars(args).items() if key != "json"},
        "environment": {"torch": torch.__version__, "machine": platform.machine()},
        "compared": {job: _comparison(times) for job, times in compared.items()},
        "ours_alone": {job: _medians(times) for job, times in single.items()},
        "relative_differences": _differences(results),
    }


def _medians(times: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*times, strict=True)
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}


def _comparison(times: Times) -> dict[str, Any]:
    """Medians of both ways, and the median over rounds of the ratio of neighbours in time."""
    ratios = {
        unit: [plain[index] / ours[index] for plain, ours in zip(*times.values(), strict=True)]
        for index, unit in enumerate(("wall", "cpu"))
    }
    return {
        **{way: _medians(times[way]) for way in WAYS},
        **{f"ratio_{unit}": statistics.median(values) for unit, values in ratios.items()},
    }


def _differences(results: dict[str, Any]) -> dict[str, float]:
    """Largest difference of loss, gradients (both without DropBlock) and logits, by the largest value."""
    plain, ours = ({name: np.asarray(value) for name, value in results[way].items()} for way in WAYS)
    return {name: float(np.abs(plain[name] - ours[name]).max() / np.abs(plain[name]).max()) for name in plain}


def table(result: dict[str, Any]) -> str:
    config = result["config"]
    lines = [
        f"{config['size']}² pixels, batch {config['batch']}, {config['threads']} thread(s), medians of "
        f"{config['rounds']} rounds; seconds of the clock (of the processor)",
        "",
        "| | plain | ours | ratio |",
        "|---|---|---|---|",
    ]
    for job, row in result["compared"].items():
        cells = [f"{row[way]['wall_s']:.3f} ({row[way]['cpu_s']:.3f})" for way in WAYS]
        ratio = f"{row['ratio_wall']:.2f} ({row['ratio_cpu']:.2f})"
        lines.append(f"| {job} | {cells[0]} | {cells[1]} | {ratio} |")
    for job, row in result["ours_alone"].items():
        lines.append(f"| {job} | | {row['wall_s']:.3f} ({row['cpu_s']:.3f}) | |")
    differences = ", ".join(f"{name} {value:.1e}" for name, value in result["relative_differences"].items())
    return "\n".join([*lines, "", f"Relative differences of the two ways: {differences}"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time a segmenter's training and inference against the plain way."
    )
    parser.add_argument("--size", type=int, default=512, help="side of the images, divisible by 8")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, default=0.82, help="DropBlock's keep")
    parser.add_argument("--base-width", type=int, default=16)
    parser.add_argument("--hand-back", action="store_true", help="hand freed memory back in ours, too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.size < 8 or args.size % 8 or min(args.batch, args.threads, args.rounds, args.base_width) < 1:
        parser.error("--size must be a multiple of 8 from 8 on, the other counts 1 or more")
    if not 0 < args.keep <= 1:
        parser.error(f"--keep: got {args.keep}; expected more than 0, at most 1")
    return args


def main() -> None:
    args = parse_arguments()
    result = measure(args)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
