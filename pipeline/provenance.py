"""Which images a model was trained on, where that can be told for certain.

A model's config.json holds `data_sha256`, a hash over the files of its training stage's inputs, and the
manifest of prepared data holds a hash of every image's pixels. Where the prepared development data of today
have the recorded hash, the images are known one by one; everywhere else nothing is said about them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.digest import digest_paths
from pipeline.ensemble import MEMBERS_FOLDER
from pipeline.model_folder import CONFIG_FILE, read_config
from pipeline.prepared import Sample, load_samples

DEVELOPMENT = "data/prepared/development"
SYNTHETIC = ("data/synthetic/images", "data/synthetic/probabilities")
# What a training stage may have read besides code: the base model's inputs, and those of the retrained one.
_INPUTS = ((DEVELOPMENT,), (DEVELOPMENT, *SYNTHETIC))

Use = Literal["train", "validation"]
_USES: tuple[Use, ...] = ("train", "validation")


@dataclass(frozen=True)
class Provenance:
    """What is known about a model's training images.

    Attributes:
        used: pixel hash (see `pipeline.prepared.pixel_sha256`) of every image known to have been used, and
            for what: `train` moved the weights, `validation` chose epoch and threshold.
        folders: the prepared development data whose hash is the recorded one; none where nothing is known.
        recorded: `data_sha256` by config.json of each network.
        unknown: the config.json files, of those in `recorded`, whose training data were not found.
    """

    used: Mapping[str, Use]
    folders: tuple[Path, ...]
    recorded: Mapping[Path, str]
    unknown: tuple[Path, ...]

    def overlap(self, samples: Iterable[Sample]) -> dict[Use, list[str]]:
        """List the ids of the samples that the model is known to have used, by use."""
        found: dict[Use, list[str]] = {use: [] for use in _USES}
        for sample in samples:
            use = self.used.get(sample.sha256)
            if use is not None:
                found[use].append(sample.id)
        return found


def training_images(model: Path, working_folder: Path) -> Provenance:
    """Look for the images that a model was trained on.

    Args:
        model: folder of a segmenter, or of an ensemble, whose members are looked up one by one.
        working_folder: a project's folder perhaps; the folders above the model are tried as well.

    Raises:
        UserError: a config.json is missing or broken, or the manifest of the data found is.
    """
    recorded = dict(_recorded(model))
    unexplained = set(recorded.values())
    roots: list[Path] = []
    for root in _projects([*model.resolve().parents, working_folder.resolve()]):
        for inputs in _INPUTS:
            if unexplained and (digest := digest_paths(inputs, root)) in unexplained:
                unexplained.remove(digest)
                roots.append(root)
    folders = tuple(root / DEVELOPMENT for root in dict.fromkeys(roots))
    used: dict[str, Use] = {}
    for folder in folders:
        for use in _USES:
            for sample in load_samples(folder, use):
                used.setdefault(sample.sha256, use)
    unknown = tuple(config for config, digest in recorded.items() if digest in unexplained)
    return Provenance(used, folders, recorded, unknown)


def _recorded(model: Path) -> Iterator[tuple[Path, str]]:
    config = read_config(model)
    if config.get("kind") == "ensemble":
        for member in config["members"]:
            yield from _recorded(model / MEMBERS_FOLDER / member)
    else:
        yield model / CONFIG_FILE, str(config.get("data_sha256"))


def _projects(folders: Sequence[Path]) -> list[Path]:
    """Keep the folders that hold prepared development data, each once."""
    return [folder for folder in dict.fromkeys(folders) if (folder / DEVELOPMENT).is_dir()]
