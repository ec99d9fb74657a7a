"""What a training shows of itself at intervals: sample grids, KID to the training images, its networks."""

import csv
import io
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.config import ResolvedOptions
from stylegan2.data import ImageStream
from stylegan2.errors import StyleGAN2Error
from stylegan2.features import FeatureNetwork, extract_features, load_feature_network
from stylegan2.files import write_atomically
from stylegan2.images import image_grid, to_uint8, write_png
from stylegan2.metrics import kid
from stylegan2.network_folder import save_weights, write_config
from stylegan2.networks.generator import Generator
from stylegan2.randomness import Stream, derive_seed
from stylegan2.sampling import generate

BATCH = 8
KEPT = "snapshots"  # folder of the networks that `keep_snapshots` keeps
COLUMNS = ("kimg", "kid", "kid_lo", "kid_hi")
KidRow = dict[str, float | None]
_BEST = "best/"

log = logging.getLogger(__name__)


class Snapshots:
    """Takes snapshots of the averaged generator and keeps the weights of the one with the lowest KID.

    The images of all snapshots come from the same latents.

    Args:
        stream: the training images.
        options: resolved options.
        seed: of the training.
        device: where to compute.
        folder: receives samples/ and kid.csv, and snapshots/ where the options ask for it.
        cache: folder for the features of the training images; None = compute them in every run.

    Raises:
        StyleGAN2Error: when KID is asked for and there are too few training images for it.

    Attributes:
        rows: KID of every snapshot with its interval, by the names in `COLUMNS`.
        best: weights of the best snapshot; None before the first KID.
    """

    def __init__(
        self,
        stream: ImageStream,
        options: ResolvedOptions,
        seed: int,
        device: torch.device,
        folder: Path,
        cache: Path | None = None,
    ) -> None:
        self.stream = stream
        self.options = options
        self.seed = seed
        self.device = device
        self.folder = folder
        self.cache = cache
        self.rows: list[KidRow] = []
        self.best: dict[str, Tensor] | None = None
        self._network: FeatureNetwork | None = None
        self._real: NDArray[np.float32] | None = None
        if options.kid_images > 0 and len(stream.images) < 2:
            raise StyleGAN2Error(
                "kid_images: KID is defined for 2 training images or more, got 1; set kid_images to 0"
            )

    @property
    def best_row(self) -> KidRow | None:
        """The row of the best snapshot, the earliest if several are equal; None before the first KID."""
        return min(self.rows, key=_kid_of, default=None)

    def clear(self, first: int = 0) -> None:
        """Delete grids and networks from so many images on: what a run left after its last checkpoint."""
        for path in (self.folder / "samples").glob("generated_*.png"):
            if int(path.stem.removeprefix("generated_")) >= first:
                path.unlink()
        for images_seen, path in _kept_folders(self.folder):
            if images_seen >= first:
                shutil.rmtree(path)

    def show_real(self) -> None:
        """Write a grid of training images."""
        count = min(self.options.grid_size**2, self.stream.size)
        self._write_grid("real.png", _pixels(self.stream.batch(0, count)))

    def take(self, average: Generator, images_seen: int, measure: bool = True) -> None:
        """Write a grid of samples; where the options ask for it, keep the network and measure KID.

        Args:
            average: the averaged generator.
            images_seen: so far.
            measure: False leaves KID out.
        """
        images = self._draw(average, self.options.grid_size**2, Stream.SAMPLE_GRID)
        self._write_grid(f"generated_{images_seen:09d}.png", images)
        if self.options.keep_snapshots:
            folder = self.folder / KEPT / f"{images_seen:09d}"
            save_weights(folder / "generator.safetensors", average)
            # Nothing of the options: kimg may grow, and the folder shall not depend on it. See `export`.
            write_config(folder, {"generator": average.init_kwargs, "seed": self.seed, **_shown(images_seen)})
        if measure and self.options.kid_images > 0:
            self._measure(average, images_seen)

    def _measure(self, average: Generator, images_seen: int) -> None:
        if self._network is None:
            self._network = load_feature_network(device=self.device)
        if self._real is None:
            pixels = self.stream.images.permute(0, 2, 3, 1).numpy()  # [N, H, W, C]
            self._real = extract_features(self._network, pixels, cache=self.cache)  # [N, D]
        images = self._draw(average, self.options.kid_images, Stream.KID)
        result = kid(self._real, extract_features(self._network, images), network_name=self._network.name)
        row: KidRow = {
            "kimg": images_seen / 1000,
            "kid": result.value,
            "kid_lo": result.lo,
            "kid_hi": result.hi,
        }
        if self.best_row is None or _kid_of(row) < _kid_of(self.best_row):
            self.best = {name: value.detach().clone() for name, value in average.state_dict().items()}
        self.rows.append(row)
        log.info("KID %.5f after %.1f kimg", result.value, images_seen / 1000)
        self.write_rows(self.folder)

    def _draw(self, average: Generator, count: int, purpose: Stream) -> NDArray[np.uint8]:
        """Draw images [count, H, W, C] that are the same ones, apart from training, at every snapshot."""
        rng = torch.Generator().manual_seed(derive_seed(self.seed, purpose))
        z = torch.randn([count, average.z_dim], generator=rng)
        c = self.stream.random_labels(count, rng)
        drawn = []
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            labels = None if c is None else c[part].to(self.device)
            drawn.append(_pixels(generate(average, z[part].to(self.device), label=labels)))
        return np.concatenate(drawn)

    def _write_grid(self, name: str, images: NDArray[np.uint8]) -> None:
        write_png(self.folder / "samples" / name, image_grid(images, self.options.grid_size))

    def write_rows(self, folder: Path) -> None:
        """Write kid.csv; nothing when no KID was measured."""
        if not self.rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: "" if value is None else f"{value:.6g}" for name, value in row.items()}
            for row in self.rows
        )
        write_atomically(folder / "kid.csv", text.getvalue().encode())

    def export(self, out_dir: Path, config: Mapping[str, Any]) -> None:
        """Write what all snapshots gave but the best one: kid.csv, samples/ and snapshots/.

        Args:
            out_dir: of the finished networks; what an earlier, shorter training left there goes.
            config: entries for the config.json of every network.
        """
        self.write_rows(out_dir)
        if self.folder != out_dir:
            for path in (out_dir / "samples").glob("generated_*.png"):
                path.unlink()
            shutil.copytree(self.folder / "samples", out_dir / "samples", dirs_exist_ok=True)
            for _, path in _kept_folders(out_dir):
                shutil.rmtree(path)
            for _, path in _kept_folders(self.folder):
                shutil.copytree(path, out_dir / KEPT / path.name)
        rows = {row["kimg"]: row for row in self.rows}
        for images_seen, path in _kept_folders(out_dir):
            shown = _shown(images_seen)
            row = rows.get(shown["snapshot"]["kimg"], shown["snapshot"])
            write_config(path, {**config, **shown, "snapshot": row})

    def tensors(self) -> dict[str, Tensor]:
        """The best weights, for a checkpoint."""
        return {f"{_BEST}{name}": value for name, value in (self.best or {}).items()}

    def restore(self, tensors: Mapping[str, Tensor], rows: list[KidRow]) -> None:
        """Put back `tensors()` and `rows`."""
        best = {name.removeprefix(_BEST): value for name, value in tensors.items() if name.startswith(_BEST)}
        self.best = best or None
        self.rows = rows


def _kept_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Give the kept networks below a folder and the number of images seen by each."""
    for path in sorted((folder / KEPT).glob("*")):
        if path.name.isdecimal() and path.name.isascii() and path.is_dir():
            yield int(path.name), path


def _shown(images_seen: int) -> dict[str, Any]:
    """What config.json says of how far a snapshot's training was."""
    return {"images_seen": images_seen, "snapshot": {"kimg": images_seen / 1000}}


def _kid_of(row: KidRow) -> float:
    value = row["kid"]
    assert value is not None
    return value


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert [N, C, H, W], −1..1, to uint8 [N, H, W, C]."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
