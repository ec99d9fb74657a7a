"""Layers that generator and discriminator share, and the mapping network.

Weights are stored with unit variance and scaled when used ("equalised learning rate", Karras et al. 2018,
arXiv 1710.10196, §4.1), so that Adam moves every layer at the same relative speed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.bias_act import activation as find_activation
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.conv2d_resample import conv2d_resample
from stylegan2.ops.upfirdn2d import setup_filter

ARCHITECTURES = ("orig", "skip", "resnet")
DEFAULT_FILTER = (1, 3, 3, 1)

SQUARE_GRID = (4, 4)
HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_HALF_DTYPE = "float16"
# Types of devices on which half precision is worth its error; a CPU mostly emulates it, many times slower.
HALF_DEVICES = ("cuda",)


def unit_second_moment(vectors: Tensor, axis: int = -1, floor: float = 1e-8) -> Tensor:
    """Rescales vectors so that their elements have a mean square of 1.

    Args:
        vectors: Any shape.
        axis: The axis that the elements of one vector run along.
        floor: Added to the mean square, so that the zero vector stays zero.
    """
    # ------------------------------------------------------------------
    # Karras et al. 2018 (1710.10196), §4.2, equation of pixelwise normalisation: b = a / √(Σ_j a_j² / n + ε)
    # ------------------------------------------------------------------
    mean_square = vectors.square().mean(axis, keepdim=True)
    return vectors * torch.rsqrt(mean_square + floor)


def check_architecture(architecture: str) -> None:
    """Checks the name of a network architecture.

    Raises:
        StyleGAN2Error: It is none of ``ARCHITECTURES``.
    """
    if architecture not in ARCHITECTURES:
        raise StyleGAN2Error(
            f"architecture: got {architecture!r}, expected one of {', '.join(ARCHITECTURES)}"
        )


def block_resolutions(img_resolution: int, smallest: int) -> list[int]:
    """The resolutions ``smallest, 2·smallest, … img_resolution``.

    Raises:
        StyleGAN2Error: ``img_resolution`` is not a power of two, or is below ``smallest``.
    """
    power_of_two = isinstance(img_resolution, int) and img_resolution.bit_count() == 1
    if not power_of_two or img_resolution < smallest:
        raise StyleGAN2Error(
            f"img_resolution: got {img_resolution!r}, expected a power of two from {smallest} on"
        )
    return [2**exponent for exponent in range(smallest.bit_length() - 1, img_resolution.bit_length())]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Number of feature maps at a resolution: inversely proportional to it, with a ceiling.

    Raises:
        StyleGAN2Error: That would be no feature map at all.
    """
    channels = min(channel_base // resolution, channel_max)
    if channels < 1:
        raise StyleGAN2Error(
            f"channel_base={channel_base}, channel_max={channel_max}: no channels are left at "
            f"resolution {resolution}; expected channel_base ≥ {resolution} and channel_max ≥ 1"
        )
    return channels


def lowest_fp16_resolution(img_resolution: int, num_fp16_res: int) -> int:
    """The resolution from which blocks may use half precision: the ``num_fp16_res`` highest, at least 8."""
    if num_fp16_res < 0:
        raise StyleGAN2Error(f"num_fp16_res: got {num_fp16_res}, expected an int ≥ 0")
    return max(2 * img_resolution >> num_fp16_res, 8)


def find_half_dtype(name: str) -> torch.dtype:
    """Looks up the type that half-precision blocks compute in.

    Raises:
        StyleGAN2Error: It is none of ``HALF_DTYPES``.
    """
    if name not in HALF_DTYPES:
        raise StyleGAN2Error(f"half_dtype: got {name!r}, expected one of {', '.join(HALF_DTYPES)}")
    return HALF_DTYPES[name]


def block_dtype(half_dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """What a block computes in: the half type it asks for on ``HALF_DEVICES``, float32 elsewhere."""
    return half_dtype if half_dtype is not None and device.type in HALF_DEVICES else torch.float32


def block_memory_format(channels_last: bool, dtype: torch.dtype) -> torch.memory_format:
    """The layout of a block's feature maps: channels-last where asked for and computed in half precision."""
    return torch.channels_last if channels_last and dtype != torch.float32 else torch.contiguous_format


def check_base_grid(base_grid: Sequence[int]) -> tuple[int, int]:
    """Checks the size of the smallest feature maps and gives it as a tuple (height, width).

    Raises:
        StyleGAN2Error: It is not a pair of ints from 1 to 4, of which the larger is 4.
    """
    grid = tuple(base_grid) if isinstance(base_grid, Sequence) else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in grid)
    if len(grid) != 2 or not whole or not 1 <= min(grid) <= max(grid) == 4:
        raise StyleGAN2Error(
            f"base_grid: got {base_grid!r}, expected a pair (height, width) of ints from 1 to 4, the larger "
            "of them 4; (3, 4) makes images of 96×128 at img_resolution 128"
        )
    return grid[0], grid[1]


def size_at(resolution: int, base_grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of images or feature maps whose longer side is ``resolution``."""
    return base_grid[0] * resolution // 4, base_grid[1] * resolution // 4


def recorded_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The form in which ``init_kwargs`` holds ``base_grid`` and ``half_dtype``; all else stays as it is.

    At their defaults they are left out, so that networks from before these options, or of the same make but
    with a default spelt out, compare equal. The pair becomes a list, as which it comes back from JSON.
    """
    recorded = dict(options)
    if "base_grid" in recorded:
        grid = check_base_grid(recorded.pop("base_grid"))
        if grid != SQUARE_GRID:
            recorded["base_grid"] = list(grid)
    if recorded.get("half_dtype") == DEFAULT_HALF_DTYPE:
        del recorded["half_dtype"]
    return recorded


class FullyConnectedLayer(nn.Module):
    """Every output is an activated, biased sum over all inputs; weights at an equalised learning rate.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        bias: Whether to add a bias.
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        lr_multiplier: Learning rate relative to other layers.
        bias_init: Initial stored bias; the effective one is this times ``lr_multiplier``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        find_activation(activation)
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_features] to [N, out_features]."""
        weight = self.weight.to(x.dtype)
        x = x * self.weight_gain  # a batch of inputs is smaller than the weights
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        if self.activation == "linear":
            return F.linear(x, weight, bias)
        return bias_act(F.linear(x, weight), bias, act=self.activation)


class ResampledConv2d(nn.Module):
    """A convolution that may double or halve the image as well; weights at an equalised learning rate.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Width and height of the kernel, odd.
        bias: Whether to add a bias.
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        up: Up-sampling factor.
        down: Down-sampling factor.
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output to ± this; None does not.
        channels_last: Keep the weights in channels-last order, for half precision.
        trainable: False stores weight and bias as buffers, out of the optimiser's and autograd's reach.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activation_gain = find_activation(activation).gain
        self.up = up
        self.down = down
        self.conv_clamp = conv_clamp
        self.channels_last = channels_last
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        weight = weight.to(memory_format=memory_format)
        zeros = torch.zeros(out_channels) if bias else None
        if trainable:
            self.weight = nn.Parameter(weight)
            self.bias = None if zeros is None else nn.Parameter(zeros)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", zeros)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, H·up/down, W·up/down], times ``gain``."""
        memory_format = block_memory_format(self.channels_last, x.dtype)
        weight_gain = self.weight_gain
        if self.activation == "linear" and self.bias is None and self.conv_clamp is None:
            weight_gain, gain = weight_gain * gain, 1.0  # all is linear: scale the few weights
        weight = (self.weight * weight_gain).to(dtype=x.dtype, memory_format=memory_format)
        x = conv2d_resample(
            x,
            weight,
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        return bias_act(
            x,
            None if self.bias is None else self.bias.to(x.dtype),
            act=self.activation,
            gain=self.activation_gain * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
        )


class MappingNetwork(nn.Module):
    """The function f: Z → W, a perceptron that unwarps the latent (Karras et al. 2018, arXiv 1812.04948, §2).

    Args:
        z_dim: Size of the latent; 0 for a network of labels only, as in the discriminator.
        c_dim: Size of the label; 0 without labels.
        w_dim: Size of the intermediate latent.
        num_ws: Number of copies of w, one per layer of the synthesis network; None returns a single one.
        num_layers: Number of fully connected layers.
        embed_features: Size of the embedded label; None takes ``w_dim``.
        layer_features: Size of the hidden layers; None takes ``w_dim``.
        activation: Activation of the layers.
        lr_multiplier: Learning rate of the layers relative to the rest of the generator.
        w_avg_beta: Decay of the running mean of w, per training batch; None keeps no mean.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        if z_dim < 0 or c_dim < 0 or z_dim + c_dim == 0 or w_dim < 1 or num_layers < 1:
            raise StyleGAN2Error(
                f"got z_dim={z_dim}, c_dim={c_dim}, w_dim={w_dim}, num_layers={num_layers}; expected z_dim "
                "and c_dim ≥ 0 and not both 0, w_dim ≥ 1, num_layers ≥ 1"
            )
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta

        embed_features = 0 if c_dim == 0 else w_dim if embed_features is None else embed_features
        layer_features = w_dim if layer_features is None else layer_features
        features = [z_dim + embed_features] + [layer_features] * (num_layers - 1) + [w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for index in range(num_layers):
            layer = FullyConnectedLayer(
                features[index], features[index + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            self.add_module(f"fc{index}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        """Computes w, and in training mode moves its running mean.

        Args:
            z: Latents, ``[N, z_dim]``; None if ``z_dim`` is 0.
            c: Labels, ``[N, c_dim]``; None if ``c_dim`` is 0.
            truncation_psi: ψ: 1 leaves w alone, 0 replaces it with the running mean.
            truncation_cutoff: Truncate only this many of the first copies of w; None all.
            skip_w_avg_update: Leave the running mean alone in training mode too.

        Returns:
            ``[N, num_ws, w_dim]``, or ``[N, w_dim]`` if ``num_ws`` is None.

        Raises:
            StyleGAN2Error: Inputs of the wrong shape, or truncation without a running mean.
        """
        w = self._embed_inputs(z, c)
        for index in range(self.num_layers):
            w = self.get_submodule(f"fc{index}")(w)

        tracks_mean = self.num_ws is not None and self.w_avg_beta is not None
        if self.training and tracks_mean and not skip_w_avg_update:
            self._track_mean(w.detach())
        if self.num_ws is not None:
            w = w[:, None].expand(-1, self.num_ws, -1)  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            if not tracks_mean:
                raise StyleGAN2Error(
                    f"truncation_psi: got {truncation_psi}, but this network keeps no mean of w"
                )
            w = self._truncate(w, truncation_psi, truncation_cutoff)
        return w

    def _embed_inputs(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        parts = []
        if self.z_dim > 0:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                raise StyleGAN2Error(f"z: got {_shape(z)}, expected [N, {self.z_dim}]")
            parts.append(unit_second_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            if c is None or c.ndim != 2 or c.shape[1] != self.c_dim:
                raise StyleGAN2Error(f"c: got {_shape(c)}, expected labels [N, {self.c_dim}]")
            parts.append(unit_second_moment(self.embed(c.to(torch.float32))))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def _track_mean(self, w: Tensor) -> None:
        """Moves the running mean a step of 1 − β towards the mean of this batch [N, w_dim]."""
        assert self.w_avg_beta is not None
        self.w_avg.lerp_(w.mean(dim=0), 1 - self.w_avg_beta)

    def _truncate(self, w: Tensor, psi: float, cutoff: int | None) -> Tensor:
        # ------------------------------------------------------------------
        # Karras et al. 2018 (1812.04948), appendix B: w' = w̄ + ψ (w − w̄)
        # ------------------------------------------------------------------
        if cutoff is None:
            return self.w_avg.lerp(w, psi)
        return torch.cat([self.w_avg.lerp(w[:, :cutoff], psi), w[:, cutoff:]], dim=1)


def _shape(x: Tensor | None) -> str:
    return "None" if x is None else f"shape {list(x.shape)}"
