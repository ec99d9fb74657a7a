"""A GAN of phantoms against projected discriminators: a bounded trial.

    python docs/results/gan-time-to-quality/projected.py OUT --cache /tmp/ttq --kimg 8
    python docs/results/gan-time-to-quality/projected.py OUT --cache /tmp/ttq --init phantom128 --kimg 4

After Sauer et al. 2021, "Projected GANs Converge Faster" (2111.01007), written from its description: the
generator is the project's; its opponents are small discriminators on features of a fixed network, here
EfficientNet-lite0, mixed at random across channels and scales. OUT/progress.json has the rows of study.py
(cost of training alone, KID by the same judge), OUT/signs.csv what each discriminator thinks, and OUT is the
folder of a trained generator at the end. KID is measured on the features the discriminators see: see
judges.py for one that is not. A training that was interrupted goes on from OUT/state.pt.
"""

import argparse
import copy
import csv
import logging
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import stages  # noqa: F401  (sets how OpenMP's threads wait, before torch is loaded)

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from study import EVERY, LEAN, SEED, SIZE, TRAINING_COUNT, TRAINING_SEED, Judge, Progress, phantoms
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stylegan2.config import TrainingOptions, resolve
from stylegan2.data import ImageStream
from stylegan2.efficientnet import load_efficientnet, normalise
from stylegan2.ema import ema_beta, update_average
from stylegan2.images import image_grid, to_uint8, write_png
from stylegan2.network_folder import load_weights, save_weights, write_config
from stylegan2.networks.generator import Generator
from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.ops.selection import announce_implementation
from stylegan2.optimisation import BETAS, step_with_gradients, trainable
from stylegan2.randomness import Stream, derive_seed
from stylegan2.sampling import sample_images
from stylegan2.transfer import SourceNetworks, network_kwargs, raw_generator_path

SIGNS_EVERY = 200  # images shown between two lines of signs
STATE = "state.pt"
WIDTHS = (24, 40, 112, 320)  # of the four maps, at 1/4, 1/8, 1/16 and 1/32 of the resolution
BLACK = -1.0

Maps = list[Tensor]


class ProjectedFeatures(nn.Module):
    """The fixed part of all discriminators: pretrained features, mixed at random (section 3.2 of the paper).

    Cross-channel mixing is a 1×1 convolution for each of the four maps; cross-scale mixing goes from the
    deepest to the shallowest: 3×3 convolution, bilinear enlargement, sum. No weight ever changes. Each mixed
    map is divided by its root mean square over `calibration` images: a spectrally normalised discriminator
    cannot be steeper than 1, so the size of its input decides how far apart its answers can be. (This is
    not in the paper.)

    Args:
        seed: of the mixing weights.
        calibration: float [N, 3, H, W], −1..1.
        size: images are enlarged to so many pixels first.
        gain: root mean square of the maps.
    """

    scales: Tensor

    def __init__(self, seed: int, calibration: Tensor, size: int, gain: float) -> None:
        super().__init__()
        self.network = load_efficientnet()
        self.size = size
        rng = torch.Generator().manual_seed(seed)
        self.across_channels = nn.ModuleList(_random_convolution(width, width, 1, rng) for width in WIDTHS)
        self.across_scales = nn.ModuleList(
            _random_convolution(deep, shallow, 3, rng) for shallow, deep in pairwise(WIDTHS)
        )
        self.register_buffer("scales", torch.ones(len(WIDTHS)))
        self.requires_grad_(False)
        self.scales = torch.stack([gain / x.square().mean().sqrt() for x in self(calibration)])

    def forward(self, images: Tensor) -> Maps:
        """Map float [N, 3, H, W], −1..1, to four maps, the shallowest first."""
        if images.shape[2] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear")
        maps = self.network.spatial(normalise((images + 1) * 127.5))[1:]
        mixed: Maps = []
        for level in reversed(range(len(WIDTHS))):
            x = self.across_channels[level](maps[level])
            if mixed:
                # Enlarging and convolving commute but for the edges: this order takes a quarter of the time.
                deeper = self.across_scales[level](mixed[0])
                x = x + F.interpolate(deeper, x.shape[2:], mode="bilinear")
            mixed.insert(0, x)
        return [x * scale for x, scale in zip(mixed, self.scales, strict=True)]


