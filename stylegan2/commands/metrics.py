"""`stylegan2 metrics`: how far generated images are from real ones."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylegan2.commands.parameters import (
    Problems,
    device_option,
    example,
    resize_option,
    select_device,
    shows_errors,
)
from stylegan2.errors import StyleGAN2Error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stylegan2.image_folder import ImageFolder
    from stylegan2.networks.generator import Generator


@click.command(epilog=example("stylegan2 metrics --real fundus --network models/gan --resize --count 500"))
@click.option(
    "--real", required=True, type=click.Path(path_type=Path), help="Folder or ZIP file of real images."
)
@click.option("--fake", type=click.Path(path_type=Path), help="Folder or ZIP file of generated images.")
@click.option("--network", metavar="NETWORK_DIR", help="Or: a trained GAN to draw images from.")
@resize_option
@click.option("--count", type=click.IntRange(2), default=1000, show_default=True, help="Images to draw.")
@click.option("--trunc", "psi", type=float, default=1.0, show_default=True, help="Truncation ψ to draw with.")
@click.option(
    "--features", default="efficientnet-lite0", show_default=True, help="Or inception, with --weights."
)
@click.option("--weights", type=click.Path(path_type=Path), help="TorchScript file of inception.")
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, help="Nearest neighbours.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder that keeps the features of real images."
)
@click.option(
    "--class",
    "class_index",
    type=int,
    metavar="N",
    help="Draw and compare this class only, from 0 [all classes, as often as they occur].",
)
@device_option
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Also write the numbers to this JSON file."
)
@shows_errors
def metrics(
    real: Path,
    fake: Path | None,
    network: str | None,
    resize: bool,
    count: int,
    psi: float,
    features: str,
    weights: Path | None,
    k: int,
    cache: Path | None,
    class_index: int | None,
    device: str,
    out: Path | None,
) -> None:
    """Compare generated images with real ones: KID with interval and floor, Fréchet distance, precision,
    recall, density and coverage.

    The real images must have the network's size; --resize scales and crops them as training does. A network
    with classes is drawn from with the labels of the real images: dataset.json, as for training.

    A Fréchet distance is called FID only on features of the official Inception file.

    """  # noqa: D205 - click shows the first paragraph as a whole
    from stylegan2.features import extract_features, load_feature_network
    from stylegan2.files import write_atomically
    from stylegan2.image_folder import image_batches
    from stylegan2.metrics import compare_image_sets
    from stylegan2.sampling import load_generator
    from stylegan2.sources import find_network_folder

    problems = Problems()
    if (fake is None) == (network is None):
        problems.add("give one of --fake FOLDER and --network NETWORK_DIR")
    elif network is None:
        for flag, given in (("--resize", resize), ("--class", class_index is not None)):
            if given:
                problems.add(f"{flag} needs --network: images of a folder are compared as they are")
    with problems.gather():
        chosen = select_device(device)
    problems.raise_if_any()
    real_sizes: set[tuple[int, int]] = set()
    fake_sizes: set[tuple[int, int]] = set()
    real_images: NDArray[np.uint8] | Iterator[NDArray[np.uint8]]
    if fake is not None:
        real_images = _noting_sizes(image_batches(real), real_sizes)
        images = _noting_sizes(image_batches(fake), fake_sizes)
    else:
        assert network is not None
        generator = load_generator(find_network_folder(network), chosen)
        real_images, labels = _real_images(real, generator, resize, psi, class_index)
        images = _draw(generator, count, psi, class_index, labels)
    feature_network = load_feature_network(features, chosen, weights)
    real_features = extract_features(feature_network, real_images, cache=cache)
    fake_features = extract_features(feature_network, images)
    if real_sizes != fake_sizes:
        click.echo(
            f"Warning: the real images are {_listed(real_sizes)}, the generated ones {_listed(fake_sizes)}: "
            "the distances measure the difference in size, too; bring both to one size first",
            err=True,
        )
    comparison = compare_image_sets(real_features, fake_features, feature_network.name, k)
    text = json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False)
    click.echo(text)
    if out is not None:
        write_atomically(out, (text + "\n").encode())


def _noting_sizes(
    batches: "Iterable[NDArray[np.uint8]]", sizes: set[tuple[int, int]]
) -> "Iterator[NDArray[np.uint8]]":
    for batch in batches:
        sizes.add((batch.shape[1], batch.shape[2]))
        yield batch


def _listed(sizes: set[tuple[int, int]]) -> str:
    some = [f"{height}×{width}" for height, width in sorted(sizes)[:3]]
    return ", ".join(some) + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")


def _real_images(
    real: Path, generator: "Generator", resize: bool, psi: float, class_index: int | None
) -> "tuple[NDArray[np.uint8], NDArray[np.float32] | None]":
    """Load the real images to compare with [N, H, W, C], and the labels [N, c_dim] to draw with.

    Without classes, and for one class, there are no labels.

    Raises:
        StyleGAN2Error: naming all that is wrong with the images, their labels, the class and ψ.
    """
    from stylegan2.image_folder import load_image_folder
    from stylegan2.sampling import sampling_problems

    problems = Problems()
    one = 0 if generator.c_dim and class_index is None else class_index  # any, as all are drawn
    problems.add(*sampling_problems(generator, [], psi, class_index=one))
    images, labels = None, None
    with problems.gather():
        folder = load_image_folder(real, generator.img_size, resize, purpose="compared with")
        images = folder.images
        if generator.c_dim:
            labels = _labels(real, folder, generator.c_dim)
    if labels is not None and class_index is not None and not problems.messages:
        chosen = labels[:, class_index] == 1
        images, count = folder.images[chosen], int(chosen.sum())
        if not _are_classes(labels):
            problems.add(f"class: got {class_index}, but the labels of {real} are no classes; leave it out")
        elif count < 2:
            problems.add(f"class: got {class_index}; {real} holds {count} images of it, expected at least 2")
        labels = None
    problems.raise_if_any()
    assert images is not None
    return images, labels


def _are_classes(labels: "NDArray[np.float32]") -> bool:
    """Whether every label [N, c_dim] is one-hot."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _labels(real: Path, folder: "ImageFolder", c_dim: int) -> "NDArray[np.float32]":
    """Give the labels [N, c_dim] of the real images, which may lack the network's last classes."""
    import numpy as np

    labels = folder.labels
    if labels is None:
        raise StyleGAN2Error(
            f"{real} has no labels, but the network has {c_dim} classes; add a dataset.json, as for training"
        )
    found = labels.shape[1]
    if found > c_dim or (found < c_dim and not _are_classes(labels)):
        raise StyleGAN2Error(
            f"{real}: its labels have {found} classes, or numbers each, the network {c_dim}; use the labels "
            "of its training"
        )
    return np.pad(labels, [(0, 0), (0, c_dim - found)])


def _draw(
    generator: "Generator",
    count: int,
    psi: float,
    class_index: int | None,
    labels: "NDArray[np.float32] | None",
) -> "Iterator[NDArray[np.uint8]]":
    """Draw the images [1, H, W, C] of seeds from 0 on, with labels drawn from those given, if any."""
    import torch

    from stylegan2.images import to_uint8
    from stylegan2.randomness import Stream, derive_seed
    from stylegan2.sampling import BATCH, generate, latent, sample_images

    if labels is None:
        for image in sample_images(generator, range(count), psi, class_index=class_index):
            yield image[None]
        return
    place = next(generator.parameters()).device
    rng = torch.Generator().manual_seed(derive_seed(0, Stream.KID))
    drawn = torch.from_numpy(labels)[torch.randint(len(labels), [count], generator=rng)]  # [count, c_dim]
    for part in torch.arange(count).split(BATCH):
        z = torch.cat([latent(seed, generator.z_dim) for seed in part.tolist()])
        images = generate(generator, z.to(place), psi, label=drawn[part].to(place))
        for image in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy():
            yield image[None]
