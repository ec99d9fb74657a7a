"""How networks compute: cuDNN's TensorFloat-32 is off meanwhile, and threads that wait sleep."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan2 import precision, sampling, training
from stylegan2.config import TrainingOptions
from stylegan2.precision import full_precision
from tests.stylegan2.small_networks import small_generator

NEW_NAMES = hasattr(torch.backends.cudnn, "conv")


@pytest.fixture(autouse=True)
def tensor_float_32() -> Iterator[None]:
    """PyTorch's defaults, whatever a test before left behind."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in precision._switches()]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    yield
    for owner, name, value in before:
        setattr(owner, name, value)


def settings() -> tuple[bool, bool]:
    """Whether cuDNN is deterministic, and whether its convolutions round to TensorFloat-32."""
    cudnn = torch.backends.cudnn
    rounds = cudnn.conv.fp32_precision != "ieee" if NEW_NAMES else cudnn.allow_tf32  # type: ignore[attr-defined]
    return cudnn.deterministic, rounds


def test_a_block_is_exact_and_leaves_no_trace() -> None:
    with full_precision():
        assert settings() == (True, False)
    assert settings() == (False, True)
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert settings() == (False, True)


@pytest.mark.skipif(not NEW_NAMES, reason="PyTorch before 2.9 has one switch alone")
@pytest.mark.parametrize("switch", ["everything", "cudnn", "conv"])
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_newer_switches_are_heeded_and_left_alone(switch: str, value: str) -> None:
    """In a process of its own: some of them cannot be taken back."""
    owner = {"everything": "torch.backends", "cudnn": "torch.backends.cudnn"}.get(
        switch, "torch.backends.cudnn.conv"
    )
    code = f"""
import torch
from stylegan2.precision import full_precision
{owner}.fp32_precision = {value!r}
before = torch.backends.cudnn.conv.fp32_precision
with full_precision():
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
assert torch.backends.cudnn.conv.fp32_precision == before == {value!r}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_training_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Idle:
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            seen.append(settings())

        def run(self, progress: bool) -> None:
            seen.append(settings())

        def export(self, out_dir: Path, provenance: Any) -> None:
            pass

    monkeypatch.setattr(training, "Trainer", Idle)
    images = np.zeros([4, 16, 16, 3], np.uint8)
    options = TrainingOptions(resolution=16, kimg=0.01, batch=4)
    training.train(images, options, seed=0, out_dir=tmp_path / "gan", progress=False)
    assert seen == [(True, False)] * 2
    assert settings() == (False, True)


def test_sampling_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_generator()
    seen = []
    inner = generator.synthesis.forward

    def spy(*arguments: Any, **keywords: Any) -> Any:
        seen.append(settings())
        return inner(*arguments, **keywords)

    monkeypatch.setattr(generator.synthesis, "forward", spy)
    list(sampling.sample_images(generator, range(2), 0.7))
    list(sampling.draw_ws(generator, torch.zeros(1, generator.num_ws, generator.w_dim)))
    assert seen == [(True, False)] * 2
    assert settings() == (False, True)


@pytest.mark.parametrize("package", ["stylegan2.cli", "pipeline.cli", "stages.context"])
def test_threads_that_wait_sleep(package: str) -> None:
    """Each package by itself: the variable is read when torch is loaded, and spinning costs a core."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    code = f"import os, {package}; print(os.environ['GOMP_SPINCOUNT'])"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "1000"
    process = subprocess.run(
        command, env={**environment, "GOMP_SPINCOUNT": "7"}, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "7"  # who sets it knows why
