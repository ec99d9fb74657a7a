"""The datasets that can be read, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import Problems
from pipeline.readers import chase_db1, drive, hrf, plain, stare
from pipeline.readers.raw import RawFolder, RawItem


@dataclass(frozen=True)
class Reader:
    """How to read one dataset.

    Attributes:
        read: lists the images; adds to the problems whatever is wrong with the files' names.
        layout: the expected layout in words.
    """

    read: Callable[[RawFolder, Problems], list[RawItem]]
    layout: str


READERS: dict[str, Reader] = {
    "drive": Reader(drive.read_drive, drive.LAYOUT),
    "chase_db1": Reader(chase_db1.read_chase_db1, chase_db1.LAYOUT),
    "stare": Reader(stare.read_stare, stare.LAYOUT),
    "hrf": Reader(hrf.read_hrf, hrf.LAYOUT),
    "folder": Reader(plain.read_plain, plain.LAYOUT),
}
