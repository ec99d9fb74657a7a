"""The controller of the augmentation's strength."""

import json
from typing import Any

import pytest
import torch

from stylegan2.ada import AdaController, adjusted_p


def test_p_rises_while_the_discriminator_overfits_and_falls_otherwise() -> None:
    controller = AdaController(p=0.0, target=0.6, ada_kimg=1, interval=4)
    for iteration in range(8):
        controller.report(torch.ones(8))
        controller.after_iteration(iteration + 1, batch=8)
    assert controller.p == pytest.approx(2 * 32 / 1000)
    for iteration in range(8, 12):
        controller.report(torch.tensor([2.0, -2.0]))
        controller.after_iteration(iteration + 1, batch=8)
    assert controller.p == pytest.approx(32 / 1000)


def test_p_changes_only_every_interval() -> None:
    controller = AdaController(p=0.5, target=0.6, ada_kimg=1, interval=4)
    controller.report(torch.ones(8))
    assert [controller.after_iteration(done, batch=8) for done in (1, 2, 3)] == [0.5] * 3
    assert controller.after_iteration(4, batch=8) > 0.5


def test_p_has_a_floor_and_no_ceiling() -> None:
    assert adjusted_p(0.001, -1.0, target=0.6, images=100, ada_kimg=1) == 0
    assert adjusted_p(1.0, 1.0, target=0.6, images=100, ada_kimg=1) == pytest.approx(1.1)


def test_state_survives_json() -> None:
    controller = AdaController(p=0.0, target=0.6, ada_kimg=1, interval=2)
    controller.report(torch.tensor([1.0, 1.0, -1.0]))
    other = AdaController(p=0.9, target=0.6, ada_kimg=1, interval=2)
    other.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert other.after_iteration(2, batch=8) == controller.after_iteration(2, batch=8)


@pytest.mark.shared
def test_sequences_of_the_reference(stylegan2_reference: Any) -> None:
    path = stylegan2_reference.folder / "training_dynamics.json"
    dynamics = json.loads(path.read_text(encoding="utf-8"))["ada_p"]
    for sequence in dynamics["sequences"]:
        p = sequence["p0"]
        images = sequence["batch_size"] * sequence["ada_interval"]
        for r_t, expected in zip(sequence["mean_sign_real"], sequence["p"], strict=True):
            kimg, target = sequence["ada_kimg"], sequence["ada_target"]
            p = adjusted_p(p, r_t, target=target, images=images, ada_kimg=kimg)
            assert p == pytest.approx(expected, abs=dynamics["tolerance_abs"])
