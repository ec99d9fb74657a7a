"""The generator: mapping network and style-modulated synthesis network (Karras et al. 2019, 1912.04958)."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.layers import (
    DEFAULT_FILTER,
    DEFAULT_HALF_DTYPE,
    SQUARE_GRID,
    FullyConnectedLayer,
    MappingNetwork,
    ResampledConv2d,
    block_dtype,
    block_memory_format,
    block_resolutions,
    channels_at,
    check_architecture,
    check_base_grid,
    find_half_dtype,
    lowest_fp16_resolution,
    recorded_options,
    size_at,
)
from stylegan2.ops.bias_act import activation as find_activation
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.modulated_conv import modulated_conv2d
from stylegan2.ops.styled_conv import Finish, styled_conv2d
from stylegan2.ops.upfirdn2d import setup_filter, upsample2d

NOISE_MODES = ("random", "const", "none")


class StyledConv2d(nn.Module):
    """A convolution that w steers, followed by noise, bias and activation (Karras et al. 2019, figure 2d).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        w_dim: Size of w.
        size: (height, width) of the output.
        kernel_size: Width and height of the kernel, odd.
        up: Up-sampling factor.
        use_noise: Whether the layer has a noise input.
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output to ± this; None does not.
        channels_last: Keep the weights in channels-last order, for half precision.
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.activation_gain = find_activation(activation).gain
        self.conv_clamp = conv_clamp
        self.channels_last = channels_last
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.to(memory_format=memory_format))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(size))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1.0
    ) -> Tensor:
        """Maps [N, in_channels, H/up, W/up] and w [N, w_dim] to [N, out_channels, H, W]."""
        styles = self.affine(w)
        finish = Finish(
            self.activation,
            self.activation_gain * gain,
            None if self.conv_clamp is None else self.conv_clamp * gain,
        )
        return styled_conv2d(
            x,
            self.weight.contiguous(memory_format=block_memory_format(self.channels_last, x.dtype)),
            styles,
            self._noise(x, noise_mode),
            self.bias,
            finish,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            fused_modconv=fused_modconv,
        )

    def _noise(self, x: Tensor, mode: str) -> Tensor | None:
        """Noise image [H, W], or one per sample [N, 1, H, W], times the learned strength."""
        if not self.use_noise or mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        noise = torch.randn([x.shape[0], 1, *self.size], device=x.device)
        return noise * self.noise_strength


