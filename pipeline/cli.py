"""The `vesselforge` command: use trained models on a person's own images."""

import sys
from pathlib import Path

import click
from tqdm import tqdm

from pipeline.errors import Problems, UserError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".ppm", ".gif")


@click.group()
@click.version_option(package_name="vesselforge")
def main() -> None:
    """Segment retinal vessels with models trained by the VesselForge pipeline."""


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
    "--threshold", type=click.FloatRange(0, 1), help="Vessel where probability ≥ this [the model's own]."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def predict(
    images: tuple[Path, ...], output: Path, model: Path, threshold: float | None, device: str, debug: bool
) -> None:
    """Segment IMAGES (files or folders; PNG, TIF, JPG; any size).

    Writes three files per image: NAME_mask.png (0 or 255), NAME_probability.png (16 bits, 65535 = 1) and
    NAME_overlay.png. Nothing is written when an image cannot be read.
    """
    try:
        _predict(_image_files(images), output, model, threshold, device)
    except UserError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _predict(files: list[Path], output: Path, model: Path, threshold: float | None, device: str) -> None:
    # Loaded here so that `vesselforge --help` does not wait for torch.
    from pipeline.device import select_device
    from pipeline.images import read_rgb, write_png, write_probability
    from pipeline.inference import Predictor
    from pipeline.overlay import prediction_overlay

    _check_readable(files)
    predictor = Predictor.from_folder(model, select_device(device))
    cut = predictor.threshold if threshold is None else threshold
    output.mkdir(parents=True, exist_ok=True)
    for file in tqdm(files, desc="predict", unit="image", disable=len(files) < 2):
        image = read_rgb(file)
        probability = predictor.predict(image)
        mask = probability >= cut
        write_png(output / f"{file.stem}_mask.png", mask)
        write_probability(output / f"{file.stem}_probability.png", probability)
        write_png(output / f"{file.stem}_overlay.png", prediction_overlay(image, mask))
    click.echo(
        f"{len(files)} image{'s' if len(files) > 1 else ''} segmented into {output} (threshold {cut:g})"
    )


def _image_files(paths: tuple[Path, ...]) -> list[Path]:
    """List the image files that `paths` name, folders opened; results must not share a name.

    Raises:
        UserError: with every missing path, folder without images and clashing name.
    """
    problems = Problems("these images cannot be segmented")
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
    problems.raise_if_any()
    return files


def _check_readable(files: list[Path]) -> None:
    from pipeline.images import read_rgb

    problems = Problems("these images cannot be segmented")
    for file in files:
        try:
            read_rgb(file)
        except UserError as error:
            problems.add(str(error))
    problems.raise_if_any()


if __name__ == "__main__":
    main()
