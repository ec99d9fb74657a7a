"""How a segmenter is built and trained: the section that base training and retraining share."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.augment import Augmentation
from pipeline.frames import Resolution, Views
from pipeline.losses import LossWeights
from pipeline.models.registry import Architecture
from pipeline.threshold import FitSet, Threshold


class SegmenterParams(Architecture):
    """Architecture (see `Architecture`), working size, loss and optimiser.

    Attributes:
        resolution: long side of the frames that the network works on, in pixels; or `native`.
        crop: side of random square training crops, divisible by 8; null trains on full frames.
        examples_per_frame: how often an epoch shows each frame, every time cropped and augmented anew: with
            crops, an epoch of one from each frame would be over in a few steps.
        loss: weights of binary cross-entropy and Dice, and of two terms on centrelines.
        deep_supervision: whether the two coarser decoder levels are asked for the vessels as well, by side
            heads that only training has; the loss counts them with ½ and ¼.
        batch_size: frames (or crops) in a step.
        weight_decay: L2 penalty of Adam.
        ema_decay: of the moving average of the weights that is validated and kept; 0 keeps the weights
            themselves.
        validate_every: epochs between validations; the last epoch of a phase is always validated.
        threshold: probability from which on a pixel is vessel, or the F1-maximal one on the `validation`
            images, or on all `development` images: these and the real training images.
        postprocess: fits hysteresis and the smallest part of a mask on the images that it names likewise;
            `none` makes masks by the threshold alone.
        views: images of the image that the model averages over whenever it predicts (test-time augmentation);
            threshold and post-processing are fitted on such averages. Validation while training uses one.
        augmentation: ranges of the random changes, where a phase augments.
    """

    resolution: Resolution = 512
    crop: Annotated[int, Field(ge=16, multiple_of=8)] | None = None
    examples_per_frame: Annotated[int, Field(ge=1)] = 1
    loss: LossWeights = LossWeights()
    deep_supervision: bool = False
    batch_size: Annotated[int, Field(ge=1)] = 4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: Annotated[int, Field(ge=1)] = 1
    threshold: Threshold | FitSet = 0.5
    postprocess: Literal["none"] | FitSet = "none"
    views: Views = "none"
    augmentation: Augmentation = Augmentation()

    @property
    def fits_on_development(self) -> bool:
        """Whether predictions of the training images are needed."""
        return "development" in (self.threshold, self.postprocess)

    @property
    def architecture(self) -> Architecture:
        """The part that defines the network."""
        return Architecture.model_validate(self.model_dump(include=set(Architecture.model_fields)))
