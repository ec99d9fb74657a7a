"""The `vesselforge` command: use trained models on a person's own images; draw phantoms."""

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from pipeline.errors import Problems, UserError

if TYPE_CHECKING:
    from pipeline.frames import Views

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".ppm", ".gif")
RESULTS = ("mask", "probability", "overlay")  # of image.jpg: image_mask.png, …


def _refuse_nan(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse what `click.FloatRange` lets pass: NaN is neither below nor above a bound."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("got nan; expected a number", context, option)
    return value


@click.group()
@click.version_option(package_name="vesselforge")
def main() -> None:
    """Segment retinal vessels with trained models, and draw phantoms to try things on."""


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "-m",
    "--model",
    default=Path("models/ensemble"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="A model folder: models/base, models/retrained or models/ensemble.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    callback=_refuse_nan,
    help="Vessel where probability ≥ this [the model's own].",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--views",
    default="none",
    show_default=True,
    type=click.Choice(["none", "flips", "dihedral"]),
    help="Average over mirror images (4× the time), or over these and quarter turns (8×).",
)
@click.option(
    "--tile",
    type=int,
    help="Predict images of more than TILE × TILE working pixels in tiles of that side [1024].",
)
@click.option("--overwrite", is_flag=True, help="Replace results of an earlier run.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def predict(
    images: tuple[Path, ...],
    output: Path,
    model: Path,
    threshold: float | None,
    device: str,
    views: "Views",
    tile: int | None,
    overwrite: bool,
    debug: bool,
) -> None:
    """Segment IMAGES (files or folders; PNG, TIF, JPG; any size up to 100 megapixels).

    Writes three files per image: NAME_mask.png (0 or 255), NAME_probability.png (16 bits, 65535 = 1) and
    NAME_overlay.png. Folders are not searched deeper, pixels are taken as stored (EXIF orientation is
    ignored), and 16-bit images have to use their full range. Large images are predicted in overlapping tiles,
    with the same result as in one piece; see --tile.

    Nothing is written when an image cannot be read, when a result would replace a file (see --overwrite; an
    image given as input is never replaced), or when OUT is one of the folders to be segmented.
    """
    try:
        files = _checked_files(images, output, overwrite)
        _predict(files, output, model, threshold, device, views, tile)
    except UserError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


@main.command()
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
    callback=_refuse_nan,
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
        click.echo(f"Error: {output} exists; expected a new or empty folder; give another -o", err=True)
        sys.exit(2)
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
        click.echo(f"Error: {_unwritable(error, output)}", err=True)
        sys.exit(2)
    click.echo(f"{count} phantom{'s' if count > 1 else ''} of {size}×{size} pixels in {output}")


def _predict(
    files: list[Path],
    output: Path,
    model: Path,
    threshold: float | None,
    device: str,
    views: "Views",
    tile: int | None,
) -> None:
    # Loaded here so that `vesselforge --help` does not wait for torch.
    from pipeline.allocation import keep_freed_memory
    from pipeline.device import select_device
    from pipeline.images import read_rgb, write_png, write_probability
    from pipeline.inference import Predictor
    from pipeline.overlay import prediction_overlay
    from pipeline.tiling import DEFAULT_TILE, check_tile

    tile = DEFAULT_TILE if tile is None else tile
    check_tile(tile)
    keep_freed_memory()
    predictor = Predictor.from_folder(model, select_device(device))
    cut = predictor.threshold if threshold is None else threshold
    try:
        output.mkdir(parents=True, exist_ok=True)
        for file in tqdm(files, desc="predict", unit="image", disable=len(files) < 2):
            image = read_rgb(file)
            height, width = image.shape[:2]
            if (count := predictor.tile_count(height, width, tile)) > 1:
                tqdm.write(
                    f"{file}: {width}×{height} pixels, predicted in {count} overlapping tiles of side {tile}"
                )
            probability = predictor.predict(image, views=views, tile=tile)
            mask = probability >= cut
            write_png(_result(output, file, "mask"), mask)
            write_probability(_result(output, file, "probability"), probability)
            write_png(_result(output, file, "overlay"), prediction_overlay(image, mask))
    except OSError as error:
        raise UserError(_unwritable(error, output)) from error
    click.echo(
        f"{len(files)} image{'s' if len(files) > 1 else ''} segmented into {output} (threshold {cut:g})"
    )


def _unwritable(error: OSError, output: Path) -> str:
    return (
        f"{error.filename or output}: cannot be written ({error.strerror}); expected a folder with room that "
        "you may write to; give another one with -o"
    )


def _result(output: Path, file: Path, kind: str) -> Path:
    return output / f"{file.stem}_{kind}.png"


def _checked_files(paths: tuple[Path, ...], output: Path, overwrite: bool) -> list[Path]:
    """List the image files that `paths` name, after making sure that all can be read and nothing is lost.

    Raises:
        UserError: with everything that is wrong with the images and with the output folder.
    """
    problems = Problems("nothing was segmented")
    files = _image_files(paths, problems)
    _check_output(paths, files, output, overwrite, problems)
    _check_readable(files, problems)
    problems.raise_if_any()
    return files


def _image_files(paths: tuple[Path, ...], problems: Problems) -> list[Path]:
    """List the image files, folders opened; missing paths, empty folders and shared names are problems."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not found:
                problems.add(f"{path}: a folder without images; expected {', '.join(SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            problems.add(f"{path}: no such file or folder")
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other is not file:
            problems.add(f"{file}: its results would overwrite those of {other}; rename one or use two runs")
    return files


def _check_output(
    paths: tuple[Path, ...], files: list[Path], output: Path, overwrite: bool, problems: Problems
) -> None:
    """Find what writing the results would destroy; paths are compared by the files behind them."""
    existing = next(path for path in (output, *output.parents) if os.path.lexists(path))
    if not existing.is_dir():
        problems.add(f"{existing}: not a folder; expected a folder, or none yet, for -o; give another one")
        return
    if any(path.is_dir() and output.exists() and path.samefile(output) for path in paths):
        problems.add(
            f"{output}: to be read and written to; the next run would segment the results of this one; give "
            f"another folder, such as -o {output / 'segmented'}"
        )
    inputs = {_identity(file): file for file in files if file.exists()}
    taken = []
    for result in (_result(output, file, kind) for file in files for kind in RESULTS):
        if not os.path.lexists(result):
            continue
        given = inputs.get(_identity(result)) if result.exists() else None
        if given is not None:
            problems.add(f"{given}: an input that the result {result} would overwrite; give another -o")
        elif result.is_dir():
            problems.add(f"{result}: a folder where a result belongs; move it or give another -o")
        else:
            taken.append(result.name)
    if taken and not overwrite:
        shown = ", ".join(taken[:3]) + (", …" if len(taken) > 3 else "")
        problems.add(
            f"{output}: holds {len(taken)} of the results already ({shown}); give --overwrite to replace "
            "them, or another -o"
        )


def _identity(path: Path) -> tuple[int, int]:
    """Tell files apart whatever their names: links, and names that differ in case only on some systems."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_readable(files: list[Path], problems: Problems) -> None:
    from pipeline.images import read_rgb

    for file in files:
        try:
            read_rgb(file)
        except UserError as error:
            problems.add(str(error))


if __name__ == "__main__":
    main()
