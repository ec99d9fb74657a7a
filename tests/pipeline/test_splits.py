from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from pipeline.errors import UserError
from pipeline.readers.raw import RawFile, RawItem
from pipeline.splits import assign_splits


def item(name, split=None, patient=None):
    file = RawFile(Path(name), PurePosixPath(name))
    vessels = None if split == "unlabelled" else file
    return RawItem(name, file, vessels, None, patient or name, split)


def assign(items, validation=4, test=5, limit=None, seed=0):
    pairs = assign_splits(items, validation_count=validation, test_count=test, train_limit=limit, seed=seed)
    return {item.id: split for item, split in pairs}


NAMES = [f"im{i:02}" for i in range(20)]
OFFICIAL = [item(name, "train") for name in NAMES] + [item(f"t{i}", "test") for i in range(6)]


def test_validation_comes_out_of_the_official_training_set():
    splits = assign(OFFICIAL)
    assert Counter(splits.values()) == {"train": 16, "validation": 4, "test": 6}
    assert all(splits[f"t{i}"] == "test" for i in range(6))
    assert list(splits) == sorted(splits)


def test_without_official_split_the_test_set_is_drawn():
    splits = assign([item(name) for name in NAMES] + [item("u", "unlabelled")])
    assert Counter(splits.values()) == {"train": 11, "validation": 4, "test": 5, "unlabelled": 1}
    assert splits["u"] == "unlabelled"


def test_the_seed_decides_and_the_order_of_files_does_not():
    assert assign(OFFICIAL) == assign(OFFICIAL[::-1])
    assert assign(OFFICIAL) != assign(OFFICIAL, seed=1)


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("seed", range(5))
def test_a_patient_is_in_one_split_only(split, seed):
    items = [item(f"{name}{eye}", split, name) for name in NAMES for eye in "LR"]
    splits = assign(items, validation=5, test=7, seed=seed)
    for name in NAMES:
        assert splits[f"{name}L"] == splits[f"{name}R"]
    counts = Counter(splits.values())
    assert counts["validation"] == 6 and counts["test"] == (8 if split is None else 0)


def test_fewer_training_images_are_a_subset_and_move_nothing_else():
    chosen = {}
    for limit in (2, 8, None):
        splits = assign(OFFICIAL, limit=limit)
        chosen[limit] = {name for name, split in splits.items() if split == "train"}
        assert Counter(splits.values())["validation"] == 4 and Counter(splits.values())["test"] == 6
    assert len(chosen[2]) == 2 and len(chosen[8]) == 8
    assert chosen[2] < chosen[8] < chosen[None]


def test_too_few_images_are_reported():
    with pytest.raises(UserError, match="of 20 labelled images 5 are for the test and 15 for validation"):
        assign([item(name) for name in NAMES], validation=15)
    with pytest.raises(UserError, match="train_limit is 17, but only 16"):
        assign(OFFICIAL, limit=17)
