"""Predicting vessel probabilities of photographs of any size with a trained model or ensemble."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.ensemble import MEMBERS_FOLDER, EnsembleConfig, combine
from pipeline.errors import UserError
from pipeline.frames import native_probability, predict_logits, scale_frame
from pipeline.model_folder import CONFIG_FILE, ModelConfig, load_model, parse_config, read_config


class Predictor(ABC):
    """Maps photographs to vessel probabilities.

    Attributes:
        threshold: probability from which on a pixel is vessel.
    """

    threshold: float

    @staticmethod
    def from_folder(folder: Path, device: torch.device) -> "Predictor":
        """Load a single model or an ensemble; the folder's config.json says which it is.

        Raises:
            UserError: the folder does not hold a usable model.
        """
        kind = read_config(folder).get("kind")
        if kind == "segmenter":
            return SegmenterPredictor(*load_model(folder, device))
        if kind == "ensemble":
            config = parse_config(folder, EnsembleConfig)
            folders = [folder / MEMBERS_FOLDER / name for name in config.members]
            return EnsemblePredictor([SegmenterPredictor(*load_model(f, device)) for f in folders], config)
        raise UserError(
            f"{folder / CONFIG_FILE}: kind is {kind!r}; expected 'segmenter' or 'ensemble': give the folder "
            "of a segmenter, such as models/base"
        )

    @abstractmethod
    def predict(self, image: NDArray[np.uint8], *, flips: bool = False) -> NDArray[np.float32]:
        """Predict the probability of vessel for every pixel of one photograph.

        Args:
            image: uint8 [H, W, 3], RGB, any size.
            flips: average over the four mirror images; takes four times as long.

        Returns:
            float32 [H, W], 0..1.
        """


class SegmenterPredictor(Predictor):
    """A single network: scales to its working resolution, predicts, scales back."""

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        self.network = network
        self.config = config
        self.threshold = config.threshold

    def predict(self, image: NDArray[np.uint8], *, flips: bool = False) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"got {image.dtype} {image.shape}; expected uint8 [H, W, 3]")
        working = scale_frame(image, self.config.resolution)
        logits = predict_logits(self.network, working, self.config.statistics, flips=flips)
        return native_probability(logits, *image.shape[:2])


class EnsemblePredictor(Predictor):
    """Base and retrained model, combined by the ensemble's rule."""

    def __init__(self, members: Sequence[Predictor], config: EnsembleConfig) -> None:
        self.members = members
        self.config = config
        self.threshold = config.threshold

    def predict(self, image: NDArray[np.uint8], *, flips: bool = False) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        maps = [member.predict(image, flips=flips) for member in self.members]
        thresholds = [member.threshold for member in self.members]
        return combine(maps, self.config.rule, weight=self.config.weight, thresholds=thresholds)
