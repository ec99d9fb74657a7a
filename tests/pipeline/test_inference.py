"""Prediction with single models and ensembles, for images of any size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.ensemble import EnsembleConfig, save_ensemble
from pipeline.errors import UserError
from pipeline.frames import Resolution, Statistics
from pipeline.inference import Predictor
from pipeline.model_folder import CONFIG_FILE, ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model

CPU = torch.device("cpu")
PROVENANCE = {"versions": {"torch": "2"}, "git_commit": None, "data_sha256": "0"}


def write_model(folder: Path, seed: int, resolution: Resolution = 32, threshold: float = 0.5) -> Path:
    torch.manual_seed(seed)
    architecture = Architecture(base_width=2)
    statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    config = ModelConfig(
        architecture=architecture,
        resolution=resolution,
        statistics=statistics,
        threshold=threshold,
        params={},
        **PROVENANCE,  # type: ignore[arg-type]
    )
    save_model(folder, build_model(architecture), config)
    return folder


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resolution", [32, 40, "native"])
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (7, 5), (1, 50)])
@pytest.mark.parametrize("flips", [False, True])
def test_any_size_gives_probabilities_at_native_size(
    tmp_path: Path, resolution: Resolution, size: tuple[int, int], flips: bool
) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, resolution, 0.3), CPU)
    probability = predictor.predict(photograph(*size), flips=flips)
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


def test_flipped_prediction_commutes_with_flips(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "m", 0, "native"), CPU)
    image = photograph(32, 40)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    assert np.allclose(
        predictor.predict(mirrored, flips=True)[:, ::-1], predictor.predict(image, flips=True), atol=1e-5
    )


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_arrays_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        Predictor.from_folder(write_model(tmp_path / "m", 0), CPU).predict(image)


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
    assert np.allclose(ensemble.predict(image), 0.25 * base + 0.75 * retrained, atol=1e-6)


def test_an_unknown_kind_of_folder_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", 0)
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"kind": "generator"}))
    with pytest.raises(UserError, match="kind is 'generator'"):
        Predictor.from_folder(folder, CPU)
    with pytest.raises(UserError, match="missing"):
        Predictor.from_folder(tmp_path / "nowhere", CPU)
