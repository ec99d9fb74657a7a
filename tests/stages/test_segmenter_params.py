"""Schemas of the segmenter's sections: what is accepted, what is refused, and the phases that follow."""

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from pipeline.segmenter_params import SegmenterParams
from pipeline.training_data import working_frame
from stages import ensemble, pseudo_label, retrain, train_base

FRAME = working_frame("x", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool), None, "native")
PHASE = {"epochs": 1, "learning_rate": 1e-3, "augment": False}


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (SegmenterParams, {"arch": "resnet"}),
        (SegmenterParams, {"resolution": "large"}),
        (SegmenterParams, {"resolution": 4}),
        (SegmenterParams, {"crop": 50}),
        (SegmenterParams, {"threshold": 1.5}),
        (SegmenterParams, {"threshold": "test"}),
        (SegmenterParams, {"batch_size": 0}),
        (SegmenterParams, {"loss": {"bce": 0, "dice": 0}}),
        (SegmenterParams, {"augmentation": {"rotate": 5}}),
        (SegmenterParams, {"learning_rate": 1e-3}),
        (train_base.Params, {"epochs": -1}),
        (train_base.Params, {"learning_rate": 0}),
        (retrain.Params, {"synthetic_count": 0}),
        (retrain.Params, {"label_threshold": 1}),
        (retrain.Params, {"order": ["synthetic", "mixed"]}),
        (retrain.Params, {"order": []}),
        (retrain.Params, {"real": {**PHASE, "epochs": 0}}),
        (retrain.Params, {"real": {"epochs": 1}}),
        (ensemble.Params, {"rule": "median"}),
        (pseudo_label.Params, {"batch": 3}),
    ],
)
def test_wrong_values_and_unknown_keys_are_refused(schema: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schema.model_validate(values)


@pytest.mark.parametrize("order", retrain.ORDERS)
def test_phases_follow_the_order(order: tuple[str, ...]) -> None:
    params = retrain.Params.model_validate(
        {
            "order": list(order),
            "synthetic": {"epochs": 3, "learning_rate": 1e-2, "augment": False},
            "real": {"epochs": 4, "learning_rate": 1e-4, "augment": True},
            "mixed": {"epochs": 5, "learning_rate": 1e-3, "augment": True},
        }
    )
    real, synthetic = [FRAME] * 2, [FRAME] * 6
    expected = {
        "synthetic": (6, 3, 1e-2, False),
        "real": (2, 4, 1e-4, True),
        "mixed": (8, 5, 1e-3, True),
    }
    phases = retrain.phases(params, real, synthetic)
    assert tuple(phase.name for phase in phases) == order
    for phase in phases:
        found = (len(phase.frames), phase.epochs, phase.learning_rate, phase.augment)
        assert found == expected[phase.name]


def test_the_architecture_is_part_of_the_segmenter() -> None:
    params = SegmenterParams(arch="unet", base_width=8, dropblock_keep=1)
    assert params.architecture.model_dump() == {
        "arch": "unet",
        "base_width": 8,
        "dropblock_size": 7,
        "dropblock_keep": 1.0,
    }
    assert not hasattr(params.architecture, "resolution")
