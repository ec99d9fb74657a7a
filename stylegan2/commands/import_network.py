"""`stylegan2 import`: networks from a pickle in NVIDIA's format."""

from pathlib import Path

import click

from stylegan2.commands.parameters import (
    Problems,
    example,
    folder_problems,
    output_option,
    overwrite_option,
    shows_errors,
)


@click.command(name="import", epilog=example("stylegan2 import ffhq-512.pkl -o models/ffhq512"))
@click.argument("pickle", metavar="NET.pkl", type=click.Path(path_type=Path))
@output_option("DIR", "Folder to write to: a NETWORK_DIR for the other commands.")
@overwrite_option
@shows_errors
def import_network(pickle: Path, out: Path, overwrite: bool) -> None:
    """Read the networks of a StyleGAN2-ADA pickle without executing anything in it.

    Only tensors and plain containers are built; a file that asks for anything else is refused.
    """
    problems = Problems()
    problems.add(*folder_problems(out, overwrite))
    if not pickle.is_file():
        problems.add(f"{pickle}: no such file; expected a pickle of StyleGAN2-ADA's PyTorch generation")
        problems.raise_if_any()
    from stylegan2.nvidia import read_nvidia_pickle, write_imported

    with problems.gather():
        networks = read_nvidia_pickle(pickle)
    problems.raise_if_any()
    write_imported(networks, out, overwrite=overwrite)
    click.echo(f"{pickle} → {out}; look at it with: stylegan2 info {out}")
