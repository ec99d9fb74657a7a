"""Predicting vessel probabilities of photographs of any size with a trained model or ensemble."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.binarise import Binarisation
from pipeline.ensemble import MEMBERS_FOLDER, EnsembleConfig, combine
from pipeline.errors import UserError
from pipeline.frames import (
    Array8,
    ArrayFloat,
    Views,
    native_probability,
    predict_logits,
    scale_frame,
    working_size,
)
from pipeline.model_folder import CONFIG_FILE, ModelConfig, load_model, parse_config, read_config
from pipeline.models.folding import folded
from pipeline.tiling import DEFAULT_TILE, blend_tiles, check_tile, is_tiled, tile_count


class Predictor(ABC):
    """Maps photographs to vessel probabilities.

    Attributes:
        threshold: probability from which on a pixel is vessel.
        binarisation: how masks are made; None where it is the threshold alone.
        views: what `predict` averages over unless told otherwise; the other two belong to it.
    """

    threshold: float
    binarisation: Binarisation | None = None
    views: Views = "none"

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
    def predict(
        self, image: NDArray[np.uint8], *, views: Views | None = None, tile: int | None = DEFAULT_TILE
    ) -> NDArray[np.float32]:
        """Predict the probability of vessel for every pixel of one photograph.

        Args:
            image: uint8 [H, W, 3], RGB, any size.
            views: average over the four mirror images (`flips`) or over these and their quarter turns
                (`dihedral`), which takes four or eight times as long; `none`: one view; None: as the model
                was made for, see `ModelConfig.views`.
            tile: side of the tiles that larger working frames are predicted in (see `pipeline.tiling`);
                None predicts any in one piece, which takes about 500 bytes a pixel.

        Returns:
            float32 [H, W], 0..1.

        Raises:
            UserError: no tile can have this side.
        """

    def mask(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Mark the vessels in a map that `predict` gave, as the model was fitted to.

        Args:
            probability: float32 [H, W], 0..1, of a whole photograph.

        Returns:
            bool [H, W].
        """
        if self.binarisation is None:
            return probability >= np.float32(self.threshold)
        return self.binarisation.mask(probability)

    def tile_count(self, height: int, width: int, tile: int | None = DEFAULT_TILE) -> int:
        """Count the tiles in which a photograph of this size is predicted; 1: in one piece."""
        return 1


class SegmenterPredictor(Predictor):
    """A single network: scales to its working resolution, predicts, scales back."""

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        self.network = folded(network)
        self.config = config
        self.threshold = config.threshold
        self.binarisation = config.binarisation
        self.views = config.views

    def predict(
        self, image: NDArray[np.uint8], *, views: Views | None = None, tile: int | None = DEFAULT_TILE
    ) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"got {image.dtype} {image.shape}; expected uint8 [H, W, 3]")
        if tile is not None:
            check_tile(tile)
        used = self.views if views is None else views
        working = scale_frame(image, self.config.resolution)
        height, width = working.shape[:2]

        def predict_piece(piece: Array8) -> ArrayFloat:
            return predict_logits(self.network, piece, self.config.statistics, views=used).numpy()

        if tile is not None and is_tiled(height, width, tile):
            logits = blend_tiles(predict_piece, working, tile)
        else:
            logits = predict_piece(working)
        return native_probability(torch.from_numpy(logits), *image.shape[:2])

    def tile_count(self, height: int, width: int, tile: int | None = DEFAULT_TILE) -> int:
        """See `Predictor.tile_count`."""
        return tile_count(*working_size(height, width, self.config.resolution), tile)


class EnsemblePredictor(Predictor):
    """Base and retrained model, combined by the ensemble's rule."""

    def __init__(self, members: Sequence[Predictor], config: EnsembleConfig) -> None:
        self.members = members
        self.config = config
        self.threshold = config.threshold
        self.binarisation = config.binarisation
        self.views = members[0].views  # both were trained by one section of parameters

    def predict(
        self, image: NDArray[np.uint8], *, views: Views | None = None, tile: int | None = DEFAULT_TILE
    ) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        views = self.views if views is None else views
        maps = [member.predict(image, views=views, tile=tile) for member in self.members]
        thresholds = [member.threshold for member in self.members]
        return combine(maps, self.config.rule, weight=self.config.weight, thresholds=thresholds)

    def tile_count(self, height: int, width: int, tile: int | None = DEFAULT_TILE) -> int:
        """See `Predictor.tile_count`."""
        return max(member.tile_count(height, width, tile) for member in self.members)
