"""Images of a trained generator, each one determined by its seed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.images import to_uint8
from stylegan2.network_folder import CONFIG, init_kwargs, load_weights
from stylegan2.networks.generator import NOISE_MODES, Generator
from stylegan2.precision import full_precision
from stylegan2.randomness import Stream, derive_seed

MAX_SEED = 2**32 - 1
BATCH = 8


def load_generator(folder: Path, device: torch.device | None = None) -> Generator:
    """Load the averaged generator of a trained GAN, ready for sampling.

    Args:
        folder: holds generator.safetensors and config.json.
        device: where to put it; None = the processor.

    Raises:
        StyleGAN2Error: when a file is missing or damaged, or both do not fit together.
    """
    kwargs = init_kwargs(folder, "generator")
    try:
        generator = Generator(**kwargs)
    except TypeError as error:
        raise StyleGAN2Error(
            f"{folder / CONFIG}: these arguments build no generator ({error}); restore the file"
        ) from None
    load_weights(folder / "generator.safetensors", generator)
    return generator.requires_grad_(False).eval().to(device or torch.device("cpu"))


def latent(seed: int, z_dim: int) -> Tensor:
    """Give the latent of a seed: `numpy.random.RandomState(seed).randn(1, z_dim)` as float32 [1, z_dim].

    Args:
        seed: 0 to 2³² − 1.
        z_dim: length of the latent.
    """
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim).astype(np.float32))


def class_label(generator: Generator, class_index: int | None) -> Tensor | None:
    """Give the label of a class: one-hot float32 [1, c_dim] on the generator's device.

    Args:
        generator: with c_dim classes; c_dim = 0 has none.
        class_index: 0 to c_dim − 1; None exactly when there are no classes.

    Returns:
        The label; None when there are no classes.

    Raises:
        StyleGAN2Error: when a class is missing, out of range, or given to a generator without classes.
    """
    raise_problems(_class_problems(generator, class_index))
    if class_index is None:
        return None
    label = torch.zeros(1, generator.c_dim, device=_device(generator))
    label[0, class_index] = 1
    return label


@torch.no_grad()
def generate(
    generator: Generator,
    z: Tensor,
    truncation_psi: float = 1.0,
    *,
    label: Tensor | None = None,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
) -> Tensor:
    """Generate images; unless told otherwise with the constant noise that belongs to the network.

    Args:
        generator: in evaluation mode.
        z: [N, z_dim].
        truncation_psi: 1 = full variety, 0 = the mean image.
        label: [1 or N, c_dim]; None without classes.
        truncation_cutoff: truncate only this many of the first layers; None = all.
        noise_mode: `const`, `random` (from torch's default generator) or `none`.

    Returns:
        float32 [N, C, H, W], about −1..1.
    """
    ws = _map(generator, z, truncation_psi, label, truncation_cutoff)
    with full_precision():
        images: Tensor = generator.synthesis(ws, noise_mode=noise_mode)
    return images


def sample_images(
    generator: Generator,
    seeds: Sequence[int],
    truncation_psi: float,
    batch: int = BATCH,
    *,
    class_index: int | None = None,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
) -> Iterator[NDArray[np.uint8]]:
    """Generate one image for each seed.

    An image depends on generator, seed, class, ψ with its cutoff and noise mode alone, bit for bit: all
    batches have the same size, the last one is filled up. (Another `batch` may move a pixel that lies on the
    edge between two levels.) Random noise follows from the seed, too; such images are made one by one.

    Args:
        generator: from `load_generator`.
        seeds: 0 to 2³² − 1 each.
        truncation_psi: 1 = full variety, 0 = the mean image.
        batch: images computed at once.
        class_index: the class to draw; None exactly when the generator has no classes.
        truncation_cutoff: truncate only this many of the first layers; None = all.
        noise_mode: `const`, `random` or `none`.

    Yields:
        uint8 [H, W, C], in the order of the seeds.

    Raises:
        StyleGAN2Error: for arguments out of range; all are named.
    """
    raise_problems(
        sampling_problems(
            generator,
            seeds,
            truncation_psi,
            class_index=class_index,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            batch=batch,
        )
    )
    label = class_label(generator, class_index)
    device = _device(generator)
    if noise_mode == "random":
        batch = 1
    for chunk, count in _filled(seeds, batch):
        z = _latents(generator, chunk)
        with _noise_of_seed(chunk[0], device):
            images = generate(
                generator,
                z,
                truncation_psi,
                label=label,
                truncation_cutoff=truncation_cutoff,
                noise_mode=noise_mode,
            )
        yield from _to_arrays(images)[:count]


def seeds_to_ws(
    generator: Generator,
    seeds: Sequence[int],
    truncation_psi: float = 1.0,
    *,
    class_index: int | None = None,
    truncation_cutoff: int | None = None,
) -> Tensor:
    """Compute the intermediate latents that `sample_images` draws the images of the seeds from.

    Args:
        generator: from `load_generator`.
        seeds: 0 to 2³² − 1 each, at least one.
        truncation_psi: 1 = full variety, 0 = the mean w.
        class_index: the class to draw; None exactly when the generator has no classes.
        truncation_cutoff: truncate only this many of the first layers; None = all.

    Returns:
        float32 [len(seeds), num_ws, w_dim] on the generator's device.

    Raises:
        StyleGAN2Error: for arguments out of range; all are named.
    """
    raise_problems(
        sampling_problems(
            generator,
            seeds,
            truncation_psi,
            class_index=class_index,
            truncation_cutoff=truncation_cutoff,
        )
    )
    label = class_label(generator, class_index)
    parts = []
    for chunk, count in _filled(seeds, BATCH):
        z = _latents(generator, chunk)
        parts.append(_map(generator, z, truncation_psi, label, truncation_cutoff)[:count])
    return torch.cat(parts)


@torch.no_grad()
def draw_ws(
    generator: Generator, ws: Tensor, noise_mode: str = "const", batch: int = BATCH
) -> Iterator[NDArray[np.uint8]]:
    """Draw an image from each row of ws, in filled-up batches as `sample_images` does.

    Args:
        generator: from `load_generator`.
        ws: [N, num_ws, w_dim].
        noise_mode: `const` or `none`: what keeps noise out of the comparison of two images.
        batch: images computed at once.

    Yields:
        uint8 [H, W, C].
    """
    for rows, count in _filled(range(len(ws)), batch):
        with full_precision():
            images = generator.synthesis(ws[list(rows)].to(_device(generator)), noise_mode=noise_mode)
        yield from _to_arrays(images)[:count]


def sampling_problems(
    generator: Generator,
    seeds: Sequence[int],
    truncation_psi: float = 1.0,
    *,
    class_index: int | None = None,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
    batch: int = BATCH,
) -> list[str]:
    """Name every argument of `sample_images` that cannot be used."""
    problems = []
    wrong = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
    if wrong:
        problems.append(f"seeds: got {wrong[:5]}, expected 0 to {MAX_SEED}")
    problems += truncation_problems(generator, truncation_psi, truncation_cutoff)
    problems += _class_problems(generator, class_index)
    if noise_mode not in NOISE_MODES:
        problems.append(f"noise mode: got {noise_mode!r}, expected one of {', '.join(NOISE_MODES)}")
    if batch < 1:
        problems.append(f"batch: got {batch}, expected at least 1")
    return problems


def truncation_problems(generator: Generator, psi: float, cutoff: int | None) -> list[str]:
    """Name what is wrong with a truncation ψ and the number of layers that it applies to."""
    problems = []
    if not math.isfinite(psi):
        problems.append(f"truncation ψ: got {psi}, expected a number, such as 0.7")
    elif psi != 1 and not hasattr(generator.mapping, "w_avg"):
        problems.append(f"truncation ψ: got {psi:g}, but this network keeps no mean of w; expected 1")
    if cutoff is not None and not 0 <= cutoff <= generator.num_ws:
        problems.append(
            f"truncation cutoff: got {cutoff}, expected 0 to {generator.num_ws}, the layers of this network"
        )
    return problems


def raise_problems(problems: Sequence[str]) -> None:
    """Raise StyleGAN2Error with all problems, one a line; do nothing when there is none."""
    if problems:
        raise StyleGAN2Error("\n".join(problems))


def _class_problems(generator: Generator, class_index: int | None) -> list[str]:
    classes = generator.c_dim
    if classes == 0 and class_index is not None:
        return [f"class: got {class_index}, but this network has no classes; leave it out"]
    if classes > 0 and (class_index is None or not 0 <= class_index < classes):
        got = "none" if class_index is None else class_index
        return [f"class: got {got}, expected one of this network's classes, 0 to {classes - 1}"]
    return []


def _device(generator: Generator) -> torch.device:
    return next(generator.parameters()).device


def _latents(generator: Generator, seeds: Sequence[int]) -> Tensor:
    z = torch.cat([latent(seed, generator.z_dim) for seed in seeds])  # [N, z_dim]
    return z.to(_device(generator))


@torch.no_grad()
def _map(generator: Generator, z: Tensor, psi: float, label: Tensor | None, cutoff: int | None) -> Tensor:
    labels = None if label is None else label.expand(len(z), -1)
    ws: Tensor = generator.mapping(z, labels, truncation_psi=psi, truncation_cutoff=cutoff)
    return ws


def _filled(items: Sequence[int], batch: int) -> Iterator[tuple[list[int], int]]:
    """Cut into batches of one size, the last filled up with its last item; also say how many are real."""
    for start in range(0, len(items), batch):
        chunk = list(items[start : start + batch])
        yield chunk + [chunk[-1]] * (batch - len(chunk)), len(chunk)


def _to_arrays(images: Tensor) -> NDArray[np.uint8]:
    """[N, C, H, W] in −1..1 to uint8 [N, H, W, C]."""
    arrays: NDArray[np.uint8] = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return arrays


@contextmanager
def _noise_of_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's default generator follow from the seed inside, and go on undisturbed outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # Not the plain seed: numpy's and torch's Mersenne Twisters would give z and noise the same stream.
        torch.manual_seed(derive_seed(seed, Stream.LAYER_NOISE))
        yield
