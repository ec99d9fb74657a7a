"""The objectives, and six whole iterations, against the reference numbers."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan2.ema import ema_beta, update_average
from stylegan2.loss import StyleGAN2Loss
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.optimisation import lazy_adam, step_with_gradients, trainable

pytestmark = pytest.mark.shared

FILE = "losses"
REPORTED = {
    "scores_fake": "Loss_scores_fake",
    "scores_real": "Loss_scores_real",
    "signs_fake": "Loss_signs_fake",
    "signs_real": "Loss_signs_real",
    "loss_G": "Loss_G_loss",
    "loss_D": "Loss_D_loss",
    "loss_G_reg": "Loss_G_reg",
    "loss_D_reg": "Loss_D_reg",
    "pl_penalty": "Loss_pl_penalty",
    "r1_penalty": "Loss_r1_penalty",
}


class RecordingLoss(StyleGAN2Loss):
    """Keeps every report under its name in the reference; takes path-length noise from a list."""

    def __init__(self, *args: Any, noises: Iterator[Tensor], **kwargs: Any) -> None:
        super().__init__(*args, report=self.record, noise_mode="const", **kwargs)
        self.noises = noises
        self.reports: dict[str, list[Tensor]] = {}

    def record(self, name: str, values: Tensor) -> None:
        self.reports.setdefault(REPORTED[name], []).append(values.detach())

    def path_length_noise(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        return next(self.noises)


def build(reference: Any, name: str, factory: Callable[..., nn.Module]) -> nn.Module:
    network = factory(**reference.entry(name)["init_kwargs"])
    network.load_state_dict(reference.state(name))
    return network.train()


@pytest.fixture
def loss(stylegan2_reference: Any) -> RecordingLoss:
    tensors = stylegan2_reference.tensors(FILE)
    return RecordingLoss(
        build(stylegan2_reference, "generator_skip_res32", Generator),
        build(stylegan2_reference, "discriminator_resnet_res32", Discriminator),
        r1_gamma=0.9,
        style_mixing_prob=0.0,
        noises=iter([tensors[f"pl_noise_raw_{index}"] for index in range(3)]),
    )


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {
        f"g.{name}": torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in network.named_parameters()
    }


@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg", "Greg"])
def test_phase(
    phase: str, loss: RecordingLoss, stylegan2_reference: Any, assert_close_to_reference: Callable[..., None]
) -> None:
    tensors = stylegan2_reference.tensors(FILE)
    z, real = tensors["z"], tensors["real_img"]
    trained, opponent = loss.generator, loss.discriminator
    if phase.startswith("D"):
        trained, opponent = opponent, trained
    found: dict[str, Tensor] = {}
    with trainable(trained, opponent):
        if phase == "Gmain":
            loss.accumulate_gmain(z)
        elif phase == "Dmain":
            loss.accumulate_dmain(real, z)
        elif phase == "Dreg":
            loss.accumulate_dreg(real, gain=16)
        else:
            loss.accumulate_greg(z, gain=4)
    found |= gradients(trained)
    if phase == "Greg":
        found["pl_mean_after_1"] = loss.pl_mean
        for call in (2, 3):
            loss.accumulate_greg(z, gain=4)
            found[f"pl_mean_after_{call}"] = loss.pl_mean
    found["w_avg_after"] = loss.generator.mapping.w_avg
    for name, values in loss.reports.items():
        found |= {f"report.{name}.{index}": value for index, value in enumerate(values)}
    expected = stylegan2_reference.outputs(FILE, phase)
    assert not [parameter for parameter in opponent.parameters() if parameter.grad is not None]
    for name, value in expected.items():
        assert_close_to_reference(found[name], value, stylegan2_reference.tolerance(FILE), f"{phase} {name}")


def test_six_iterations(stylegan2_reference: Any, assert_close_to_reference: Callable[..., None]) -> None:
    file = "train_trace"
    tensors = stylegan2_reference.tensors(file)
    z, real = tensors["z"], tensors["real_img"]
    generator = build(stylegan2_reference, "generator_skip_res32", Generator)
    discriminator = build(stylegan2_reference, "discriminator_resnet_res32", Discriminator)
    average = copy.deepcopy(generator).eval()
    loss = RecordingLoss(
        generator,
        discriminator,
        r1_gamma=0.9,
        style_mixing_prob=0.0,
        noises=iter([tensors[f"pl_noise_raw_{index}"] for index in range(2)]),
    )
    optimizer_g, optimizer_d = lazy_adam(generator, 0.0025, 4), lazy_adam(discriminator, 0.0025, 16)
    pl_means = []
    for iteration in range(6):
        with trainable(generator, discriminator):
            loss.accumulate_gmain(z[iteration, 0])
            step_with_gradients(optimizer_g)
            if iteration % 4 == 0:
                loss.accumulate_greg(z[iteration, 1], gain=4)
                step_with_gradients(optimizer_g)
        with trainable(discriminator, generator):
            loss.accumulate_dmain(real, z[iteration, 2])
            step_with_gradients(optimizer_d)
            if iteration % 16 == 0:
                loss.accumulate_dreg(real, gain=16)
                step_with_gradients(optimizer_d)
        update_average(average, generator, ema_beta(8 * iteration, 8, ema_kimg=1, rampup=0.05))
        pl_means.append(loss.pl_mean)
    found = {
        f"trace.{name}": torch.stack([value.mean() for value in values])
        for name, values in loss.reports.items()
    }
    found["pl_mean"] = torch.stack(pl_means)
    with torch.no_grad():
        ws = average.get_submodule("mapping")(z[0, 0][:2], None)
        found["img_G_ema"] = average.get_submodule("synthesis")(ws, noise_mode="const")
        found["logits_real"] = discriminator(real, None)
    for name, value in stylegan2_reference.outputs(file, "six_iterations").items():
        assert_close_to_reference(found[name], value, stylegan2_reference.tolerance(file), name)
