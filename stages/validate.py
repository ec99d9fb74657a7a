"""Checks params.yaml, or any preset, without running anything: `python -m stages.validate [FILE…]`."""

import sys
from pathlib import Path

import click

from pipeline.errors import UserError
from stages.context import check_all_sections
from stages.graph import PARAMS_FILE, read_graph
from stages.params_file import read_yaml


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Report every problem of params.yaml, or of the named files, at once."""
    problems = []
    for file in files or (PARAMS_FILE,):
        try:
            check_all_sections(read_yaml(file), read_graph(), str(file))
        except UserError as error:
            problems.append(str(error))
    if problems:
        click.echo("Error: " + "\n".join(problems), err=True)
        sys.exit(2)
    click.echo(f"{', '.join(map(str, files or (PARAMS_FILE,)))}: valid")


if __name__ == "__main__":
    main()
