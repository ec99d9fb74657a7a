"""Schemas of the segmenter's sections: what is accepted, what is refused, and the phases that follow."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from pipeline.segmenter_params import SegmenterParams
from pipeline.training_data import working_frame
from pipeline.verdict import REAL_PHASES
from stages import ensemble, pseudo_label, retrain, train_base
from stages.params_file import read_yaml
from stages.segmenter import TwoStepSchedule

PRESETS = Path(__file__).resolve().parents[2] / "presets"
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
        (SegmenterParams, {"postprocess": "test"}),
        (SegmenterParams, {"batch_size": 0}),
        (SegmenterParams, {"loss": {"bce": 0, "dice": 0}}),
        (SegmenterParams, {"augmentation": {"rotate": 5}}),
        (SegmenterParams, {"learning_rate": 1e-3}),
        (train_base.Params, {"epochs": -1}),
        (train_base.Params, {"learning_rate": 0}),
        (train_base.Params, {"epochs": 0, "final_epochs": 0}),
        (retrain.Params, {"synthetic_count": 0}),
        (retrain.Params, {"label_threshold": 1}),
        (retrain.Params, {"order": ["synthetic", "mixed"]}),
        (retrain.Params, {"order": []}),
        (retrain.Params, {"real": {**PHASE, "epochs": 0}}),
        (retrain.Params, {"real": {**PHASE, "epochs": 0, "final_epochs": 0}}),
        (retrain.Params, {"real": {**PHASE, "final_learning_rate": 0}}),
        (retrain.Params, {"real": {"epochs": 1}}),
        (ensemble.Params, {"rule": "median"}),
        (ensemble.Params, {"postprocess": 0.5}),
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
            "real": {
                "epochs": 4,
                "learning_rate": 1e-4,
                "final_epochs": 2,
                "final_learning_rate": 1e-5,
                "augment": True,
            },
            "mixed": {"epochs": 5, "learning_rate": 1e-3, "augment": True},
        }
    )
    real, synthetic = [FRAME] * 2, [FRAME] * 6
    steps = {
        "synthetic": [("synthetic", 6, 3, 1e-2, False)],
        "real": [("real", 2, 4, 1e-4, True), ("real (final)", 2, 2, 1e-5, True)],
        "mixed": [("mixed", 8, 5, 1e-3, True)],
    }
    expected = [(*step, kind == order[-1]) for kind in order for step in steps[kind]]
    found = [
        (
            phase.name,
            len(phase.frames),
            phase.epochs,
            phase.learning_rate,
            phase.augment,
            phase.selectable,
        )
        for phase in retrain.phases(params, real, synthetic)
    ]
    assert found == expected


def test_a_step_without_epochs_is_left_out() -> None:
    params = train_base.Params(epochs=0, final_epochs=2)
    (phase,) = params.phases("real", [FRAME])
    assert (phase.name, phase.epochs, phase.learning_rate) == ("real (final)", 2, 1e-4)
    assert phase.selectable


def test_a_cosine_is_one_phase_and_has_no_second_step() -> None:
    params = train_base.Params(
        schedule="cosine",
        warmup_steps=7,
        epochs=5,
        learning_rate=1e-2,
        final_epochs=0,
        final_learning_rate=1e-5,
    )
    (phase,) = params.phases("real", [FRAME])
    assert (phase.name, phase.epochs, phase.learning_rate) == ("real", 5, 1e-2)
    assert (phase.final_learning_rate, phase.warmup_steps) == (1e-5, 7)
    with pytest.raises(ValidationError, match="expected final_epochs 0"):
        train_base.Params(schedule="cosine", epochs=5)  # the default has 50 final epochs


def test_a_cosine_that_would_rise_is_refused() -> None:
    values = {"schedule": "cosine", "epochs": 5, "final_epochs": 0, "learning_rate": 1e-5}
    with pytest.raises(ValidationError, match=r"learning_rate 1e-05 to final_learning_rate 0\.0001"):
        train_base.Params(**values, final_learning_rate=1e-4)
    train_base.Params(**values, final_learning_rate=1e-5)


def test_a_warm_up_without_epochs_is_refused_and_every_problem_is_named() -> None:
    with pytest.raises(ValidationError, match="warmup_steps 7 with epochs 0; expected"):
        train_base.Params(epochs=0, warmup_steps=7)
    with pytest.raises(ValidationError, match=r"both 0.*falls.*warmup_steps 7"):
        train_base.Params(
            schedule="cosine",
            epochs=0,
            final_epochs=0,
            warmup_steps=7,
            learning_rate=1e-5,
            final_learning_rate=1,
        )


def test_only_the_first_step_is_warmed_up() -> None:
    phases = train_base.Params(warmup_steps=7).phases("real", [FRAME])
    assert [(phase.warmup_steps, phase.final_learning_rate) for phase in phases] == [(7, None), (0, None)]


def test_the_verdict_knows_the_phases_that_show_real_images() -> None:
    schedule = TwoStepSchedule(epochs=1, learning_rate=1e-3, final_epochs=1, augment=False)
    names = {
        kind: [phase.name for phase in schedule.phases(kind, [FRAME])] for kind in get_args(retrain.Kind)
    }
    assert set(REAL_PHASES) == {*names["real"], *names["mixed"]}
    assert not set(REAL_PHASES) & set(names["synthetic"])


@pytest.mark.parametrize("preset", ["default", "drive-smoke", "drive-cpu"])
def test_presets_train_both_models_alike_on_real_images(preset: str) -> None:
    values = read_yaml(PRESETS / f"{preset}.yaml")
    assert values["retrain"]["real"] == values["train_base"]


def test_the_architecture_is_part_of_the_segmenter() -> None:
    params = SegmenterParams(arch="unet", base_width=8, dropblock_keep=1)
    assert params.architecture.model_dump() == {
        "arch": "unet",
        "base_width": 8,
        "dropblock_size": 7,
        "dropblock_keep": 1.0,
    }
    assert not hasattr(params.architecture, "resolution")
