"""`stylegan2 project`: find the latent of an image."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylegan2.commands.parameters import (
    Problems,
    class_option,
    device_option,
    example,
    folder_problems,
    network_argument,
    output_option,
    overwrite_option,
    select_device,
    shows_errors,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from stylegan2.projection import Distance

_FPS = 25.0
_MOST_FRAMES = 250  # of steps; the result is one more


@click.command(epilog=example("stylegan2 project models/gan --target eye.png --steps 500 -o projection"))
@network_argument
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="IMAGE",
    help="PNG, JPEG or TIFF, 8 bits.",
)
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Steps of Adam.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of everything drawn at random.",
)
@click.option("--per-layer", is_flag=True, help="One w for each layer: closer, less of a typical image.")
@click.option(
    "--perceptual-weight",
    type=float,
    default=1.0,
    show_default=True,
    help="Weight of the perceptual distance.",
)
@click.option(
    "--pixel-weight",
    type=float,
    default=0.0,
    show_default=True,
    help="Weight of the mean squared pixel error.",
)
@click.option(
    "--save-video",
    "video",
    metavar="NAME",
    help="Also film the search into this .mp4 or .gif in OUT: the target on the left.",
)
@class_option
@device_option
@output_option("OUT", "Folder to write to.")
@overwrite_option
@shows_errors
def project(
    network: str,
    target: Path,
    steps: int,
    seed: int,
    per_layer: bool,
    perceptual_weight: float,
    pixel_weight: float,
    video: str | None,
    class_index: int | None,
    device: str,
    out: Path,
    overwrite: bool,
) -> None:
    """Search for the w from which the network draws an image (Karras et al. 2019, appendix D).

    The image is cropped around its centre and resized where need be. OUT receives target.png, start.png (the
    mean image), projected.png, projected_w.safetensors (`ws` and the noise maps: `stylegan2 generate
    --projected-w` draws them) and history.csv. A film has 25 frames a second, at most about 250 in all.
    """
    from tqdm import tqdm

    from stylegan2 import projection
    from stylegan2.images import to_uint8, write_png
    from stylegan2.interpolation import write_video
    from stylegan2.ops.selection import announce_implementation
    from stylegan2.sampling import class_label, load_generator
    from stylegan2.sources import find_network_folder

    options = projection.ProjectionOptions(
        steps=steps,
        seed=seed,
        per_layer=per_layer,
        distance_weight=perceptual_weight,
        pixel_weight=pixel_weight,
    )
    problems = Problems()
    problems.add(*folder_problems(out, overwrite), *projection.option_problems(options))
    problems.add(*_video_problems(video))
    with problems.gather():
        place = select_device(device)
        distance = _distance(place, perceptual_weight)
    with problems.gather():
        generator = load_generator(find_network_folder(network))
        with problems.gather():
            class_label(generator, class_index)
        with problems.gather():
            image, changes = projection.read_target(target, generator)
    problems.raise_if_any()

    announce_implementation(place)
    generator.to(place)
    film = None if video is None else _Film(to_uint8(image)[0].permute(1, 2, 0).numpy())
    with tqdm(total=steps, desc="project", unit="step", disable=None) as bar:

        def show(step: projection.Step) -> None:
            bar.update()
            bar.set_postfix(distance=f"{step.distance:.4f}", pixel=f"{step.pixel_error:.4f}")

        found = projection.project(
            generator,
            image,
            distance,
            options,
            class_index=class_index,
            watch=show,
            film=None if film is None else film.add,
            film_interval=-(-steps // _MOST_FRAMES),
        )
    pictures = {"target": image, "start": found.start, "projected": found.image}
    for name, picture in pictures.items():
        write_png(out / f"{name}.png", to_uint8(picture)[0].permute(1, 2, 0).cpu().numpy())
    projection.save_projection(out / "projected_w.safetensors", found)
    projection.save_history(out / "history.csv", found.history)
    if film is not None:
        film.add(found.image)
        write_video(out / str(video), film.frames(), _FPS)
    if changes:
        click.echo(f"{target}: {', '.join(changes)}")
    before, after = (
        float((picture.cpu().clamp(-1, 1) - image).square().mean()) for picture in (found.start, found.image)
    )
    click.echo(f"projection in {out}: mean squared pixel error {before:.4g} → {after:.4g} (of −1..1)")


def _video_problems(name: str | None) -> list[str]:
    from stylegan2.interpolation import video_problems

    if name is None:
        return []
    if Path(name).name != name:
        return [f"save-video: got {name!r}, expected the name of a file in OUT, such as search.mp4"]
    return [f"save-video: {problem}" for problem in video_problems(Path(name), _FPS)]


class _Film:
    """The images of a search, each beside its target; kept as PNG, since there may be hundreds.

    Args:
        target: uint8 [H, W, C].
    """

    def __init__(self, target: "NDArray[np.uint8]") -> None:
        self._target = target
        self._images: list[bytes] = []

    def add(self, image: "torch.Tensor") -> None:
        """Append [1, C, H, W], about −1..1."""
        from PIL import Image

        from stylegan2.images import to_uint8

        pixels = to_uint8(image)[0].permute(1, 2, 0).cpu().numpy()  # [H, W, C]
        encoded = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(encoded, "PNG")
        self._images.append(encoded.getvalue())

    def frames(self) -> "Iterator[NDArray[np.uint8]]":
        """Give them as uint8 [H, 2 W, C]."""
        import numpy as np
        from PIL import Image

        for encoded in self._images:
            with Image.open(io.BytesIO(encoded)) as file:
                pixels = np.asarray(file).reshape(self._target.shape)
            yield np.concatenate([self._target, pixels], axis=1)


def _distance(device: "torch.device", weight: float) -> "Distance":
    """The perceptual distance; nothing is loaded for it when it has no weight."""
    if weight == 0:
        return lambda first, second: first.new_zeros(len(first))
    from stylegan2.features import PerceptualDistance

    return PerceptualDistance(device)
