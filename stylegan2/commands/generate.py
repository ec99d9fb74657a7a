"""`stylegan2 generate`: images of seeds."""

from pathlib import Path

import click

from stylegan2.commands.parameters import (
    SEEDS,
    Problems,
    drawing_options,
    example,
    folder_problems,
    grid_problems,
    network_argument,
    select_device,
    shows_errors,
)


@click.command(
    epilog=example("stylegan2 generate models/gan --seeds 0-35,77 --trunc 0.7 --grid grid.png -o images")
)
@network_argument
@click.option("--seeds", type=SEEDS, required=True, help="One image for each, such as 0-35,77.")
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="Noise inputs: the network's own, drawn from the seed, or none.",
)
@click.option("--grid", metavar="FILE.png", help="Also write all images into one picture, in OUT.")
@click.option("--columns", type=click.IntRange(1), help="Images per row of the grid [about square].")
@drawing_options("OUT", "Folder to write to.")
@shows_errors
def generate(
    network: Path,
    seeds: list[int],
    psi: float,
    cutoff: int | None,
    class_index: int | None,
    noise_mode: str,
    grid: str | None,
    columns: int | None,
    batch: int,
    device: str,
    out: Path,
    overwrite: bool,
) -> None:
    """Draw one image for each seed into OUT.

    The files are seed0000.png, seed0001.png and so on. An image depends on the network, the seed, the class
    and the options of truncation and noise alone: more seeds, or another order, change none of them.
    """
    from tqdm import tqdm

    from stylegan2.images import image_grid, write_png
    from stylegan2.sampling import load_generator, sample_images, sampling_problems

    problems = Problems()
    problems.add(*folder_problems(out, overwrite), *_grid_name_problems(grid, columns))
    with problems.gather():
        place = select_device(device)
    with problems.gather():
        generator = load_generator(network)
        problems.add(
            *sampling_problems(
                generator, seeds, psi, class_index=class_index, truncation_cutoff=cutoff, batch=batch
            )
        )
        if grid is not None:
            problems.add(*grid_problems(generator, len(seeds), "grid"))
    problems.raise_if_any()

    generator.to(place)
    images = sample_images(
        generator,
        seeds,
        psi,
        batch,
        class_index=class_index,
        truncation_cutoff=cutoff,
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
    click.echo(f"{len(seeds)} image{'s' if len(seeds) > 1 else ''} in {out} (ψ = {psi:g})")


def _grid_name_problems(grid: str | None, columns: int | None) -> list[str]:
    if grid is None:
        return [] if columns is None else ["columns: there is no grid; add --grid grid.png"]
    if Path(grid).name != grid or not grid.lower().endswith(".png") or grid.startswith("seed"):
        return [f"grid: got {grid!r}, expected the name of a file in OUT, such as grid.png"]
    return []
