"""Stage `prepare`: verify the raw dataset, or draw phantoms, and write development and test data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator
from tqdm import tqdm

from pipeline.checks import read_item, verify
from pipeline.errors import Problems, UserError
from pipeline.phantom import draw_phantoms
from pipeline.prepared import TEST_SPLITS, Entry, Frame, Split, write_prepared
from pipeline.readers.raw import MissingDatasetError, open_raw
from pipeline.readers.registry import READERS
from pipeline.schema import Strict
from pipeline.splits import assign_splits
from stages.context import StageRun, stage_command

RAW = "data/raw"
_PHANTOM_START: dict[Split, int] = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


class PhantomParams(Strict):
    """How many phantoms to draw; the counts of one split leave the images of the others alone.

    Attributes:
        size: pixels on each side.
    """

    size: int = Field(default=128, ge=64, le=2048)
    train_count: int = Field(default=64, ge=1, le=1_000_000)
    test_count: int = Field(default=16, ge=1, le=1_000_000)


class Params(Strict):
    """Section `prepare`.

    Attributes:
        dataset: `phantom` is generated, the others are read; `folder` is your own (see data/README.md).
        path: where the raw data lie, below data/raw; null stands for data/raw/<dataset>.
        validation_count: images for validation, out of the training set; one patient's images stay together.
        test_count: images for the test, where the dataset has no official test set.
        train_limit: use only this many of the training images (for studies with few labels); null for all.
        phantom: what `dataset: phantom` draws.
    """

    dataset: Literal["phantom", "drive", "chase_db1", "stare", "hrf", "folder"] = "phantom"
    path: str | None = None
    validation_count: int = Field(default=4, ge=1, le=1_000_000)
    test_count: int = Field(default=5, ge=1)
    train_limit: int | None = Field(default=None, ge=1)
    phantom: PhantomParams = PhantomParams()

    @field_validator("path")
    @classmethod
    def _below_raw(cls, path: str | None) -> str | None:
        if path is not None:
            parts = PurePosixPath(path).parts
            if parts[:2] != ("data", "raw") or len(parts) < 3 or ".." in parts:
                raise ValueError(
                    f"expected a folder below {RAW}, such as {RAW}/mine; put or link the data there"
                )
        return path

    @property
    def raw_folder(self) -> Path:
        """The folder to read; nothing is read for phantoms."""
        return Path(self.path or f"{RAW}/{self.dataset}")


def refuse_linked_folders(folder: Path, root: Path) -> None:
    """Make sure that DVC sees the data: it passes over linked folders below a dependency without a word.

    Args:
        folder: the dataset's folder.
        root: the dependency that it lies in.

    Raises:
        UserError: `folder`, or one between it and `root` or below it, is a symbolic link.
    """
    above = [parent for parent in folder.parents if parent.is_relative_to(root) and parent != root]
    links = [
        path for path in (*above, folder, *sorted(folder.rglob("*"))) if path.is_symlink() and path.is_dir()
    ]
    if links:
        raise UserError(
            f"{', '.join(map(str, links))}: linked folders; DVC passes over them and would miss changes; "
            f"copy the files, or link each file (cp -rs), or let {root} itself be the link"
        )


def prepare_phantoms(params: Params, seed: int, development: Path, test: Path, *, processes: int) -> None:
    """Draw the phantoms of all splits and write them.

    Raises:
        UserError: `train_limit` asks for more training images than there are.
    """
    limit, available = params.train_limit, params.phantom.train_count
    if limit is not None and limit > available:
        raise UserError(
            f"train_limit is {limit}, but phantom.train_count is {available}; lower it or draw more"
        )
    counts: dict[Split, int] = {
        "train": available if limit is None else limit,
        "validation": params.validation_count,
        "test": params.phantom.test_count,
    }
    with tqdm(total=sum(counts.values()), desc="drawing phantoms", unit="image") as bar:

        def entries(*splits: Split) -> Iterator[Entry]:
            for split in splits:
                start = _PHANTOM_START[split]
                indices = range(start, start + counts[split])
                phantoms = draw_phantoms(seed, indices, params.phantom.size, processes)
                for index, phantom in zip(indices, phantoms, strict=True):
                    frame = Frame(f"phantom_{index:07}", phantom.image, phantom.vessels, phantom.fov)
                    yield Entry(frame, split, f"phantom({seed},{index})")
                    bar.update()

        write_prepared(development, entries("train", "validation"))
        write_prepared(test, entries("test"))


def prepare_dataset(params: Params, seed: int, raw_folder: Path, development: Path, test: Path) -> None:
    """Verify a raw dataset, divide it, and write it; nothing is written if anything is wrong with it.

    Raises:
        UserError: with every problem of the dataset, or because it has too few images for the counts.
    """
    reader = READERS[params.dataset]
    with open_raw(raw_folder, reader.layout) as folder:
        problems = Problems(f"{raw_folder}: the dataset is not usable as it is; nothing was written")
        items = reader.read(folder, problems)
        verify(items, problems, progress=True)
        problems.raise_if_any()
        assigned = assign_splits(
            items,
            validation_count=params.validation_count,
            test_count=params.test_count,
            train_limit=params.train_limit,
            seed=seed,
        )
        for target, is_test in ((development, False), (test, True)):
            chosen = [(item, split) for item, split in assigned if (split in TEST_SPLITS) == is_test]
            progress = tqdm(chosen, desc=f"writing {'test' if is_test else 'development'}", unit="image")
            write_prepared(
                target, (Entry(read_item(item), split, str(item.image.source)) for item, split in progress)
            )


@contextmanager
def explain_experiment_copies(raw_folder: Path) -> Iterator[None]:
    """Add to a missing dataset's message how to get it into the temporary copy of a DVC experiment.

    DVC copies what git knows, which raw data are not; in a copy DVC_ROOT names the repository it was made of.

    Raises:
        MissingDatasetError: the one raised in the block, with the hint if this is a copy.
    """
    try:
        yield
    except MissingDatasetError as error:
        root = os.environ.get("DVC_ROOT")
        if root is None or Path(root).resolve() == Path.cwd().resolve():
            raise
        raise MissingDatasetError(
            f"{error}. Experiments in a copy (`dvc exp run --temp` or `--queue`) need `-C {raw_folder}`"
        ) from error


@stage_command("prepare", Params)
def main(run: StageRun) -> None:
    """Verify the raw dataset, or draw phantoms, and write data/prepared."""
    development, test = run.out("data/prepared/development"), run.out("data/prepared/test")
    if run.params.dataset == "phantom":
        prepare_phantoms(run.params, run.seed, development, test, processes=run.runtime.process_count())
        return
    refuse_linked_folders(run.params.raw_folder, run.dep(RAW))
    with explain_experiment_copies(run.params.raw_folder):
        prepare_dataset(run.params, run.seed, run.params.raw_folder, development, test)


if __name__ == "__main__":
    main()
