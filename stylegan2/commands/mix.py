"""`stylegan2 mix`: style mixing."""

from typing import TYPE_CHECKING

import click

from stylegan2.commands.parameters import (
    FEW_SEEDS,
    LAYERS,
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
    from stylegan2.networks.generator import Generator


@click.command(
    epilog=example("stylegan2 mix models/gan --rows 85,100,75 --cols 55,821 --styles 0-6 -o mixed")
)
@click.option("--rows", type=FEW_SEEDS, required=True, help="Seeds of the rows, such as 0-3,9.")
@click.option("--cols", "columns", type=FEW_SEEDS, required=True, help="Seeds of the columns.")
@click.option(
    "--styles", type=LAYERS, help="Layers that follow the column's seed, 0 = coarsest [the first half]."
)
@noise_option("const", "none")
@drawing_options("OUT", "Folder to write to.")
@shows_errors
def mix(
    drawing: Drawing, rows: list[int], columns: list[int], styles: list[int] | None, noise_mode: str
) -> None:
    """Combine the styles of seeds two by two (Karras et al. 2018, section 3.1).

    OUT receives ROW-COLUMN.png for each pair, such as 0085-0055.png, and grid.png: the columns' images above,
    the rows' images on the left. Each pair takes the layers --styles from the column's seed and all others
    from the row's: coarse layers carry layout, fine ones colour and texture.
    """
    from stylegan2.images import write_png
    from stylegan2.style_mixing import default_layers, layer_problems, mix_styles

    def check(generator: "Generator") -> list[str]:
        count = (len(rows) + 1) * (len(columns) + 1)
        return [
            *layer_problems(styles or [], generator.num_ws),
            *grid_problems(generator, count, "rows × cols"),
        ]

    out = drawing.out
    problems = Problems(*folder_problems(out, drawing.overwrite))
    generator = drawing.load_generator([*rows, *columns], problems, check)
    layers = default_layers(generator) if styles is None else styles
    mixture = mix_styles(
        generator,
        rows,
        columns,
        layers,
        drawing.psi,
        class_index=drawing.class_index,
        truncation_cutoff=drawing.cutoff,
        noise_mode=noise_mode,
        batch=drawing.batch,
    )
    for row, images in zip(rows, mixture.mixed, strict=True):
        for column, image in zip(columns, images, strict=True):
            write_png(out / f"{row:04d}-{column:04d}.png", image)
    write_png(out / "grid.png", mixture.grid())
    click.echo(
        f"{len(rows)} × {len(columns)} images and grid.png in {out} (of {generator.num_ws} layers, "
        f"{', '.join(map(str, layers))} follow the column)"
    )
