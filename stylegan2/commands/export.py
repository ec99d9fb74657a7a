"""`stylegan2 export`: the generator for use elsewhere."""

from pathlib import Path

import click

from stylegan2.commands.parameters import (
    Problems,
    example,
    folder_problems,
    network_argument,
    output_option,
    overwrite_option,
    shows_errors,
    truncation_options,
)


@click.command(epilog=example("stylegan2 export models/gan --format onnx --trunc 0.7 -o exported"))
@network_argument
@click.option(
    "--format",
    "formats",
    type=click.Choice(["safetensors", "onnx", "both"]),
    default="both",
    show_default=True,
    help="What to write.",
)
@truncation_options(default=0.7)
@output_option("OUT", "Folder to write to.")
@overwrite_option
@shows_errors
def export(network: str, formats: str, psi: float, cutoff: int | None, out: Path, overwrite: bool) -> None:
    """Write the generator alone, as safetensors and as ONNX.

    generator.safetensors and config.json make OUT a NETWORK_DIR for the other commands. generator.onnx maps
    z [N, z_dim] to image [N, C, H, W] in −1..1 with truncation and constant noise built in; with classes it
    has a second input c, one-hot [N, classes]. Its images are compared with torch's through onnxruntime.

    ONNX needs more packages: pip install 'vesselforge[export]'
    """
    from stylegan2.export import TOLERANCE, export_onnx, export_safetensors, onnx_problems
    from stylegan2.network_folder import read_config
    from stylegan2.sampling import load_generator, truncation_problems
    from stylegan2.sources import find_network_folder

    problems = Problems()
    problems.add(*folder_problems(out, overwrite))
    if formats != "safetensors":
        problems.add(*onnx_problems())
    with problems.gather():
        folder = find_network_folder(network)
        generator = load_generator(folder)
        problems.add(*truncation_problems(generator, psi, cutoff))
    problems.raise_if_any()

    if formats != "safetensors":
        difference = export_onnx(generator, out / "generator.onnx", psi, cutoff)
        click.echo(
            f"{out / 'generator.onnx'}: ψ = {psi:g}, largest difference to torch {difference:.3g} "
            f"(allowed {TOLERANCE:g})"
        )
    if formats != "onnx":
        networks = ("kind", "generator", "discriminator")
        others = {key: value for key, value in read_config(folder).items() if key not in networks}
        export_safetensors(generator, out, others)
        click.echo(f"{out / 'generator.safetensors'}: the weights as trained; ψ is chosen when sampling")
