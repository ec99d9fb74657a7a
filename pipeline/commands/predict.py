"""`vesselforge predict`: segment a person's own images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from pipeline.commands.parameters import (
    describe_masks,
    device_option,
    model_option,
    overwrite_option,
    shows_errors,
    threads_option,
    threshold_option,
    tile_option,
    unwritable,
    views_option,
    views_warning,
)
from pipeline.errors import Problems, UserError

if TYPE_CHECKING:
    from pipeline.frames import Views

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".ppm", ".gif")
RESULTS = ("mask", "probability", "overlay")  # of image.jpg: image_mask.png, …


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@model_option(default=Path("models/ensemble"), show_default=True)
@threshold_option
@device_option
@threads_option
@views_option
@tile_option
@overwrite_option
@shows_errors
def predict(
    images: tuple[Path, ...],
    output: Path,
    model: Path,
    threshold: float | None,
    device: str,
    threads: int | None,
    views: "Views | None",
    tile: int | None,
    overwrite: bool,
) -> None:
    """Segment IMAGES (files or folders; PNG, TIF, JPG; any size up to 100 megapixels).

    Writes three files per image: NAME_mask.png (0 or 255), NAME_probability.png (16 bits, 65535 = 1) and
    NAME_overlay.png. Folders are not searched deeper, pixels are taken as stored (EXIF orientation is
    ignored), and 16-bit images have to use their full range. Large images are predicted in overlapping tiles,
    with the same result as in one piece; see --tile.

    Nothing is written when an image cannot be read, when a result would replace a file (see --overwrite; an
    image given as input is never replaced), or when OUT is one of the folders to be segmented.
    """
    files = _checked_files(images, output, overwrite)
    _predict(files, output, model, threshold, device, threads, views, tile)


def _predict(
    files: list[Path],
    output: Path,
    model: Path,
    threshold: float | None,
    device: str,
    threads: int | None,
    views: "Views | None",
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
    predictor = Predictor.from_folder(model, select_device(device, threads))
    for warning in views_warning(views, predictor.views, threshold):
        click.echo(f"Warning: {warning}", err=True)
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
            mask = predictor.mask(probability) if threshold is None else probability >= cut
            write_png(_result(output, file, "mask"), mask)
            write_probability(_result(output, file, "probability"), probability)
            write_png(_result(output, file, "overlay"), prediction_overlay(image, mask))
    except OSError as error:
        raise UserError(unwritable(error, output)) from error
    binarisation = predictor.binarisation if threshold is None else None
    masks = describe_masks(cut, binarisation, is_own=threshold is None)
    images = f"{len(files)} image{'s' if len(files) > 1 else ''}"
    click.echo(f"{images} segmented into {output} by {model}, {masks}")


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
