"""The discriminator: a residual network with minibatch statistics (Karras et al. 2019, arXiv 1912.04958)."""

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
from stylegan2.ops.upfirdn2d import downsample2d, setup_filter

_HEAD_RESOLUTION = 4


class DiscriminatorBlock(nn.Module):
    """One step down the pyramid: may read the image, refines at full size, and halves the resolution.

    Args:
        in_channels: Number of input channels; 0 for the first block, which starts from the image.
        channels: Number of channels at the block's own resolution.
        out_channels: Number of output channels, at half the resolution.
        img_channels: Number of image channels.
        layers_before: Number of layers in the blocks between the image and this one.
        architecture: ``orig``, ``skip`` or ``resnet`` (Karras et al. 2019, figure 7).
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        resample_filter: Taps of the low-pass filter.
        conv_clamp: Limits the output of every convolution to ± this; None does not.
        use_fp16: Compute in half precision on a GPU.
        half_dtype: Which: a key of ``layers.HALF_DTYPES``.
        fp16_channels_last: Keep half-precision blocks in channels-last order.
        freeze_layers: Number of layers, counted from the image on, that are not trained ("Freeze-D", Mo et
            al. 2020, 2002.10964). In each block: the layer that reads the image, if it has one, the two 3×3
            convolutions, and the shortcut of ``resnet``. The head is always trained.
    """

    resample_filter: Tensor
    fromrgb: ResampledConv2d
    conv0: ResampledConv2d
    conv1: ResampledConv2d
    skip: ResampledConv2d

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        img_channels: int,
        layers_before: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter: Sequence[float] = DEFAULT_FILTER,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        half_dtype: str = DEFAULT_HALF_DTYPE,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.half_dtype = find_half_dtype(half_dtype)
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))

        active: dict[str, Any] = {"activation": activation, "conv_clamp": conv_clamp}
        halving: dict[str, Any] = {"down": 2, "resample_filter": resample_filter}
        self.reads_image = in_channels == 0 or architecture == "skip"
        # (name, inputs, outputs, kernel size, options), from the image inwards: the order of freezing.
        plan: list[tuple[str, int, int, int, dict[str, Any]]] = [
            ("conv0", channels, channels, 3, active),
            ("conv1", channels, out_channels, 3, active | halving),
        ]
        if self.reads_image:
            plan.insert(0, ("fromrgb", img_channels, channels, 1, active))
        if architecture == "resnet":
            plan.append(("skip", channels, out_channels, 1, halving | {"bias": False}))

        self.num_layers = len(plan)
        frozen = freeze_layers - layers_before  # the first so many layers of this block
        for position, (name, inputs, outputs, kernel_size, options) in enumerate(plan):
            layout: dict[str, Any] = {"channels_last": self.channels_last, "trainable": position >= frozen}
            self.add_module(name, ResampledConv2d(inputs, outputs, kernel_size, **options, **layout))

    def forward(
        self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the block.

        Args:
            x: Feature maps of the block before, ``[N, in_channels, H, W]``; None for the first.
            img: Image ``[N, img_channels, H, W]``; None where it is not needed any more.
            force_fp32: Compute in float32 although the block was built for half precision.

        Returns:
            Feature maps ``[N, out_channels, H/2, W/2]``, and the image at half size or None.
        """
        source = img if x is None else x
        assert source is not None
        dtype = block_dtype(self.half_dtype if self.use_fp16 and not force_fp32 else None, source.device)
        memory_format = block_memory_format(self.channels_last, dtype)
        if x is not None:
            x = x.to(dtype=dtype, memory_format=memory_format)
        if self.reads_image:
            assert img is not None
            img = img.to(dtype=dtype, memory_format=memory_format)
            features = self.fromrgb(img)
            x = features if x is None else x + features
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            shortcut = self.skip(x, gain=math.sqrt(0.5))
            x = shortcut + self.conv1(self.conv0(x), gain=math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x))
        return x, img


class MinibatchStdLayer(nn.Module):
    """Appends the variation within groups of the batch as feature maps (Karras et al. 2018, 1710.10196, §3).

    Args:
        group_size: Number of samples in a group; None takes the whole batch. A smaller batch is one group.
        num_channels: Number of feature maps to append; the channels are split between them.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        if (group_size is not None and group_size < 1) or num_channels < 1:
            raise StyleGAN2Error(
                f"got mbstd_group_size={group_size}, mbstd_num_channels={num_channels}; expected ints ≥ 1"
            )
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C + num_channels, H, W].

        Raises:
            StyleGAN2Error: The groups do not divide the batch, or the statistics do not divide the channels.
        """
        batch, channels, height, width = x.shape
        members = batch if self.group_size is None else min(self.group_size, batch)
        if batch % members or channels % self.num_channels:
            raise StyleGAN2Error(
                f"batch of {batch} with {channels} channels: expected a multiple of "
                f"mbstd_group_size={members} and of mbstd_num_channels={self.num_channels}"
            )
        # Sample i belongs to group i mod (batch / members).
        y = x.reshape(members, -1, self.num_channels, channels // self.num_channels, height, width)
        y = (y - y.mean(dim=0)).square().mean(dim=0)  # variance over the group
        y = (y + 1e-8).sqrt().mean(dim=(2, 3, 4))  # [groups, num_channels]
        y = y[:, :, None, None].repeat(members, 1, height, width)  # [N, num_channels, H, W]
        return torch.cat([x, y], dim=1)


class DiscriminatorHead(nn.Module):
    """Judges the smallest feature maps, at most 4×4, as a whole: one logit per image.

    Args:
        in_channels: Number of input channels.
        cmap_dim: Size of the embedded label that the output is projected on; 0 without labels.
        size: (height, width) of the input.
        img_channels: Number of image channels.
        architecture: ``orig``, ``skip`` or ``resnet``.
        mbstd_group_size: See ``MinibatchStdLayer``.
        mbstd_num_channels: See ``MinibatchStdLayer``; 0 leaves the layer out.
        activation: A key of ``ops.bias_act.ACTIVATIONS``.
        conv_clamp: Limits the output of every convolution to ± this; None does not.
    """

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        size: tuple[int, int],
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.cmap_dim = cmap_dim
        self.architecture = architecture
        if architecture == "skip":
            self.fromrgb = ResampledConv2d(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels else None
        self.conv = ResampledConv2d(
            in_channels + mbstd_num_channels,
            in_channels,
            kernel_size=3,
            activation=activation,
            conv_clamp=conv_clamp,
        )
        self.fc = FullyConnectedLayer(in_channels * size[0] * size[1], in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None) -> Tensor:
        """Maps features [N, in_channels, H, W], image [N, C, H, W] (``skip``) and label to logits [N, 1]."""
        x = x.to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(dtype=torch.float32, memory_format=torch.contiguous_format))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if cmap is None:
            return x
        # ------------------------------------------------------------------
        # Projection discriminator (Miyato & Koyama 2018), scaled to unit variance: Σ x·cmap / √dim
        # ------------------------------------------------------------------
        return (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


class Discriminator(nn.Module):
    """StyleGAN2's discriminator.

    Args:
        c_dim: Size of the label; 0 without labels.
        img_resolution: Longer side of the image, a power of two from 8 on.
        img_channels: Number of image channels.
        architecture: ``orig``, ``skip`` or ``resnet``.
        channel_base: Feature maps at resolution R: ``channel_base / R``, at most ``channel_max``.
        channel_max: See ``channel_base``.
        num_fp16_res: Number of highest resolutions computed in half precision on a GPU.
        conv_clamp: Limits the output of every convolution to ± this; None does not.
        cmap_dim: Size of the embedded label; None takes the number of channels at 4×4.
        block_kwargs: Options of ``DiscriminatorBlock``, such as ``freeze_layers``.
        mapping_kwargs: Options of the ``MappingNetwork`` that embeds the labels.
        epilogue_kwargs: Options of ``DiscriminatorHead``, such as ``mbstd_group_size``.
        base_grid: (height, width) of the smallest feature maps, 1..4, the larger 4. The image is
            ``img_resolution / 4`` times as large.
        half_dtype: ``float16`` or ``bfloat16``, for ``num_fp16_res``.

    Attributes:
        img_size: (height, width) of the image.
        init_kwargs: The arguments above: ``Discriminator(**init_kwargs)`` builds the same network. Can be
            JSON.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: Mapping[str, Any] | None = None,
        mapping_kwargs: Mapping[str, Any] | None = None,
        epilogue_kwargs: Mapping[str, Any] | None = None,
        base_grid: Sequence[int] = SQUARE_GRID,
        half_dtype: str = DEFAULT_HALF_DTYPE,
    ) -> None:
        super().__init__()
        if img_channels < 1 or c_dim < 0:
            raise StyleGAN2Error(f"got img_channels={img_channels}, c_dim={c_dim}; expected ≥ 1 and ≥ 0")
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.init_kwargs: dict[str, Any] = {
            "c_dim": c_dim,
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "architecture": architecture,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "num_fp16_res": num_fp16_res,
            "conv_clamp": conv_clamp,
            "cmap_dim": cmap_dim,
            "block_kwargs": copy.deepcopy(dict(block_kwargs or {})),
            "mapping_kwargs": copy.deepcopy(dict(mapping_kwargs or {})),
            "epilogue_kwargs": copy.deepcopy(dict(epilogue_kwargs or {})),
            **recorded_options({"base_grid": base_grid, "half_dtype": half_dtype}),
        }
        self.block_resolutions = block_resolutions(img_resolution, smallest=8)[::-1]
        grid = check_base_grid(base_grid)
        self.img_size = size_at(img_resolution, grid)
        self._add_blocks({"half_dtype": half_dtype, **(block_kwargs or {})})
        in_channels = channels_at(_HEAD_RESOLUTION, channel_base, channel_max)
        cmap_dim = 0 if c_dim == 0 else in_channels if cmap_dim is None else cmap_dim
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **(mapping_kwargs or {})
            )
        epilogue_options: dict[str, Any] = {"architecture": architecture, "conv_clamp": conv_clamp}
        epilogue_options |= epilogue_kwargs or {}
        head_size = size_at(_HEAD_RESOLUTION, grid)
        self.b4 = DiscriminatorHead(in_channels, cmap_dim, head_size, img_channels, **epilogue_options)

    def _add_blocks(self, block_kwargs: Mapping[str, Any]) -> None:
        options = self.init_kwargs
        width = {"channel_base": options["channel_base"], "channel_max": options["channel_max"]}
        fp16_resolution = lowest_fp16_resolution(self.img_resolution, options["num_fp16_res"])
        in_channels, num_layers = 0, 0
        for resolution in self.block_resolutions:
            out_channels = channels_at(resolution // 2, **width)
            block_options = {
                "architecture": options["architecture"],
                "conv_clamp": options["conv_clamp"],
                "use_fp16": options["num_fp16_res"] > 0 and resolution >= fp16_resolution,
                **block_kwargs,
            }
            block = DiscriminatorBlock(
                in_channels,
                channels_at(resolution, **width),
                out_channels,
                img_channels=self.img_channels,
                layers_before=num_layers,
                **block_options,
            )
            self.add_module(f"b{resolution}", block)
            in_channels = out_channels
            num_layers += block.num_layers

    def forward(self, img: Tensor, c: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        """Judges images.

        Args:
            img: ``[N, img_channels, *img_size]``, −1 (black) to 1 (white).
            c: Labels ``[N, c_dim]``; ignored without labels.
            force_fp32: Compute in float32 throughout.

        Returns:
            Logits ``[N, 1]``: the higher, the more the image looks real.

        Raises:
            StyleGAN2Error: Images or labels of the wrong shape, or a batch that ``mbstd_group_size`` does not
                divide.
        """
        expected = (self.img_channels, *self.img_size)
        if img.ndim != 4 or tuple(img.shape[1:]) != expected:
            raise StyleGAN2Error(f"img: got {list(img.shape)}, expected [N, {', '.join(map(str, expected))}]")
        x: Tensor | None = None
        remaining: Tensor | None = img
        for resolution in self.block_resolutions:
            x, remaining = self.get_submodule(f"b{resolution}")(x, remaining, force_fp32=force_fp32)
        assert x is not None
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        logits: Tensor = self.b4(x, remaining, cmap)
        return logits
