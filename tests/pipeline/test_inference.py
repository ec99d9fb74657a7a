"""Prediction with single models and ensembles, for images of any size."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.binarise import Binarisation
from pipeline.ensemble import EnsembleConfig, save_ensemble
from pipeline.errors import UserError
from pipeline.frames import Resolution, Statistics, Views, network_input
from pipeline.inference import Predictor, SegmenterPredictor
from pipeline.model_folder import CONFIG_FILE, ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model

CPU = torch.device("cpu")
PROVENANCE = {"versions": {"torch": "2"}, "git_commit": None, "data_sha256": "0"}


def write_model(
    folder: Path,
    seed: int,
    resolution: Resolution = 32,
    threshold: float = 0.5,
    binarisation: Binarisation | None = None,
) -> Path:
    torch.manual_seed(seed)
    architecture = Architecture(base_width=2)
    statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    config = ModelConfig(
        architecture=architecture,
        resolution=resolution,
        statistics=statistics,
        threshold=threshold,
        binarisation=binarisation,
        params={},
        **PROVENANCE,  # type: ignore[arg-type]
    )
    save_model(folder, build_model(architecture), config)
    return folder


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resolution", [32, 40, "native"])
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (7, 5), (1, 50)])
@pytest.mark.parametrize("views", ["none", "flips", "dihedral"])
def test_any_size_gives_probabilities_at_native_size(
    tmp_path: Path, resolution: Resolution, size: tuple[int, int], views: Views
) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, resolution, 0.3), CPU)
    probability = predictor.predict(photograph(*size), views=views)
    assert probability.shape == size
    assert probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() <= 1
    assert predictor.threshold == 0.3


def test_prediction_leaves_the_image_alone_and_repeats(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0), CPU)
    image = photograph(40, 50)
    copy = image.copy()
    assert np.array_equal(predictor.predict(image), predictor.predict(image))
    assert np.array_equal(image, copy)


@pytest.mark.parametrize(
    ("views", "transform"),
    [
        ("flips", np.fliplr),
        ("flips", np.flipud),
        ("dihedral", np.rot90),
        ("dihedral", np.fliplr),
        ("dihedral", lambda array: np.swapaxes(array, 0, 1)),
    ],
)
def test_averaged_prediction_commutes_with_its_views(tmp_path: Path, views: Views, transform: Any) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, "native"), CPU)
    image = photograph(32, 40)
    moved = np.ascontiguousarray(transform(image))
    plain = np.abs(predictor.predict(moved) - transform(predictor.predict(image))).max()
    averaged = predictor.predict(moved, views=views) - transform(predictor.predict(image, views=views))
    assert np.abs(averaged).max() < 1e-5 < plain


def lively_predictor(tmp_path: Path) -> SegmenterPredictor:
    """A network whose logits vary, and with what lies deep in it: its statistics fit the photograph."""
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, "native"), CPU)
    assert isinstance(predictor, SegmenterPredictor)
    torch.manual_seed(0)
    network = build_model(Architecture(base_width=4, dropblock_keep=1)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(network_input([photograph(64, 64).astype(np.float32) / 255], predictor.config.statistics))
    return SegmenterPredictor(network, predictor.config)


@pytest.mark.parametrize("views", ["none", "flips", "dihedral"])
def test_tiles_change_nothing_but_rounding(tmp_path: Path, views: Views) -> None:
    predictor = lively_predictor(tmp_path)
    image = photograph(450, 600)
    assert predictor.tile_count(450, 600, 424) == 4
    assert predictor.tile_count(450, 600) == predictor.tile_count(450, 600, None) == 1
    whole, tiled = (predictor.predict(image, tile=tile, views=views) for tile in (None, 424))
    assert whole.std() > 5e-3
    assert np.abs(whole - tiled).max() < 1e-5


def test_tiles_without_a_halo_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = lively_predictor(tmp_path)
    monkeypatch.setattr("pipeline.tiling.HALO", 8)
    image = photograph(450, 600)
    difference = predictor.predict(image, tile=424) - predictor.predict(image, tile=None)
    assert np.abs(difference).max() > 1e-4


def test_frames_that_fit_into_a_tile_at_working_resolution_are_not_tiled(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, 32), CPU)
    assert predictor.tile_count(4000, 4000) == 1


def test_a_tile_that_is_too_small_is_refused(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0), CPU)
    for tile in (64, 1001):
        with pytest.raises(UserError, match=f"got {tile} pixels; expected a multiple of 8 from"):
            predictor.predict(photograph(16, 16), tile=tile)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_arrays_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        Predictor.from_folder(write_model(tmp_path / "m", 0), CPU).predict(image)


def test_masks_are_made_as_the_folder_says(tmp_path: Path) -> None:
    made = Binarisation(threshold=0.8, hysteresis_low=0.4, min_size=3)
    probability = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    plain = Predictor.from_folder(write_model(tmp_path / "plain", 0, threshold=0.3), CPU)
    assert np.array_equal(plain.mask(probability), probability >= 0.3)
    folder = write_model(tmp_path / "made", 0, threshold=0.3, binarisation=made)
    predictor = Predictor.from_folder(folder, CPU)
    assert (predictor.threshold, predictor.binarisation) == (0.3, made)
    assert np.array_equal(predictor.mask(probability), made.mask(probability))

    other = Binarisation(threshold=0.7)
    config = EnsembleConfig(
        rule="mean",
        weight=0.5,
        threshold=0.6,
        binarisation=other,
        **PROVENANCE,  # type: ignore[arg-type]
    )
    save_ensemble(tmp_path / "ensemble", config, [folder, folder])
    ensemble = Predictor.from_folder(tmp_path / "ensemble", CPU)
    assert np.array_equal(ensemble.mask(probability), other.mask(probability))


def test_an_ensemble_works_without_its_members_folders(tmp_path: Path) -> None:
    members = [write_model(tmp_path / "base", 0), write_model(tmp_path / "retrained", 1, "native")]
    config = EnsembleConfig(rule="weighted", weight=0.25, threshold=0.6, **PROVENANCE)  # type: ignore[arg-type]
    image = photograph(48, 37)
    base, retrained = (Predictor.from_folder(folder, CPU).predict(image) for folder in members)
    save_ensemble(tmp_path / "ensemble", config, members)
    for folder in members:
        shutil.rmtree(folder)
    ensemble = Predictor.from_folder(tmp_path / "ensemble", CPU)
    assert ensemble.threshold == 0.6
    assert ensemble.binarisation is None
    assert "binarisation" not in json.loads((tmp_path / "ensemble" / CONFIG_FILE).read_text())
    assert np.allclose(ensemble.predict(image), 0.25 * base + 0.75 * retrained, atol=1e-6)


def test_an_unknown_kind_of_folder_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", 0)
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"kind": "generator"}))
    with pytest.raises(UserError, match="kind is 'generator'"):
        Predictor.from_folder(folder, CPU)
    with pytest.raises(UserError, match="missing"):
        Predictor.from_folder(tmp_path / "nowhere", CPU)
