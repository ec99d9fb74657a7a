"""Geometric augmentations: all of them in one resampling, through an orthogonal wavelet low-pass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2.augment_parameters import AugmentParameters, beside
from stylegan2.grid_sampling import sample_bilinear
from stylegan2.ops.upfirdn2d import downsample2d, upsample2d

# The centre of gravity of sym6 lies half a tap off the middle of its twelve taps.
WAVELET_SHIFT = 0.5


def sampling_matrices(
    params: AugmentParameters, batch: int, width: int, height: int, device: torch.device
) -> Tensor:
    """Compute where each output position looks in the input.

    Positions are homogeneous (x, y, 1) in pixels, with the origin at the centre of the image.

    Returns:
        float32 [N, 3, 3]; exactly the unit matrix for untouched images.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2020 (2006.06676), appendix B, algorithm 1: G ← T_k · … · T_2 · T_1 maps input to output;
    # sampling needs its inverse T_1⁻¹ · T_2⁻¹ · … · T_k⁻¹.
    # -------------------------------------------------------------------------------------------------------
    inverses: list[Tensor] = []
    if params.xflip is not None:
        mirror = 1 - 2 * params.xflip
        inverses.append(_scaling(1 / mirror, torch.ones_like(mirror)))
    if params.rotate90 is not None:
        inverses.append(_rotation(params.rotate90 * (math.pi / 2)))
    if params.xint is not None:
        inverses.append(
            _translation(-torch.round(params.xint[:, 0] * width), -torch.round(params.xint[:, 1] * height))
        )
    if params.scale is not None:
        inverses.append(_scaling(1 / params.scale, 1 / params.scale))
    if params.rotate_pre is not None:
        inverses.append(_rotation(params.rotate_pre))
    if params.aniso is not None:
        inverses.append(_scaling(1 / params.aniso, params.aniso))
    if params.rotate_post is not None:
        inverses.append(_rotation(params.rotate_post))
    if params.xfrac is not None:
        inverses.append(_translation(-params.xfrac[:, 0] * width, -params.xfrac[:, 1] * height))
    product = torch.eye(3, device=device).expand(batch, 3, 3)
    for inverse in inverses:
        product = product @ inverse
    return product


def resample(images: Tensor, matrices: Tensor, wavelet: Tensor) -> Tensor:
    """Move, turn and scale each image; what enters from outside is the image's reflection.

    Args:
        images: [N, C, H, W].
        matrices: [N, 3, 3] of `sampling_matrices`; images with a unit matrix pass through untouched, which
            is exact because the wavelet reconstructs perfectly. Best on the CPU, which decides on shapes by
            them: on a GPU every decision waits for all that it has to do.
        wavelet: [12] sym6 taps with sum 1.
    """
    touched = (matrices != torch.eye(3, device=matrices.device)).flatten(1).any(dim=1)
    if not bool(touched.any()):
        return images
    if bool(touched.all()):
        return _resample_all(images, matrices, wavelet)
    index = touched.nonzero().squeeze(1)
    matrices = matrices[index]
    index = beside(index, images)
    return images.index_copy(0, index, _resample_all(images[index], matrices, wavelet))


def reflection_padding(matrices: Tensor, width: int, height: int, taps: int) -> tuple[int, int, int, int]:
    """Find how much reflected border the images need so that no sample looks beyond it.

    A reflection holds at most one image side less one pixel; beyond that there is black.

    Returns:
        left, right, top, bottom in pixels, enough for every image of the batch.
    """
    # -------------------------------------------------------------------------------------------------------
    # The outermost pixel centres of the image are ±e, e = ((W − 1)/2, (H − 1)/2), around its centre. Output
    # frame and map x ↦ A x + t give corners A·(±e) + t, whose bounding box is t ± |A| e with |A| element by
    # element: a sum of ±a·e is largest when all its terms are positive. What the box exceeds ±e by, plus the
    # reach r of the filters, has to be filled: r + |A| e − e ± t.
    # -------------------------------------------------------------------------------------------------------
    linear, offset = matrices[:, :2, :2], matrices[:, :2, 2]  # [N, 2, 2], [N, 2]
    side = torch.tensor([width - 1.0, height - 1.0], device=matrices.device)
    extent = side / 2
    box = linear.abs() @ extent  # [N, 2] half the size of the bounding box
    farthest = torch.cat([box - offset, box + offset], dim=1).amax(dim=0)  # left, top, right, bottom
    missing = farthest - extent.repeat(2) + 2 * _low_pass_reach(taps)
    border = missing.clamp(min=0).minimum(side.repeat(2)).ceil()
    left, top, right, bottom = (int(pixels) for pixels in border.tolist())
    return left, right, top, bottom


def normalised_sampling(
    matrices: Tensor, width: int, height: int, padding: tuple[int, int, int, int], taps: int
) -> tuple[Tensor, int, int]:
    """Express the sampling of the padded, doubled image in the units of `affine_grid`.

    Returns:
        theta [N, 2, 3], and height and width of the sampling grid: the doubled image with a border that the
        final low-pass eats.
    """
    # -------------------------------------------------------------------------------------------------------
    # Grid coordinates u in [−1, 1]² are positions q = (G/2) u in a grid of G = (width, height) samples, two
    # to a pixel. The wavelet moves all content by s samples, so q looks at q + s there and comes back by s:
    #     2 · (A (q + s)/2 + t) + d − s = A q + (A s + 2 t + d − s),
    # where d is by how much the unequal borders move the image's centre off that of the padded image. With
    # P the padded size in pixels, hence P samples from centre to edge, theta = [A (G/2) / P | (…) / P].
    # -------------------------------------------------------------------------------------------------------
    left, right, top, bottom = padding
    margin = 2 * _low_pass_reach(taps)
    grid_width, grid_height = 2 * (width + margin), 2 * (height + margin)
    half_grid = matrices.new_tensor([grid_width / 2, grid_height / 2])
    padded = matrices.new_tensor([width + left + right, height + top + bottom])[:, None]  # [2, 1]
    off_centre = matrices.new_tensor([left - right, top - bottom])
    shift = matrices.new_tensor([WAVELET_SHIFT, WAVELET_SHIFT])
    linear, offset = matrices[:, :2, :2], matrices[:, :2, 2]  # [N, 2, 2], [N, 2]
    constant = linear @ shift - shift + 2 * offset + off_centre
    theta = torch.cat([linear * half_grid, constant[:, :, None]], dim=2) / padded
    return theta, grid_height, grid_width


def _resample_all(images: Tensor, matrices: Tensor, wavelet: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    taps = wavelet.numel()
    padding = reflection_padding(matrices, width, height, taps)
    theta, grid_height, grid_width = normalised_sampling(matrices, width, height, padding, taps)
    doubled = upsample2d(F.pad(images, padding, mode="reflect"), wavelet, up=2)
    size = [batch, channels, grid_height, grid_width]
    grid = F.affine_grid(beside(theta.to(images.dtype), images), size, align_corners=False)
    moved = sample_bilinear(doubled, grid)
    return downsample2d(moved, wavelet, down=2, padding=-2 * _low_pass_reach(taps), flip_filter=True)


def _low_pass_reach(taps: int) -> int:
    """How far the wavelet reaches to either side, in pixels: half its taps, of which two make a pixel."""
    return taps // 4


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=-1))  # [N, 3, 3]


def _rotation(angle: Tensor) -> Tensor:
    """Rotate by `angle` [N]: x' = x cos − y sin, y' = x sin + y cos."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).reshape(-1, 3, 3)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, x, zero, one, y, zero, zero, one], dim=-1).reshape(-1, 3, 3)
