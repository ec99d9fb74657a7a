"""A generator that is small enough for tests, and the folder that holds it."""

from pathlib import Path
from typing import Any

import torch

from stylegan2.network_folder import save_weights, write_config
from stylegan2.networks.generator import Generator

KWARGS: dict[str, Any] = {
    "z_dim": 12,
    "c_dim": 0,
    "w_dim": 16,
    "img_resolution": 16,
    "img_channels": 3,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {"channel_base": 256, "channel_max": 16},
}


def small_generator(noise: float = 0.0, **changes: Any) -> Generator:
    """A generator for evaluation, with noise of this strength and a mean of w that is not 0."""
    torch.manual_seed(0)
    generator = Generator(**{**KWARGS, **changes}).eval().requires_grad_(False)
    generator.mapping.w_avg.normal_()
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.fill_(noise)
    return generator


def write_network(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a folder with it, and with these entries in config.json."""
    generator = small_generator(**changes)
    save_weights(folder / "generator.safetensors", generator)
    write_config(folder, {"generator": generator.init_kwargs, **(config or {})})
    return folder
