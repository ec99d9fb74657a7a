import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.metrics import pixel
from pipeline.metrics.bootstrap import draw_images, draw_weights
from pipeline.metrics.pixel import LEVELS, LevelCounts
from pipeline.metrics.pooling import pooled_auc, pooled_average_precision


def image(seed, levels):
    rng = np.random.default_rng(seed)
    truth = rng.random((20, 30)) < 0.2
    score = np.clip(rng.normal(0.3 + 0.3 * truth, 0.02 * (1 + seed)), 0, 1)
    stored = np.round(score * (levels - 1)) * ((LEVELS - 1) // (levels - 1))
    return stored.astype(np.uint16), truth


def counted(images):
    return [LevelCounts.count(stored, truth, np.ones_like(truth)) for stored, truth in images]


@pytest.mark.parametrize("levels", [LEVELS, 256, 4])
@pytest.mark.parametrize(
    ("pooled", "reference"),
    [(pooled_auc, roc_auc_score), (pooled_average_precision, average_precision_score)],
)
def test_draws_agree_with_sklearn_on_the_drawn_pixels(levels, pooled, reference):
    images = [image(seed, levels) for seed in range(7)]
    draws = draw_images(7, 40, 0)
    got = pooled(counted(images))(draw_weights(draws))
    expected = [
        reference(
            np.concatenate([images[i][1].ravel() for i in draw]),
            np.concatenate([images[i][0].ravel() for i in draw]),
        )
        for draw in draws
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_each_image_once_is_the_pooled_figure():
    counts = counted(image(seed, LEVELS) for seed in range(5))
    total = sum(counts, start=LevelCounts.zero())
    assert float(pooled_auc(counts)(np.ones(5))) == pytest.approx(pixel.auc(total), rel=1e-13)
    got = float(pooled_average_precision(counts)(np.ones(5)))
    assert got == pytest.approx(pixel.average_precision(total), rel=1e-13)


def test_hand_made_case():
    # first image: vessel 3 above background 1, 2; second: vessel 1 tied with background, below background 5
    truth = np.array([[True, False, False]])
    counts = counted([(np.array([[3, 1, 2]], np.uint16), truth), (np.array([[1, 1, 5]], np.uint16), truth)])
    weights = np.array([[1.0, 0], [0, 1], [1, 1], [2, 1]])
    # pairs in order: in the first 2 of 2, in the second ½ of 2; vessel 3 over (1, 5): 1; 1 over (1, 2): ½
    expected = [1, 0.25, (2 + 0.5 + 1 + 0.5) / 8, (4 * 2 + 0.5 + 2 * 1 + 2 * 0.5) / 18]
    np.testing.assert_allclose(pooled_auc(counts)(weights), expected)
    # falling: 5 background, 3 vessel, 2 background, 1 vessel and two background
    np.testing.assert_allclose(
        pooled_average_precision(counts)(weights), [1, 1 / 3, (1 / 2 + 2 / 6) / 2, (2 * 2 / 3 + 3 / 9) / 3]
    )


def test_images_without_a_class_give_0():
    nothing = [LevelCounts.zero(), LevelCounts.zero()]
    assert pooled_auc(nothing)(np.ones((3, 2))).tolist() == [0, 0, 0]
    assert pooled_average_precision(nothing)(np.ones((3, 2))).tolist() == [0, 0, 0]
