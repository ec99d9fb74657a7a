"""Dividing a dataset into train, validation and test, patient by patient, reproducibly."""

import hashlib
from collections.abc import Sequence
from itertools import groupby

from pipeline.errors import Problems
from pipeline.prepared import Split
from pipeline.readers.raw import RawItem


def assign_splits(
    items: Sequence[RawItem],
    *,
    validation_count: int,
    test_count: int,
    train_limit: int | None,
    seed: int,
) -> list[tuple[RawItem, Split]]:
    """Give every image a split; images left out by `train_limit` do not occur in the result.

    Official test images stay test images, and the validation images come out of the training set. Images
    without an official split first give the test images, then the validation images. Patients are taken as a
    whole, in the order of a hash of seed and patient: an added image leaves the others' order alone, and a
    smaller `train_limit` takes a subset of what a larger one takes.

    Args:
        items: the images with their patients and official splits.
        validation_count: images for validation, at least; one patient's images stay together.
        test_count: images for the test, at least; used only where images have no official split.
        train_limit: use only this many training images; None for all.
        seed: decides who goes where.

    Returns:
        (item, split), sorted by id.

    Raises:
        UserError: there are too few images for these counts.
    """
    result: list[tuple[RawItem, Split]] = []
    for item in items:
        if item.split in ("test", "unlabelled"):
            result.append((item, item.split))
    undecided = _shuffled([item for item in items if item.split is None], seed)
    if undecided:
        test, undecided = _take(undecided, test_count)
        result += [(item, "test") for item in test]
    training = _shuffled([item for item in items if item.split == "train"], seed) + undecided
    validation, training = _take(training, validation_count)
    result += [(item, "validation") for item in validation]

    problems = Problems("the images cannot be divided as asked")
    labelled = sum(item.vessels is not None for item in items)
    if not training:
        tests = sum(split == "test" for _, split in result)
        problems.add(
            f"of {labelled} labelled images {tests} are for the test and {len(validation)} for validation, "
            "which leaves none for training; lower validation_count or test_count, or add images"
        )
    elif train_limit is not None and train_limit > len(training):
        problems.add(
            f"train_limit is {train_limit}, but only {len(training)} training images are left after "
            f"{len(validation)} for validation; lower it, or set it to null to use all"
        )
    problems.raise_if_any()
    result += [(item, "train") for item in training[:train_limit]]
    return sorted(result, key=lambda pair: pair[0].id)


def _shuffled(items: Sequence[RawItem], seed: int) -> list[RawItem]:
    """Order the items by the hash of seed and patient; a patient's images lie side by side."""
    return sorted(items, key=lambda item: (_rank(item.patient, seed), item.patient, item.id))


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def _take(items: Sequence[RawItem], count: int) -> tuple[list[RawItem], list[RawItem]]:
    """Split off whole patients from the front until there are `count` images."""
    taken: list[RawItem] = []
    rest: list[RawItem] = []
    for _, images in groupby(items, key=lambda item: item.patient):
        (taken if len(taken) < count else rest).extend(images)
    return taken, rest
