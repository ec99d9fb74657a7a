"""Labelled images at working resolution: what training and validation are fed with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import Problems, UserError
from pipeline.frames import Array8, ArrayBool, Resolution, Statistics, scale_frame
from pipeline.images import read_probability, read_rgb
from pipeline.prepared import Sample
from pipeline.synthetic_pool import PoolImage


@dataclass(frozen=True, eq=False)
class TrainingFrame:
    """One labelled image at working resolution.

    Attributes:
        id: for messages.
        image: uint8 [H, W, 3].
        target: uint8 [H, W], 0..255: the fraction of the pixel that is vessel. Shrinking a mask to 0 and 1
            would lose vessels thinner than half a working pixel; as fractions they stay.
        fov: bool [H, W].
    """

    id: str
    image: Array8
    target: Array8
    fov: ArrayBool


@dataclass(frozen=True, eq=False)
class ValidationFrame:
    """One labelled image, scored at native size against the untouched label.

    Attributes:
        working: the image at working resolution.
        vessels, fov: bool [H, W] at native size.
    """

    working: TrainingFrame
    vessels: ArrayBool
    fov: ArrayBool


def training_frames(samples: Sequence[Sample], resolution: Resolution) -> list[TrainingFrame]:
    """Load prepared samples as training frames, all into memory (about 5 bytes per working pixel).

    Raises:
        UserError: a sample has no label, or cannot be read.
    """
    return [frame.working for frame in validation_frames(samples, resolution)]


def validation_frames(samples: Sequence[Sample], resolution: Resolution) -> list[ValidationFrame]:
    """Load prepared samples as validation frames.

    Raises:
        UserError: a sample has no label, or cannot be read.
    """
    problems = Problems("these images cannot be used for training")
    frames = []
    for sample in samples:
        frame = sample.load()
        if frame.vessels is None:
            problems.add(f"{sample.id}: no vessel mask; expected a labelled image; run `prepare` again")
            continue
        working = working_frame(frame.id, frame.image, frame.vessels, frame.fov, resolution)
        frames.append(ValidationFrame(working, frame.vessels, frame.fov))
    problems.raise_if_any()
    return frames


def synthetic_frames(
    pool: Sequence[PoolImage], probabilities: Path, label_threshold: float, resolution: Resolution
) -> list[TrainingFrame]:
    """Load synthetic images with their pseudo-labels as training frames.

    Args:
        pool: the images to use.
        probabilities: folder of their vessel probabilities.
        label_threshold: a pixel is labelled vessel when its probability is >= this.
        resolution: of the long side.

    Raises:
        UserError: files are missing, unreadable, or of different sizes.
    """
    problems = Problems("these synthetic images have no usable label; run the stage `pseudo_label` again")
    frames = []
    for entry in pool:
        path = entry.probability_path(probabilities)
        if not path.is_file():
            problems.add(f"{path}: missing")
            continue
        image, vessels = read_rgb(entry.path), read_probability(path) >= label_threshold
        if image.shape[:2] != vessels.shape:
            problems.add(f"{path}: {vessels.shape} pixels; the image has {image.shape[:2]}")
            continue
        frames.append(working_frame(entry.id, image, vessels, None, resolution))
    problems.raise_if_any()
    return frames


def working_frame(
    name: str, image: Array8, vessels: ArrayBool, fov: ArrayBool | None, resolution: Resolution
) -> TrainingFrame:
    """Scale an image and its masks to working resolution.

    Args:
        name: id of the frame.
        image: uint8 [H, W, 3].
        vessels: bool [H, W].
        fov: bool [H, W]; None when unknown: then every pixel counts as inside.
        resolution: of the long side.
    """
    fov = np.ones(vessels.shape, np.bool_) if fov is None else fov
    return TrainingFrame(
        id=name,
        image=scale_frame(image, resolution),
        target=scale_frame(vessels.astype(np.uint8) * np.uint8(255), resolution),
        fov=scale_frame(fov.astype(np.uint8) * np.uint8(255), resolution) >= 128,
    )


def input_statistics(frames: Iterable[TrainingFrame]) -> Statistics:
    """Compute the channel statistics of training images, over the pixels inside their fields of view.

    The black border is left out: its share differs between data sets and says nothing about the retina.

    Raises:
        UserError: there is no pixel inside a field of view.
    """
    count = 0
    total = np.zeros(3)
    squares = np.zeros(3)
    for frame in frames:
        pixels = frame.image[frame.fov].astype(np.float64) / 255  # [pixels, 3]
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    if count == 0:
        raise UserError(
            "no training image has a pixel inside its field of view; check the FOV masks and run "
            "`prepare` again"
        )
    mean = total / count
    # A channel without contrast (a grey test picture) must not be blown up to noise, or divided by 0.
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)).clip(min=1 / 255)
    return Statistics(
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )
