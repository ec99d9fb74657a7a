"""Images of a trained generator, each one determined by its seed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.images import to_uint8
from stylegan2.network_folder import init_kwargs, load_weights
from stylegan2.networks.generator import Generator


def load_generator(folder: Path, device: torch.device) -> Generator:
    """Load the averaged generator of a trained GAN, ready for sampling.

    Args:
        folder: holds generator.safetensors and config.json.
        device: where to put it.

    Raises:
        StyleGAN2Error: when a file is missing or damaged, or both do not fit together.
    """
    generator = Generator(**init_kwargs(folder, "generator"))
    load_weights(folder / "generator.safetensors", generator)
    return generator.requires_grad_(False).eval().to(device)


def latent(seed: int, z_dim: int) -> Tensor:
    """Give the latent of a seed: `numpy.random.RandomState(seed).randn(1, z_dim)` as float32 [1, z_dim].

    Args:
        seed: 0 to 2³² − 1.
        z_dim: length of the latent.
    """
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim).astype(np.float32))


@torch.no_grad()
def generate(generator: Generator, z: Tensor, truncation_psi: float = 1.0) -> Tensor:
    """Generate images with the constant noise that belongs to the network.

    Args:
        generator: in evaluation mode.
        z: [N, z_dim].
        truncation_psi: 1 = full variety, 0 = the mean image.

    Returns:
        float32 [N, C, H, W], about −1..1.
    """
    ws = generator.mapping(z, None, truncation_psi=truncation_psi)
    images: Tensor = generator.synthesis(ws, noise_mode="const")
    return images


def sample_images(
    generator: Generator, seeds: Sequence[int], truncation_psi: float, batch: int = 8
) -> Iterator[NDArray[np.uint8]]:
    """Generate one image for each seed.

    An image depends on generator, seed and ψ alone, bit for bit: all batches have the same size, the last one
    is filled up.

    Args:
        generator: from `load_generator`.
        seeds: 0 to 2³² − 1 each.
        truncation_psi: 1 = full variety, 0 = the mean image.
        batch: images computed at once.

    Yields:
        uint8 [H, W, C], in the order of the seeds.

    Raises:
        StyleGAN2Error: for a seed out of range.
    """
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise StyleGAN2Error(f"seeds: got {wrong[:5]}, expected 0 to {2**32 - 1}")
    device = next(generator.parameters()).device
    for start in range(0, len(seeds), batch):
        chunk = list(seeds[start : start + batch])
        filled = chunk + [chunk[-1]] * (batch - len(chunk))
        z = torch.cat([latent(seed, generator.z_dim) for seed in filled]).to(device)
        images = to_uint8(generate(generator, z, truncation_psi)).permute(0, 2, 3, 1).cpu().numpy()
        yield from images[: len(chunk)]
