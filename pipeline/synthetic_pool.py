"""The pool of synthetic images on disk, and their pseudo-labels (vessel probabilities)."""

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Problems, UserError

MANIFEST = "manifest.csv"
COLUMNS = ("id", "image", "seed", "psi")


@dataclass(frozen=True)
class PoolImage:
    """One synthetic image.

    Attributes:
        id: its number, six digits.
        path: of the PNG.
    """

    id: str
    path: Path

    def probability_path(self, folder: Path) -> Path:
        """Name the 16-bit PNG of its vessel probabilities in `folder`."""
        return folder / f"{self.id}.png"


def read_pool(folder: Path) -> list[PoolImage]:
    """List a pool in the order of its manifest: its first n images are the pool of n.

    Raises:
        UserError: the manifest is missing or wrong, or lists files that are not there.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{manifest}: missing; expected a pool of images; run the stage `synthesize`")
    with manifest.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(
                f"{manifest}: columns {', '.join(reader.fieldnames or ())}; expected {', '.join(COLUMNS)}; "
                "run the stage `synthesize` again"
            )
        pool = [PoolImage(row["id"], folder / row["image"]) for row in reader]
    problems = Problems(f"{manifest} lists images that are missing; run the stage `synthesize` again")
    for image in pool:
        if not image.path.is_file():
            problems.add(str(image.path))
    problems.raise_if_any()
    return pool


def first_of_pool(pool: list[PoolImage], count: int) -> list[PoolImage]:
    """Take the first `count` images.

    Raises:
        UserError: the pool is smaller.
    """
    if count > len(pool):
        raise UserError(
            f"{count} synthetic images are asked for, but the pool holds {len(pool)}; "
            "raise synthesize.pool, or lower retrain.synthetic_count"
        )
    return pool[:count]
