"""A second judge of generated phantoms: a segmenter, whose features neither training nor the usual KID saw.

    python docs/results/gan-time-to-quality/judges.py GENERATOR --segmenter models/base --cache OUT

GENERATOR is the folder of a trained GAN, the name of one that comes with the package, a state.pt of
projected.py, or `phantoms`: training phantoms in the place of generated images, which shows what a perfect
generator would get. It prints JSON:

- `kid`: kernel distance to 500 phantoms that no training saw, on pooled feature maps of the segmenter's
  encoder; its size has nothing to do with that of the usual KID. `floor_hi`: what halves of real ones reach.
- `vessel_share`: mean share of the field of view that the segmenter marks as vessels, and over the real ones;
  `vessel_distance`: how far the shares of the images have to be moved to be those of the real ones (the mean
  distance, Wasserstein's), which also shows images that all have the same share.
- `no_fov`: images in which no field of view was found; they count as a share of 0.
"""

import argparse
import json
from pathlib import Path

import stages  # noqa: F401  (sets how OpenMP's threads wait, before torch is loaded)

# isort: split
import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from study import HELD_OUT_COUNT, HELD_OUT_SEED, TRAINING_COUNT, TRAINING_SEED, phantoms
from torch import Tensor

from pipeline.errors import UserError
from pipeline.fov import estimate_fov
from pipeline.frames import network_input, scale_frame
from pipeline.inference import SegmenterPredictor
from pipeline.model_folder import load_model
from pipeline.models.unet import UNet
from stylegan2.metrics import kid, kid_floor
from stylegan2.networks.generator import Generator
from stylegan2.sampling import load_generator, sample_images
from stylegan2.sources import find_network_folder

NAME = "segmenter-encoder"
BATCH = 16


class SegmenterJudge:
    """Measures a set of images with a trained segmenter against phantoms that no training saw.

    Args:
        folder: of a single segmenter, see `pipeline.model_folder`.
        cache: folder of the phantoms.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        network, self.config = load_model(folder, torch.device("cpu"))
        assert isinstance(network, UNet)
        self.network = network
        self.predictor = SegmenterPredictor(network, self.config)
        # The training phantoms set the scales, so that the held-out ones play no part but that of the goal.
        scales = self._pooled(phantoms(TRAINING_SEED, TRAINING_COUNT, 1.0, cache)[:HELD_OUT_COUNT])
        self.mean, self.std = scales.mean(dim=0), scales.std(dim=0).clamp(min=1e-6)
        held_out = phantoms(HELD_OUT_SEED, HELD_OUT_COUNT, 1.0, cache)
        self.real = self.features(held_out)
        self.real_shares, _ = self.vessel_shares(held_out)

    @torch.inference_mode()
    def _pooled(self, images: NDArray[np.uint8]) -> Tensor:
        """Average the encoder's maps over the image: [N, sum of the widths of all levels]."""
        parts = []
        for start in range(0, len(images), BATCH):
            frames = [scale_frame(image, self.config.resolution) for image in images[start : start + BATCH]]
            scaled = [frame.astype(np.float32) / np.float32(255) for frame in frames]
            x = network_input(scaled, self.config.statistics)
            pooled = []
            for level in self.network.encoder:
                x = level(x)
                pooled.append(x.mean(dim=(2, 3)))
                x = F.max_pool2d(x, 2)
            pooled.append(self.network.bottom(x).mean(dim=(2, 3)))
            parts.append(torch.cat(pooled, dim=1))
        return torch.cat(parts)

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give features of length √d, as the usual KID has them: float32 [N, d].

        Averages after a ReLU are positive and alike, all cosines near 1, and the kernel would compare means
        alone: so each feature is first measured in standard deviations from its mean over training phantoms.
        """
        standard = (self._pooled(images) - self.mean) / self.std
        scaled = F.normalize(standard, dim=1) * standard.shape[1] ** 0.5
        return np.asarray(scaled.numpy(), np.float32)

    def vessel_shares(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], int]:
        """Give for each image the share of its field of view marked as vessel, and how many have none."""
        shares, without = [], 0
        for image in images:
            try:
                inside = estimate_fov(image)
            except UserError:
                shares.append(0.0)
                without += 1
                continue
            shares.append(float(self.predictor.mask(self.predictor.predict(image))[inside].mean()))
        return np.array(shares), without

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Compare uint8 [N, H, W, 3] with the held-out phantoms."""
        result = kid(self.real, self.features(images), network_name=NAME)
        shares, without = self.vessel_shares(images)
        return {
            "kid": result.value,
            "kid_lo": result.lo or 0.0,
            "kid_hi": result.hi or 0.0,
            "floor_hi": kid_floor(self.real, network_name=NAME).upper,
            "vessel_share": float(shares.mean()),
            "vessel_share_sd": float(shares.std()),
            "real_vessel_share": float(self.real_shares.mean()),
            "real_vessel_share_sd": float(self.real_shares.std()),
            "vessel_distance": float(scipy.stats.wasserstein_distance(shares, self.real_shares)),
            "no_fov": without,
        }


def find_generator(where: str) -> Generator:
    """Load the averaged generator of a folder, of a network of the package, or of projected.py's state."""
    if not where.endswith(".pt"):
        return load_generator(find_network_folder(where))
    state = torch.load(where, map_location="cpu", weights_only=True)
    generator = Generator(**state["generator_kwargs"])
    generator.load_state_dict(state["average"])
    return generator.requires_grad_(False).eval()


def main() -> None:
    """Judge one generator."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("generator", help="folder, name, state.pt, or `phantoms`")
    parser.add_argument("--segmenter", type=Path, default=Path("models/base"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/ttq"), help="folder of the phantoms")
    parser.add_argument("--count", type=int, default=HELD_OUT_COUNT, help="images to draw, seeds 0, 1, …")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    judge = SegmenterJudge(arguments.segmenter, arguments.cache)
    if arguments.generator == "phantoms":
        # Not those that set the scales: their standardised mean would be 0 by construction.
        images = phantoms(TRAINING_SEED, TRAINING_COUNT, 1.0, arguments.cache)[-arguments.count :]
    else:
        drawn = sample_images(find_generator(arguments.generator), range(arguments.count), 1.0)
        images = np.stack(list(drawn))
    print(json.dumps({"generator": arguments.generator, **judge(images)}, indent=1))


if __name__ == "__main__":
    main()
