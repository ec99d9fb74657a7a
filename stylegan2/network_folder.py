"""The folder of a trained GAN: weights as safetensors, everything else as JSON. Nothing in it can execute."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically

CONFIG = "config.json"
KIND = "stylegan2"


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json; it says which networks the folder holds and how they were trained."""
    text = json.dumps({"kind": KIND, **config}, indent=2, ensure_ascii=False)
    write_atomically(folder / CONFIG, (text + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        StyleGAN2Error: when it is missing or not that of a GAN.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StyleGAN2Error(
            f"{path} is missing: {folder} is not the folder of a trained GAN; name another one"
        ) from None
    except (ValueError, RecursionError) as error:  # the latter: brackets in brackets, by the thousand
        raise StyleGAN2Error(f"{path} is not valid JSON ({error}); restore the file") from None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise StyleGAN2Error(f'{path}: expected "kind": "{KIND}"; name the folder of a trained GAN')
    return config


def init_kwargs(folder: Path, network: str) -> dict[str, Any]:
    """Read the arguments that `network` ("generator" or "discriminator") was built with.

    Raises:
        StyleGAN2Error: when config.json does not hold them.
    """
    kwargs = read_config(folder).get(network)
    if not isinstance(kwargs, dict):
        raise StyleGAN2Error(f"{folder / CONFIG}: {network!r} is missing: the arguments of that network")
    return kwargs


def save_weights(path: Path, network: nn.Module) -> None:
    """Write parameters and buffers, by their names in the state dict."""
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()
    }
    write_atomically(path, safetensors.torch.save(tensors))


def load_weights(path: Path, network: nn.Module) -> None:
    """Read parameters and buffers into a network of the same architecture.

    Raises:
        StyleGAN2Error: when the file is missing or damaged, or names or shapes differ (all are named).
    """
    check_and_load(network, read_tensors(path), str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Raises:
        StyleGAN2Error: when it is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise StyleGAN2Error(f"{path} is missing; train again or restore the file") from None
    except safetensors.SafetensorError as error:
        raise StyleGAN2Error(f"{path} is not a usable safetensors file ({error}); restore the file") from None


def check_and_load(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network after checking that names and shapes agree.

    Raises:
        StyleGAN2Error: naming every difference.
    """
    expected = network.state_dict()
    problems = [f"{name}: missing in the file" for name in expected.keys() - tensors.keys()]
    problems += [f"{name}: unknown to the network" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name}: got {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        raise StyleGAN2Error(f"{source} does not fit the network:\n  - " + "\n  - ".join(sorted(problems)))
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
