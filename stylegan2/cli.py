"""The `stylegan2` command: use, convert and train networks from the shell."""

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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vesselforge")
def main() -> None:
    """StyleGAN2-ADA: images from trained networks, and networks from images.

    A NETWORK_DIR holds generator.safetensors and config.json, as training and `stylegan2 import` write them.
    """


for command in (train, generate, mix, interpolate, project, info, import_network, export, metrics, doctor):
    main.add_command(command)
