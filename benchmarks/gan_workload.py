"""The measured work of gan_training.py, in a process of its own: `gan_workload.py times|memory CONFIG-JSON`.

Prints its measurements as JSON.
"""

import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import stylegan2  # noqa: F401  (sets how OpenMP's threads wait, before torch is loaded)

# isort: split
import torch
from calibration import calibrate, unit_seconds
from memory import peak_rss_bytes

from stylegan2.augment import AugmentPipe
from stylegan2.ema import ema_beta, update_average
from stylegan2.loss import StyleGAN2Loss
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.ops import describe_implementation
from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.optimisation import lazy_adam, step_with_gradients, trainable

SEED = 0
G_REG_INTERVAL, D_REG_INTERVAL = 4, 16
LR, R1_GAMMA, EMA_KIMG, EMA_RAMPUP = 0.0025, 1.0, 2.5, 0.05  # no influence on the time
FULL_CHANNEL_BASE = 32768
CALLS_PER_ROUND = 2  # of each phase
SAMPLING_BATCHES = 4  # in each round


@dataclass(frozen=True)
class Config:
    """What is trained, and how long it is measured."""

    resolution: int
    fmaps: float
    channel_max: int
    w_dim: int
    mapping_layers: int
    batch: int
    augpipe: str
    p: float
    memory: str
    threads: int
    rounds: int


class Workload:
    """A training's state, and its phases, each with its optimiser step as in real training."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(SEED)
        self.config = config
        widths = {"channel_base": int(config.fmaps * FULL_CHANNEL_BASE), "channel_max": config.channel_max}
        self.generator = Generator(
            config.w_dim,  # z is as long as w
            0,
            config.w_dim,
            config.resolution,
            3,
            mapping_kwargs={"num_layers": config.mapping_layers},
            synthesis_kwargs=widths,
        ).train()
        self.discriminator = Discriminator(
            0, config.resolution, 3, **widths, epilogue_kwargs={"mbstd_group_size": min(config.batch, 4)}
        ).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        augment = None
        if config.augpipe != "none":
            augment = AugmentPipe(config.augpipe)
            augment.p.fill_(config.p)
        self.loss = StyleGAN2Loss(self.generator, self.discriminator, augment, r1_gamma=R1_GAMMA)
        self.optimizer_g = lazy_adam(self.generator, LR, G_REG_INTERVAL)
        self.optimizer_d = lazy_adam(self.discriminator, LR, D_REG_INTERVAL)
        self.rng = torch.Generator().manual_seed(SEED)
        size = [config.batch, 3, config.resolution, config.resolution]
        self.real = torch.rand(size, generator=self.rng) * 2 - 1
        self.phases: dict[str, Callable[[], None]] = {
            "Gmain": self.gmain,
            "Greg": self.greg,
            "Dmain": self.dmain,
            "Dreg": self.dreg,
            "EMA": self.ema,
        }

    def latents(self) -> torch.Tensor:
        """Draw a batch of z, [batch, w_dim]."""
        return torch.randn([self.config.batch, self.config.w_dim], generator=self.rng)

    def gmain(self) -> None:
        """Generator's main loss, and its step."""
        with trainable(self.generator, self.discriminator):
            self.loss.accumulate_gmain(self.latents(), rng=self.rng)
            step_with_gradients(self.optimizer_g)

    def greg(self) -> None:
        """Path-length penalty of the generator, and its step."""
        with trainable(self.generator, self.discriminator):
            self.loss.accumulate_greg(self.latents(), gain=G_REG_INTERVAL, rng=self.rng)
            step_with_gradients(self.optimizer_g)

    def dmain(self) -> None:
        """Discriminator's main loss, and its step."""
        with trainable(self.discriminator, self.generator):
            self.loss.accumulate_dmain(self.real, self.latents(), rng=self.rng)
            step_with_gradients(self.optimizer_d)

    def dreg(self) -> None:
        """R1 penalty of the discriminator, and its step."""
        with trainable(self.discriminator, self.generator):
            self.loss.accumulate_dreg(self.real, gain=D_REG_INTERVAL, rng=self.rng)
            step_with_gradients(self.optimizer_d)

    def ema(self) -> None:
        """Moving average of the generator."""
        update_average(self.average, self.generator, ema_beta(1000, self.config.batch, EMA_KIMG, EMA_RAMPUP))

    @torch.no_grad()
    def sample(self) -> None:
        """Draw a batch with the averaged generator."""
        self.average(self.latents(), noise_mode="const")


