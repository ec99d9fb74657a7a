"""Imports networks of StyleGAN2-ADA's PyTorch generation from the pickles that NVIDIA's code writes.

Nothing in the file runs (see ``nvidia_pickle``): its tensors are copied into the form of our networks after
names, shapes and settings have been compared with networks that are built from the arguments in the file.
"""

import hashlib
import math
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.network_folder import check_and_load, write_config
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.nvidia_arguments import (
    DISCRIMINATOR,
    GENERATOR,
    Schema,
    network_arguments,
    plain_data,
)
from stylegan2.nvidia_pickle import ModuleRecord, read_pickle
from stylegan2.terminal import printable

_MAX_FILE_BYTES = 8 * 2**30
_MAX_MODULES = 1_000
_MAX_ENTRIES = 500  # of one module
_MAX_DEPTH = 16
_MAX_TENSORS = 5_000

_OTHER_FORMATS = {
    b"PK\x03\x04": "this is a zip archive, as torch.save writes it since torch 1.6",
    b"<": "this is a web page, perhaps the error page of a download",
    b"version https://git-lfs": "this is a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"\x1f\x8b": "this is a gzip archive; unpack it first",
}
_EXPECTED = "expected a network pickle of stylegan2-ada-pytorch (*.pkl)"


@dataclass(frozen=True)
class ImportedNetwork:
    """One network.

    Attributes:
        init_kwargs: ``Generator(**init_kwargs)`` or ``Discriminator(**init_kwargs)`` builds it. Can be JSON.
        tensors: float32 parameters and buffers by their names in the state dict.
    """

    init_kwargs: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class ImportedNetworks:
    """What a pickle holds.

    Attributes:
        generator: Moving average of the generator (``G_ema``): the one to draw images with.
        generator_raw: The generator itself (``G``): the one to go on training.
        discriminator: The discriminator (``D``).
        training_set_kwargs: Description of the training set, or None. Can be JSON.
        augment_p: Probability of augmentation when the file was written, 0..; None if there was none.
        sha256: Hash of the file, hexadecimal.
        file_name: Name of the file, without folder.
    """

    generator: ImportedNetwork
    generator_raw: ImportedNetwork
    discriminator: ImportedNetwork
    training_set_kwargs: dict[str, Any] | None
    augment_p: float | None
    sha256: str
    file_name: str


def read_nvidia_pickle(path: Path) -> ImportedNetworks:
    """Reads a network pickle of stylegan2-ada-pytorch without executing anything in it.

    Raises:
        StyleGAN2Error: The file is missing, damaged, of another format or of the TensorFlow generation; asks
            for more than tensors and plain containers; lacks a network; or holds one that ours do not cover.
            Every problem of the networks is named.
    """
    data = _read_file(path)
    try:
        content = read_pickle(data)
        if type(content) is not dict:
            raise StyleGAN2Error(
                f"the file holds a {type(content).__name__}, not a dict of networks; {_EXPECTED}"
            )
        _check_complete(content)
        networks = _networks(content, len(data))
        settings = content.get("training_set_kwargs")
        if settings is not None and type(settings) is not dict:
            raise StyleGAN2Error(f"training_set_kwargs is a {type(settings).__name__}; expected a dict")
        return ImportedNetworks(
            generator=networks["G_ema"],
            generator_raw=networks["G"],
            discriminator=networks["D"],
            training_set_kwargs=None if settings is None else plain_data(settings, "training_set_kwargs"),
            augment_p=_augment_p(content.get("augment_pipe")),
            sha256=hashlib.sha256(data).hexdigest(),
            file_name=path.name,
        )
    except StyleGAN2Error as error:
        message = printable(str(error), keep="\n")  # it may quote the file
        raise StyleGAN2Error(f"{path}: {message}") from None


