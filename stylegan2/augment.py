"""The augmentation pipe of ADA: 18 differentiable transforms, applied with probability p to each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan2.augment_color import apply_color, color_matrices
from stylegan2.augment_geometry import resample, sampling_matrices
from stylegan2.augment_parameters import (
    SPECS,
    AugmentParameters,
    Draws,
    FixedPercentile,
    beside,
    sample_parameters,
)
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops.upfirdn2d import setup_filter
from stylegan2.wavelets import BANDS, SYM6, band_filters

# Expected share of power in each band: the spectrum of natural images falls with frequency (appendix B).
BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)


class AugmentPipe(nn.Module):
    """Stochastic discriminator augmentation (Karras et al. 2020, 2006.06676, section 2 and appendix B).

    Args:
        spec: which families of transforms: a key of `SPECS`, such as `bgc`.

    Attributes:
        p: scalar buffer, the strength; 0 switches everything off, from 1 on every transform is applied.

    Raises:
        StyleGAN2Error: for an unknown spec.
    """

    p: Tensor
    wavelet: Tensor
    bands: Tensor
    band_power: Tensor

    def __init__(self, spec: str) -> None:
        super().__init__()
        if spec not in SPECS:
            raise StyleGAN2Error(f"augpipe: got {spec!r}, expected one of {', '.join(SPECS)}")
        self.transforms = SPECS[spec]
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("wavelet", setup_filter(SYM6), persistent=False)
        self.register_buffer("bands", band_filters(), persistent=False)
        self.register_buffer("band_power", torch.tensor(BAND_POWER), persistent=False)

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        debug_percentile: float | None = None,
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: [N, C, H, W], any H and W (at least 2 for specs with `filter`), values about −1..1.
            generator: source of randomness on the images' device; None = torch's global one.
            debug_percentile: put every parameter at this percentile of its distribution, at any p.

        Returns:
            [N, C, H, W], differentiable (twice) with respect to the images.

        Raises:
            StyleGAN2Error: the spec filters frequency bands, and the images have a side of 1 pixel.
        """
        return self.apply_parameters(images, self.sample(images, generator, debug_percentile))

    def sample(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        debug_percentile: float | None = None,
    ) -> AugmentParameters:
        """Draw the parameters for a batch; arguments as in `forward`."""
        batch, device = images.shape[0], images.device
        draws = (
            Draws(batch, device, generator)
            if debug_percentile is None
            else FixedPercentile(debug_percentile, batch, device, generator)
        )
        return sample_parameters(self.transforms, images.shape, self.p, draws)

    def apply_parameters(self, images: Tensor, params: AugmentParameters) -> Tensor:
        """Apply given parameters: geometry, colour, band gains, noise, cutout, in this order."""
        batch, _, height, width = images.shape
        params = params.on_host()
        host = torch.device("cpu")
        matrices = sampling_matrices(params, batch, width, height, host)
        images = resample(images, matrices, self.wavelet)
        images = apply_color(images, color_matrices(params, batch, host))
        if params.imgfilter is not None:
            images = self._filter_bands(images, params.imgfilter)
        if params.noise_sigma is not None and params.noise_field is not None:
            images = images + params.noise_sigma.reshape(-1, 1, 1, 1) * params.noise_field
        if params.cutout_size is not None and params.cutout_center is not None:
            images = images * _outside_rectangle(images, params.cutout_size, params.cutout_center)
        return images

    def _filter_bands(self, images: Tensor, gains: Tensor) -> Tensor:
        """Amplify and weaken the four frequency bands of the images whose gains [N, 4] are not all 1.

        The gains are best on the CPU: which images they touch decides on shapes.
        """
        height, width = images.shape[2:]
        if min(height, width) < 2:
            raise StyleGAN2Error(
                f"images: got {height}×{width} pixels, expected sides of at least 2 to filter frequency "
                "bands; use larger images or an augpipe without `filter`"
            )
        touched = (gains != 1).any(dim=1)
        if not bool(touched.any()):
            return images
        index = touched.nonzero().squeeze(1)
        kernels = self.normalised_gains(beside(gains[index], images)) @ self.bands  # [M, taps]
        index = beside(index, images)
        return images.index_copy(0, index, _separable_filter(images[index], kernels))

    def normalised_gains(self, gains: Tensor) -> Tensor:
        """Compensate each band's gain over all bands, so that the expected power of the image stays 1.

        Args:
            gains: [N, 4] t_i of each band.

        Returns:
            [N, 4] amplification of each band.
        """
        # ---------------------------------------------------------------------------------------------------
        # Karras et al. 2020 (2006.06676), appendix B: for each band i, g ← g · t / √(Σ_j λ_j t_j²), where
        # the vector t is t_i in band i and 1 elsewhere.
        # ---------------------------------------------------------------------------------------------------
        total = torch.ones_like(gains)
        for band in range(BANDS):
            single = torch.ones_like(gains)
            single[:, band] = gains[:, band]
            power = (self.band_power * single.square()).sum(dim=1, keepdim=True)
            total = total * single / power.sqrt()
        return total


def _separable_filter(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image along both axes with its own kernel [N, taps]; the border is reflected."""
    batch, channels, height, width = images.shape
    taps = kernels.shape[1]
    reach = taps // 2
    weight = kernels.repeat_interleave(channels, dim=0)[:, None, None, :]  # [N * C, 1, 1, taps]
    flat = images.reshape(1, batch * channels, height, width)
    padded = _reflect(flat, reach)
    rows = F.conv2d(padded, weight, groups=batch * channels)
    both = F.conv2d(rows, weight.transpose(2, 3), groups=batch * channels)
    return both.reshape(batch, channels, height, width)


def _reflect(images: Tensor, border: int) -> Tensor:
    """Pad by reflection, repeatedly where the border is longer than the image; sides of at least 2 pixels."""
    height, width = images.shape[2:]
    while border > 0:
        step = min(border, height - 1, width - 1)
        images = F.pad(images, [step] * 4, mode="reflect")
        border -= step
        height, width = images.shape[2:]
    return images


def _outside_rectangle(images: Tensor, size: Tensor, center: Tensor) -> Tensor:
    """Give 0 inside each image's rectangle, 1 outside.

    Args:
        images: [N, C, H, W], for shape, type and device.
        size: [N] side as a fraction of the image's side.
        center: [N, 2] x, y as a fraction of width, height.

    Returns:
        [N, 1, H, W].
    """
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    half = size.reshape(-1, 1, 1) / 2
    outside_x = (x[None, None, :] - center[:, 0].reshape(-1, 1, 1)).abs() >= half
    outside_y = (y[None, :, None] - center[:, 1].reshape(-1, 1, 1)).abs() >= half
    return (outside_x | outside_y)[:, None].to(images.dtype)
