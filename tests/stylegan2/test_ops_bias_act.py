"""Bias and activation: derivatives, identity of the trivial case, and error messages."""

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.bias_act import ACTIVATIONS, bias_act


@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_first_and_second_derivatives(act, clamp):
    torch.manual_seed(1)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def function(x, b):
        return bias_act(x, b, act=act, gain=1.3, clamp=clamp)

    assert torch.autograd.gradcheck(function, (x, b))
    assert torch.autograd.gradgradcheck(function, (x, b))


def test_leaves_its_input_alone():
    x = torch.randn(2, 3)
    before = x.clone()
    for act in ACTIVATIONS:
        bias_act(x, act=act)
        assert torch.equal(x, before), act


def test_last_dimension_counted_from_the_end():
    x, b = torch.randn(2, 3, 4), torch.randn(4)
    assert torch.equal(bias_act(x, b, dim=-1), x + b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": "gelu"}, "act: got 'gelu', expected one of linear"),
        ({"b": torch.zeros(4)}, "b: got shape"),
        ({"b": torch.zeros(3, 1)}, "b: got shape"),
        ({"dim": 2}, "dim: got 2"),
        ({"clamp": -1}, "clamp: got -1"),
        ({"clamp": float("nan")}, "clamp: got nan"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(StyleGAN2Error, match=message):
        bias_act(torch.zeros(2, 3), **options)
