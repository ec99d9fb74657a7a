"""`stylegan2 train`: train a GAN on a folder of images, or fine-tune one."""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from stylegan2.commands.parameters import (
    Problems,
    device_option,
    example,
    output_option,
    resize_option,
    select_device,
    shows_errors,
)
from stylegan2.config import TrainingOptions
from stylegan2.errors import StyleGAN2Error

_INTERRUPTED = 130  # as shells report a program that SIGINT ended


def _value(text: str) -> Any:
    """Read a value as JSON, or else as text: 3, 0.5, null, [3, 4], ada."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _descriptions() -> dict[str, str]:
    """Take what each option means from the docstring of `TrainingOptions`."""
    listed = inspect.getdoc(TrainingOptions) or ""
    found = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", listed.partition("Attributes:")[2], re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option --name for every field of `TrainingOptions`."""
    descriptions = _descriptions()
    for name, field in reversed(TrainingOptions.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        description = descriptions[name]
        if field.annotation is bool:
            switch = f"{flag}/--no-{name.replace('_', '-')}"
            command = click.option(switch, name, default=None, help=description)(command)
            continue
        default = "" if field.is_required() else f" [default: {json.dumps(field.default)}]"
        command = click.option(
            flag, name, metavar="VALUE", required=field.is_required(), help=f"{description}{default}"
        )(command)
    return command


@click.command(
    epilog=example(
        "stylegan2 train --data fundus --resolution 256 --mirror --init ffhq256 -o gan\n"
        "  stylegan2 train --data fundus --resolution 256 --dry-run -o gan"
    )
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder or ZIP file of images; a dataset.json in it holds labels for cond=true.",
)
@resize_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0.01),
    default=10.0,
    show_default=True,
    help="Between saves.",
)
@click.option(
    "--keep-checkpoint", is_flag=True, help="Keep OUT/checkpoint at the end, to go on with a larger --kimg."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved options and stop; --data is not read.")
@device_option
@output_option("OUT", "Folder of the trained GAN.")
@training_options
@shows_errors
def train(
    data: Path,
    resize: bool,
    seed: int,
    checkpoint_minutes: float,
    keep_checkpoint: bool,
    dry_run: bool,
    device: str,
    out: Path,
    **settings: str | bool | None,
) -> None:
    """Train a GAN on the images in a folder or ZIP file and write it to OUT.

    The state of the training is kept in OUT/checkpoint. After an interruption the same command goes on; on
    the CPU the result is the same in every bit. With --keep-checkpoint the state stays there, and the same
    command with a larger --kimg goes on, as if it had been asked for from the start.
    """
    from stylegan2.config import resolve
    from stylegan2.image_folder import load_image_folder
    from stylegan2.training import images_to_show, train
    from stylegan2.training_lock import lock_training
    from stylegan2.transfer import SourceNetworks

    options = parse_options(settings)
    source = None if options.init is None else SourceNetworks.load(options.init)
    resolved = resolve(options, source=None if source is None else source.architecture)
    if dry_run:
        if source is not None:
            source.check(options, resolved, channels=None, c_dim=None)
        click.echo(json.dumps({**resolved.model_dump(), "seed": seed}, indent=2))
        return
    _refuse_finished(out)
    problems = Problems()
    with problems.gather():
        place = select_device(device)
    with problems.gather():
        folder = load_image_folder(data, resolved.image_size, resize)
    if problems.messages and source is not None:  # otherwise `train` compares them, with the images
        with problems.gather():
            source.check(options, resolved, channels=None, c_dim=None)
    problems.raise_if_any()
    checkpoints = out / "checkpoint"
    with lock_training(out):
        _refuse_finished(out)  # another process may have finished it meanwhile
        try:
            train(
                folder.images,
                options,
                seed=seed,
                out_dir=out,
                checkpoint_dir=checkpoints,
                checkpoint_minutes=checkpoint_minutes,
                device=place,
                labels=folder.labels,
            )
        except KeyboardInterrupt as interruption:
            click.echo(f"{interruption or 'interrupted'}; the same command goes on from there", err=True)
            raise SystemExit(_INTERRUPTED) from None
        if not keep_checkpoint:
            shutil.rmtree(checkpoints)  # its pictures and tables are in OUT as well
    count = len(folder.images) if resolved.subset is None else resolved.subset
    click.echo(f"{out}: trained on {count:,} images, {images_to_show(resolved):,} shown")


def _refuse_finished(out: Path) -> None:
    from stylegan2.training import CHECKPOINT

    # With a checkpoint beside them, the networks may come from an export that was interrupted.
    if (out / "generator.safetensors").exists() and not (out / "checkpoint" / CHECKPOINT).exists():
        raise StyleGAN2Error(
            f"{out} holds a finished training; name another folder or delete this one (to go on with a "
            "larger --kimg, it would have needed --keep-checkpoint)"
        )


def parse_options(settings: Mapping[str, str | bool | None]) -> TrainingOptions:
    """Read the settings that were given (the others are None) as `TrainingOptions`.

    Raises:
        StyleGAN2Error: naming every setting that is wrong.
    """
    given = {
        name: _value(value) if isinstance(value, str) and name != "init" else value  # paths are no JSON
        for name, value in settings.items()
        if value is not None
    }
    try:
        return TrainingOptions.model_validate(given)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for detail in error.errors():
            name = str(detail["loc"][0]) if detail["loc"] else ""
            problems.setdefault(name, []).append(detail["msg"].removeprefix("Value error, "))
    lines = [
        f"--{name.replace('_', '-')}: got {given[name]!r}, {_wanted(messages)}" if name else messages[0]
        for name, messages in problems.items()
    ]
    raise StyleGAN2Error("these options cannot be used:\n  - " + "\n  - ".join(lines))


def _wanted(messages: list[str]) -> str:
    """Join what pydantic says of the alternatives of one option."""
    start = "Input should be "
    if not all(message.startswith(start) for message in messages):
        return " or ".join(f"but {message[:1].lower()}{message[1:]}" for message in messages)
    wanted = " or ".join(message.removeprefix(start) for message in messages)
    wanted = re.sub(r"\b(?=(greater|less) than)", "a number ", wanted)
    return "expected " + wanted.replace("a valid list", "a list, such as '[4, 3]'")
