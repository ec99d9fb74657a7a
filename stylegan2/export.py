"""The generator alone, for use elsewhere: safetensors, and ONNX at a fixed truncation."""

import importlib
import importlib.util
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.network_folder import save_weights, write_config
from stylegan2.networks.generator import Generator
from stylegan2.ops import use_reference
from stylegan2.sampling import latent, raise_problems, truncation_problems

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # in −1..1: an eighth of a grey level
_OPSET = 18  # the oldest that torch's exporter writes without translating back
_CHECKED_BATCHES = (1, 3)


def onnx_problems() -> list[str]:
    """Name the packages that `export_onnx` needs and that are not installed."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return []
    return [f"ONNX needs packages that are missing: {', '.join(absent)}; pip install 'vesselforge[export]'"]


def export_safetensors(generator: Generator, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write generator.safetensors and config.json: a network folder of the generator alone.

    Args:
        generator: from `sampling.load_generator`.
        folder: created if need be.
        provenance: goes into config.json as it is.
    """
    save_weights(folder / "generator.safetensors", generator)
    write_config(folder, {"generator": generator.init_kwargs, **provenance})


def export_onnx(generator: Generator, path: Path, psi: float, truncation_cutoff: int | None = None) -> float:
    """Write the generator as ONNX, and compare it with torch.

    The graph maps `z` float32 [N, z_dim] (and `c`, one-hot float32 [N, c_dim], if there are classes) to
    `image` float32 [N, C, H, W], about −1..1, for any N, with the network's constant noise.

    Args:
        generator: from `sampling.load_generator`.
        path: of the file.
        psi: truncation ψ that is built in.
        truncation_cutoff: truncate only this many of the first layers; None = all.

    Returns:
        The largest difference between both, in the unit of the images.

    Raises:
        StyleGAN2Error: when packages are missing, an argument is out of range, or the difference exceeds
            `TOLERANCE`; no file is left then.
    """
    raise_problems([*onnx_problems(), *truncation_problems(generator, psi, truncation_cutoff)])
    frozen = _FrozenGenerator(generator, psi, truncation_cutoff).eval()
    with use_reference():  # what the graph is made of; and networks lie on the CPU here, whatever is selected
        encoded = _encode(frozen)
        difference = _difference(encoded, frozen)
    if not difference <= TOLERANCE:
        raise StyleGAN2Error(
            f"{path}: images of onnxruntime differ from torch's by {difference:.3g}, expected at most "
            f"{TOLERANCE:g}; nothing was written; try other versions of {', '.join(PACKAGES)}"
        )
    write_atomically(path, encoded)
    return difference


class _FrozenGenerator(nn.Module):
    """z, c → image on the processor, all else settled."""

    def __init__(self, generator: Generator, psi: float, cutoff: int | None) -> None:
        super().__init__()
        self.generator = Generator(**generator.init_kwargs)
        self.generator.load_state_dict({name: value.cpu() for name, value in generator.state_dict().items()})
        self.generator.requires_grad_(False)
        self.psi = psi
        self.cutoff = cutoff

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        image: Tensor = self.generator(
            z,
            c,
            truncation_psi=self.psi,
            truncation_cutoff=self.cutoff,
            noise_mode="const",
            fused_modconv=False,  # groups of one image each would fix N in the graph
            force_fp32=True,
        )
        return image


def _inputs(generator: Generator, count: int) -> dict[str, Tensor]:
    """The latents of the first seeds, with classes in turn."""
    inputs = {"z": torch.cat([latent(seed, generator.z_dim) for seed in range(count)])}  # [N, z_dim]
    if generator.c_dim:
        inputs["c"] = torch.eye(generator.c_dim)[torch.arange(count) % generator.c_dim]  # [N, c_dim]
    return inputs


def _encode(frozen: _FrozenGenerator) -> bytes:
    inputs = _inputs(frozen.generator, 2)
    batch = torch.export.Dim("batch", min=1)
    # A temporary folder: torch only writes to files.
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet():
        file = Path(folder) / "generator.onnx"
        torch.onnx.export(
            frozen,
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=["image"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=_OPSET,
            dynamo=True,  # the older exporter traces sizes as tensors
            external_data=False,
            verbose=False,
        )
        return _described(file.read_bytes(), frozen)


def _described(encoded: bytes, frozen: _FrozenGenerator) -> bytes:
    """Leave out the exporter's notes on every node, and say what the graph is."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load_model_from_string(encoded)
    for items in (model.graph.node, model.graph.input, model.graph.output, model.graph.value_info):
        for item in items:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    model.ClearField("metadata_props")
    about = {
        "kind": "stylegan2 generator",
        "truncation_psi": f"{frozen.psi:g}",
        "image_range": "-1..1",
    }
    if frozen.cutoff is not None:
        about["truncation_cutoff"] = str(frozen.cutoff)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _difference(encoded: bytes, frozen: _FrozenGenerator) -> float:
    """The largest difference between onnxruntime's images and torch's, over batches of several sizes."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in _CHECKED_BATCHES:
        inputs = _inputs(frozen.generator, count)
        (image,) = session.run(["image"], {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = frozen(*inputs.values()).numpy()
        if image.shape != expected.shape:
            return math.inf
        # NaN must not pass as small.
        largest = max(largest, float(np.nan_to_num(np.abs(image - expected), nan=np.inf).max()))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself: deprecations inside torch, the absence of torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