def write_imported(imported: ImportedNetworks, out_dir: Path, overwrite: bool = False) -> None:
    """Writes generator, generator_raw, discriminator (safetensors) and config.json: a network folder.

    A new or empty folder appears complete or not at all.

    Args:
        imported: What ``read_nvidia_pickle`` returns.
        out_dir: The folder, which may be new.
        overwrite: Replace these files, one after the other, in a folder that holds something already.

    Raises:
        StyleGAN2Error: ``out_dir`` is a file, or is not empty although ``overwrite`` is False.
    """
    out_dir = out_dir.absolute()
    if out_dir.exists() and not out_dir.is_dir():
        raise StyleGAN2Error(f"{out_dir} is a file; name a new folder")
    filled = out_dir.is_dir() and any(out_dir.iterdir())
    if filled and not overwrite:
        raise StyleGAN2Error(f"{out_dir} is not empty; name a new folder, or remove this one")
    config = {
        "generator": imported.generator.init_kwargs,
        "discriminator": imported.discriminator.init_kwargs,
        "imported_from": {"file": imported.file_name, "sha256": imported.sha256},
        "training_set_kwargs": imported.training_set_kwargs,
        "augment_p": imported.augment_p,
    }
    partial = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.partial")
    try:
        for name in ("generator", "generator_raw", "discriminator"):
            network: ImportedNetwork = getattr(imported, name)
            write_atomically(partial / f"{name}.safetensors", safetensors.torch.save(network.tensors))
        write_config(partial, config)
        if filled:
            for file in sorted(partial.iterdir(), reverse=True):  # config.json last
                file.replace(out_dir / file.name)
        else:
            partial.replace(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise StyleGAN2Error(f"{path}: larger than {_MAX_FILE_BYTES} bytes; {_EXPECTED}")
        data = path.read_bytes()
    except OSError as error:
        raise StyleGAN2Error(f"{path}: cannot be read ({error.strerror}); {_EXPECTED}") from None
    if data[:1] == b"\x80":  # PROTO, which starts every pickle since protocol 2
        return data
    start = data[:64].lstrip()
    found = [text for prefix, text in _OTHER_FORMATS.items() if start.startswith(prefix)]
    if not data:
        found = ["the file is empty"]
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        found.append("this is a safetensors file; it needs no import")
    what = found[0] if found else "this is not a pickle"
    raise StyleGAN2Error(f"{path}: {what}; {_EXPECTED}, downloaded completely")


def _check_complete(content: dict[Any, Any]) -> None:
    missing = [name for name in ("G_ema", "G", "D") if not isinstance(content.get(name), ModuleRecord)]
    if missing:
        raise StyleGAN2Error(
            f"{', '.join(missing)} missing; expected the networks G_ema, G and D: take a complete snapshot "
            "(network-snapshot-*.pkl), as training wrote it"
        )


def _networks(content: dict[Any, Any], file_size: int) -> dict[str, ImportedNetwork]:
    networks: dict[str, ImportedNetwork] = {}
    problems: list[str] = []
    for name in ("G_ema", "G", "D"):
        try:
            if name == "D":
                networks[name] = _network(content[name], Discriminator, DISCRIMINATOR, file_size)
            else:
                networks[name] = _network(content[name], Generator, GENERATOR, file_size)
        except StyleGAN2Error as error:
            problems.append(f"{name}: {error}")
    if not problems and networks["G"].init_kwargs != networks["G_ema"].init_kwargs:
        problems.append(
            "G and G_ema are of different architecture; expected one to be the average of the other"
        )
    if problems:
        raise StyleGAN2Error("networks that cannot be imported:\n" + "\n".join(problems))
    return networks


def _augment_p(pipe: Any) -> float | None:
    if not isinstance(pipe, ModuleRecord):
        return None
    buffers = pipe.state.get("_buffers")
    p = buffers.get("p") if type(buffers) is dict else None
    if not isinstance(p, Tensor) or p.numel() != 1 or not 0 <= float(p) < math.inf:
        raise StyleGAN2Error("augment_pipe: p is missing or no probability; expected one number ≥ 0")
    return float(p)


# ----------------------------------------------------------------------------------------------------------
# The networks
# ----------------------------------------------------------------------------------------------------------

Network = TypeVar("Network", Generator, Discriminator)

# Attributes that decide what a module computes and that no shape shows, called alike in the file and by us.
_SETTINGS = (
    *("activation", "up", "down", "conv_clamp", "padding", "use_noise", "architecture"),
    *("weight_gain", "bias_gain", "w_avg_beta", "group_size", "num_channels"),
)


class _WithoutMemory(TorchFunctionMode):
    """Weights made under it have a shape, but take no memory and draw no random numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        shapes_only = {"device": "meta"} if func in (torch.randn, torch.zeros, torch.full) else {}
        return func(*args, **{**(kwargs or {}), **shapes_only})


def _network(record: ModuleRecord, cls: type[Network], schema: Schema, file_size: int) -> ImportedNetwork:
    if record.class_name != cls.__name__:
        got = reprlib.repr(record.class_name)
        raise StyleGAN2Error(f"a network of class {got}; expected {cls.__name__!r} of StyleGAN2-ADA")
    arguments = network_arguments(record, schema)
    modules = dict(_modules(record))
    tensors = _all_tensors(modules)
    with _WithoutMemory():
        network = cls(**arguments)
    check_and_load(network, tensors, "the file")
    _check_settings(modules, network)
    # Only tensors that share their numbers could have more elements than the file has pairs of bytes.
    if 2 * sum(tensor.numel() for tensor in tensors.values()) > file_size:
        raise StyleGAN2Error("its tensors overlap, so that they are larger than the file")
    copies = {
        name: torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor) for name, tensor in tensors.items()
    }
    return ImportedNetwork(network.init_kwargs, copies)


def _modules(record: ModuleRecord) -> Iterator[tuple[str, ModuleRecord]]:
    """The module and all below it, with dotted names; the first is called ''."""
    waiting = [("", record, 0)]
    found = 1
    while waiting:
        path, module, depth = waiting.pop()
        yield path, module
        for name, child in _entries(module, "_modules", path):
            if isinstance(child, ModuleRecord):
                found += 1
                if found > _MAX_MODULES or depth == _MAX_DEPTH:
                    raise StyleGAN2Error(f"more than {_MAX_MODULES} modules, or nested too deeply")
                waiting.append((_join(path, name), child, depth + 1))
            elif child is not None:
                raise StyleGAN2Error(f"{_join(path, name)}: got a {type(child).__name__}, expected a module")


def _all_tensors(modules: Mapping[str, ModuleRecord]) -> dict[str, Tensor]:
    """The tensors of all modules; a module that occurs often has its tensors as often."""
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        tensors.update(_tensors(path, module))
        if len(tensors) > _MAX_TENSORS:
            raise StyleGAN2Error(f"more than {_MAX_TENSORS} tensors")
    return tensors


def _tensors(path: str, module: ModuleRecord) -> Iterator[tuple[str, Tensor]]:
    """The parameters and the buffers that are part of the state dict."""
    left_out = module.state.get("_non_persistent_buffers_set", ())  # torch < 1.6 has no such set
    if not isinstance(left_out, set | list | tuple):
        raise StyleGAN2Error(f"{path or 'network'}: got a {type(left_out).__name__} of buffers to leave out")
    if len(left_out) > _MAX_ENTRIES or not all(isinstance(name, str) for name in left_out):
        raise StyleGAN2Error(
            f"{path or 'network'}: the buffers to leave out are no names, or more than {_MAX_ENTRIES}"
        )
    for group in ("_parameters", "_buffers"):
        for name, tensor in _entries(module, group, path):
            if tensor is None or (group == "_buffers" and name in left_out):
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise StyleGAN2Error(
                    f"{_join(path, name)}: got {got}, expected a tensor of floating-point numbers"
                )
            yield _join(path, name), tensor


def _entries(module: ModuleRecord, group: str, path: str) -> list[tuple[str, Any]]:
    entries = module.state.get(group)
    if (
        type(entries) is not dict
        or len(entries) > _MAX_ENTRIES
        or not all(isinstance(name, str) and len(name) < 64 for name in entries)
    ):
        raise StyleGAN2Error(f"{path or 'network'}: {group} is missing or unusable; fetch the file again")
    return list(entries.items())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_settings(modules: Mapping[str, ModuleRecord], network: nn.Module) -> None:
    """Compares settings of every module, since the arguments alone leave defaults unsaid.

    Raises:
        StyleGAN2Error: A module in the file computes something else than ours; all are named.
    """
    problems = []
    for path, module in network.named_modules():
        state = modules[path].state if path in modules else {}
        for name in _SETTINGS:
            if name in state and hasattr(module, name) and not _same(state[name], getattr(module, name)):
                theirs = state[name]
                plain = theirs is None or isinstance(theirs, str | int | float)
                # A record or nested lists in full could be exponentially long.
                got = reprlib.repr(theirs) if plain else f"a {type(theirs).__name__}"
                problems.append(f"{_join(path, name)}: got {got}, ours has {getattr(module, name)!r}")
    if problems:
        raise StyleGAN2Error("it computes something else than our network:\n  - " + "\n  - ".join(problems))


def _same(theirs: Any, ours: Any) -> bool:
    if type(theirs) in (int, float) and type(ours) in (int, float):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return type(theirs) is type(ours) and bool(theirs == ours)
