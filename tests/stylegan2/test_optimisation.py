"""Optimiser steps under lazy regularisation."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from stylegan2.optimisation import lazy_adam, lazy_hyperparameters, step_with_gradients, trainable


def test_without_regularisation_nothing_is_corrected() -> None:
    assert lazy_hyperparameters(0.0025, None) == (0.0025, (0.0, 0.99))


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = lazy_adam(layer, 0.1, None)
    layer.weight.grad = torch.tensor([[float("nan"), float("-inf")]])
    step_with_gradients(optimizer)
    assert torch.equal(layer.weight[:, :1], before[:, :1])
    assert layer.weight[0, 1].item() == pytest.approx(before[0, 1].item() + 0.1, rel=1e-4)
    assert layer.weight.grad is None


def test_a_missing_gradient_is_a_zero_one() -> None:
    layer = nn.Linear(2, 1)
    optimizer = lazy_adam(layer, 0.1, None)
    step_with_gradients(optimizer)
    assert [state["step"].item() for state in optimizer.state.values()] == [1, 1]


def trained_steps(layer: nn.Linear, optimizer: torch.optim.Adam, steps: range) -> None:
    for step in steps:
        layer.weight.grad = torch.linspace(-1, 2, layer.weight.numel()).reshape(layer.weight.shape).pow(step)
        step_with_gradients(optimizer)


def test_steps_are_those_of_plain_adam() -> None:
    torch.manual_seed(0)
    fused = nn.Linear(7, 5, bias=False)
    plain = copy.deepcopy(fused)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-8, fused=False)
    trained_steps(fused, lazy_adam(fused, 0.01, None), range(1, 8))
    trained_steps(plain, optimizer, range(1, 8))
    torch.testing.assert_close(fused.weight, plain.weight, rtol=1e-5, atol=1e-6)


def test_a_restored_optimiser_goes_on_to_the_last_bit() -> None:
    torch.manual_seed(0)
    whole = nn.Linear(7, 5, bias=False)
    optimizer = lazy_adam(whole, 0.01, 4)
    trained_steps(whole, optimizer, range(1, 4))
    halves = copy.deepcopy(whole)
    restored = lazy_adam(halves, 0.01, 4)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trained_steps(whole, optimizer, range(4, 8))
    trained_steps(halves, restored, range(4, 8))
    assert torch.equal(whole.weight, halves.weight)


def test_only_one_network_is_trained() -> None:
    trained, opponent = nn.Linear(1, 1), nn.Linear(1, 1)
    with trainable(trained, opponent):
        opponent(trained(torch.ones(1, 1))).sum().backward()
    assert trained.weight.grad is not None
    assert opponent.weight.grad is None
    assert opponent.weight.requires_grad


@pytest.mark.shared
def test_corrections_of_the_reference(stylegan2_reference: Any) -> None:
    path = stylegan2_reference.folder / "training_dynamics.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["lazy_regularisation"]["rows"]
    for row in rows:
        lr, betas = lazy_hyperparameters(row["lr"], row["interval"])
        assert lr == pytest.approx(row["lr_eff"], rel=1e-12)
        assert betas == pytest.approx(tuple(row["betas_eff"]), rel=1e-12)
        group = lazy_adam(nn.Linear(1, 1), row["lr"], row["interval"]).param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (lr, betas, row["eps"])