class StyledImageOutput(nn.Module):
    """Mixes feature maps into image channels; w steers it, nothing demodulates it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.channels_last = channels_last
        self.padding = kernel_size // 2
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.to(memory_format=memory_format))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        """Maps [N, in_channels, H, W] and w [N, w_dim] to [N, out_channels, H, W]."""
        styles = self.affine(w) * self.weight_gain
        weight = self.weight.contiguous(memory_format=block_memory_format(self.channels_last, x.dtype))
        x = modulated_conv2d(
            x, weight, styles, padding=self.padding, demodulate=False, fused_modconv=fused_modconv
        )
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class GeneratorBlock(nn.Module):
    """One step of the pyramid: doubles the resolution, refines, and may add its share of the image.

    Block ``index`` stands ``index`` doublings above the learned constant of block 0. Every block owns two
    entries of ws: ``2·index`` steers its full-resolution convolution; ``2·index + 1`` steers its image layer
    and the doubling convolution of the block that follows.

    Args:
        index: Position in the network, from 0.
        in_channels: Number of input channels; block 0 has no input and ignores it.
        out_channels: Number of output channels.
        w_dim: Size of w.
        size: (height, width) of the output.
        img_channels: Number of image channels.
        final: Whether the image leaves the network here, so that an image layer is needed in any case.
        architecture: ``orig``, ``skip`` or ``resnet`` (Karras et al. 2019, figure 7).
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output of every convolution to ± this; None does not.
        use_fp16: Compute in half precision on a GPU.
        half_dtype: Which: a key of ``layers.HALF_DTYPES``.
        fp16_channels_last: Keep half-precision blocks in channels-last order.
        **layer_kwargs: Passed on to ``StyledConv2d``.
    """

    resample_filter: Tensor

    def __init__(
        self,
        index: int,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        img_channels: int,
        final: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        half_dtype: str = DEFAULT_HALF_DTYPE,
        fp16_channels_last: bool = False,
        **layer_kwargs: Any,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.index = index
        self.use_fp16 = use_fp16
        self.half_dtype = find_half_dtype(half_dtype)
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        common: dict[str, Any] = {"conv_clamp": conv_clamp, "channels_last": self.channels_last}
        layer: dict[str, Any] = {"w_dim": w_dim, "size": size, **common, **layer_kwargs}
        if index == 0:
            self.const = nn.Parameter(torch.randn(out_channels, *size))
        else:
            self.conv0 = StyledConv2d(
                in_channels, out_channels, up=2, resample_filter=resample_filter, **layer
            )
        self.conv1 = StyledConv2d(out_channels, out_channels, **layer)

        self.draws = final or architecture == "skip"
        if self.draws:
            self.torgb = StyledImageOutput(out_channels, img_channels, w_dim=w_dim, **common)
        self.residual = index > 0 and architecture == "resnet"
        if self.residual:
            self.skip = ResampledConv2d(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                up=2,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        noise_mode: str = "random",
        fused_modconv: bool | None = None,
        force_fp32: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the block.

        Args:
            x: Feature maps of the block before, ``[N, in_channels, H/2, W/2]``; None for the first.
            img: Image so far, ``[N, img_channels, H/2, W/2]``; None where there is none yet.
            ws: The ws of the whole network, ``[N, num_ws, w_dim]``.
            noise_mode: One of ``NOISE_MODES``.
            fused_modconv: See ``modulated_conv2d``. None: fused in evaluation in float32 on a GPU.
            force_fp32: Compute in float32 although the block was built for half precision.

        Returns:
            Feature maps ``[N, out_channels, H, W]``, and image ``[N, img_channels, H, W]`` or None.
        """
        dtype = block_dtype(self.half_dtype if self.use_fp16 and not force_fp32 else None, ws.device)
        memory_format = block_memory_format(self.channels_last, dtype)
        if fused_modconv is None:
            # One group per image is fast on a GPU; on a CPU it costs several times the ordinary convolution.
            fused_modconv = not self.training and dtype == torch.float32 and ws.device.type == "cuda"
        options: dict[str, Any] = {"noise_mode": noise_mode, "fused_modconv": fused_modconv}

        if x is None:
            start = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1)
            features = start.contiguous(memory_format=memory_format)
        else:
            x = x.to(dtype=dtype, memory_format=memory_format)
            features = self.conv0(x, ws[:, 2 * self.index - 1], **options)

        # The sum of two branches of equal variance keeps that variance when each is scaled by √½.
        branch_gain = math.sqrt(0.5) if self.residual else 1.0
        features = self.conv1(features, ws[:, 2 * self.index], gain=branch_gain, **options)
        if self.residual:
            features = features + self.skip(x, gain=branch_gain)

        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.draws:
            share = self.torgb(features, ws[:, 2 * self.index + 1], fused_modconv=fused_modconv)
            share = share.to(dtype=torch.float32, memory_format=torch.contiguous_format)
            img = share if img is None else img + share
        return features, img


