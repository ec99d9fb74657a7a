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
    Conv2dLayer,
    FullyConnectedLayer,
    MappingNetwork,
    block_dtype,
    block_resolutions,
    channels_at,
    check_architecture,
    lowest_fp16_resolution,
)
from stylegan2.ops.bias_act import activation as find_activation
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.modulated_conv import modulated_conv2d
from stylegan2.ops.upfirdn2d import setup_filter, upsample2d

NOISE_MODES = ("random", "const", "none")


class SynthesisLayer(nn.Module):
    """Style-modulated convolution, noise, bias and activation (Karras et al. 2019, figure 2d).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        w_dim: Size of w.
        resolution: Width and height of the output.
        kernel_size: Width and height of the kernel, odd.
        up: Up-sampling factor.
        use_noise: Whether the layer has a noise input.
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output to ± this; None does not.
        channels_last: Keep the weights in channels-last order.
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.activation_gain = find_activation(activation).gain
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.to(memory_format=memory_format))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1.0
    ) -> Tensor:
        """Maps [N, in_channels, R/up, R/up] and w [N, w_dim] to [N, out_channels, R, R]."""
        styles = self.affine(w)
        x = modulated_conv2d(
            x,
            self.weight,
            styles,
            noise=self._noise(x, noise_mode),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            fused_modconv=fused_modconv,
        )
        return bias_act(
            x,
            self.bias.to(x.dtype),
            act=self.activation,
            gain=self.activation_gain * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
        )

    def _noise(self, x: Tensor, mode: str) -> Tensor | None:
        """Noise image [R, R], or one per sample [N, 1, R, R], times the learned strength."""
        if not self.use_noise or mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        noise = torch.randn([x.shape[0], 1, self.resolution, self.resolution], device=x.device)
        return noise * self.noise_strength


class ToRGBLayer(nn.Module):
    """Style-modulated convolution to image channels, not demodulated (Karras et al. 2019, appendix B)."""

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
        self.padding = kernel_size // 2
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.to(memory_format=memory_format))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        """Maps [N, in_channels, R, R] and w [N, w_dim] to [N, out_channels, R, R]."""
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(
            x, self.weight, styles, padding=self.padding, demodulate=False, fused_modconv=fused_modconv
        )
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """The layers of one resolution: up-sampling convolution, convolution, and image output.

    Args:
        in_channels: Number of input channels; 0 for the first block, which starts from a learned constant.
        out_channels: Number of output channels.
        w_dim: Size of w.
        resolution: Width and height of the output.
        img_channels: Number of image channels.
        is_last: Whether this is the block of the highest resolution.
        architecture: ``orig``, ``skip`` or ``resnet`` (Karras et al. 2019, figure 7).
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output of every convolution to ± this; None does not.
        use_fp16: Compute in float16 on a GPU.
        fp16_channels_last: Keep float16 blocks in channels-last order.
        **layer_kwargs: Passed on to ``SynthesisLayer``.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        **layer_kwargs: Any,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.in_channels = in_channels
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        common: dict[str, Any] = {"conv_clamp": conv_clamp, "channels_last": self.channels_last}
        layer = {"w_dim": w_dim, "resolution": resolution, **common, **layer_kwargs}
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, up=2, resample_filter=resample_filter, **layer
            )
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer)
        self.num_conv = 1 if in_channels == 0 else 2

        self.has_torgb = is_last or architecture == "skip"
        self.num_torgb = int(self.has_torgb)
        if self.has_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **common)
        self.has_skip = in_channels != 0 and architecture == "resnet"
        if self.has_skip:
            self.skip = Conv2dLayer(
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
            x: Feature maps of the block before, ``[N, in_channels, R/2, R/2]``; None for the first.
            img: Image so far, ``[N, img_channels, R/2, R/2]``; None where there is none yet.
            ws: ``[N, num_conv + num_torgb, w_dim]``.
            noise_mode: One of ``NOISE_MODES``.
            fused_modconv: See ``modulated_conv2d``. None: fused in evaluation in float32 on a GPU.
            force_fp32: Compute in float32 although the block was built for float16.

        Returns:
            Feature maps ``[N, out_channels, R, R]``, and image ``[N, img_channels, R, R]`` or None.
        """
        w_iter = iter(ws.unbind(dim=1))
        dtype = block_dtype(self.use_fp16 and not force_fp32, ws.device)
        memory_format = (
            torch.channels_last if self.channels_last and dtype == torch.float16 else torch.contiguous_format
        )
        if fused_modconv is None:
            # One group per image is fast on a GPU; on a CPU it costs several times the ordinary convolution.
            fused_modconv = not self.training and dtype == torch.float32 and ws.device.type == "cuda"
        options: dict[str, Any] = {"noise_mode": noise_mode, "fused_modconv": fused_modconv}

        if x is None:
            x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1)
            x = self.conv1(x.contiguous(memory_format=memory_format), next(w_iter), **options)
        elif self.has_skip:
            x = x.to(dtype=dtype, memory_format=memory_format)
            shortcut = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, next(w_iter), **options)
            x = shortcut + self.conv1(x, next(w_iter), gain=math.sqrt(0.5), **options)
        else:
            x = x.to(dtype=dtype, memory_format=memory_format)
            x = self.conv0(x, next(w_iter), **options)
            x = self.conv1(x, next(w_iter), **options)

        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.has_torgb:
            rgb = self.torgb(x, next(w_iter), fused_modconv=fused_modconv)
            rgb = rgb.to(dtype=torch.float32, memory_format=torch.contiguous_format)
            img = rgb if img is None else img + rgb
        assert x is not None
        return x, img


class SynthesisNetwork(nn.Module):
    """Draws images from w, doubling the resolution with every block.

    Args:
        w_dim: Size of w.
        img_resolution: Width and height of the image, a power of two from 4 on.
        img_channels: Number of image channels.
        channel_base: Feature maps at resolution R: ``channel_base / R``, at most ``channel_max``.
        channel_max: See ``channel_base``.
        num_fp16_res: Number of highest resolutions computed in float16 on a GPU.
        **block_kwargs: Passed on to ``SynthesisBlock``.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        if img_channels < 1:
            raise StyleGAN2Error(f"img_channels: got {img_channels}, expected an int ≥ 1")
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.block_resolutions = block_resolutions(img_resolution, smallest=4)
        fp16_resolution = lowest_fp16_resolution(img_resolution, num_fp16_res)

        self.num_ws = 0
        in_channels = 0
        for resolution in self.block_resolutions:
            out_channels = channels_at(resolution, channel_base, channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim=w_dim,
                resolution=resolution,
                img_channels=img_channels,
                is_last=resolution == img_resolution,
                use_fp16=num_fp16_res > 0 and resolution >= fp16_resolution,
                **block_kwargs,
            )
            self.add_module(f"b{resolution}", block)
            self.num_ws += block.num_conv
            in_channels = out_channels
        self.num_ws += block.num_torgb

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
            float32 ``[N, img_channels, img_resolution, img_resolution]``, about −1 (black) to 1 (white).

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
        first = 0
        for resolution in self.block_resolutions:
            block = self.get_submodule(f"b{resolution}")
            assert isinstance(block, SynthesisBlock)
            # A block's image layer shares its w with the first convolution of the next block.
            block_ws = ws[:, first : first + block.num_conv + block.num_torgb]
            x, img = block(x, img, block_ws, noise_mode, fused_modconv, force_fp32)
            first += block.num_conv
        assert img is not None
        return img


class Generator(nn.Module):
    """StyleGAN2's generator.

    Args:
        z_dim: Size of the latent z.
        c_dim: Size of the label; 0 without labels.
        w_dim: Size of the intermediate latent w.
        img_resolution: Width and height of the image, a power of two from 4 on.
        img_channels: Number of image channels.
        mapping_kwargs: Options of ``MappingNetwork``.
        synthesis_kwargs: Options of ``SynthesisNetwork`` and its blocks.

    Attributes:
        mapping: z, c → ws.
        synthesis: ws → image.
        num_ws: Number of copies of w.
        init_kwargs: The arguments above: ``Generator(**init_kwargs)`` builds the same network.
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
            "synthesis_kwargs": copy.deepcopy(dict(synthesis_kwargs or {})),
        }
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **(synthesis_kwargs or {}))
        self.num_ws = self.synthesis.num_ws
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
