"""The `vesselforge` command: use and judge trained models on a person's own images; draw phantoms."""

import click

from pipeline.commands.evaluate import evaluate
from pipeline.commands.phantoms import phantoms
from pipeline.commands.predict import predict


@click.group()
@click.version_option(package_name="vesselforge")
def main() -> None:
    """Segment retinal vessels with trained models, score models, and draw phantoms to try things on."""


for command in (predict, evaluate, phantoms):
    main.add_command(command)


if __name__ == "__main__":
    main()
