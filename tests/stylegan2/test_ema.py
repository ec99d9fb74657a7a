"""The moving average of the generator."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from stylegan2.ema import ema_beta, update_average


def network(value: float) -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.tensor([value])))
    module.register_buffer("mean", torch.tensor([value]))
    return module


def test_parameters_are_blended_and_buffers_copied() -> None:
    average = network(1.0)
    update_average(average, network(3.0), beta=0.75)
    assert average.get_parameter("weight").item() == pytest.approx(1.5)
    assert average.get_buffer("mean").item() == 3.0


def test_beta_zero_copies_exactly() -> None:
    average = network(0.1)
    update_average(average, network(0.3), beta=0.0)
    assert torch.equal(average.get_parameter("weight"), torch.tensor([0.3]))


@pytest.mark.shared
def test_beta_of_the_reference(stylegan2_reference: Any) -> None:
    path = stylegan2_reference.folder / "training_dynamics.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["ema_beta"]["rows"]
    for row in rows:
        beta = ema_beta(row["cur_nimg"], row["batch_size"], row["ema_kimg"], row["ema_rampup"])
        assert beta == pytest.approx(row["ema_beta"], rel=1e-9), row
