"""Averages over a tick: exact sums, on every device, across a checkpoint."""

import json

import pytest
import torch

from stylegan2.ada import AdaController
from stylegan2.history import TickAverages

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


def batches(device="cpu"):
    rng = torch.Generator().manual_seed(0)
    return [(1e3 * torch.randn(8, generator=rng)).to(device) for _ in range(7)]


def test_the_mean_is_of_all_values():
    averages = TickAverages()
    assert averages.mean("a") is None
    averages.report("a", torch.tensor([1.0, 2.0, 6.0]))
    averages.report("a", torch.tensor(7.0))
    averages.report("b", torch.tensor([[2.0, 4.0]]))
    assert (averages.mean("a"), averages.mean("b")) == (4.0, 3.0)
    averages.clear()
    assert averages.mean("a") is None


@pytest.mark.parametrize("device", DEVICES)
def test_sums_are_those_of_float64_and_survive_a_checkpoint(device):
    """Of each batch in float32, over batches in float64; the state is JSON, and what follows it goes on."""
    straight, interrupted = TickAverages(), TickAverages()
    expected = 0.0
    for step, values in enumerate(batches(device)):
        expected += float(values.sum(dtype=torch.float32))
        for averages in (straight, interrupted):
            averages.report("x", values)
        if step == 3:
            state = json.loads(json.dumps(interrupted.state_dict()))
            interrupted = TickAverages()
            interrupted.load_state_dict(state)
    assert straight.state_dict() == interrupted.state_dict() == {"sums": {"x": expected}, "counts": {"x": 56}}
    assert straight.mean("x") == expected / 56


@pytest.mark.parametrize("device", DEVICES)
def test_the_controller_of_ada_reads_the_same(device):
    options = {"p": 0.0, "target": 0.1, "ada_kimg": 1, "interval": 2}
    here, there = AdaController(**options), AdaController(**options)
    for step, values in enumerate(batches()):
        here.report(values)
        there.report(values.to(device))
        assert json.dumps(here.state_dict()) == json.dumps(there.state_dict())
        assert here.after_iteration(step + 1, 8) == there.after_iteration(step + 1, 8)
