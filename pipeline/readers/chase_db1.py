"""CHASE_DB1: 28 photographs of 999×960, both eyes of 14 children from the Child Heart and Health Study.

    Image_01L.jpg  Image_01L_1stHO.png  (Image_01L_2ndHO.png: a second observer's labels, not read)

No split is official; by convention the first 20 images (children 1 to 10) train and the last 8 test. There
are no field-of-view masks.
"""

import re

from pipeline.errors import Problems
from pipeline.readers.raw import RawFile, RawFolder, RawItem, pair

LAYOUT = (
    "CHASE_DB1 as its owners pack it: Image_01L.jpg and Image_01L_1stHO.png to 14R, in one folder or zip file"
)
_LAST_TRAINING_PATIENT = 10
_IMAGE = re.compile(r"Image_(\d\d)[LR]")
_LABEL = re.compile(r"Image_(\d\d)[LR]_1stHO")


def read_chase_db1(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List CHASE_DB1's images in the conventional split; both eyes of a child are one patient."""
    images = [file for file in folder.images() if _IMAGE.fullmatch(file.stem)]
    labels = [file for file in folder.images() if _LABEL.fullmatch(file.stem)]
    if not images:
        problems.add(f"{folder.path}: no image named like Image_01L.jpg; expected {LAYOUT}")
    return [
        RawItem(
            id=eye,
            image=files["image"],
            vessels=files["label"],
            fov=None,
            patient=eye[:-1],
            split="train" if int(eye[-3:-1]) <= _LAST_TRAINING_PATIENT else "test",
        )
        for eye, files in pair(images, {"label": labels}, _eye, problems).items()
    ]


def _eye(file: RawFile) -> str:
    return file.stem.removesuffix("_1stHO")
