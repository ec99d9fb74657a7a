"""The objectives beyond the reference numbers: style mixing, diverged losses, and nobody waits for a GPU."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.loss import StyleGAN2Loss
from tests.stylegan2.pretended_gpu import GPU, PretendedGpu, PretendedStream, pretended_gpu

LAYERS, WIDTH = 5, 3


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    yield from pretended_gpu()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> PretendedStream:
    made = PretendedStream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: made)
    return made


class TinyGenerator(nn.Module):
    """w = tanh(a z) for each layer, and an image of 2×2 pixels."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full([WIDTH], 0.5, device=device))
        self.calls: list[Tensor] = []

    def mapping(self, z: Tensor, c: Tensor | None, skip_w_avg_update: bool = False) -> Tensor:
        self.calls.append(z)
        return (z * self.scale).tanh()[:, None].repeat(1, LAYERS, 1)

    def synthesis(self, ws: Tensor, noise_mode: str) -> Tensor:
        return ws.square().sum(dim=1)[:, :, None, None].repeat(1, 1, 2, 2)


class TinyDiscriminator(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones([WIDTH], device=device))

    def forward(self, images: Tensor, c: Tensor | None) -> Tensor:
        return (images.square().mean(dim=(2, 3)) * self.scale).sum(dim=1, keepdim=True)


def make_loss(device: torch.device, **options: Any) -> StyleGAN2Loss:
    generator: Any = TinyGenerator(device)
    discriminator: Any = TinyDiscriminator(device)
    return StyleGAN2Loss(generator, discriminator, r1_gamma=1.0, **options)


def run_all_phases(loss: StyleGAN2Loss, device: torch.device) -> None:
    z, real = torch.randn([4, WIDTH], device=device), torch.randn([4, WIDTH, 2, 2], device=device)
    loss.accumulate_gmain(z)
    loss.accumulate_greg(z, gain=4)
    loss.accumulate_dmain(real, z)
    loss.accumulate_dreg(real, gain=16)


# Style mixing


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_mixing_takes_the_drawn_layers_from_other_latents(probability: float) -> None:
    loss = make_loss(torch.device("cpu"), style_mixing_prob=probability)
    z = torch.randn([2, WIDTH], generator=torch.Generator().manual_seed(9))
    mixed = 0
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        mixes = float(torch.rand([], generator=rng)) < probability
        first = int(torch.randint(1, LAYERS, [], generator=rng)) if mixes else LAYERS
        if not mixes:
            torch.randint(1, LAYERS, [], generator=rng)
        other = torch.randn(z.shape, generator=rng)
        after = torch.rand([], generator=rng)
        expected = loss.generator.mapping(z, None).clone()
        expected[:, first:] = loss.generator.mapping(other, None)[:, first:]
        again = torch.Generator().manual_seed(seed)
        _, ws = loss._generate(z, None, again)
        assert torch.equal(ws, expected)
        assert torch.equal(torch.rand([], generator=again), after)  # the stream goes on at the same place
        mixed += mixes
    assert mixed > 0 and (mixed == 40) == (probability == 1)


def test_gradients_reach_the_latents_that_are_used() -> None:
    loss = make_loss(torch.device("cpu"), style_mixing_prob=0.5)
    z = torch.randn([2, WIDTH], requires_grad=True)
    for seed in range(8):
        images, ws = loss._generate(z, None, torch.Generator().manual_seed(seed))
        own = int((ws == loss.generator.mapping(z, None)).all(dim=2).all(dim=0).sum())
        (gradient,) = torch.autograd.grad(images.sum(), z)
        w = loss.generator.mapping(z, None)[:, 0]
        slope = 4 * own * 2 * w * (1 - w.square()) * loss.generator.scale
        torch.testing.assert_close(gradient, slope)


# Losses that are not finite


def test_a_loss_that_is_not_finite_ends_training_at_once_on_the_cpu() -> None:
    loss = make_loss(torch.device("cpu"), style_mixing_prob=0.0)
    with pytest.raises(StyleGAN2Error, match="training diverged: generator loss is nan; check the images"):
        loss.accumulate_gmain(torch.full([2, WIDTH], math.nan))
    assert loss.generator.scale.grad is None
    with pytest.raises(StyleGAN2Error, match="generated images is inf"):
        loss.generator.scale.data.fill_(1.0)
        loss.discriminator.scale.data.fill_(math.inf)
        loss.accumulate_dmain(torch.ones([2, WIDTH, 2, 2]), torch.ones([2, WIDTH]))
    loss.raise_if_diverged()


def test_on_a_gpu_it_is_noticed_by_the_next_loss_or_when_asked(
    stream: PretendedStream, gpu: PretendedGpu
) -> None:
    loss = make_loss(GPU, style_mixing_prob=0.0)
    loss.accumulate_gmain(torch.full([2, WIDTH], math.nan, device=GPU))
    with pytest.raises(StyleGAN2Error, match="training diverged: generator loss is nan"):
        loss.accumulate_gmain(torch.ones([2, WIDTH], device=GPU))
    loss.accumulate_gmain(torch.full([2, WIDTH], math.nan, device=GPU))
    with pytest.raises(StyleGAN2Error, match="training diverged: generator loss is nan"):
        loss.raise_if_diverged()
    loss.raise_if_diverged()  # told once
    loss.accumulate_gmain(torch.ones([2, WIDTH], device=GPU))
    loss.raise_if_diverged()
    assert stream.waited == 3
    assert gpu.waits == []


# Waiting


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_no_phase_waits_for_a_gpu(probability: float, stream: PretendedStream, gpu: PretendedGpu) -> None:
    loss = make_loss(GPU, style_mixing_prob=probability)
    gpu.waits.clear()
    for _ in range(3):
        run_all_phases(loss, GPU)
    assert gpu.waits == []
    assert stream.waited == 3 * 5 - 1  # each loss is looked at when the next one arrives


def test_a_gpu_computes_what_the_cpu_does(stream: PretendedStream, gpu: PretendedGpu) -> None:
    found = []
    for device in (torch.device("cpu"), GPU):
        torch.manual_seed(5)
        loss = make_loss(device, style_mixing_prob=0.7)
        run_all_phases(loss, device)
        found.append([loss.generator.scale.grad, loss.discriminator.scale.grad, loss.pl_mean])
    for ours, theirs in zip(*found, strict=True):
        assert theirs is not None and ours is not None
        assert ours.tolist() == theirs.tolist()


def test_the_pretended_gpu_notices_who_waits(gpu: PretendedGpu) -> None:
    x = torch.arange(4.0, device=GPU)
    assert x.is_cuda and (x + 1).device == GPU
    bool((x > 1).any())
    x.nonzero()
    x[x > 1]
    x.cpu()
    x.to("cpu", non_blocking=True)
    torch.ones(2).to(GPU, non_blocking=True)
    torch.ones(2).pin_memory().to(GPU, non_blocking=True)
    torch.tensor([1.0], device=GPU)
    assert gpu.waits == ["__bool__", "nonzero", "__getitem__ by truth", "cpu", "to", "tensor"]
    with pytest.raises(AssertionError, match="two devices"):
        _ = x + torch.ones(4)
