"""Networks to fine-tune from: where they come from, what they look like, and their weights.

Three kinds of source become one thing, the folder of a trained GAN: a folder is taken as it is; a pickle in
NVIDIA's format is imported without executing it; an address is downloaded first. What was imported is kept in
a cache under the SHA-256 of the file.
"""

import copy
import hashlib
import http.client
import inspect
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2.config import ResolvedOptions, TrainingOptions
from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.network_folder import (
    CONFIG,
    check_and_load,
    init_kwargs,
    load_weights,
    read_config,
    read_tensors,
)
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.nvidia import read_nvidia_pickle, write_imported

SHIPPED = Path(__file__).parent / "pretrained"
CACHE_VARIABLE = "STYLEGAN2_CACHE"
_PUBLIC = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
NAMED_ADDRESSES = {
    "ffhq256": _PUBLIC + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": _PUBLIC + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": _PUBLIC + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": _PUBLIC + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": _PUBLIC + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------
# From a name, an address or a path to a folder
# ----------------------------------------------------------------------------------------------------------


def shipped_names() -> list[str]:
    """Names of the networks that come with this package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def is_address(init: str) -> bool:
    """Whether `init` names something to download."""
    return init in NAMED_ADDRESSES or init.startswith(("https://", "http://"))


def is_local_path(init: str) -> bool:
    """Whether `init` is a path: neither an address nor a shipped network."""
    return not is_address(init) and init not in shipped_names()


def cache_folder() -> Path:
    """Where downloads are kept: $STYLEGAN2_CACHE, else stylegan2 in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylegan2"


def find_networks(init: str) -> Path:
    """Give the folder of the networks that `init` stands for, downloading and importing as needed.

    Args:
        init: a name (`NAMED_ADDRESSES`, `shipped_names()`), an address, a pickle in NVIDIA's format, or the
            folder of a trained GAN.

    Raises:
        StyleGAN2Error: when it is none of these, cannot be downloaded, differs from what was downloaded
            before, or is not usable.
    """
    if init in shipped_names():
        return SHIPPED / init
    path = Path(init)
    try:
        if is_address(init):
            return _imported(_downloaded(NAMED_ADDRESSES.get(init, init)))
        if path.is_dir():
            return path
        if path.is_file():
            return _imported(path)
    except (OSError, ValueError) as error:
        if isinstance(error, StyleGAN2Error):
            raise
        raise StyleGAN2Error(
            f"init: {init} cannot be used ({error}); check address or path, and that {cache_folder()} can "
            f"be written to (${CACHE_VARIABLE} names another folder)"
        ) from None
    names = ", ".join([*shipped_names(), *NAMED_ADDRESSES])
    raise StyleGAN2Error(
        f"init: there is no {init!r}; expected one of {names}, an https address, a file or the folder of a "
        "trained GAN"
    )


def _downloaded(address: str) -> Path:
    """Download once; the checksum of the first download is recorded and later ones must agree with it."""
    parts = urllib.parse.urlparse(address)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise StyleGAN2Error(f"init: {address} is not encrypted; give an https address, or a file")
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    name = Path(parts.path).name or "networks.pkl"
    target = cache_folder() / "downloads" / f"{key}-{name}"
    record = target.with_name(f"{target.name}.sha256")
    if not target.exists():
        log.info("downloading %s; its licence is that of its publisher, see docs/stylegan2.md", address)
        _download(address, target)
        try:
            read_nvidia_pickle(target)  # a web page, say, must not be remembered as the file
        except StyleGAN2Error:
            target.unlink()
            raise
    checksum = _sha256(target)
    if not record.exists():
        write_atomically(record, f"{checksum}\n".encode())
    recorded = record.read_text().strip()
    if checksum != recorded:
        raise StyleGAN2Error(
            f"{target}: SHA-256 is {checksum}, but the first download of {address} had {recorded}; "
            f"delete the file to download it again, and {record.name} as well if the address has a new file"
        )
    return target


def _download(address: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as file:
            shutil.copyfileobj(response, file, _CHUNK)
            expected = response.headers.get("Content-Length")
        received = part.stat().st_size
        if expected is not None and received != int(expected):
            raise http.client.IncompleteRead(b"", int(expected) - received)
        part.replace(target)
    except http.client.IncompleteRead:
        raise StyleGAN2Error(f"init: {address} broke off in the middle; try again") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):  # is a response, too
            error.close()
        raise StyleGAN2Error(
            f"init: cannot download {address} ({error}); check address and connection, or fetch the file "
            "elsewhere and give its path"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _imported(pickle: Path) -> Path:
    """Import a pickle into the cache, once for each content."""
    folder = cache_folder() / "imported" / _sha256(pickle)
    if not (folder / CONFIG).exists():
        networks = read_nvidia_pickle(pickle)
        try:
            write_imported(networks, folder)
        except (StyleGAN2Error, OSError):
            if not (folder / CONFIG).exists():  # otherwise another process was faster
                raise
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------------
# What they look like
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceNetworks:
    """Trained networks to start from.

    Attributes:
        folder: of a trained GAN.
        generator: arguments that the generator was built with.
        discriminator: arguments that the discriminator was built with.
        sha256: of the weight files.
        imported_from: name and SHA-256 of the pickle that they were imported from; None for our own.
    """

    folder: Path
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    sha256: str
    imported_from: dict[str, Any] | None = None

    @classmethod
    def load(cls, init: str) -> "SourceNetworks":
        """Find the networks of `init`; see `find_networks`.

        Raises:
            StyleGAN2Error: when they cannot be found or the folder lacks a part.
        """
        folder = find_networks(init)
        files = [folder / "generator.safetensors", folder / "discriminator.safetensors"]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise StyleGAN2Error(f"init: {folder} has no {' and no '.join(missing)}; fine-tuning needs both")
        generator, discriminator = init_kwargs(folder, "generator"), init_kwargs(folder, "discriminator")
        _check_arguments(folder, Generator, generator)
        _check_arguments(folder, Discriminator, discriminator)
        raw = raw_generator_path(folder)
        digest = hashlib.sha256("".join(map(_sha256, dict.fromkeys([*files, raw]))).encode())
        imported_from = read_config(folder).get("imported_from")
        return cls(folder, generator, discriminator, digest.hexdigest(), imported_from)

    @property
    def architecture(self) -> dict[str, Any]:
        """The architecture by the names in `ResolvedOptions`, with every default written out."""
        synthesis = self.generator.get("synthesis_kwargs") or {}
        mapping = self.generator.get("mapping_kwargs") or {}
        return {
            "channel_base": synthesis.get("channel_base", 32768),
            "channel_max": synthesis.get("channel_max", 512),
            "z_dim": self.generator["z_dim"],
            "w_dim": self.generator["w_dim"],
            "mapping_layers": mapping.get("num_layers", 8),
            "num_fp16_res": synthesis.get("num_fp16_res", 0),
            "conv_clamp": synthesis.get("conv_clamp"),
            "d_architecture": self.discriminator.get("architecture", "resnet"),
        }

    def problems(
        self, options: TrainingOptions, resolved: ResolvedOptions, channels: int, c_dim: int
    ) -> list[str]:
        """Say in what the asked training does not fit these networks (empty when it does)."""
        found = self.architecture
        shaping = ("channel_base", "channel_max", "z_dim", "w_dim", "mapping_layers")
        problems = []
        for name in shaping:
            option = "fmaps" if name == "channel_base" else name
            if getattr(options, option) != "auto" and getattr(resolved, name) != found[name]:
                problems.append(
                    f"{option}: the networks have {name} {found[name]}, the options ask for "
                    f"{getattr(resolved, name)}; leave {option} at auto"
                )
        resolution, asked = self.generator["img_resolution"], resolved.resolution
        if options.grow and resolution > asked:
            problems.append(f"resolution: the networks have {resolution}, more than the {asked} asked for")
        if not options.grow and resolution != asked:
            hint = "; set grow to start the missing layers afresh" if resolution < asked else ""
            problems.append(f"resolution: the networks have {resolution}, the options ask for {asked}{hint}")
        for name, value, images in (("img_channels", channels, "images"), ("c_dim", c_dim, "labels")):
            if self.generator[name] != value:
                problems.append(f"{name}: the networks have {self.generator[name]}, the {images} {value}")
        grid = list((self.generator.get("synthesis_kwargs") or {}).get("base_grid", (4, 4)))
        if grid != resolved.base_grid:
            problems.append(f"base_grid: the networks have {grid}, the options ask for {resolved.base_grid}")
        return problems


def _check_arguments(folder: Path, network: type[nn.Module], kwargs: dict[str, Any]) -> None:
    try:
        inspect.signature(network).bind(**kwargs)
    except TypeError as error:
        raise StyleGAN2Error(
            f"{folder / CONFIG}: these arguments build no {network.__name__} ({error}); restore the file"
        ) from None


# ----------------------------------------------------------------------------------------------------------
# Building and loading
# ----------------------------------------------------------------------------------------------------------


def network_kwargs(
    options: ResolvedOptions, channels: int, c_dim: int = 0, source: SourceNetworks | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the arguments of `Generator` and `Discriminator` that the options stand for.

    Args:
        options: resolved options.
        channels: of the images.
        c_dim: length of a label; 0 = none.
        source: networks to fine-tune from: their own arguments, with what does not shape weights replaced.
    """
    if source is not None:
        generator, discriminator = copy.deepcopy(source.generator), copy.deepcopy(source.discriminator)
        generator["img_resolution"] = discriminator["img_resolution"] = options.resolution
        synthesis = generator["synthesis_kwargs"] = dict(generator.get("synthesis_kwargs") or {})
    else:
        widths = {"channel_base": options.channel_base, "channel_max": options.channel_max}
        size = {"c_dim": c_dim, "img_resolution": options.resolution, "img_channels": channels}
        synthesis = dict(widths)
        generator = {
            **size,
            "z_dim": options.z_dim,
            "w_dim": options.w_dim,
            "mapping_kwargs": {"num_layers": options.mapping_layers},
            "synthesis_kwargs": synthesis,
        }
        discriminator = {**size, **widths, "architecture": options.d_architecture}
        if options.base_grid != [4, 4]:
            synthesis["base_grid"] = discriminator["base_grid"] = list(options.base_grid)
    half = {"num_fp16_res": options.num_fp16_res, "half_dtype": options.half_precision}
    blocks = discriminator["block_kwargs"] = dict(discriminator.get("block_kwargs") or {})
    if options.num_fp16_res and not synthesis.get("num_fp16_res"):
        synthesis["fp16_channels_last"] = blocks["fp16_channels_last"] = True
    for kwargs in (synthesis, discriminator):
        if options.num_fp16_res or kwargs.get("num_fp16_res"):
            kwargs |= half
        if options.conv_clamp is not None or kwargs.get("conv_clamp") is not None:
            kwargs["conv_clamp"] = options.conv_clamp
    discriminator["epilogue_kwargs"] = {
        **(discriminator.get("epilogue_kwargs") or {}),
        "mbstd_group_size": options.mbstd_group,
    }
    if options.freezed or "freeze_layers" in blocks:  # what the source froze does not stay frozen
        blocks["freeze_layers"] = options.freezed
    if not blocks:
        del discriminator["block_kwargs"]
    return generator, discriminator


def raw_generator_path(folder: Path) -> Path:
    """The generator without averaging, to go on training; folders without one have the average only."""
    raw = folder / "generator_raw.safetensors"
    return raw if raw.is_file() else folder / "generator.safetensors"


def load_source(
    source: SourceNetworks, generator: Generator, average: Generator, discriminator: Discriminator
) -> None:
    """Copy the weights of `source`; layers of resolutions that it does not have stay as they are.

    Raises:
        StyleGAN2Error: naming every tensor that does not fit.
    """
    grown = source.generator["img_resolution"] < generator.img_resolution
    files: list[tuple[Path, nn.Module]] = [
        (raw_generator_path(source.folder), generator),
        (source.folder / "generator.safetensors", average),
        (source.folder / "discriminator.safetensors", discriminator),
    ]
    for path, network in files:
        if grown:
            check_and_load(network, _grown(read_tensors(path), network, source), str(path))
        else:
            load_weights(path, network)


def _grown(tensors: Mapping[str, Tensor], network: nn.Module, source: SourceNetworks) -> dict[str, Tensor]:
    """Complete the weights of a smaller network with the larger one's own, for resolutions beyond it.

    Blocks are named after their resolution and keep their weights (Karras et al. 2018, 1710.10196, figure 1).
    The larger discriminator reads the image at its own resolution, so the smaller one's reader falls away.
    New image layers of the generator start at 0: the picture is at first the smaller network's, enlarged.
    (Only of the architecture `skip`: the others draw with their last image layer alone.)
    """
    smaller = source.generator["img_resolution"]
    adds_up = (source.generator.get("synthesis_kwargs") or {}).get("architecture", "skip") == "skip"
    completed = {}
    for name, value in network.state_dict().items():
        parts = name.removeprefix("synthesis.").split(".")
        beyond = parts[0].startswith("b") and parts[0][1:].isdigit() and int(parts[0][1:]) > smaller
        if not beyond:
            if name in tensors:
                completed[name] = tensors[name]
        elif adds_up and parts[1] == "torgb" and parts[2] == "weight":
            completed[name] = torch.zeros_like(value)
        else:
            completed[name] = value
    return completed
