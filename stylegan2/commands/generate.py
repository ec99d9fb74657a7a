"""`stylegan2 generate`: images of seeds, or of what was projected."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylegan2.commands.parameters import (
    SEEDS,
    Drawing,
    Problems,
    drawing_options,
    example,
    folder_problems,
    grid_problems,
    noise_option,
    shows_errors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stylegan2.networks.generator import Generator


@click.command(
    epilog=example(
        "stylegan2 generate models/gan --seeds 0-35,77 --trunc 0.7 --grid grid.png -o images\n"
        "  stylegan2 generate models/gan --projected-w projected/projected_w.safetensors -o images"
    )
)
@click.option("--seeds", type=SEEDS, help="One image for each, such as 0-35,77.")
@click.option(
    "--projected-w",
    "projected",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Or: what `stylegan2 project` found, projected_w.safetensors.",
)
@noise_option("const", "random", "none")
@click.option("--grid", metavar="FILE.png", help="Also write all images into one picture, in OUT.")
@click.option("--columns", type=click.IntRange(1), help="Images per row of the grid [about square].")
@drawing_options("OUT", "Folder to write to.")
@shows_errors
def generate(
    drawing: Drawing,
    seeds: list[int] | None,
    projected: Path | None,
    noise_mode: str,
    grid: str | None,
    columns: int | None,
) -> None:
    """Draw one image for each seed into OUT, or what was projected.

    The files are seed0000.png, seed0001.png and so on. An image depends on the network, the seed, the class
    and the options of truncation and noise alone: more seeds, or another order, change none of them.

    With --projected-w they are proj00.png and so on, drawn from the w and the noise maps of the file.
    """
    from tqdm import tqdm

    from stylegan2.images import image_grid, write_png
    from stylegan2.projection import draw_projection, load_projection
    from stylegan2.sampling import sample_images

    out = drawing.out
    problems = Problems(*folder_problems(out, drawing.overwrite), *_grid_name_problems(grid, columns))
    problems.add(*_source_problems(seeds, projected, noise_mode))
    found: list[tuple[Tensor, dict[str, Tensor]]] = []

    def check(generator: "Generator") -> list[str]:
        count = len(seeds or [])
        if projected is not None:
            with problems.gather():
                found.append(load_projection(projected, generator))
                count = len(found[0][0])
        return [] if grid is None else grid_problems(generator, count, "grid")

    generator = drawing.load_generator(seeds if projected is None else None, problems, check)
    if projected is None:
        assert seeds is not None
        names = [f"seed{seed:04d}.png" for seed in seeds]
        images = sample_images(
            generator,
            seeds,
            drawing.psi,
            drawing.batch,
            class_index=drawing.class_index,
            truncation_cutoff=drawing.cutoff,
            noise_mode=noise_mode,
        )
    else:
        place = next(generator.parameters()).device  # it was read when the network was still elsewhere
        ws, noise = found[0]
        names = [f"proj{index:02d}.png" for index in range(len(ws))]
        maps = {name: value.to(place) for name, value in noise.items()}
        images = draw_projection(generator, ws.to(place), maps, noise_mode)
    kept = []
    pairs = zip(names, images, strict=True)
    for name, image in tqdm(pairs, desc="generate", unit="image", total=len(names), disable=None):
        write_png(out / name, image)
        if grid is not None:
            kept.append(image)
    if grid is not None:
        import numpy as np

        side = columns or max(1, round(len(kept) ** 0.5))
        write_png(out / grid, image_grid(np.stack(kept), side))
    origin = f"ψ = {drawing.psi:g}" if projected is None else f"from {projected}"
    click.echo(f"{len(names)} image{'s' if len(names) > 1 else ''} in {out} ({origin})")


def _source_problems(seeds: list[int] | None, projected: Path | None, noise_mode: str) -> list[str]:
    """Say when there is nothing to draw from, or options that a projected w leaves nothing to do for."""
    if projected is None:
        return [] if seeds is not None else ["give one of --seeds and --projected-w"]
    context = click.get_current_context()
    flags = {"seeds": "--seeds", "psi": "--trunc", "cutoff": "--cutoff", "class_index": "--class"}
    given = [
        flag
        for name, flag in flags.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    ]
    problems = []
    if given:
        problems.append(
            f"projected-w: is w itself, which {', '.join(given)} would decide on; leave out either"
        )
    if context.get_parameter_source("batch") is not click.core.ParameterSource.DEFAULT:
        problems.append("batch: what was projected is drawn one by one; leave --batch out")
    if noise_mode == "random":
        problems.append(
            "noise-mode: got random, but projected-w has no seed to draw it from; use const or none"
        )
    return problems


def _grid_name_problems(grid: str | None, columns: int | None) -> list[str]:
    if grid is None:
        return [] if columns is None else ["columns: there is no grid; add --grid grid.png"]
    if Path(grid).name != grid or not grid.lower().endswith(".png") or re.match(r"seed|proj\d", grid):
        return [f"grid: got {grid!r}, expected the name of a file in OUT, such as grid.png"]
    return []
