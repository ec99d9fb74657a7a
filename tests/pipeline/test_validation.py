"""What is decided on validation images: the cut, and how masks are made."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.binarise_fit import LabelledMap, fit_binarisation
from pipeline.frames import Statistics, predict_logits
from pipeline.threshold import best_f1_threshold
from pipeline.training_data import ValidationFrame, working_frame
from pipeline.validation import choose_binarisation, choose_threshold

STATISTICS = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Red(nn.Module):
    """Logits that rise with the red channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x[:, :1] - 0.6)


def frame(seed: int, brighter: int = 0) -> ValidationFrame:
    rng = np.random.default_rng(seed)
    vessels = np.zeros((48, 40), bool)
    vessels[10:13] = True
    vessels[30] = True
    image = rng.integers(0, 150, (48, 40, 3), dtype=np.uint8) + np.uint8(brighter)
    image[vessels] = rng.integers(120, 255, (vessels.sum(), 3), dtype=np.uint8)
    fov = np.zeros((48, 40), bool)
    fov[2:-2, 2:-2] = True
    return ValidationFrame(working_frame(f"{seed}", image, vessels, fov, "native"), vessels, fov)


FRAMES = [frame(seed) for seed in range(3)]
SETS = {"validation": FRAMES, "development": [*FRAMES, frame(7, 60), frame(8, 60)]}
MAPS = [
    LabelledMap(predict_logits(Red(), one.working.image, STATISTICS).sigmoid().numpy(), one.vessels, one.fov)
    for one in FRAMES
]


@pytest.mark.parametrize("threshold", [0.4, "validation"])
def test_the_cut_and_the_masks_are_fitted_on_the_predictions(
    threshold: float | Literal["validation"],
) -> None:
    network = Red().train()
    scores = np.concatenate([found.probability[found.region] for found in MAPS])
    labels = np.concatenate([found.vessels[found.region] for found in MAPS])
    expected = best_f1_threshold(scores, labels) if threshold == "validation" else threshold
    assert choose_threshold(network, FRAMES, STATISTICS, threshold) == expected
    assert choose_binarisation(network, SETS, STATISTICS, threshold, "none") == (expected, None)
    cut, made = choose_binarisation(network, SETS, STATISTICS, threshold, "validation")
    assert cut == expected
    assert made == fit_binarisation(MAPS, expected, fixed=threshold != "validation")
    assert made is not None and not made.is_plain
    if threshold != "validation":
        assert made.threshold == threshold
    assert not network.training


def test_cut_and_masks_may_be_fitted_on_different_images() -> None:
    more = [
        LabelledMap(
            predict_logits(Red(), one.working.image, STATISTICS).sigmoid().numpy(), one.vessels, one.fov
        )
        for one in SETS["development"]
    ]
    scores = np.concatenate([found.probability[found.region] for found in more])
    labels = np.concatenate([found.vessels[found.region] for found in more])
    on_all = best_f1_threshold(scores, labels)
    assert on_all != choose_threshold(Red(), FRAMES, STATISTICS, "validation")
    found = choose_binarisation(Red(), SETS, STATISTICS, "development", "validation")
    assert found == (on_all, fit_binarisation(MAPS, on_all, fixed=False))


def test_a_fit_that_finds_nothing_better_leaves_the_cut_alone() -> None:
    def perfect(one: ValidationFrame) -> ValidationFrame:
        image = np.where(one.vessels[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
        return ValidationFrame(
            working_frame(one.working.id, image, one.vessels, one.fov, "native"), one.vessels, one.fov
        )

    frames = [perfect(one) for one in FRAMES]
    assert choose_binarisation(Red(), {"validation": frames}, STATISTICS, 0.5, "validation") == (0.5, None)
