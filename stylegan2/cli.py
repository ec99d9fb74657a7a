"""The `stylegan2` command: use, convert and train networks from the shell."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from stylegan2.commands.doctor import doctor
from stylegan2.commands.export import export
from stylegan2.commands.generate import generate
from stylegan2.commands.import_network import import_network
from stylegan2.commands.info import info
from stylegan2.commands.interpolate import interpolate
from stylegan2.commands.metrics import metrics
from stylegan2.commands.mix import mix
from stylegan2.commands.project import project
from stylegan2.commands.train import train

_SILENT = ("info",)  # commands that compute nothing


class _Messages(logging.Handler):
    """Shows what the package logs on the standard error stream, whichever that is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one line."""
        mark = "Warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{mark}{self.format(record)}", err=True)


@contextmanager
def _shown_messages(level: int) -> Iterator[None]:
    logger, handler = logging.getLogger("stylegan2"), _Messages()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vesselforge")
@click.pass_context
def main(context: click.Context) -> None:
    """StyleGAN2-ADA: images from trained networks, and networks from images.

    A NETWORK_DIR holds generator.safetensors and config.json, as training and `stylegan2 import` write them.
    The name of a network that comes with this package, such as phantom128, stands for its folder.
    """
    quiet = context.invoked_subcommand in _SILENT
    context.with_resource(_shown_messages(logging.WARNING if quiet else logging.INFO))


for command in (train, generate, mix, interpolate, project, info, import_network, export, metrics, doctor):
    main.add_command(command)
