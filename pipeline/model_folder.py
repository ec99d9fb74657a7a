"""A trained segmenter on disk: `model.safetensors` and `config.json`. Nothing in it can execute code."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import nn

from pipeline.binarise import Binarisation
from pipeline.errors import Problems, UserError
from pipeline.frames import Resolution, Statistics, Views
from pipeline.models.registry import Architecture, build_model
from pipeline.schema import Strict

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

Config = TypeVar("Config", bound=Strict)


class BestEpoch(Strict):
    """The epoch whose weights were kept.

    Attributes:
        phase: of training.
        epoch: counted from 1 through all phases.
        validation_auc: in 0..1, the largest among the epochs that were eligible.
    """

    phase: str
    epoch: Annotated[int, Field(ge=1)]
    validation_auc: Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Strict):
    """What has to be known to use a model, and what it was made with.

    Attributes:
        kind: tells it from an ensemble's folder.
        architecture: of the network.
        resolution: long side of the frames that the network works on, or `native`.
        statistics: of the training images, to normalise inputs with.
        threshold: probability from which on a pixel is vessel.
        views: what predictions are averaged over; threshold and binarisation belong to it.
        binarisation: how masks are made; None (and no key in the file) where it is the threshold alone.
        best: the epoch that the weights come from; None for weights that were not trained here.
        params: sections of params.yaml that it was trained with.
        versions: of Python and the libraries.
        git_commit: None without git.
        data_sha256: of the training stage's inputs.
    """

    kind: Literal["segmenter"] = "segmenter"
    architecture: Architecture
    resolution: Resolution
    statistics: Statistics
    threshold: float
    views: Views = "none"
    binarisation: Binarisation | None = None
    best: BestEpoch | None = None
    params: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    data_sha256: str


def save_model(folder: Path, network: nn.Module, config: ModelConfig) -> None:
    """Write a model folder; created when missing. Equal models give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
    write_config(folder, config)


def write_config(folder: Path, config: Strict) -> None:
    """Write the config.json of a model's or an ensemble's folder.

    A `binarisation` of None is left out, so that such a file is what it was before there were any.
    """
    unused = {"binarisation"} if getattr(config, "binarisation", None) is None else None
    text = config.model_dump_json(indent=2, exclude=unused) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_model(folder: Path, device: torch.device) -> tuple[nn.Module, ModelConfig]:
    """Read a model folder.

    Returns:
        The network in evaluation mode on `device`, and its config.

    Raises:
        UserError: a file is missing or broken, or the weights are not those of the config's network.
    """
    config = parse_config(folder, ModelConfig)
    weights_path = folder / WEIGHTS_FILE
    if not weights_path.is_file():
        raise UserError(f"{weights_path}: missing; expected the weights of a trained model; train it again")
    network = build_model(config.architecture)
    try:
        network.load_state_dict(safetensors.torch.load(weights_path.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{weights_path}: not the weights of the {config.architecture.arch} in {CONFIG_FILE} "
            f"({error}); train the model again"
        ) from error
    return network.to(device).eval(), config


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json.

    Raises:
        UserError: the folder or the file is missing, or it is no JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; expected a model folder, as `dvc repro` writes to models/")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); train the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a {type(values).__name__}; expected a JSON object; train the model again")
    return values


def parse_config(folder: Path, schema: type[Config]) -> Config:
    """Read a model folder's config.json as `schema`.

    Raises:
        UserError: see `read_config`; or the content does not fit the schema.
    """
    values = read_config(folder)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = Problems(
            f"{folder / CONFIG_FILE}: not the config of a usable model; train the model again"
        )
        for message in _described(error, values):
            problems.add(message)
    problems.raise_if_any()
    raise AssertionError("a ValidationError names at least one problem")


def _described(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """Give one line per key: a union of types reports one error for each of its members."""
    expected: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        key = _key(detail["loc"], values, missing=detail["type"] == "missing")
        if detail["type"] == "missing":
            message = "this key is missing"
        elif detail["type"] == "extra_forbidden":
            message = "unknown key"
        else:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if not isinstance(detail["input"], dict):  # a rule about a whole section names the keys itself
                message = f"got {detail['input']!r}; {message}"
        expected.setdefault(key, []).append(message)
    return [f"{key}: {', or '.join(messages)}" for key, messages in expected.items()]


def _key(location: tuple[int | str, ...], values: Any, *, missing: bool) -> str:
    """Name a place in the file, without what pydantic adds to it: the tried member of a union."""
    parts: list[str] = []
    for part in location:
        in_list = isinstance(values, list) and isinstance(part, int)
        if not (in_list or (isinstance(values, dict) and part in values)):
            break
        parts.append(str(part))
        values = values[part]
    if missing:
        parts.append(str(location[-1]))
    return ".".join(parts)
