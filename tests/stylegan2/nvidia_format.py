"""Writes pickles in NVIDIA's format, of tiny networks and of what such a file must not hold."""

import collections
import pickle
import pickletools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import init_kwargs, load_weights
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.nvidia import read_nvidia_pickle

SYNTHESIS = {"channel_base": 16, "channel_max": 2}


@contextmanager
def nvidia_names() -> Iterator[None]:
    """The names that such a pickle refers to, which have to exist while one is written."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("this must not run")

    class EasyDict(dict[str, Any]):
        pass

    with pytest.MonkeyPatch.context() as patch:
        for name, member in (
            ("torch_utils.persistence", _reconstruct_persistent_obj),
            ("dnnlib.util", EasyDict),
        ):
            module = types.ModuleType(name)
            member.__module__, member.__qualname__ = name, member.__name__
            setattr(module, member.__name__, member)
            patch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
            patch.setitem(sys.modules, name, module)
        yield


class Calls:
    """Pickles as the call of a function, with a state for BUILD if there is one."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.function, self.arguments)
        return parts if self.state is None else (*parts, self.state)


class Persistent:
    """Pickles as NVIDIA's code stores a module."""

    def __init__(self, class_name: str, state: dict[str, Any], **meta: Any) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": class_name,
        }
        self.meta |= {"state": state, **meta}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def storage_stream(values: torch.Tensor) -> bytes:
    """The stream that torch embeds for the storage of a tensor."""
    constants = (argument for _, argument, _ in pickletools.genops(pickle.dumps(values, protocol=4)))
    return next(argument for argument in constants if isinstance(argument, bytes))


def tensor_pickle(stream: bytes, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> bytes:
    """A pickle of one tensor with these parts."""
    storage = Calls(torch.storage._load_from_bytes, stream)
    parts = (storage, offset, size, stride, False, collections.OrderedDict())
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, *parts), protocol=4)


def easy(**items: Any) -> Any:
    return sys.modules["dnnlib.util"].EasyDict(items)


def stored(network: nn.Module, class_name: str = "Some", **attributes: Any) -> Persistent:
    """A module of ours in the form of theirs."""
    state: dict[str, Any] = {"training": False, "_parameters": dict(network._parameters)}
    state |= {"_buffers": collections.OrderedDict(network._buffers), "_non_persistent_buffers_set": set()}
    state["_modules"] = {name: child and stored(child) for name, child in network._modules.items()}
    for name in ("activation", "conv_clamp", "up", "down", "weight_gain", "use_noise"):
        if hasattr(network, name):
            value = getattr(network, name)
            state[name] = np.float64(value) if name == "weight_gain" else value
    return Persistent(class_name, state | attributes)


def content(
    g: dict[str, Any] | None = None, d: dict[str, Any] | None = None, seed: int = 0, **others: Any
) -> dict[str, Any]:
    """A snapshot of tiny networks with these changes to their arguments."""
    common = {"c_dim": 0, "img_resolution": 8, "img_channels": 1}
    g = {
        "z_dim": 3,
        "w_dim": 2,
        **common,
        "mapping_kwargs": {"num_layers": 1},
        "synthesis_kwargs": SYNTHESIS,
    } | (g or {})
    d = {**common, **SYNTHESIS} | (d or {})
    torch.manual_seed(seed)
    generators = [Generator(**g) for _ in range(2)]
    discriminator = Discriminator(**d)
    for network in (*generators, discriminator):
        for parameter in network.parameters():
            nn.init.normal_(parameter)  # also what starts as zero
    options = {"_init_args": (), "_init_kwargs": easy(**g)}
    return {
        "training_set_kwargs": easy(class_name="training.dataset.ImageFolderDataset", resolution=8),
        "G": stored(generators[0], "Generator", **options),
        "D": stored(discriminator, "Discriminator", _init_args=(), _init_kwargs=easy(**d)),
        "G_ema": stored(generators[1], "Generator", **options),
        "augment_pipe": None,
        **others,
    }


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def state_dict(record: Persistent, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors that were stored."""
    state = record.meta["state"]
    tensors = {
        prefix + name: value.detach()
        for group in ("_parameters", "_buffers")
        for name, value in state[group].items()
        if value is not None
    }
    for name, child in state["_modules"].items():
        if child is not None:
            tensors |= state_dict(child, f"{prefix}{name}.")
    return tensors


def load_networks(folder: Path) -> tuple[Generator, Generator, Discriminator]:
    """G_ema, G and D of a network folder, for evaluation."""
    g_ema, g = (Generator(**init_kwargs(folder, "generator")) for _ in range(2))
    d = Discriminator(**init_kwargs(folder, "discriminator"))
    load_weights(folder / "generator.safetensors", g_ema)
    load_weights(folder / "generator_raw.safetensors", g)
    load_weights(folder / "discriminator.safetensors", d)
    return g_ema.eval(), g.eval(), d.eval()


def messages(path: Path, value: Any) -> str:
    """The error for a pickle of this value, which names the file."""
    with pytest.raises(StyleGAN2Error) as error:
        read_nvidia_pickle(write(path / "net.pkl", value))
    assert str(error.value).startswith(f"{path / 'net.pkl'}: ")
    return str(error.value)
