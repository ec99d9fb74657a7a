"""The objectives, and six whole iterations of the trainer, against the reference numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stylegan2.config import TrainingOptions, resolve
from stylegan2.loss import StyleGAN2Loss
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.optimisation import trainable
from stylegan2.training import Trainer

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
    phase: str,
    loss: RecordingLoss,
    stylegan2_reference: Any,
    assert_close_to_reference: Callable[..., None],
    gradient_slack: float,
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
    tolerance = stylegan2_reference.tolerance(FILE)
    for name, value in expected.items():
        # What Dreg and Greg report is made of gradients, too.
        slack = gradient_slack if name.startswith("g.") or phase.endswith("reg") else 1
        assert_close_to_reference(found[name], value, slack * tolerance, f"{phase} {name}")


OPTIONS = TrainingOptions(
    resolution=32,
    kimg=0.048,
    batch=8,
    fmaps=1024 / 32768,
    channel_max=64,
    z_dim=64,
    w_dim=64,
    mapping_layers=2,
    lr=0.0025,
    gamma=0.9,
    ema_kimg=1,
    ema_rampup=0.05,
    mbstd_group=4,
    aug="noaug",
    style_mixing_prob=0,
    g_reg_interval=4,
    d_reg_interval=16,
    pl_weight=2,
    pl_batch_shrink=2,
    pl_decay=0.01,
)


@pytest.fixture
def trainer(stylegan2_reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A real trainer with the trace's weights, images, latents and noise."""
    tensors = stylegan2_reference.tensors("train_trace")
    trainer = Trainer(
        np.zeros((8, 32, 32, 3), np.uint8),
        resolve(OPTIONS),
        seed=0,
        device=torch.device("cpu"),
        progress_dir=tmp_path,
    )
    for network, name in (
        (trainer.generator, "generator_skip_res32"),
        (trainer.average, "generator_skip_res32"),
        (trainer.discriminator, "discriminator_resnet_res32"),
    ):
        network.load_state_dict(stylegan2_reference.state(name))
    latents = iter(
        [
            tensors["z"][iteration, phase]
            for iteration in range(6)
            for phase in (0, 1, 2)  # Gmain, Greg, Dmain
            if phase != 1 or iteration % 4 == 0
        ]
    )
    noises = iter([tensors["pl_noise_raw_0"], tensors["pl_noise_raw_1"]])
    monkeypatch.setattr(trainer, "_latents", lambda rng: next(latents))
    monkeypatch.setattr(trainer.stream, "batch", lambda first, count: tensors["real_img"])
    monkeypatch.setattr(trainer.loss, "path_length_noise", lambda images, rng: next(noises))
    monkeypatch.setattr(trainer.loss, "noise_mode", "const")
    return trainer


def test_six_iterations(
    trainer: Trainer,
    stylegan2_reference: Any,
    assert_close_to_reference: Callable[..., None],
    gradient_slack: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = "train_trace"
    tensors = stylegan2_reference.tensors(file)
    trace: dict[str, list[Tensor]] = {}
    monkeypatch.setattr(
        trainer.loss,
        "report",
        lambda name, values: trace.setdefault(REPORTED[name], []).append(values.detach().mean()),
    )
    pl_means = []
    for _ in range(6):
        trainer.train_iteration()
        pl_means.append(trainer.loss.pl_mean)
    found = {f"trace.{name}": torch.stack(means) for name, means in trace.items()}
    found["pl_mean"] = torch.stack(pl_means)
    with torch.no_grad():
        ws = trainer.average.mapping(tensors["z"][0, 0][:2], None)
        found["img_G_ema"] = trainer.average.synthesis(ws, noise_mode="const")
        found["logits_real"] = trainer.discriminator(tensors["real_img"], None)
    for name, value in stylegan2_reference.outputs(file, "six_iterations").items():
        # All of it follows from the gradients of the iterations before.
        assert_close_to_reference(
            found[name], value, gradient_slack * stylegan2_reference.tolerance(file), name
        )
