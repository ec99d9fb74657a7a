"""Projection: find the w, and the noise maps, from which a generator draws a given image.

The method is that of Karras et al. 2019 (arXiv 1912.04958), appendix D.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.func import functional_call

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.image_folder import DECODING_ERRORS, decode_image
from stylegan2.images import from_uint8, to_uint8
from stylegan2.network_folder import read_tensors
from stylegan2.networks.generator import Generator
from stylegan2.precision import full_precision
from stylegan2.sampling import class_label, raise_problems

Distance = Callable[[Tensor, Tensor], Tensor]  # two float [N, C, H, W] in −1..1 → [N]

_NOISE_BUFFER = "noise_const"
_COARSEST_NOISE = 8  # the pyramid of a noise map ends at 8×8
_NOISE_KEY = "noise/"


@dataclass(frozen=True)
class ProjectionOptions:
    """How to search; the defaults are those of the paper.

    Attributes:
        steps: steps of Adam.
        seed: of the samples of w, the first noise maps and the noise on w.
        per_layer: find one w per layer instead of one for all: closer, but off what the network learned.
        max_lr: learning rate between the ramps.
        rampup: fraction of the steps in which the learning rate grows linearly from 0.
        rampdown: fraction of the steps in which it falls to 0 on a cosine.
        w_noise: standard deviation of the noise on w at the start, in units of σ_w.
        w_noise_until: fraction of the steps until the noise on w has gone.
        w_samples: latents that the mean and σ of w are estimated from.
        noise_weight: α, weight of the noise maps' regularisation.
        distance_weight: weight of the distance function.
        pixel_weight: weight of the mean squared difference of pixels (of −1..1).
    """

    steps: int = 1000
    seed: int = 0
    per_layer: bool = False
    max_lr: float = 0.1
    rampup: float = 0.05
    rampdown: float = 0.25
    w_noise: float = 0.05
    w_noise_until: float = 0.75
    w_samples: int = 10_000
    noise_weight: float = 1e5
    distance_weight: float = 1.0
    pixel_weight: float = 0.0


def option_problems(options: ProjectionOptions) -> list[str]:
    """Name every option that is out of range."""
    problems = []
    for name, least in (("steps", 1), ("seed", 0), ("w_samples", 2)):
        if getattr(options, name) < least:
            problems.append(f"{name}: got {getattr(options, name)}, expected at least {least}")
    for name in ("max_lr", "w_noise", "noise_weight", "distance_weight", "pixel_weight"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            problems.append(f"{name}: got {value}, expected a number ≥ 0")
    for name in ("rampup", "rampdown", "w_noise_until"):
        if not 0 <= getattr(options, name) <= 1:
            problems.append(f"{name}: got {getattr(options, name)}, expected 0 to 1")
    if options.distance_weight == 0 and options.pixel_weight == 0:
        problems.append("distance_weight and pixel_weight: both are 0; expected one above 0")
    return problems


@dataclass(frozen=True)
class Step:
    """One row of the history: the state of the search before a step."""

    step: int
    lr: float
    distance: float
    pixel_error: float
    noise_penalty: float
    loss: float


@dataclass(frozen=True)
class Projection:
    """What was found.

    Attributes:
        ws: [1, num_ws, w_dim].
        noise: noise maps by the name of the synthesis network's buffer, [H, W] each.
        image: float32 [1, C, H, W], about −1..1: drawn from both.
        start: the same of the mean w with the first noise maps.
        history: one row for each step.
    """

    ws: Tensor
    noise: dict[str, Tensor]
    image: Tensor
    start: Tensor
    history: list[Step]


@full_precision()
def project(
    generator: Generator,
    target: Tensor,
    distance: Distance,
    options: ProjectionOptions | None = None,
    *,
    class_index: int | None = None,
    watch: Callable[[Step], None] = lambda step: None,
    film: Callable[[Tensor], None] | None = None,
    film_interval: int = 1,
) -> Projection:
    """Search for the latent of an image. The generator itself is left as it is.

    Args:
        generator: from `sampling.load_generator`.
        target: float [1, C, H, W] of the generator's size, −1..1.
        distance: how different two images look, such as `features.PerceptualDistance`; differentiable.
        options: None = those of the paper.
        class_index: the class whose latents are searched; None exactly when the generator has no classes.
        watch: called before each step.
        film: called with float [1, C, H, W], drawn from w without the noise on it, before each
            `film_interval`-th step; None = draw nothing more. What is found does not depend on it.
        film_interval: steps from one image to the next.

    Raises:
        StyleGAN2Error: for a target of another size, options out of range, or a search that diverges.
    """
    options = options or ProjectionOptions()
    expected = [1, generator.img_channels, *generator.img_size]
    problems = option_problems(options)
    if list(target.shape) != expected:
        problems.append(f"target: got shape {list(target.shape)}, expected {expected}")
    raise_problems(problems)
    device = next(generator.parameters()).device
    target = target.to(device=device, dtype=torch.float32)
    rng = torch.Generator(device).manual_seed(options.seed)
    mean, sigma = w_statistics(generator, options.w_samples, options.seed, class_index)

    copies = generator.num_ws if options.per_layer else 1
    w = mean.expand(1, copies, -1).clone().requires_grad_()  # [1, copies, w_dim]
    noise = {
        name: torch.randn(buffer.shape, generator=rng, device=device).requires_grad_()
        for name, buffer in noise_buffers(generator)
    }
    start = _draw(generator, w.detach(), noise).detach()
    optimiser = torch.optim.Adam([w, *noise.values()], lr=options.max_lr)
    history: list[Step] = []
    for index in range(options.steps):
        done = index / options.steps
        rate = options.max_lr * learning_rate_factor(done, options.rampup, options.rampdown)
        for group in optimiser.param_groups:
            group["lr"] = rate
        # ---------------------------------------------------------------------------------------------------
        # Karras et al. 2019, appendix D: w̃ = w + N(0, (0.05 σ_w t²)²), t from 1 to 0 in the first 3/4
        # ---------------------------------------------------------------------------------------------------
        t = max(0.0, 1 - done / options.w_noise_until) if options.w_noise_until else 0.0
        shaken = w + torch.randn(w.shape, generator=rng, device=device) * (options.w_noise * sigma * t * t)
        image = _draw(generator, shaken, noise)
        away = distance(image, target).sum()
        error = (image - target).square().mean()
        penalty = noise_penalty(list(noise.values()), device)
        loss = options.distance_weight * away + options.pixel_weight * error + options.noise_weight * penalty
        step = Step(index, rate, *(value.item() for value in (away, error, penalty, loss)))
        if not math.isfinite(step.loss):
            raise StyleGAN2Error(f"projection diverged: loss {step.loss} at step {index}; lower max_lr")
        history.append(step)
        watch(step)
        if film is not None and index % film_interval == 0:
            with torch.no_grad():
                film(_draw(generator, w, noise))
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=[w, *noise.values()])
        optimiser.step()
        _renormalise(noise)
    found = {name: value.detach() for name, value in noise.items()}
    ws = w.detach().expand(1, generator.num_ws, -1).clone()  # [1, num_ws, w_dim]
    return Projection(ws, found, _draw(generator, ws, found).detach(), start, history)


@torch.no_grad()
def w_statistics(
    generator: Generator, samples: int, seed: int, class_index: int | None = None
) -> tuple[Tensor, float]:
    """Estimate centre and scale of W.

    Returns:
        μ_w [w_dim], and σ_w with σ_w² = E‖w − μ_w‖² (Karras et al. 2019, appendix D).
    """
    device = next(generator.parameters()).device
    label = class_label(generator, class_index)
    z = np.random.RandomState(seed).randn(samples, generator.z_dim).astype(np.float32)
    labels = None if label is None else label.expand(samples, -1)
    w = generator.mapping(torch.from_numpy(z).to(device), labels)[:, 0]  # [samples, w_dim]
    mean = w.mean(dim=0)
    sigma = (w - mean).square().sum(dim=1).mean().sqrt()
    return mean, float(sigma)


def learning_rate_factor(done: float, rampup: float, rampdown: float) -> float:
    """Share of the full learning rate: linear up, level, down on a cosine (Karras et al. 2019, appendix D).

    Args:
        done: fraction of the steps that have been made.
        rampup: fraction of the steps in which it grows.
        rampdown: fraction of the steps in which it falls.
    """
    up = min(1.0, done / rampup) if rampup else 1.0
    down = min(1.0, (1 - done) / rampdown) if rampdown else 1.0
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


def noise_penalty(maps: list[Tensor], device: torch.device) -> Tensor:
    """Measure how much signal hides in noise maps: 0 for white noise without end.

    Args:
        maps: [H, W] each, of zero mean and unit variance.
        device: of the result, when there is no map.

    Returns:
        Scalar.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2019, appendix D: L_ij = (mean_xy n(x,y)·n(x−1,y))² + (mean_xy n(x,y)·n(x,y−1))², wrapping
    # at the edges, summed over maps i and the levels j of their pyramids: means of 2×2 pixels, times 2 to
    # keep the variance, down to 8×8.
    # -------------------------------------------------------------------------------------------------------
    total = torch.zeros((), device=device)
    for level in maps:
        while True:
            total = total + (level * level.roll(1, dims=1)).mean().square()
            total = total + (level * level.roll(1, dims=0)).mean().square()
            if min(level.shape) < 2 * _COARSEST_NOISE or level.shape[0] % 2 or level.shape[1] % 2:
                break
            level = F.avg_pool2d(level[None, None], 2)[0, 0] * 2  # [H/2, W/2]
    return total


