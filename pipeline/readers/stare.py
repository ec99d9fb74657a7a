"""STARE: 20 photographs of 700×605, ten of them with pathologies, labelled by two observers.

    images: im0001.ppm    labels of Adam Hoover: im0001.ah.ppm    each plain or gzip-compressed (.ppm.gz)

The labels of the other observer (`.vk.ppm`) are not read. There is no official split and no mask.
"""

import re

from pipeline.errors import Problems
from pipeline.readers.raw import RawFile, RawFolder, RawItem, pair

LAYOUT = (
    "STARE's 20 labelled images im0001.ppm with labels im0001.ah.ppm, each plain or .gz, in any subfolders"
)
_IMAGE = re.compile(r"im\d{4}")
_LABEL = re.compile(r"im\d{4}\.ah")


def read_stare(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List STARE's images, without a split."""
    images = [file for file in folder.images() if _IMAGE.fullmatch(file.stem)]
    labels = [file for file in folder.images() if _LABEL.fullmatch(file.stem)]
    if not images:
        problems.add(f"{folder.path}: no image named like im0001.ppm; expected {LAYOUT}")
    return [
        RawItem(id=name, image=files["image"], vessels=files["label"], fov=None, patient=name, split=None)
        for name, files in pair(images, {"label": labels}, _name, problems).items()
    ]


def _name(file: RawFile) -> str:
    return file.stem.removesuffix(".ah")
