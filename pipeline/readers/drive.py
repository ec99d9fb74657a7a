"""DRIVE: 40 photographs of 565×584 from a Dutch screening programme, 20 for training and 20 for testing.

    training/{images/21_training.tif, 1st_manual/21_manual1.gif, mask/21_training_mask.gif}     21 to 40
    test/{images/01_test.tif, 1st_manual/01_manual1.gif, mask/01_test_mask.gif}                 01 to 20

The challenge's download has no `test/1st_manual`: its test images are `unlabelled` then, and the labelled
ones are split. `2nd_manual`, a second observer's labels of the test set, is not read.
"""

import re

from pipeline.errors import Problems
from pipeline.readers.raw import OfficialSplit, RawFile, RawFolder, RawItem, pair

LAYOUT = (
    "DRIVE as its owners pack it: training/ and test/, each with images/, 1st_manual/ and mask/ (the "
    "challenge's test/ has no 1st_manual/), or the zip files with these folders"
)
_NUMBERS = {"training": range(21, 41), "test": range(1, 21)}


def read_drive(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List DRIVE's images; without labels of the test set, the labelled images get no official split."""
    labelled_test = bool(folder.images("test", "1st_manual"))
    items: list[RawItem] = []
    for part, numbers in _NUMBERS.items():
        kinds = {
            kind: _numbered(folder.images(part, subfolder), numbers, problems)
            for kind, subfolder in (("image", "images"), ("label", "1st_manual"), ("mask", "mask"))
        }
        images = kinds.pop("image")
        if not images:
            problems.add(f"{folder.path}: no image in {part}/images/; expected {LAYOUT}")
        has_labels = part == "training" or labelled_test
        if not has_labels:
            del kinds["label"]
        for number, files in pair(images, kinds, _number, problems).items():
            image = files["image"]
            items.append(
                RawItem(
                    id=image.stem,
                    image=image,
                    vessels=files.get("label"),
                    fov=files["mask"],
                    patient=number,
                    split=_official_split(part, labelled_test),
                )
            )
    return items


def _official_split(part: str, labelled_test: bool) -> OfficialSplit | None:
    if labelled_test:
        return "train" if part == "training" else "test"
    return None if part == "training" else "unlabelled"


def _number(file: RawFile) -> str:
    return file.name[:2]


def _numbered(files: list[RawFile], numbers: range, problems: Problems) -> list[RawFile]:
    """Keep the files whose names start with a number of this part; report the others."""
    kept = []
    for file in files:
        if re.match(r"\d\d_", file.name) and int(file.name[:2]) in numbers:
            kept.append(file)
        else:
            problems.add(
                f"{file.source}: not a name of DRIVE; expected a number from {numbers[0]:02} to "
                f"{numbers[-1]:02} and an underscore first; use the original files, not a copy of them"
            )
    return kept