def noise_buffers(generator: Generator) -> Iterator[tuple[str, Tensor]]:
    """Give name and value [H, W] of the noise maps of the synthesis network."""
    for name, buffer in generator.synthesis.named_buffers():
        if name.rpartition(".")[2] == _NOISE_BUFFER:
            yield name, buffer


def read_target(path: Path, generator: Generator) -> tuple[Tensor, list[str]]:
    """Read the image to be projected; crop its centre and resize it to what the generator draws.

    EXIF orientation is applied.

    Returns:
        Float [1, C, H, W] in −1..1, and what had to be changed, in words.

    Raises:
        StyleGAN2Error: when the file is missing or damaged, has more than 8 bits a channel or transparency.
    """
    height, width = generator.img_size
    image = _read_image(path)
    changes = []
    wanted = "L" if generator.img_channels == 1 else "RGB"
    if image.mode == "RGB" and wanted == "L":
        changes.append("colours to grey")
    image = image.convert(wanted)
    # The largest centred part of the right shape; at least one pixel of a very long image.
    scale = min(image.width / width, image.height / height)
    part = (max(1, round(scale * width)), max(1, round(scale * height)))
    if part != image.size:
        changes.append(f"{image.width}×{image.height} cropped to {part[0]}×{part[1]}")
        left, top = (image.width - part[0]) // 2, (image.height - part[1]) // 2
        image = image.crop((left, top, left + part[0], top + part[1]))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        changes.append(f"resized to {width}×{height}")
    pixels = torch.from_numpy(np.array(image, np.uint8).reshape(1, height, width, -1))  # [1, H, W, C]
    return from_uint8(pixels).permute(0, 3, 1, 2).contiguous(), changes


