"""`stylegan2 metrics`: how far generated images are from real ones."""

import json
from pathlib import Path

import click

from stylegan2.commands.parameters import class_option, device_option, example, select_device, shows_errors
from stylegan2.errors import StyleGAN2Error


@click.command(epilog=example("stylegan2 metrics --real fundus --network models/gan --count 500"))
@click.option("--real", required=True, type=click.Path(path_type=Path), help="Folder of real images.")
@click.option("--fake", type=click.Path(path_type=Path), help="Folder of generated images.")
@click.option("--network", metavar="NETWORK_DIR", help="Or: a trained GAN to draw images from.")
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
@class_option
@device_option
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Also write the numbers to this JSON file."
)
@shows_errors
def metrics(
    real: Path,
    fake: Path | None,
    network: str | None,
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

    A Fréchet distance is called FID only on features of the official Inception file.

    """  # noqa: D205 - click shows the first paragraph as a whole
    from stylegan2.features import extract_features, load_feature_network
    from stylegan2.files import write_atomically
    from stylegan2.image_folder import image_batches
    from stylegan2.metrics import compare_image_sets
    from stylegan2.sampling import load_generator, raise_problems, sample_images, sampling_problems
    from stylegan2.sources import find_network_folder

    if (fake is None) == (network is None):
        raise StyleGAN2Error("give one of --fake FOLDER and --network NETWORK_DIR")
    chosen = select_device(device)
    if fake is not None:
        images = image_batches(fake)
    else:
        assert network is not None
        generator = load_generator(find_network_folder(network), chosen)
        raise_problems(sampling_problems(generator, range(count), psi, class_index=class_index))
        images = (
            image[None] for image in sample_images(generator, range(count), psi, class_index=class_index)
        )
    feature_network = load_feature_network(features, chosen, weights)
    real_features = extract_features(feature_network, image_batches(real), cache=cache)
    fake_features = extract_features(feature_network, images)
    comparison = compare_image_sets(real_features, fake_features, feature_network.name, k)
    text = json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False)
    click.echo(text)
    if out is not None:
        write_atomically(out, (text + "\n").encode())