def _random_convolution(inputs: int, outputs: int, kernel: int, rng: torch.Generator) -> nn.Conv2d:
    """A convolution with Kaiming's initial weights and no bias."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, generator=rng)
    return layer


class PatchDiscriminator(nn.Module):
    """Halves a map until it has 4 × 4 places, and judges each place; every convolution has spectral norm 1.

    Args:
        inputs: channels of the map.
        halvings: from the map to 4 × 4.
        width: channels of the first layer; each next one has twice as many, up to `4 · width`.
        dropout: share of channels that are left out before the last layer.
    """

    def __init__(self, inputs: int, halvings: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(max(halvings, 1)):
            outputs = min(width << number, 4 * width)
            shape = {"kernel_size": 4, "stride": 2} if halvings else {"kernel_size": 3, "stride": 1}
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, padding=1, **shape)), nn.LeakyReLU(0.2)]
            inputs = outputs
        if dropout > 0:
            layers.append(nn.Dropout2d(dropout))
        layers.append(spectral_norm(nn.Conv2d(inputs, 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to logits [N, 4 · 4]."""
        logits: Tensor = self.layers(x).flatten(1)
        return logits


class Discriminators(nn.Module):
    """One discriminator for each chosen map.

    Args:
        levels: which maps, 1 (shallowest) to 4.
        size: of the images in pixels.
        width: see `PatchDiscriminator`.
        dropout: likewise.
        noise: standard deviation of noise on the maps, whose root mean square is the features' gain.
    """

    def __init__(self, levels: list[int], size: int, width: int, dropout: float, noise: float) -> None:
        super().__init__()
        self.levels, self.noise = levels, noise
        self.heads = nn.ModuleList(
            PatchDiscriminator(WIDTHS[level - 1], (size >> (level + 3)).bit_length() - 1, width, dropout)
            for level in levels
        )

    def forward(self, maps: Maps) -> list[Tensor]:
        """Map the four maps to logits [N, 16] for each discriminator."""
        chosen = [maps[level - 1] for level in self.levels]
        if self.noise > 0:
            chosen = [x + self.noise * torch.randn_like(x) for x in chosen]
        return [head(x) for head, x in zip(self.heads, chosen, strict=True)]


def augment(images: Tensor, policy: list[str], strength: float) -> Tensor:
    """Change images at random, each in its own way, differentiably (Zhao et al. 2020, 2006.10738).

    Args:
        images: float [N, C, H, W], −1..1.
        policy: of `color` (brightness ± ½, saturation 0..2, contrast ½..1½), `translation` (by up to 1/8 of
            the side) and `cutout` (a square of half the side becomes grey).
        strength: factor on all these ranges.
    """
    count, _, height, width = images.shape
    x = images
    if "color" in policy:
        brightness, saturation, contrast = (torch.rand(3, count, 1, 1, 1) - 0.5) * strength
        x = x + brightness
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * (1 + 2 * saturation)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (1 + contrast)
    if "translation" in policy:
        reach = round(height / 8 * strength)
        down, right = torch.randint(-reach, reach + 1, (2, count)).tolist()
        moved = [  # negative padding cuts off; what comes in is the camera's surround
            F.pad(x[i : i + 1], (right[i], -right[i], down[i], -down[i]), value=BLACK) for i in range(count)
        ]
        x = torch.cat(moved)
    if "cutout" in policy:
        side = round(height / 2 * strength)
        top, left = (torch.randint(1 - side, n, (count, 1, 1, 1)) for n in (height, width))
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        cut = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        x = x * ~cut
    return x


