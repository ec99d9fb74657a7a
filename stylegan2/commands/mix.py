"""`stylegan2 mix`: style mixing."""

from pathlib import Path

import click

from stylegan2.commands.parameters import (
    FEW_SEEDS,
    LAYERS,
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
    epilog=example("stylegan2 mix models/gan --rows 85,100,75 --cols 55,821 --styles 0-6 -o mixed")
)
@network_argument
@click.option("--rows", type=FEW_SEEDS, required=True, help="Seeds of the rows, such as 0-3,9.")
@click.option("--cols", "columns", type=FEW_SEEDS, required=True, help="Seeds of the columns.")
@click.option(
    "--styles", type=LAYERS, help="Layers that follow the column's seed, 0 = coarsest [the first half]."
)
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "none"]),
    default="const",
    show_default=True,
    help="Noise inputs: the network's own, or none.",
)
@drawing_options("OUT", "Folder to write to.")
@shows_errors
def mix(
    network: Path,
    rows: list[int],
    columns: list[int],
    styles: list[int] | None,
    psi: float,
    cutoff: int | None,
    class_index: int | None,
    noise_mode: str,
    batch: int,
    device: str,
    out: Path,
    overwrite: bool,
) -> None:
    """Combine the styles of seeds two by two (Karras et al. 2018, section 3.1).

    OUT receives ROW-COLUMN.png for each pair, such as 0085-0055.png, and grid.png: the columns' images above,
    the rows' images on the left. Each pair takes the layers --styles from the column's seed and all others
    from the row's: coarse layers carry layout, fine ones colour and texture.
    """
    from stylegan2.images import write_png
    from stylegan2.sampling import load_generator, sampling_problems
    from stylegan2.style_mixing import default_layers, layer_problems, mix_styles

    problems = Problems()
    problems.add(*folder_problems(out, overwrite))
    with problems.gather():
        place = select_device(device)
    with problems.gather():
        generator = load_generator(network)
        layers = default_layers(generator) if styles is None else styles
        problems.add(
            *sampling_problems(
                generator, [*rows, *columns], psi, class_index=class_index, truncation_cutoff=cutoff
            ),
            *layer_problems(layers, generator.num_ws),
        )
        problems.add(*grid_problems(generator, (len(rows) + 1) * (len(columns) + 1), "rows × cols"))
    problems.raise_if_any()

    generator.to(place)
    mixture = mix_styles(
        generator,
        rows,
        columns,
        layers,
        psi,
        class_index=class_index,
        truncation_cutoff=cutoff,
        noise_mode=noise_mode,
        batch=batch,
    )
    for row, images in zip(rows, mixture.mixed, strict=True):
        for column, image in zip(columns, images, strict=True):
            write_png(out / f"{row:04d}-{column:04d}.png", image)
    write_png(out / "grid.png", mixture.grid())
    click.echo(
        f"{len(rows)} × {len(columns)} images and grid.png in {out} (of {generator.num_ws} layers, "
        f"{', '.join(map(str, layers))} follow the column)"
    )
