"""`vesselforge phantoms`: fundus images whose vessels are known exactly."""

from pathlib import Path

import click

from pipeline.commands.parameters import BadInput, refuse_nan, unwritable


@click.command()
@click.option("--count", required=True, type=click.IntRange(1), help="Number of phantoms.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(32, 4096), help="In pixels.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the collection.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(0), help="First number.")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="To draw with.")
@click.option(
    "--blood",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 10, min_open=True),
    callback=refuse_nan,
    help="Factor on the vessels' absorbance: 1 as in DRIVE, 2.5 for a GAN to learn vessels from.",
)
@click.option(
    "--disc-side",
    default="any",
    show_default=True,
    type=click.Choice(["any", "left", "right"]),
    help="Mirror phantoms so that all optic discs lie on this side.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
def phantoms(
    count: int, size: int, seed: int, first: int, processes: int, blood: float, disc_side: str, output: Path
) -> None:
    """Draw phantoms: fundus images that were never photographed, whose vessels are known exactly.

    Writes images/000000.png, … and vessels/000000.png, … (0 or 255). A phantom depends on seed, number,
    size, blood and disc side alone.
    """
    from pipeline.images import write_png
    from pipeline.laterality import disc_contrast
    from pipeline.phantom import draw_phantoms

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output} exists; expected a new or empty folder; give another -o")
    numbers = range(first, first + count)
    try:
        for name in ("images", "vessels"):
            (output / name).mkdir(parents=True, exist_ok=True)
        workers = min(processes, count)
        drawn = draw_phantoms(seed, numbers, size, processes=workers, progress=True, blood=blood)
        for number, phantom in zip(numbers, drawn, strict=True):
            contrast = disc_contrast(phantom.image)  # > 0: the disc is on the right
            turned = disc_side != "any" and (contrast < 0 if disc_side == "right" else contrast > 0)
            step = -1 if turned else 1
            write_png(output / "images" / f"{number:06d}.png", phantom.image[:, ::step].copy())
            write_png(output / "vessels" / f"{number:06d}.png", phantom.vessels[:, ::step].copy())
    except OSError as error:
        raise BadInput(unwritable(error, output)) from error
    click.echo(f"{count} phantom{'s' if count > 1 else ''} of {size}×{size} pixels in {output}")
