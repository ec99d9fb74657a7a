"""The state of an unfinished training in one safetensors file: tensors, and JSON in its header."""

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
from stylegan2.network_folder import check_and_load

FORMAT = 1
_HEADER_KEY = "state"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; being one file, it can never be half old and half new.

    Args:
        path: the file.
        tensors: by name.
        state: everything else, as JSON allows it; floats survive exactly.
    """
    header = {_HEADER_KEY: json.dumps({"format": FORMAT, **state})}
    dense = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(dense, metadata=header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        StyleGAN2Error: when the file is damaged or of another format.
    """
    advice = f"delete {path} to start again"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as error:
        raise StyleGAN2Error(f"checkpoint {path} is damaged ({error}); {advice}") from None
    if _HEADER_KEY not in header:
        raise StyleGAN2Error(f"{path} is not a checkpoint of a GAN training; {advice}")
    state = json.loads(header[_HEADER_KEY])
    if state.pop("format", None) != FORMAT:
        raise StyleGAN2Error(f"checkpoint {path} was written by another version; {advice}")
    return tensors, state


def network_tensors(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    """Name a network's parameters and buffers `prefix/…`."""
    return {f"{prefix}/{name}": value for name, value in network.state_dict().items()}


def restore_network(prefix: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `network_tensors` named.

    Raises:
        StyleGAN2Error: when names or shapes differ.
    """
    check_and_load(network, _section(prefix, tensors), f"the checkpoint's {prefix}")


def optimizer_tensors(prefix: str, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Name an optimiser's state `prefix/<parameter's index>/<name>`."""
    return {
        f"{prefix}/{index}/{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(prefix: str, optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` named, for an optimiser that had taken a step.

    Raises:
        StyleGAN2Error: naming every part of the state that is missing, unknown or of another shape.
    """
    found = _section(prefix, tensors)
    expected = _adam_shapes(optimizer)
    problems = [f"{key}: missing in the file" for key in expected.keys() - found.keys()]
    problems += [f"{key}: unknown to the optimiser" for key in found.keys() - expected.keys()]
    problems += [
        f"{key}: got {list(found[key].shape)}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    if problems:
        raise StyleGAN2Error(
            f"the checkpoint's {prefix} does not fit the network:\n  - " + "\n  - ".join(sorted(problems))
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in found.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _adam_shapes(optimizer: torch.optim.Adam) -> dict[str, torch.Size]:
    """Give the shape of every `<parameter's index>/<name>` of the state after a step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes: dict[str, torch.Size] = {}
    for index, parameter in enumerate(parameters):
        shapes[f"{index}/step"] = torch.Size([])
        shapes[f"{index}/exp_avg"] = shapes[f"{index}/exp_avg_sq"] = parameter.shape
    return shapes


def _section(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
