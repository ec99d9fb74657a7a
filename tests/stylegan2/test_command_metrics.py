"""`stylegan2 metrics`: sizes and classes of the images that are compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylegan2 import features
from stylegan2.cli import main
from stylegan2.sampling import generate, latent, load_generator, sample_images
from tests.stylegan2.small_networks import KWARGS, write_network


class SeenFeatures:
    """Cheap features; keeps the images that they are computed of."""

    name = "fake"
    dim = 12
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += list(images)
        return F.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1).float(), 2).flatten(1) / 100


@pytest.fixture(autouse=True)
def network_of_features(monkeypatch: pytest.MonkeyPatch) -> SeenFeatures:
    found = SeenFeatures()
    monkeypatch.setattr(features, "load_feature_network", lambda *_: found)
    return found


def write_images(folder: Path, count: int = 8, size: tuple[int, int] = (16, 16)) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def write_labels(folder: Path, labels: list[Any]) -> None:
    pairs = [[f"{index}.png", label] for index, label in enumerate(labels)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))


def run(*arguments: object, fails: int = 0) -> Result:
    command = [str(argument) for argument in ("metrics", "--k", 2, *arguments)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def as_pixels(images: list[Tensor]) -> NDArray[np.uint8]:
    return torch.stack(images).permute(0, 2, 3, 1).numpy()


# Sizes


def test_a_network_is_compared_with_images_of_its_size(
    tmp_path: Path, network_of_features: SeenFeatures
) -> None:
    network, real = write_network(tmp_path / "gan"), write_images(tmp_path / "real")
    result = run("--real", real, "--network", network, "--count", 5)
    numbers = json.loads(result.stdout)
    assert (numbers["real_count"], numbers["fake_count"]) == (8, 5)
    expected = np.stack(list(sample_images(load_generator(network), range(5), 1.0)))
    assert np.array_equal(as_pixels(network_of_features.seen[8:]), expected)
    assert "Warning" not in result.output


def test_images_of_another_size_are_refused_or_resized(tmp_path: Path) -> None:
    network, real = write_network(tmp_path / "gan"), write_images(tmp_path / "real", size=(20, 32))
    command = ("--real", real, "--network", network, "--count", 4)
    message = run(*command, "--trunc", "nan", fails=1).output
    assert f"{real} cannot be compared with:" in message and "truncation ψ: got nan" in message
    assert message.count("got 20×32 (height × width), expected 16×16; resize the images first, or") == 8
    small = tmp_path / "small"
    small.mkdir()
    for path in real.iterdir():  # as training: scaled and cut off at both ends
        with Image.open(path) as image:
            box = (6, 0, 26, 20)
            image.resize((16, 16), Image.Resampling.LANCZOS, box=box).save(small / path.name)
    resized = json.loads(run(*command, "--resize").stdout)
    assert resized == json.loads(run("--real", small, "--network", network, "--count", 4).stdout)


def test_a_network_that_is_not_square_is_compared_with_images_like_its_own(tmp_path: Path) -> None:
    synthesis = {**KWARGS["synthesis_kwargs"], "base_grid": [3, 4]}
    network = write_network(tmp_path / "gan", synthesis_kwargs=synthesis)
    real = write_images(tmp_path / "real", size=(12, 16))
    run("--real", real, "--network", network, "--count", 4)


def test_folders_of_different_sizes_are_warned_of(tmp_path: Path) -> None:
    real, fake = write_images(tmp_path / "real"), write_images(tmp_path / "fake", size=(8, 8))
    result = run("--real", real, "--fake", fake)
    assert "Warning: the real images are 16×16, the generated ones 8×8" in result.stderr
    assert json.loads(result.stdout)["fake_count"] == 8
    assert "Warning" not in run("--real", real, "--fake", real).output


def test_what_needs_a_network_says_so(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "real")
    result = run("--real", folder, "--fake", folder, "--resize", "--class", 1, "--device", "gpu", fails=1)
    for part in ("3 problems", "--resize needs --network", "--class needs --network", "device: got 'gpu'"):
        assert part in result.output
    for arguments in ((), ("--fake", folder, "--network", "gan")):
        assert "give one of --fake FOLDER and --network" in run("--real", folder, *arguments, fails=1).output


# Classes


def test_labels_are_drawn_as_often_as_they_occur(tmp_path: Path, network_of_features: SeenFeatures) -> None:
    network, real = write_network(tmp_path / "gan", c_dim=3), write_images(tmp_path / "real")
    write_labels(real, [1, 0, 1, 1, 1, 1, 1, 0])  # the third class is unknown to the folder
    run("--real", real, "--network", network, "--count", 100, "--trunc", 0.7)
    generator = load_generator(network)
    drawn = as_pixels(network_of_features.seen[8:])
    counts = [0, 0, 0]
    for seed, image in enumerate(drawn):
        of_classes = generate(
            generator, latent(seed, generator.z_dim).expand(3, -1), 0.7, label=torch.eye(3)
        )  # [3, C, H, W]
        pixels = (of_classes * 127.5 + 128).clamp(0, 255).floor().permute(0, 2, 3, 1).numpy()
        counts[int(np.abs(pixels - image).mean(axis=(1, 2, 3)).argmin())] += 1
    assert counts[2] == 0
    assert 10 <= counts[0] <= 40  # a quarter is expected


def test_one_class_is_compared_with_its_own_images(tmp_path: Path, network_of_features: SeenFeatures) -> None:
    network, real = write_network(tmp_path / "gan", c_dim=2), write_images(tmp_path / "real")
    write_labels(real, [0, 1, 1, 0, 0, 1, 0, 1])
    numbers = json.loads(run("--real", real, "--network", network, "--count", 4, "--class", 1).stdout)
    assert (numbers["real_count"], numbers["fake_count"]) == (4, 4)
    expected = []
    for index in (1, 2, 5, 7):
        with Image.open(real / f"{index}.png") as image:
            expected.append(np.asarray(image))
    assert np.array_equal(as_pixels(network_of_features.seen[:4]), np.stack(expected))
    drawn = np.stack(list(sample_images(load_generator(network), range(4), 1.0, class_index=1)))
    assert np.array_equal(as_pixels(network_of_features.seen[4:]), drawn)


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (None, (), "has no labels, but the network has 2 classes; add a dataset.json"),
        (None, ("--class", 1), "has no labels, but the network has 2 classes; add a dataset.json"),
        ([0, 1, 2, 0, 0, 0, 0, 0], (), "its labels have 3 classes, or numbers each, the network 2"),
        ([[0.5]] * 8, (), "its labels have 1 classes, or numbers each, the network 2"),
        ([[0.5, 1]] * 8, ("--class", 1), "are no classes; leave it out"),
        ([0, 1, 0, 0, 0, 0, 0, 0], ("--class", 1), "holds 1 images of it, expected at least 2"),
        ([0] * 8, ("--class", 1), "holds 0 images of it, expected at least 2"),
        ([0, 1] * 4, ("--class", 2), "class: got 2, expected one of this network's classes, 0 to 1"),
    ],
)
def test_labels_and_classes_that_do_not_fit(
    labels: list[Any] | None, arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    network, real = write_network(tmp_path / "gan", c_dim=2), write_images(tmp_path / "real")
    if labels is not None:
        write_labels(real, labels)
    assert message in run("--real", real, "--network", network, *arguments, fails=1).output


def test_labels_that_are_numbers_are_drawn_too(tmp_path: Path) -> None:
    network, real = write_network(tmp_path / "gan", c_dim=2), write_images(tmp_path / "real")
    write_labels(real, [[0.5, 1]] * 8)
    others = run("--real", real, "--network", network, "--count", 3).output
    write_labels(real, [[-4, 4]] * 8)
    assert run("--real", real, "--network", network, "--count", 3).output != others


def test_a_network_without_classes_needs_no_labels(tmp_path: Path) -> None:
    network, real = write_network(tmp_path / "gan"), write_images(tmp_path / "real")
    write_labels(real, [0, 1] * 4)
    run("--real", real, "--network", network, "--count", 3)
    assert "has no classes" in run("--real", real, "--network", network, "--class", 1, fails=1).output
