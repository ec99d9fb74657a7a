"""`stylegan2 generate`: images of seeds."""

from pathlib import Path

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


@click.command(
    epilog=example("stylegan2 generate models/gan --seeds 0-35,77 --trunc 0.7 --grid grid.png -o images")
)
@click.option("--seeds", type=SEEDS, required=True, help="One image for each, such as 0-35,77.")
@noise_option("const", "random", "none")
@click.option("--grid", metavar="FILE.png", help="Also write all images into one picture, in OUT.")
@click.option("--columns", type=click.IntRange(1), help="Images per row of the grid [about square].")
@drawing_options("OUT", "Folder to write to.")
@shows_errors
def generate(
    drawing: Drawing, seeds: list[int], noise_mode: str, grid: str | None, columns: int | None
) -> None:
    """Draw one image for each seed into OUT.

    The files are seed0000.png, seed0001.png and so on. An image depends on the network, the seed, the class
    and the options of truncation and noise alone: more seeds, or another order, change none of them.
    """
    from tqdm import tqdm

    from stylegan2.images import image_grid, write_png
    from stylegan2.sampling import sample_images

    out = drawing.out
    problems = Problems(*folder_problems(out, drawing.overwrite), *_grid_name_problems(grid, columns))
    generator = drawing.load_generator(
        seeds,
        problems,
        lambda generator: [] if grid is None else grid_problems(generator, len(seeds), "grid"),
    )
    images = sample_images(
        generator,
        seeds,
        drawing.psi,
        drawing.batch,
        class_index=drawing.class_index,
        truncation_cutoff=drawing.cutoff,
        noise_mode=noise_mode,
    )
    kept = []
    pairs = zip(seeds, images, strict=True)
    for seed, image in tqdm(pairs, desc="generate", unit="image", total=len(seeds), disable=None):
        write_png(out / f"seed{seed:04d}.png", image)
        if grid is not None:
            kept.append(image)
    if grid is not None:
        import numpy as np

        side = columns or max(1, round(len(kept) ** 0.5))
        write_png(out / grid, image_grid(np.stack(kept), side))
    click.echo(f"{len(seeds)} image{'s' if len(seeds) > 1 else ''} in {out} (ψ = {drawing.psi:g})")


def _grid_name_problems(grid: str | None, columns: int | None) -> list[str]:
    if grid is None:
        return [] if columns is None else ["columns: there is no grid; add --grid grid.png"]
    if Path(grid).name != grid or not grid.lower().endswith(".png") or grid.startswith("seed"):
        return [f"grid: got {grid!r}, expected the name of a file in OUT, such as grid.png"]
    return []