class ProjectedTrainer:
    """Generator, its average, the discriminators, and the steps that move them on.

    Args:
        options: from the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        images = phantoms(TRAINING_SEED, TRAINING_COUNT, 1.0, options.cache)
        self.stream = ImageStream(images, False, SEED)
        torch.manual_seed(derive_seed(SEED, Stream.INITIAL_WEIGHTS))
        self._build_generator()
        calibration = augment(self.stream.batch(0, 64), options.policy, options.diffaug_strength)
        self.features = ProjectedFeatures(SEED, calibration, options.feature_size, options.feature_gain)
        self.discriminators = Discriminators(
            options.levels, options.feature_size, options.d_width, options.dropout, options.feature_noise
        )
        self.optimizer_g = torch.optim.Adam(
            self.generator.parameters(), options.g_lr, BETAS, eps=1e-8, fused=True
        )
        self.optimizer_d = torch.optim.AdamW(
            self.discriminators.parameters(),
            options.d_lr,
            BETAS,
            eps=1e-8,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.shown = 0
        self.iteration = 0
        self.watched: dict[str, list[float]] = defaultdict(list)

    def _build_generator(self) -> None:
        if self.options.init is None:
            plain = resolve(TrainingOptions(resolution=SIZE, kimg=1.0, batch=8, **LEAN))
            self.generator = Generator(**network_kwargs(plain, channels=3)[0])
            self.average = copy.deepcopy(self.generator)
        else:
            source = SourceNetworks.load(self.options.init)
            self.generator, self.average = Generator(**source.generator), Generator(**source.generator)
            load_weights(raw_generator_path(source.folder), self.generator)
            load_weights(source.folder / "generator.safetensors", self.average)
        self.generator.train()
        self.average.eval().requires_grad_(False)

    def train_iteration(self) -> None:
        """Show one batch: a step of the generator, now and then steps of the discriminators."""
        options = self.options
        torch.manual_seed(derive_seed(SEED, Stream.ITERATION, self.shown))
        fake_maps = self._step_generator()
        if self.iteration % options.d_every == 0:
            for step in range(options.d_steps):
                if step > 0:
                    with torch.no_grad():
                        fake_maps = self.features(self._augmented(self._draw()))
                self._step_discriminators(self.shown + step * options.batch, fake_maps)
        rampup = 0.05 if options.init is None else None
        update_average(
            self.average, self.generator, ema_beta(self.shown, options.batch, options.ema_kimg, rampup)
        )
        self.shown += options.batch
        self.iteration += 1

    def _step_generator(self) -> Maps:
        """Take a step, and give the maps of the images it drew.

        The discriminators learn from the same ones, which saves drawing others. (The paper draws others.)
        """
        with trainable(self.generator, self.discriminators):
            maps = self.features(self._augmented(self._draw()))
            logits = self.discriminators(maps)
            loss = -torch.stack([x.mean() for x in logits]).sum()
            loss.backward()
            step_with_gradients(self.optimizer_g)
        self.watched["loss_G"].append(loss.item())
        return [x.detach() for x in maps]

    def _step_discriminators(self, first: int, fake_maps: Maps) -> None:
        with torch.no_grad():
            real_maps = self.features(self._augmented(self.stream.batch(first, self.options.batch)))
        both = [torch.cat(pair) for pair in zip(real_maps, fake_maps, strict=True)]
        losses = []
        for level, logits in zip(self.options.levels, self.discriminators(both), strict=True):
            real, fake = logits.chunk(2)
            losses.append(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            self.watched[f"real{level}"].append(real.detach().sign().mean().item())
            self.watched[f"fake{level}"].append(fake.detach().sign().mean().item())
        loss = torch.stack(losses).sum()
        loss.backward()
        step_with_gradients(self.optimizer_d)
        self.watched["loss_D"].append(loss.item())

    def _draw(self) -> Tensor:
        images: Tensor = self.generator(torch.randn(self.options.batch, self.generator.z_dim))
        return images

    def _augmented(self, images: Tensor) -> Tensor:
        return augment(images, self.options.policy, self.options.diffaug_strength)

    def signs(self) -> dict[str, float]:
        """Average what was watched since the last call."""
        means = {name: float(np.mean(values)) for name, values in self.watched.items()}
        self.watched.clear()
        return {"shown": self.shown, **means}

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "average", "discriminators", "optimizer_g", "optimizer_d")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        """Write everything needed to go on; judges.py reads the averaged generator from it."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        numbers = {"shown": self.shown, "iteration": self.iteration}
        torch.save({**state, **numbers, "generator_kwargs": self.generator.init_kwargs}, path)

    def restore(self, path: Path) -> None:
        """Go on from a file of `save`; options are the caller's to keep equal."""
        state = torch.load(path, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.shown, self.iteration = state["shown"], state["iteration"]


def run(options: argparse.Namespace) -> None:
    """Train to the end, measuring as it goes."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    trainer, progress = ProjectedTrainer(options), Progress.load(out / "progress.json")
    if (out / STATE).exists():
        trainer.restore(out / STATE)
    judge = None if options.no_kid else Judge(options.cache)
    total = round(options.kimg * 1000)
    if trainer.shown == 0:
        seen = trainer._augmented(trainer.stream.batch(0, 16))
        write_png(out / "augmented.png", image_grid(to_uint8(seen).permute(0, 2, 3, 1).numpy(), 4))
        measure(trainer, progress, judge, 0.0)
    signs: list[dict[str, float]] = []
    while trainer.shown < total:
        started = time.process_time()
        trainer.train_iteration()
        progress.cpu_s += time.process_time() - started
        if trainer.shown % SIGNS_EVERY < options.batch:
            signs.append(trainer.signs())
            _report(signs[-1], options.levels, progress.cpu_s, out / "signs.csv")
        if trainer.shown % options.measure_every < options.batch or trainer.shown >= total:
            real = [value for row in signs for name, value in row.items() if name.startswith("real")]
            measure(trainer, progress, judge, float(np.mean(real or [0.0])))
            signs.clear()
    save_weights(out / "generator.safetensors", trainer.average)
    trained = {name: str(value) for name, value in vars(options).items()}
    write_config(out, {"generator": trainer.generator.init_kwargs, "trained": trained})


def _report(row: dict[str, float], levels: list[int], cpu_s: float, path: Path) -> None:
    """Print a line of signs and add it to the file."""
    pairs = [f"{row.get(f'real{n}', 0):+.2f}/{row.get(f'fake{n}', 0):+.2f}" for n in levels]
    losses = f"G {row['loss_G']:+.2f} D {row.get('loss_D', 0):.2f}"
    logging.info("%5d images, %4.0f s: signs %s, %s", row["shown"], cpu_s, " ".join(pairs), losses)
    names = ["shown", "loss_G", "loss_D", *(f"{kind}{n}" for n in levels for kind in ("real", "fake"))]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow({name: round(value, 4) for name, value in row.items()})


def measure(trainer: ProjectedTrainer, progress: Progress, judge: Judge | None, r_t: float) -> None:
    """Take down cost, KID and a grid of images, and save."""
    out = progress.path.parent
    row = {"shown": float(trainer.shown), "cpu_s": round(progress.cpu_s, 2), "r_t": r_t}
    picture = out / "samples" / f"{trainer.shown:06d}.png"
    if judge is None:
        picture.parent.mkdir(exist_ok=True)
        write_png(picture, image_grid(np.stack(list(sample_images(trainer.average, range(16), 1.0))), 4))
    else:
        row |= judge(trainer.average, picture)
    logging.info("%s: %s", out.name, {key: round(value, 3) for key, value in row.items()})
    progress.rows.append(row)
    trainer.save(out / STATE)
    progress.save()


def _digits(text: str) -> list[int]:
    return [int(digit) for digit in text]


def main() -> None:
    """Read the command line and train."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("out", type=Path)
    add("--cache", type=Path, default=Path("/tmp/ttq"), help="folder of the phantoms")
    add("--init", help="networks whose generator to start from, such as phantom128; default: afresh")
    add("--kimg", type=float, default=8.0)
    add("--batch", type=int, default=16)
    add("--g-lr", type=float, default=2e-4)
    add("--d-lr", type=float, default=2e-4)
    add("--d-every", type=int, default=1, help="iterations between two updates of the discriminators")
    add("--d-steps", type=int, default=1, help="steps of the discriminators at each update")
    add("--d-width", type=int, default=64, help="channels of a discriminator's first layer")
    add("--weight-decay", type=float, default=0.0, help="of the discriminators, apart from Adam's gradient")
    add("--dropout", type=float, default=0.0, help="share of channels before a discriminator's last layer")
    add("--feature-noise", type=float, default=0.0, help="on the maps, of which --feature-gain is the size")
    add("--feature-gain", type=float, default=1.0, help="root mean square of each mixed map")
    add("--feature-size", type=int, default=SIZE, help="pixels in the fixed network: 128 or 256")
    add("--stages", dest="levels", type=_digits, default=[1, 2, 3, 4], help="such as 134")
    add("--diffaug", default="color,translation,cutout", help="what of these three, or off")
    add("--diffaug-strength", type=float, default=1.0, help="factor on all ranges")
    add("--ema-kimg", type=float, default=1.0, help="half-life of the generator's average")
    add("--measure-every", type=int, default=EVERY, help="images between two measurements")
    add("--no-kid", action="store_true", help="write grids of images only")
    add("--threads", type=int, default=2)
    options = parser.parse_args()
    options.policy = [] if options.diffaug == "off" else options.diffaug.split(",")
    if unknown := set(options.policy) - {"color", "translation", "cutout"}:
        parser.error(f"--diffaug: {', '.join(unknown)} unknown")
    if not set(options.levels) <= {1, 2, 3, 4} or not options.levels:
        parser.error("--stages: expected digits of 1 to 4")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    announce_implementation(torch.device("cpu"))
    run(options)


if __name__ == "__main__":
    main()
