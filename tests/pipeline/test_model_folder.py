"""A model folder returns what was saved, and says what is wrong with one that cannot be used."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.binarise import Binarisation
from pipeline.errors import UserError
from pipeline.frames import Statistics
from pipeline.model_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    BestEpoch,
    ModelConfig,
    load_model,
    save_model,
)
from pipeline.models.registry import Architecture, build_model

CPU = torch.device("cpu")


def config(base_width: int = 2) -> ModelConfig:
    return ModelConfig(
        architecture=Architecture(base_width=base_width),
        resolution="native",
        statistics=Statistics(mean=(0.5, 0.3, 0.2), std=(0.2, 0.1, 0.1)),
        threshold=0.4,
        best=BestEpoch(phase="real (final)", epoch=3, validation_auc=0.9),
        params={"train_base": {"epochs": 3}},
        versions={"torch": "2"},
        git_commit=None,
        data_sha256="ab" * 32,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model", build_model(config().architecture), config())
    return tmp_path / "model"


def test_a_model_comes_back_as_it_was(folder: Path) -> None:
    torch.manual_seed(0)
    original = build_model(config().architecture).eval()
    network, loaded = load_model(folder, CPU)
    assert loaded == config()
    assert not network.training
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(network(x), original(x))


def test_equal_models_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    network, loaded = load_model(folder, CPU)
    save_model(tmp_path / "again", network, loaded)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_how_masks_are_made_is_kept_and_otherwise_not_mentioned(folder: Path) -> None:
    # without it the file is what it was before there was such a key, and such a file can be read
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert list(values) == [name for name in ModelConfig.model_fields if name != "binarisation"]
    network, loaded = load_model(folder, CPU)
    assert loaded.binarisation is None
    made = Binarisation(threshold=0.6, hysteresis_low=0.35, min_size=32)
    save_model(folder, network, loaded.model_copy(update={"binarisation": made}))
    assert load_model(folder, CPU)[1].binarisation == made
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert values["binarisation"] == {"threshold": 0.6, "hysteresis_low": 0.35, "min_size": 32}
    values["binarisation"]["hysteresis_low"] = 0.7
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"hysteresis_low 0\.7 is above threshold 0\.6"):
        load_model(folder, CPU)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: missing"):
        load_model(tmp_path / "nowhere", CPU)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing"):
        load_model(folder, CPU)


@pytest.mark.parametrize("content", ["{", "[1]", '{"kind": "segmenter"}', '{"kind": "ensemble"}'])
def test_a_wrong_config_is_explained(folder: Path, content: str) -> None:
    (folder / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder, CPU)


def test_unknown_keys_are_refused(folder: Path) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"surprise": 1}))
    with pytest.raises(UserError, match="surprise"):
        load_model(folder, CPU)


def test_weights_must_fit_the_config(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "wider", build_model(Architecture(base_width=4)), config(base_width=2))
    with pytest.raises(UserError, match="not the weights of the sa_unet"):
        load_model(tmp_path / "wider", CPU)
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-10])
    with pytest.raises(UserError, match="not the weights"):
        load_model(folder, CPU)


def test_what_is_wrong_with_a_config_is_said_in_plain_words_all_at_once(folder: Path) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    del values["threshold"], values["statistics"]["std"]
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"resolution": [], "surprise": 1}))
    with pytest.raises(UserError) as error:
        load_model(folder, CPU)
    title, *lines = str(error.value).splitlines()
    assert title.endswith(
        "config.json: not the config of a usable model; train the model again (4 problems):"
    )
    assert "  - threshold: this key is missing" in lines
    assert "  - statistics.std: this key is missing" in lines
    assert "  - surprise: unknown key" in lines
    assert [line for line in lines if line.startswith("  - resolution: got []; should be")]
    assert not any(part in str(error.value) for part in ("pydantic", "type=", "input_value"))


def test_a_wrong_number_in_a_list_is_named_by_its_place(folder: Path) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    values["statistics"]["mean"] = [0.1, "much", 0.3]
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"- statistics\.mean\.1: got 'much'; should be a valid number"):
        load_model(folder, CPU)
