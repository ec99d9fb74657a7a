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
    """

    def __init__(self, images: NDArray[np.uint8], mirror: bool, seed: int) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # [N, C, H, W]
        self.size = len(images) * (2 if mirror else 1)
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, first: int, count: int) -> Tensor:
        """Give images `first` to `first + count − 1` of the stream: float32 [count, C, H, W], −1..1."""
        indices = np.array([self._index_at(position) for position in range(first, first + count)])
        mirrored = torch.from_numpy(indices >= len(self.images))
        images = self.images[torch.from_numpy(indices % len(self.images))]
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return from_uint8(images)

    def fingerprint(self) -> str:
        """Hash the pixels (SHA-256, hexadecimal)."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, Stream.DATA_ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.size)
        return int(self._order[offset])


def check_images(images: NDArray[np.uint8], resolution: int) -> None:
    """Make sure that the images can be trained on.

    Raises:
        StyleGAN2Error: naming what is wrong.
    """
    expected = f"expected uint8 [N, {resolution}, {resolution}, 1 or 3] with N ≥ 1"
    fits = (
        images.dtype == np.uint8
        and images.ndim == 4
        and len(images) > 0
        and images.shape[1:3] == (resolution, resolution)
        and images.shape[3] in (1, 3)
    )
    if not fits:
        raise StyleGAN2Error(f"training images: got {images.dtype} {list(images.shape)}, {expected}")
