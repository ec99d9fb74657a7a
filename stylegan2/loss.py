"""The four objectives of StyleGAN2 training: main loss and lazy regularisation of either network."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2.augment import AugmentPipe
from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.ops.convolution import constant_kernels

Report = Callable[[str, Tensor], None]


class StyleGAN2Loss:
    """Computes the objectives and adds their gradients to the parameters.

    Every `accumulate_…` method runs forward and backward for one phase; afterwards the gradients wait in the
    `.grad` of whichever parameters require one. On CUDA nothing here waits for the GPU: a loss that is not
    finite is noticed in the phase after it; call `raise_if_diverged` before weights are kept.

    Args:
        generator: in training mode; every forward pass moves its running mean of w.
        discriminator: in training mode.
        augment: applied to all that the discriminator sees, real or not; None = nothing.
        r1_gamma: γ of the R1 penalty.
        style_mixing_prob: probability that a batch mixes two latents.
        pl_weight: weight of the path-length penalty.
        pl_batch_shrink: path lengths are measured on batch / pl_batch_shrink latents.
        pl_decay: step of the running mean of path lengths.
        report: called with name and values of each thing worth watching.
        noise_mode: noise inputs of the generator: `random`, `const` or `none`.

    Attributes:
        pl_mean: scalar, running mean of path lengths.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        augment: AugmentPipe | None = None,
        *,
        r1_gamma: float,
        style_mixing_prob: float = 0.9,
        pl_weight: float = 2.0,
        pl_batch_shrink: int = 2,
        pl_decay: float = 0.01,
        report: Report = lambda name, values: None,
        noise_mode: str = "random",
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.augment = augment
        self.r1_gamma = r1_gamma
        self.style_mixing_prob = style_mixing_prob
        self.pl_weight = pl_weight
        self.pl_batch_shrink = pl_batch_shrink
        self.pl_decay = pl_decay
        self.report = report
        self.noise_mode = noise_mode
        self.pl_mean = torch.zeros((), device=next(generator.parameters()).device)
        self._unread: deque[_UnreadLoss] = deque()

    def raise_if_diverged(self) -> None:
        """Look at the losses that nobody has looked at yet; there are none on the CPU.

        Raises:
            StyleGAN2Error: one of them is not finite.
        """
        while self._unread:
            name, value, copied = self._unread.popleft()
            copied.synchronize()
            _raise_unless_finite(name, float(value))

    def accumulate_gmain(
        self, z: Tensor, c: Tensor | None = None, rng: torch.Generator | None = None
    ) -> None:
        """Main loss of the generator.

        Args:
            z: latents [N, z_dim].
            c: labels [N, c_dim] of the images to generate; None without labels.
            rng: source of randomness of mixing and augmentation on the latents' device; None = global.
        """
        # ---------------------------------------------------------------------------------------------------
        # Non-saturating logistic loss (Goodfellow et al. 2014, 1406.2661): −log σ(D(G(z)))
        # ---------------------------------------------------------------------------------------------------
        images, _ = self._generate(z, c, rng)
        logits = self._judge(images, c, rng)
        self._report_logits("fake", logits)
        loss = F.softplus(-logits)
        self.report("loss_G", loss)
        self._backward("generator loss", loss.mean())

    def accumulate_greg(
        self,
        z: Tensor,
        c: Tensor | None = None,
        gain: float = 1.0,
        rng: torch.Generator | None = None,
    ) -> None:
        """Path-length regularisation of the generator.

        Args:
            z: latents [N, z_dim]; only the first N / pl_batch_shrink are used.
            c: labels [N, c_dim]; None without labels.
            gain: factor on the loss: the interval between regularisations.
            rng: as in `accumulate_gmain`.
        """
        # ---------------------------------------------------------------------------------------------------
        # Karras et al. 2019 (1912.04958), section 3.2, equation 4: E[(‖Jᵀy‖ − a)²] with y ~ N(0, I) scaled to
        # the size of the image, Jᵀy = ∇_w (G(w)·y), and a the running mean of ‖Jᵀy‖, this batch included.
        # ---------------------------------------------------------------------------------------------------
        count = max(len(z) // self.pl_batch_shrink, 1)
        with constant_kernels():
            images, ws = self._generate(z[:count], None if c is None else c[:count], rng)
        noise = self.path_length_noise(images, rng) / math.sqrt(images.shape[2] * images.shape[3])
        (slopes,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = slopes.square().sum(dim=2).mean(dim=1).sqrt()  # [N]
        mean = self.pl_mean.lerp(lengths.mean(), self.pl_decay)
        self.pl_mean = mean.detach()
        penalty = (lengths - mean).square()
        self.report("pl_penalty", penalty)
        loss = penalty * self.pl_weight
        self.report("loss_G_reg", loss)
        self._backward("path-length penalty", loss.mean() * gain)

    def accumulate_dmain(
        self,
        real: Tensor,
        z: Tensor,
        real_c: Tensor | None = None,
        c: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        """Main loss of the discriminator.

        Args:
            real: images [N, C, H, W], −1..1.
            z: latents [N, z_dim] of as many generated images.
            real_c: labels [N, c_dim] of the real images; None without labels.
            c: labels [N, c_dim] of the generated images; None without labels.
            rng: as in `accumulate_gmain`.
        """
        # ---------------------------------------------------------------------------------------------------
        # Goodfellow et al. 2014 (1406.2661): −log(1 − σ(D(G(z)))) − log σ(D(x)). Two passes, so that only one
        # graph is held at a time, and batch statistics do not mix real and generated images.
        # ---------------------------------------------------------------------------------------------------
        with torch.no_grad():
            images, _ = self._generate(z, c, rng)
        fake_logits = self._judge(images, c, rng)
        self._report_logits("fake", fake_logits)
        fake_loss = F.softplus(fake_logits)
        self._backward("discriminator loss on generated images", fake_loss.mean())
        real_logits = self._judge(real, real_c, rng)
        self._report_logits("real", real_logits)
        real_loss = F.softplus(-real_logits)
        self._backward("discriminator loss on real images", real_loss.mean())
        self.report("loss_D", fake_loss.detach() + real_loss.detach())

    def accumulate_dreg(
        self,
        real: Tensor,
        c: Tensor | None = None,
        gain: float = 1.0,
        rng: torch.Generator | None = None,
    ) -> None:
        """R1 regularisation of the discriminator.

        Args:
            real: images [N, C, H, W], −1..1.
            c: labels [N, c_dim] of the images; None without labels.
            gain: factor on the loss: the interval between regularisations.
            rng: as in `accumulate_gmain`.
        """
        # ---------------------------------------------------------------------------------------------------
        # Mescheder et al. 2018 (1801.04406), equation 9: γ/2 · E[‖∇_x D(x)‖²], x before augmentation
        # ---------------------------------------------------------------------------------------------------
        real = real.detach().requires_grad_()
        with constant_kernels():
            logits = self._judge(real, c, rng)
        self._report_logits("real", logits)
        (slopes,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = slopes.square().sum(dim=(1, 2, 3))  # [N]
        self.report("r1_penalty", penalty)
        loss = penalty * (self.r1_gamma / 2)
        self.report("loss_D_reg", loss)
        # `real` requires a gradient, too; with the weights as the only inputs none is computed for it.
        weights = [weight for weight in self.discriminator.parameters() if weight.requires_grad]
        self._backward("R1 penalty", loss.mean() * gain, weights)

    def path_length_noise(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draw the standard normal y of the path-length penalty, shaped like the images."""
        return torch.randn(images.shape, generator=rng, device=images.device)

    def _generate(self, z: Tensor, c: Tensor | None, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Generate images; also give the ws [N, num_ws, w_dim] they were made from."""
        ws = self.generator.mapping(z, c)
        if self.style_mixing_prob > 0:
            ws = self._mix_styles(ws, z, c, rng)
        return self.generator.synthesis(ws, noise_mode=self.noise_mode), ws

    def _mix_styles(self, ws: Tensor, z: Tensor, c: Tensor | None, rng: torch.Generator | None) -> Tensor:
        """With the set probability, take the layers from a random one on from other latents."""
        # ---------------------------------------------------------------------------------------------------
        # Mixing regularisation: Karras et al. 2018 (1812.04948), section 3.1
        # ---------------------------------------------------------------------------------------------------
        num_ws = ws.shape[1]
        mixes = torch.rand([], generator=rng, device=z.device) < self.style_mixing_prob
        first_mixed = torch.randint(1, num_ws, [], generator=rng, device=z.device)
        other_z = torch.randn(z.shape, generator=rng, device=z.device)
        # The choice stays where it was drawn: to ask for it would wait for all that the GPU has to do, and
        # the mapping network that runs in vain now and then is a small part of a phase.
        other = self.generator.mapping(other_z, c, skip_w_avg_update=True)
        mixed = mixes & (torch.arange(num_ws, device=z.device) >= first_mixed)  # [num_ws]
        return torch.where(mixed[:, None], other, ws)

    def _judge(self, images: Tensor, c: Tensor | None, rng: torch.Generator | None) -> Tensor:
        if self.augment is not None:
            images = self.augment(images, rng)
        logits: Tensor = self.discriminator(images, c)
        return logits

    def _report_logits(self, kind: str, logits: Tensor) -> None:
        self.report(f"scores_{kind}", logits.detach())
        self.report(f"signs_{kind}", logits.detach().sign())

    def _backward(self, name: str, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """Backpropagate a scalar.

        Args:
            name: of the loss, for the message.
            loss: scalar.
            inputs: the leaves that receive gradients; None = all that require one.

        Raises:
            StyleGAN2Error: it is not finite; on CUDA: an earlier one was not.
        """
        self.raise_if_diverged()
        value = loss.detach()
        if value.is_cuda:
            # Reading it now would wait for the GPU. It is copied as soon as it is computed, and read when the
            # next loss arrives; the step between takes no harm, as `step_with_gradients` bounds gradients.
            value = value.to("cpu", non_blocking=True)
            self._unread.append(
                _UnreadLoss(name, value, torch.cuda.current_stream(loss.device).record_event())
            )
        else:
            _raise_unless_finite(name, float(value))
        loss.backward(inputs=inputs)


class _UnreadLoss(NamedTuple):
    """A loss on its way from the GPU.

    Attributes:
        name: of the loss, for the message.
        value: scalar in pinned memory, to be read after `copied`.
        copied: happens when the value has arrived.
    """

    name: str
    value: Tensor
    copied: torch.cuda.Event


def _raise_unless_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise StyleGAN2Error(
            f"training diverged: {name} is {value}; check the images, lower lr, or raise gamma"
        )
