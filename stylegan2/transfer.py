"""Fine-tuning: what the networks to start from look like, what is built after them, and their weights."""

import copy
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stylegan2.config import FULL_CHANNEL_BASE, ResolvedOptions, TrainingOptions, freezing_problems
from stylegan2.data import check_images
from stylegan2.errors import StyleGAN2Error
from stylegan2.growth import grown_weights
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
from stylegan2.sources import file_sha256, find_networks

GENERATOR, RAW_GENERATOR = "generator.safetensors", "generator_raw.safetensors"
DISCRIMINATOR = "discriminator.safetensors"

# ----------------------------------------------------------------------------------------------------------
# What they look like
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceNetworks:
    """Trained networks to start from.

    Attributes:
        folder: of a trained GAN, or of its best snapshot, or of one that was kept.
        discriminator_folder: where the discriminator lies: `folder`, or for a snapshot that of its training.
        generator: arguments that the generator was built with.
        discriminator: arguments that the discriminator was built with.
        sha256: of the weight files.
        imported_from: name and SHA-256 of the pickle that they were imported from; None for our own.
    """

    folder: Path
    discriminator_folder: Path
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    sha256: str
    imported_from: dict[str, Any] | None = None

    @classmethod
    def load(cls, init: str) -> "SourceNetworks":
        """Find the networks of `init`; see `find_networks`.

        The `best` folder of a training, and those in its `snapshots`, hold an averaged generator alone. It
        goes on as raw and as average generator, against the discriminator that the training ended with.

        Raises:
            StyleGAN2Error: when they cannot be found, the folder lacks a part, or a snapshot does not lie in
                the folder of its training.
        """
        folder = find_networks(init)
        discriminator_folder = _discriminator_folder(folder)
        files = [folder / GENERATOR, discriminator_folder / DISCRIMINATOR]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise StyleGAN2Error(f"init: {folder} has no {' and no '.join(missing)}; fine-tuning needs both")
        generator, discriminator = init_kwargs(folder, "generator"), init_kwargs(folder, "discriminator")
        _check_arguments(folder, Generator, generator)
        _check_arguments(folder, Discriminator, discriminator)
        raw = raw_generator_path(folder)
        digest = hashlib.sha256("".join(map(file_sha256, dict.fromkeys([*files, raw]))).encode())
        imported_from = read_config(folder).get("imported_from")
        return cls(folder, discriminator_folder, generator, discriminator, digest.hexdigest(), imported_from)

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

    def check(
        self, options: TrainingOptions, resolved: ResolvedOptions, channels: int | None, c_dim: int | None
    ) -> None:
        """Make sure that they can be fine-tuned in the asked way.

        Raises:
            StyleGAN2Error: naming all `problems`.
        """
        problems = self.problems(options, resolved, channels, c_dim)
        if problems:
            raise StyleGAN2Error(
                f"init: {options.init} cannot be fine-tuned like this:\n  - " + "\n  - ".join(problems)
            )

    def problems(
        self, options: TrainingOptions, resolved: ResolvedOptions, channels: int | None, c_dim: int | None
    ) -> list[str]:
        """Say in what the asked training does not fit these networks (empty when it does).

        Args:
            options: as written.
            resolved: the same, resolved for these networks.
            channels: of the images; None = unknown, and not compared.
            c_dim: length of a label, 0 = none; None likewise.
        """
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
        if resolution > asked or (resolution < asked and not options.grow):
            advice = (
                f"ask for {resolution} (--resolution {resolution}, with --resize for images of another size)"
            )
            if resolution < asked:
                advice += ", or set grow to start the missing layers afresh"
            problems.append(
                f"resolution: the networks have {resolution}, the options ask for {asked}; {advice}"
            )
        elif found["channel_base"] < asked:
            most = 1 << (found["channel_base"].bit_length() - 1)
            problems.append(
                f"resolution: networks of {found['channel_base'] / FULL_CHANNEL_BASE:g} fmaps would have no "
                f"feature maps at {asked}; grow them to {most} at most"
            )
        problems += freezing_problems(resolved)
        for name, value, images in (("img_channels", channels, "images"), ("c_dim", c_dim, "labels")):
            if value is not None and self.generator[name] != value:
                problems.append(f"{name}: the networks have {self.generator[name]}, the {images} {value}")
        grid = list((self.generator.get("synthesis_kwargs") or {}).get("base_grid", (4, 4)))
        if grid != resolved.base_grid:
            problems.append(f"base_grid: the networks have {grid}, the options ask for {resolved.base_grid}")
        return problems


