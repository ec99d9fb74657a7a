"""What the pickles of NVIDIA's format say in words and numbers: the arguments of networks, and settings.

They end up in config.json and decide what is built, so they are limited in kind, number and size.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia_pickle import ModuleRecord

Check: TypeAlias = Callable[[Any], str | None]  # what was expected, or None when all is well
Schema: TypeAlias = Mapping[str, "Check | Mapping[str, Check]"]

_MAX_DEPTH = 16
_MAX_VALUES = 10_000
_MAX_CHARACTERS = 100_000
_SIZE = 2**16  # of anything that a network has sizes of


def _whole(low: int, high: int = _SIZE, optional: bool = False) -> Check:
    def check(value: Any) -> str | None:
        good = (type(value) is int and low <= value <= high) or (optional and value is None)
        return None if good else f"an int from {low} to {high}" + " or None" * optional

    return check


def _real(low: float, high: float, optional: bool = False) -> Check:
    def check(value: Any) -> str | None:
        good = (type(value) in (int, float) and low <= value <= high) or (optional and value is None)
        return None if good else f"a number from {low} to {high}" + " or None" * optional

    return check


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "text"


def _flag(value: Any) -> str | None:
    return None if type(value) is bool else "True or False"


def _taps(value: Any) -> str | None:
    good = type(value) is list and 1 <= len(value) <= 64 and all(type(tap) in (int, float) for tap in value)
    return None if good else "a list of 1 to 64 numbers"


_MAPPING: dict[str, Check] = {
    "num_layers": _whole(1, 256),
    "embed_features": _whole(1, optional=True),
    "layer_features": _whole(1, optional=True),
    "activation": _text,
    "lr_multiplier": _real(1e-6, 1e6),
}
_BLOCK: dict[str, Check] = {"activation": _text, "resample_filter": _taps, "fp16_channels_last": _flag}
_WIDTH: dict[str, Check] = {
    "architecture": _text,
    "channel_base": _whole(1, 2**24),
    "channel_max": _whole(1),
    "num_fp16_res": _whole(0, 16),
    "conv_clamp": _real(1e-6, 1e6, optional=True),
}
_IMAGE: dict[str, Check] = {"img_resolution": _whole(4), "img_channels": _whole(1, 64)}
# In the order of positional arguments.
GENERATOR: Schema = {
    "z_dim": _whole(1),
    "c_dim": _whole(0),
    "w_dim": _whole(1),
    **_IMAGE,
    "mapping_kwargs": {**_MAPPING, "w_avg_beta": _real(0, 1, optional=True)},
    "synthesis_kwargs": {**_WIDTH, **_BLOCK, "kernel_size": _whole(1, 31), "use_noise": _flag},
}
DISCRIMINATOR: Schema = {
    "c_dim": _whole(0),
    **_IMAGE,
    **_WIDTH,
    "cmap_dim": _whole(0, optional=True),
    "block_kwargs": {**_BLOCK, "freeze_layers": _whole(0, 1024)},
    "mapping_kwargs": _MAPPING,
    "epilogue_kwargs": {
        "mbstd_group_size": _whole(1, optional=True),
        "mbstd_num_channels": _whole(0),
        "activation": _text,
    },
}
_REQUIRED = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")


def network_arguments(record: ModuleRecord, schema: Schema) -> dict[str, Any]:
    """The arguments that the network in the file was built with, by name.

    Raises:
        StyleGAN2Error: Some are missing, unknown to our networks or out of range; all are named.
    """
    positional, named = record.state.get("_init_args", ()), record.state.get("_init_kwargs")
    if not isinstance(positional, tuple | list) or type(named) is not dict or len(positional) > len(schema):
        raise StyleGAN2Error("its arguments (_init_args, _init_kwargs) are missing or unusable")
    arguments: dict[str, Any] = dict(zip(schema, plain_data(positional, "_init_args"), strict=False))
    named = plain_data(named, "_init_kwargs")
    problems = [f"{name}: given twice" for name in arguments.keys() & named.keys()]
    arguments |= named
    problems += [f"{name}: missing" for name in _REQUIRED if name in schema and name not in arguments]
    problems += _argument_problems(arguments, schema)
    if problems:
        raise StyleGAN2Error("unusable arguments:\n  - " + "\n  - ".join(problems))
    return arguments


def _argument_problems(arguments: Mapping[str, Any], schema: Schema, prefix: str = "") -> list[str]:
    problems: list[str] = []
    for name, value in arguments.items():
        shown = f"{prefix}{name}" if name in schema else f"{prefix}{reprlib.repr(name)}"
        check = schema.get(name)
        if check is None:
            problems.append(f"{shown}: unknown to our networks; expected {', '.join(schema)}")
        elif not isinstance(check, Mapping):
            expected = check(value)
            problems += [f"{shown}: got {reprlib.repr(value)}, expected {expected}"] if expected else []
        elif type(value) is dict:
            problems += _argument_problems(value, check, f"{name}.")
        else:
            problems.append(f"{shown}: got {reprlib.repr(value)}, expected a dict")
    return problems


def plain_data(value: Any, name: str) -> Any:
    """Copies dicts with text keys, lists, tuples (as lists), text, numbers, booleans and None.

    JSON writes out each time what a pickle stores once and refers to, so it is counted as often.

    Args:
        value: Anything that `read_pickle` makes.
        name: What it is, for messages.

    Raises:
        StyleGAN2Error: It contains something else, is nested deeply, or is larger than settings are.
    """
    values = characters = 0

    def counted(text: str) -> str:
        nonlocal characters
        characters += len(text)
        if characters > _MAX_CHARACTERS:
            raise StyleGAN2Error(
                f"{name}: more than {_MAX_CHARACTERS} characters, counting what is repeated; expected a few "
                "settings"
            )
        return text

    def copy(value: Any, depth: int) -> Any:
        nonlocal values
        values += 1
        if values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise StyleGAN2Error(f"{name}: nested too deeply or more than {_MAX_VALUES} values")
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {counted(key): copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return counted(str(value))  # JSON has no such numbers
        if isinstance(value, str):
            return counted(value)
        if value is None or isinstance(value, int | float):
            counted(str(value))
            return value
        raise StyleGAN2Error(
            f"{name}: contains a {type(value).__name__}; expected text, numbers, lists and dicts"
        )

    return copy(value, 0)
