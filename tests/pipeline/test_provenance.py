import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.prepared import Entry, Frame, Sample, write_prepared
from pipeline.provenance import DEVELOPMENT, SYNTHETIC, training_images
from stages.fingerprint import digest_paths


def write_development(root: Path, first: int = 0) -> list[Sample]:
    """Write two training images and a validation image, each of one colour."""
    mask = np.ones((4, 4), bool)
    entries = [
        Entry(Frame(f"{n}", np.full((4, 4, 3), first + n, np.uint8), mask, mask), split, "x")
        for n, split in enumerate(("train", "train", "validation"))
    ]
    return write_prepared(root / DEVELOPMENT, entries)


def write_model(folder: Path, data_sha256: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"kind": "segmenter", "data_sha256": data_sha256}))
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_data_of_the_recorded_hash_name_every_image(project: Path) -> None:
    samples = write_development(project)
    base = write_model(project / "models/base", digest_paths([DEVELOPMENT]))
    found = training_images(base, project.parent / "elsewhere")  # found above the model
    assert found.folders == (project / DEVELOPMENT,)
    assert found.unknown == ()
    assert found.overlap(samples) == {"train": ["0", "1"], "validation": ["2"]}


def test_a_model_elsewhere_is_explained_by_the_working_folder(project: Path) -> None:
    samples = write_development(project)
    moved = write_model(project.parent / "elsewhere/base", digest_paths([DEVELOPMENT]))
    assert training_images(moved, project).overlap(samples)["train"] == ["0", "1"]
    unknown = training_images(moved, project.parent)
    assert unknown.unknown == (moved / "config.json",) and unknown.used == {}


def test_other_data_explain_nothing(project: Path) -> None:
    samples = write_development(project)
    base = write_model(project / "models/base", digest_paths([DEVELOPMENT]))
    manifest = project / DEVELOPMENT / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",x", ",y"))
    found = training_images(base, project)
    assert found.unknown == (base / "config.json",)
    assert (found.folders, found.overlap(samples)) == ((), {"train": [], "validation": []})


def test_images_are_compared_by_their_pixels(project: Path, tmp_path: Path) -> None:
    write_development(project)
    base = write_model(project / "models/base", digest_paths([DEVELOPMENT]))
    shifted = write_development(
        tmp_path / "other", first=1
    )  # ids 0, 1, 2 are the colours of 1, 2 and a new one
    assert training_images(base, project).overlap(shifted) == {"train": ["0"], "validation": ["1"]}


def test_an_ensemble_is_known_when_its_members_are(project: Path) -> None:
    samples = write_development(project)
    for place in SYNTHETIC:
        (project / place).mkdir(parents=True)
        (project / place / "0.png").write_text(place)
    ensemble = project / "models/ensemble"
    base = write_model(ensemble / "members/base", digest_paths([DEVELOPMENT]))
    retrained = write_model(ensemble / "members/retrained", digest_paths([DEVELOPMENT, *SYNTHETIC]))
    (ensemble / "config.json").write_text(
        json.dumps({"kind": "ensemble", "members": ["base", "retrained"], "data_sha256": "of the members"})
    )
    found = training_images(ensemble, project)
    assert found.unknown == () and found.folders == (project / DEVELOPMENT,)
    assert list(found.recorded) == [base / "config.json", retrained / "config.json"]
    assert found.overlap(samples)["train"] == ["0", "1"]

    (project / SYNTHETIC[0] / "0.png").write_text("another pool")
    found = training_images(ensemble, project)
    assert found.unknown == (retrained / "config.json",)
    assert found.overlap(samples)["train"] == ["0", "1"]  # the base model's are known all the same
