"""`stylegan2 info`: what a network folder holds."""

import math
from collections.abc import Mapping
from typing import Any

import click

from stylegan2.commands.parameters import example, network_argument, shows_errors
from stylegan2.terminal import printable


@click.command(epilog=example("stylegan2 info models/gan"))
@network_argument
@shows_errors
def info(network: str) -> None:
    """Show what the networks in NETWORK_DIR are and how they were trained."""
    from stylegan2.network_folder import read_config
    from stylegan2.sampling import load_generator
    from stylegan2.sources import find_network_folder

    folder = find_network_folder(network)
    generator = load_generator(folder)
    height, width = generator.img_size
    config = read_config(folder)
    parts = {
        "generator": generator,
        "mapping": generator.mapping,
        "synthesis": generator.synthesis,
    }
    lines = {
        "image": f"{width}×{height}, {generator.img_channels} channel{'s' * (generator.img_channels > 1)}",
        "classes": generator.c_dim or "none",
        "z, w": f"{generator.z_dim}, {generator.w_dim}",
        "layers": generator.num_ws,
    }
    for name, part in parts.items():
        count = sum(parameter.numel() for parameter in part.parameters())
        lines[f"{name} parameters"] = f"{count:,}"
    for name in ("generator.safetensors", "generator_raw.safetensors", "discriminator.safetensors"):
        path = folder / name
        lines[name] = f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "absent"
    _show(lines)
    training = {key: value for key, value in config.items() if key not in ("kind", *parts, "discriminator")}
    if training:
        click.echo("\nTraining")
        _show(_flattened(training))


def _show(lines: Mapping[str, Any]) -> None:
    shown = [(printable(name), printable(str(value))) for name, value in lines.items()]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"  {name:<{width}}  {value}")


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """One entry for each leaf, named by its path."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        elif isinstance(value, float) and math.isfinite(value):
            flat[f"{prefix}{name}"] = f"{value:.6g}"
        else:
            flat[f"{prefix}{name}"] = "none" if value is None else str(value)
    return flat