class SynthesisNetwork(nn.Module):
    """Draws images from w, doubling the resolution with every block.

    Args:
        w_dim: Size of w.
        img_resolution: Longer side of the image, a power of two from 4 on.
        img_channels: Number of image channels.
        channel_base: Feature maps at resolution R: ``channel_base / R``, at most ``channel_max``.
        channel_max: See ``channel_base``.
        num_fp16_res: Number of highest resolutions computed in half precision on a GPU.
        base_grid: (height, width) of the smallest feature maps, 1..4, the larger 4. The image is
            ``img_resolution / 4`` times as large.
        **block_kwargs: Passed on to ``GeneratorBlock``.

    Attributes:
        img_size: (height, width) of the image.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        base_grid: Sequence[int] = SQUARE_GRID,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        if img_channels < 1:
            raise StyleGAN2Error(f"img_channels: got {img_channels}, expected an int ≥ 1")
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.block_resolutions = block_resolutions(img_resolution, smallest=4)
        grid = check_base_grid(base_grid)
        self.img_size = size_at(img_resolution, grid)
        fp16_resolution = lowest_fp16_resolution(img_resolution, num_fp16_res)

        self.num_ws = 2 * len(self.block_resolutions)  # two for each block

        widths = [channels_at(resolution, channel_base, channel_max) for resolution in self.block_resolutions]
        for index, resolution in enumerate(self.block_resolutions):
            block = GeneratorBlock(
                index,
                in_channels=widths[max(index - 1, 0)],
                out_channels=widths[index],
                w_dim=w_dim,
                size=size_at(resolution, grid),
                img_channels=img_channels,
                final=resolution == img_resolution,
                use_fp16=num_fp16_res > 0 and resolution >= fp16_resolution,
                **block_kwargs,
            )
            self.add_module(f"b{resolution}", block)

    def forward(
        self,
        ws: Tensor,
        noise_mode: str = "random",
        fused_modconv: bool | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """Draws images.

        Args:
            ws: One w for each layer, ``[N, num_ws, w_dim]``.
            noise_mode: ``random`` noise from torch's default generator, the network's ``const`` noise, or
                ``none``.
            fused_modconv: See ``modulated_conv2d``. None: fused in evaluation in float32 on a GPU.
            force_fp32: Compute in float32 throughout.

        Returns:
            float32 ``[N, img_channels, *img_size]``, about −1 (black) to 1 (white).

        Raises:
            StyleGAN2Error: ``ws`` of the wrong shape, or an unknown noise mode.
        """
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise StyleGAN2Error(f"ws: got {list(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]")
        if noise_mode not in NOISE_MODES:
            raise StyleGAN2Error(f"noise_mode: got {noise_mode!r}, expected one of {', '.join(NOISE_MODES)}")
        ws = ws.to(torch.float32)
        x: Tensor | None = None
        img: Tensor | None = None
        for resolution in self.block_resolutions:
            block = self.get_submodule(f"b{resolution}")
            x, img = block(x, img, ws, noise_mode, fused_modconv, force_fp32)
        assert img is not None
        return img


class Generator(nn.Module):
    """StyleGAN2's generator.

    Args:
        z_dim: Size of the latent z.
        c_dim: Size of the label; 0 without labels.
        w_dim: Size of the intermediate latent w.
        img_resolution: Longer side of the image, a power of two from 4 on.
        img_channels: Number of image channels.
        mapping_kwargs: Options of ``MappingNetwork``.
        synthesis_kwargs: Options of ``SynthesisNetwork`` and its blocks, such as ``base_grid``.

    Attributes:
        mapping: z, c → ws.
        synthesis: ws → image.
        num_ws: Number of copies of w.
        img_size: (height, width) of the image.
        init_kwargs: The arguments above: ``Generator(**init_kwargs)`` builds the same network. Can be JSON.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: Mapping[str, Any] | None = None,
        synthesis_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if z_dim < 1:
            raise StyleGAN2Error(f"z_dim: got {z_dim}, expected an int ≥ 1")
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.init_kwargs: dict[str, Any] = {
            "z_dim": z_dim,
            "c_dim": c_dim,
            "w_dim": w_dim,
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "mapping_kwargs": copy.deepcopy(dict(mapping_kwargs or {})),
            "synthesis_kwargs": recorded_options(copy.deepcopy(dict(synthesis_kwargs or {}))),
        }
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **(synthesis_kwargs or {}))
        self.num_ws = self.synthesis.num_ws
        self.img_size = self.synthesis.img_size
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        """Draws images from latents ``z`` [N, z_dim] and labels ``c`` [N, c_dim] or None.

        The other arguments are those of ``MappingNetwork.forward`` and ``SynthesisNetwork.forward``.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        img: Tensor = self.synthesis(ws, **synthesis_kwargs)
        return img
