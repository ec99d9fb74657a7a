"""What all operations share: memory, and the shortcuts that a CPU takes."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.upfirdn2d import setup_filter, upfirdn2d

BLOCKS, BLOCK_BYTES = 20, 48_000_000  # above the largest threshold that glibc adapts to by itself
COUNT_PAGE_FAULTS = f"""
import resource, torch
from stylegan2.ops.allocation import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({BLOCKS}):  # aligned blocks do not fit into the first holes
    torch.ones({BLOCK_BYTES // 4})
before = faults()
for _ in range({BLOCKS}):
    torch.ones({BLOCK_BYTES // 4})
print((faults() - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    """In a process of its own: the setting cannot be taken back."""
    process = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < BLOCKS * BLOCK_BYTES / 4  # fresh pages for every block would be all of it


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


@given(
    shape=st.tuples(st.integers(2, 3), st.integers(1, 18), st.integers(3, 7), st.integers(3, 7)),
    up=st.integers(1, 2),
    down=st.integers(1, 2),
    separable=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_resampling_a_batch_is_resampling_its_images(shape, up, down, separable):
    """Narrow batches are filtered as one image of many channels; values and derivatives must not notice."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 2], separable=separable)

    def resample(images):
        return upfirdn2d(images, f, up=up, down=down, padding=(2, 1, 1, 2))

    together = resample(x)
    torch.testing.assert_close(together, torch.cat([resample(image) for image in x.split(1)]))
    weights = torch.randn_like(together)
    (gradient,) = torch.autograd.grad((together.square() * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    x1 = x.detach().requires_grad_()
    apart = torch.cat([resample(image) for image in x1.split(1)])
    (gradient1,) = torch.autograd.grad((apart.square() * weights).sum(), x1, create_graph=True)
    (second1,) = torch.autograd.grad(gradient1.square().sum(), x1)
    torch.testing.assert_close(gradient, gradient1)
    torch.testing.assert_close(second, second1)


@given(
    alpha=st.sampled_from([-0.1, 0.0, 0.2, 1.5]),
    gain=st.sampled_from([-1.0, 0.0, 1.0, 1.7]),
    clamp=st.sampled_from([None, 0.5]),
    with_bias=st.booleans(),
)
@settings(deadline=None)
def test_leaky_relu_against_its_definition(alpha, gain, clamp, with_bias):
    """Whatever order the operations take; the input stays as it was."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True) if with_bias else None
    before = x.detach().clone()
    y = bias_act(x, b, act="lrelu", alpha=alpha, gain=gain, clamp=clamp)
    assert torch.equal(x, before)
    biased = x if b is None else x + b[None, :, None]
    expected = gain * F.leaky_relu(biased, alpha)
    expected = expected if clamp is None else expected.clamp(-clamp, clamp)
    torch.testing.assert_close(y, expected)
    leaves = [x] if b is None else [x, b]
    weights = torch.randn_like(y)
    actual_gradients = torch.autograd.grad((y.square() * weights).sum(), leaves, create_graph=True)
    gradients = torch.autograd.grad((expected.square() * weights).sum(), leaves, create_graph=True)
    torch.testing.assert_close(actual_gradients, gradients)
    torch.testing.assert_close(
        torch.autograd.grad(actual_gradients[0].square().sum(), x),
        torch.autograd.grad(gradients[0].square().sum(), x),
    )


def test_the_activation_holds_one_new_tensor():
    """The result is the only tensor that the activation keeps for the backward pass."""
    x, b = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = bias_act(x, b, act="lrelu")
    large = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert large == {y.data_ptr()}
