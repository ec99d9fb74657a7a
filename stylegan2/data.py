"""The endless stream of training images."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.images import from_uint8
from stylegan2.randomness import Stream, derive_seed


class ImageStream:
    """Shows all images once in random order, then again in another order, and so on.

    The order follows from the seed and the position alone, so that a resumed training sees the same images.

    Args:
        images: uint8 [N, H, W, C].
        mirror: the set also holds every image mirrored left to right.
        seed: of the order.
        labels: float32 [N, c_dim]; None without labels.
        subset: show only so many of the images, drawn by the seed; None = all.

    Raises:
        StyleGAN2Error: when the subset is larger than the set.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        mirror: bool,
        seed: int,
        labels: NDArray[np.float32] | None = None,
        subset: int | None = None,
    ) -> None:
        if subset is not None and subset > len(images):
            raise StyleGAN2Error(
                f"subset: got {subset}, but there are {len(images)} images; choose at most as many, or leave "
                "subset out"
            )
        if subset is not None:
            rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET))
            chosen = np.sort(rng.permutation(len(images))[:subset])
            images, labels = images[chosen], None if labels is None else labels[chosen]
        self.labels = None if labels is None else torch.from_numpy(labels)  # [N, c_dim]
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # [N, C, H, W]
        self.size = len(images) * (2 if mirror else 1)
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, first: int, count: int) -> Tensor:
        """Give images `first` to `first + count − 1` of the stream: float32 [count, C, H, W], −1..1."""
        indices = self._indices(first, count)
        mirrored = indices >= len(self.images)
        images = self.images[indices % len(self.images)]
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return from_uint8(images)

    def label_batch(self, first: int, count: int) -> Tensor | None:
        """Give the labels [count, c_dim] of what `batch` gives; None without labels."""
        return None if self.labels is None else self.labels[self._indices(first, count) % len(self.images)]

    def random_labels(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Draw labels [count, c_dim] as often as they occur among the images; None without labels."""
        if self.labels is None:
            return None
        drawn = torch.randint(len(self.labels), [count], generator=rng, device=rng.device)
        return self.labels[drawn.cpu()]

    def fingerprint(self) -> str:
        """Hash pixels and labels (SHA-256, hexadecimal)."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def _indices(self, first: int, count: int) -> Tensor:
        return torch.tensor([self._index_at(position) for position in range(first, first + count)])

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, Stream.DATA_ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.size)
        return int(self._order[offset])


def check_images(
    images: NDArray[np.uint8], size: tuple[int, int], labels: NDArray[np.float32] | None = None
) -> None:
    """Make sure that the images can be trained on.

    Args:
        images: uint8 [N, H, W, 1 or 3].
        size: height and width that they must have.
        labels: float32 [N, c_dim]; None without labels.

    Raises:
        StyleGAN2Error: naming what is wrong.
    """
    problems = []
    height, width = size
    fits = (
        images.dtype == np.uint8
        and images.ndim == 4
        and len(images) > 0
        and images.shape[1:3] == size
        and images.shape[3] in (1, 3)
    )
    if not fits:
        expected = f"expected uint8 [N, {height}, {width}, 1 or 3] with N ≥ 1"
        problems.append(f"training images: got {images.dtype} {list(images.shape)}, {expected}")
    if labels is not None:
        usable = labels.dtype == np.float32 and labels.ndim == 2 and labels.shape[:1] == images.shape[:1]
        if not usable or labels.shape[1] < 1 or not np.isfinite(labels).all():
            problems.append(
                f"labels: got {labels.dtype} {list(labels.shape)}, expected finite float32 "
                f"[{len(images)}, 1 or more]"
            )
    if problems:
        raise StyleGAN2Error("; ".join(problems))