def check_fit(
    images: NDArray[np.uint8],
    labels: NDArray[np.float32] | None,
    options: TrainingOptions,
    resolved: ResolvedOptions,
    source: SourceNetworks | None,
) -> None:
    """Make sure that images, labels, options and the networks to fine-tune from fit each other.

    Raises:
        StyleGAN2Error: naming everything that does not fit.
    """
    problems = []
    try:
        check_images(images, resolved.image_size, labels)
    except StyleGAN2Error as error:
        problems.append(str(error))
    if options.subset is not None and options.subset > len(images):
        problems.append(
            f"subset: got {options.subset}, but there are {len(images)} images; choose at most as many, or "
            "leave subset out"
        )
    if source is not None:
        usable = not problems
        c_dim = 0 if labels is None else labels.shape[-1]
        try:
            source.check(options, resolved, images.shape[3] if usable else None, c_dim if usable else None)
        except StyleGAN2Error as error:
            problems.append(str(error))
    if problems:
        raise StyleGAN2Error("\n".join(problems))


def _discriminator_folder(folder: Path) -> Path:
    """The folder itself, or for a snapshot, which has no discriminator, the folder of its training.

    The best one lies in RUN/best, a kept one in RUN/snapshots/N.
    """
    if (folder / DISCRIMINATOR).is_file() or not (folder / CONFIG).is_file():
        return folder
    config = read_config(folder)
    if "snapshot" not in config:
        return folder
    kept = "p" not in config  # of the best one it is that of the finished training
    training = folder.resolve().parent.parent if kept else folder.resolve().parent
    kind, place = ("a kept", "snapshots in the folder") if kept else ("the best", "the folder")
    advice = f"expected it in {place} of its training; put it back there, or give a folder that holds both"
    missing = [name for name in (CONFIG, DISCRIMINATOR) if not (training / name).is_file()]
    if missing:
        raise StyleGAN2Error(
            f"init: {folder} is {kind} snapshot of a training, without discriminator, and {training} has "
            f"no {' and no '.join(missing)}; {advice}"
        )
    of_training = read_config(training)
    different = [
        name
        for name in sorted((config.keys() | of_training.keys()) - {"snapshot", *(["p"] if kept else [])})
        if config.get(name) != of_training.get(name)
        and not (kept and name == "images_seen" and _is_earlier(config, of_training))
    ]
    if different:
        raise StyleGAN2Error(
            f"init: {folder} is {kind} snapshot of another training than {training}: {CONFIG} differs in "
            f"{', '.join(different)}; {advice}"
        )
    return training


def _is_earlier(config: dict[str, Any], of_training: dict[str, Any]) -> bool:
    seen, at_end = config.get("images_seen"), of_training.get("images_seen")
    return isinstance(seen, int) and isinstance(at_end, int) and seen < at_end


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
    raw = folder / RAW_GENERATOR
    return raw if raw.is_file() else folder / GENERATOR


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
        (source.folder / GENERATOR, average),
        (source.discriminator_folder / DISCRIMINATOR, discriminator),
    ]
    for path, network in files:
        if grown:
            check_and_load(network, grown_weights(read_tensors(path), network, source.generator), str(path))
        else:
            load_weights(path, network)