def save_projection(path: Path, projection: Projection) -> None:
    """Write `ws` [1, num_ws, w_dim] and every `noise/<buffer>` [H, W] as safetensors."""
    tensors = {"ws": projection.ws} | {
        f"{_NOISE_KEY}{name}": value for name, value in projection.noise.items()
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(tensors))


def load_projection(path: Path, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Read what `save_projection` wrote, or another file of such tensors.

    Args:
        path: safetensors file with `ws` [N, num_ws, w_dim] and maybe `noise/<buffer>` [H, W].
        generator: that it is to be drawn with.

    Returns:
        `ws`, and the noise maps by the name of the synthesis network's buffer, on the generator's device.

    Raises:
        StyleGAN2Error: when the file is missing or damaged; naming all that does not fit the generator.
    """
    if not path.is_file():
        raise StyleGAN2Error(f"{path}: no such file; expected a projected_w.safetensors of `project`")
    tensors = read_tensors(path)
    ws = tensors.pop("ws", None)
    expected = [generator.num_ws, generator.w_dim]
    problems = []
    if ws is None or ws.ndim != 3 or list(ws.shape[1:]) != expected or len(ws) == 0:
        got = "none" if ws is None else list(ws.shape)
        problems.append(f"ws: got {got}, expected [N, {expected[0]}, {expected[1]}] with N ≥ 1")
    buffers = {f"{_NOISE_KEY}{name}": buffer for name, buffer in noise_buffers(generator)}
    for key, value in tensors.items():
        if key not in buffers:
            problems.append(f"{key}: is unknown to the network")
        elif value.shape != buffers[key].shape:
            problems.append(f"{key}: got {list(value.shape)}, expected {list(buffers[key].shape)}")
    for key, value in {**tensors, **({} if ws is None else {"ws": ws})}.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            problems.append(f"{key}: expected finite floating-point numbers")
    if problems:
        raise StyleGAN2Error(
            f"{path} does not fit this network; name the one that it was projected with:\n  - "
            + "\n  - ".join(problems)
        )
    assert ws is not None
    device = next(generator.parameters()).device
    noise = {key.removeprefix(_NOISE_KEY): value.to(device).float() for key, value in tensors.items()}
    return ws.to(device).float(), noise


@torch.no_grad()
def draw_projection(
    generator: Generator, ws: Tensor, noise: dict[str, Tensor], noise_mode: str = "const"
) -> Iterator[NDArray[np.uint8]]:
    """Draw an image from each row of what `load_projection` gives.

    Args:
        generator: from `sampling.load_generator`.
        ws: [N, num_ws, w_dim].
        noise: maps [H, W] in the place of the network's own; one that is missing stays.
        noise_mode: `const`, or `none`: without noise.

    Yields:
        uint8 [H, W, C].
    """
    for row in ws.split(1):
        image = to_uint8(_draw(generator, row, noise, noise_mode))[0]  # [C, H, W]
        yield image.permute(1, 2, 0).cpu().numpy()


def save_history(path: Path, history: list[Step]) -> None:
    """Write the search as CSV, one row for each step, six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Step)])
    for step in history:
        row = asdict(step)
        writer.writerow([row.pop("step"), *(f"{value:.6g}" for value in row.values())])
    write_atomically(path, text.getvalue().encode())


@full_precision()
def _draw(generator: Generator, w: Tensor, noise: dict[str, Tensor], noise_mode: str = "const") -> Tensor:
    """Draw from w [1, 1 or num_ws, w_dim] with these noise maps in the place of the network's own."""
    ws = w.expand(-1, generator.num_ws, -1)
    image: Tensor = functional_call(
        generator.synthesis, noise, (ws,), {"noise_mode": noise_mode, "force_fp32": True}
    )
    return image


@torch.no_grad()
def _renormalise(noise: dict[str, Tensor]) -> None:
    """Bring every map back to zero mean and unit variance."""
    for value in noise.values():
        value -= value.mean()
        value *= value.square().mean().clamp(min=1e-12).rsqrt()


def _read_image(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes())
    except FileNotFoundError:
        raise StyleGAN2Error(f"{path}: no such image; expected a PNG, JPEG or TIFF file") from None
    except UnidentifiedImageError:
        raise StyleGAN2Error(f"{path}: not an image; expected a PNG, JPEG or TIFF file") from None
    except StyleGAN2Error as error:
        raise StyleGAN2Error(f"{path}: {error}") from None
    except DECODING_ERRORS as error:
        raise StyleGAN2Error(f"{path}: cannot be read ({error}); save it again") from None