def timed(work: Callable[[], None], calls: int) -> list[float]:
    """Seconds of each of some calls."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def sec_per_kimg(phases: dict[str, float], batch: int) -> float:
    """Seconds for 1,000 training images, from seconds per call of each phase."""
    per_iteration = phases["Gmain"] + phases["Dmain"] + phases["EMA"]
    per_iteration += phases["Greg"] / G_REG_INTERVAL + phases["Dreg"] / D_REG_INTERVAL
    return per_iteration * 1000 / batch


def measure_round(workload: Workload) -> dict[str, Any]:
    """Time every phase and the sampling once over, with the calibration before and after."""
    before = calibrate(workload.config.threads)
    wall, processor = time.perf_counter(), time.process_time()
    phases = {name: timed(phase, CALLS_PER_ROUND) for name, phase in workload.phases.items()}
    cores_used = (time.process_time() - processor) / (time.perf_counter() - wall)
    sampling = timed(workload.sample, SAMPLING_BATCHES)
    after = calibrate(workload.config.threads)
    pieces = {name: before[name] + after[name] for name in before}
    unit = unit_seconds(pieces)
    kimg = sec_per_kimg({k: statistics.median(v) for k, v in phases.items()}, workload.config.batch)
    images_per_s = workload.config.batch / statistics.median(sampling)
    return {
        "pieces": pieces,
        "phases": phases,
        "unit_s": unit,
        "sec_per_kimg": kimg,
        "units_per_kimg": kimg / unit,
        "cores_used": cores_used,
        "images_per_s": images_per_s,
        "sampling_images_per_unit": images_per_s * unit,
    }


def measure_times(config: Config) -> dict[str, Any]:
    """Medians over the rounds, after a warm-up of every phase."""
    workload = Workload(config)
    for work in (*workload.phases.values(), workload.sample):
        work()
    rounds = [measure_round(workload) for _ in range(config.rounds)]

    def over_rounds(name: str) -> dict[str, float]:
        values = [measured[name] for measured in rounds]
        return {name: statistics.median(values), f"{name}_lo": min(values), f"{name}_hi": max(values)}

    pieces = {k: [t for measured in rounds for t in measured["pieces"][k]] for k in rounds[0]["pieces"]}
    phases = {k: [t for measured in rounds for t in measured["phases"][k]] for k in workload.phases}
    return {
        **over_rounds("unit_s"),
        "unit_pieces_s": {name: statistics.median(seconds) for name, seconds in pieces.items()},
        "phases_s": {name: statistics.median(seconds) for name, seconds in phases.items()},
        **over_rounds("sec_per_kimg"),
        **over_rounds("units_per_kimg"),
        **over_rounds("cores_used"),
        **over_rounds("images_per_s"),
        **over_rounds("sampling_images_per_unit"),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "ops": describe_implementation("cpu"),
        },
    }


def measure_memory(config: Config) -> dict[str, Any]:
    """Peak memory of two iterations with all their phases; nothing else runs in this process."""
    workload = Workload(config)
    for _ in range(2):
        for phase in workload.phases.values():
            phase()
    return {"peak_rss_gb": peak_rss_bytes() / 1e9}


def main() -> None:
    part, text = sys.argv[1:]
    config = Config(**json.loads(text))
    if config.memory == "keep" and not keep_freed_memory():
        sys.exit("Error: freed memory can be kept with glibc alone, not this C library; take --memory system")
    torch.set_num_threads(config.threads)
    measure = {"times": measure_times, "memory": measure_memory}[part]
    print(json.dumps(measure(config)))


if __name__ == "__main__":
    main()
