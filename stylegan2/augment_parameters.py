"""The random parameters of the augmentations: which there are, and how they are drawn for each image."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stylegan2.wavelets import BANDS

BLIT = ("xflip", "rotate90", "xint")
GEOM = ("scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")

SPECS: dict[str, frozenset[str]] = {
    "blit": frozenset(BLIT),
    "geom": frozenset(GEOM),
    "color": frozenset(COLOR),
    "filter": frozenset({"imgfilter"}),
    "noise": frozenset({"noise"}),
    "cutout": frozenset({"cutout"}),
    "bg": frozenset({*BLIT, *GEOM}),
    "bgc": frozenset({*BLIT, *GEOM, *COLOR}),
    "bgcf": frozenset({*BLIT, *GEOM, *COLOR, "imgfilter"}),
    "bgcfn": frozenset({*BLIT, *GEOM, *COLOR, "imgfilter", "noise"}),
    "bgcfnc": frozenset({*BLIT, *GEOM, *COLOR, "imgfilter", "noise", "cutout"}),
}

# Strengths (Karras et al. 2020, 2006.06676, appendix B). Log-scales are in octaves (base 2).
XINT_MAX = 0.125  # of the image's side
SCALE_STD = 0.2
ANISO_STD = 0.2
XFRAC_STD = 0.125  # of the image's side
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0
IMGFILTER_STD = 1.0
NOISE_STD = 0.1
CUTOUT_SIZE = 0.5  # of the image's side

# What shapes and matrices are made of
_DECIDING = (
    *("xflip", "rotate90", "xint", "scale", "rotate_pre", "aniso", "rotate_post", "xfrac"),
    *("brightness", "contrast", "lumaflip", "hue", "saturation", "imgfilter"),
)


@dataclass(frozen=True)
class AugmentParameters:
    """What happens to each image of a batch; None = the pipe does not hold this transform.

    Attributes:
        xflip: [N] 1 = mirrored left to right.
        rotate90: [N] quarter turns.
        xint: [N, 2] shift as a fraction of width, height; rounded to whole pixels.
        scale: [N] isotropic factor.
        rotate_pre: [N] angle in radians, before the anisotropic scaling.
        aniso: [N] factor along x, its inverse along y.
        rotate_post: [N] angle in radians, after the anisotropic scaling.
        xfrac: [N, 2] shift as a fraction of width, height.
        brightness: [N] offset.
        contrast: [N] factor.
        lumaflip: [N] 1 = luma inverted, hue kept.
        hue: [N] angle in radians around the grey axis.
        saturation: [N] factor on the distance from the grey axis.
        imgfilter: [N, 4] gain of each frequency band, before normalisation.
        noise_sigma: [N] standard deviation of the added noise.
        noise_field: [N, C, H, W] standard normal noise.
        cutout_size: [N] side of the erased rectangle as a fraction of the image's side.
        cutout_center: [N, 2] its centre x, y as a fraction of width, height.
    """

    xflip: Tensor | None = None
    rotate90: Tensor | None = None
    xint: Tensor | None = None
    scale: Tensor | None = None
    rotate_pre: Tensor | None = None
    aniso: Tensor | None = None
    rotate_post: Tensor | None = None
    xfrac: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    lumaflip: Tensor | None = None
    hue: Tensor | None = None
    saturation: Tensor | None = None
    imgfilter: Tensor | None = None
    noise_sigma: Tensor | None = None
    noise_field: Tensor | None = None
    cutout_size: Tensor | None = None
    cutout_center: Tensor | None = None

    def on_host(self) -> "AugmentParameters":
        """Bring all that decides on shapes and matrices to the CPU; noise and cutout stay where they are."""
        drawn = {name: value for name in _DECIDING if (value := getattr(self, name)) is not None}
        if not drawn:
            return self
        # Which images are touched, and how far they move, decides on the shapes of tensors, and only the CPU
        # can decide on those. It has to wait for the GPU, so it waits once: for one tensor [N, all columns].
        columns = [value[:, None].flatten(1) for value in drawn.values()]
        together = torch.cat(columns, dim=1).cpu()
        parts = together.split([column.shape[1] for column in columns], dim=1)
        there = {
            name: part.reshape(value.shape).to(value.dtype).contiguous()
            for (name, value), part in zip(drawn.items(), parts, strict=True)
        }
        return replace(self, **there)


def beside(tensor: Tensor, images: Tensor) -> Tensor:
    """Copy a tensor of the CPU to where the images are, without waiting for a GPU."""
    if images.is_cuda and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # from other memory a copy may wait for all that the GPU has to do
    return tensor.to(images.device, non_blocking=True)


class Draws:
    """Source of random values for one batch.

    Args:
        batch: number of images.
        device: where the values are made.
        generator: torch's generator; None = torch's global one.
    """

    joint_rotation = False

    def __init__(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.batch = batch
        self.device = device
        self.generator = generator

    def uniform(self, *shape: int) -> Tensor:
        """Draw [N, *shape] from U[0, 1)."""
        return torch.rand([self.batch, *shape], generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw [N, *shape] from N(0, 1)."""
        return torch.randn([self.batch, *shape], generator=self.generator, device=self.device)

    def half_normal(self) -> Tensor:
        """Draw [N] from |N(0, 1)|."""
        return self.normal().abs()

    def noise_field(self, *shape: int) -> Tensor:
        """Draw white noise [N, *shape] from N(0, 1)."""
        return self.normal(*shape)

    def gate(self, probability: Tensor) -> Tensor:
        """Decide for each image: bool [N], True with the given probability."""
        return self.uniform() < probability


class FixedPercentile(Draws):
    """Puts every parameter at one percentile of its distribution and applies every transform.

    It makes the transforms visible and testable. Only the noise field stays random. Normal values are
    erfinv(2q − 1), without the usual factor √2; both rotations are merged into the first.

    Args:
        percentile: q in 0..1; 0 and 1 are infinitely far out for normal parameters.
    """

    joint_rotation = True

    def __init__(
        self, percentile: float, batch: int, device: torch.device, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(batch, device, generator)
        self.percentile = torch.tensor(percentile, dtype=torch.float32, device=device)

    def uniform(self, *shape: int) -> Tensor:
        """Give q as [N, *shape]."""
        return self.percentile.expand(self.batch, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Give erfinv(2q − 1) as [N, *shape]."""
        return torch.erfinv(2 * self.percentile - 1).expand(self.batch, *shape)

    def half_normal(self) -> Tensor:
        """Give erfinv(q) as [N]."""
        return torch.erfinv(self.percentile).expand(self.batch)

    def noise_field(self, *shape: int) -> Tensor:
        """Draw white noise [N, *shape]: the one thing that stays random."""
        return super().normal(*shape)

    def gate(self, probability: Tensor) -> Tensor:
        """Let every image through."""
        return torch.ones(self.batch, dtype=torch.bool, device=self.device)


def sample_parameters(spec: frozenset[str], shape: torch.Size, p: Tensor, draws: Draws) -> AugmentParameters:
    """Draw the parameters of one batch.

    Each transform is applied to each image with probability p, otherwise its parameter is the one that
    changes nothing. The values are drawn in the order of the paper's algorithm.

    Args:
        spec: names of the transforms (a value of `SPECS`).
        shape: N, C, H, W of the batch.
        p: scalar strength, 0 or more; from 1 on everything is applied.
        draws: source of randomness.
    """
    drawn: dict[str, Tensor] = {}
    if "xflip" in spec:
        drawn["xflip"] = _gated(torch.floor(draws.uniform() * 2), draws.gate(p), 0.0)
    if "rotate90" in spec:
        drawn["rotate90"] = _gated(torch.floor(draws.uniform() * 4), draws.gate(p), 0.0)
    if "xint" in spec:
        drawn["xint"] = _gated((draws.uniform(2) * 2 - 1) * XINT_MAX, draws.gate(p), 0.0)
    if "scale" in spec:
        drawn["scale"] = _gated(torch.exp2(draws.normal() * SCALE_STD), draws.gate(p), 1.0)
    if "rotate" in spec:
        drawn["rotate_pre"] = _angle(draws, _rotation_probability(p))
    if "aniso" in spec:
        drawn["aniso"] = _gated(torch.exp2(draws.normal() * ANISO_STD), draws.gate(p), 1.0)
    if "rotate" in spec:
        angle = _angle(draws, _rotation_probability(p))
        drawn["rotate_post"] = torch.zeros_like(angle) if draws.joint_rotation else angle
    if "xfrac" in spec:
        drawn["xfrac"] = _gated(draws.normal(2) * XFRAC_STD, draws.gate(p), 0.0)
    drawn |= _sample_color(spec, p, draws)
    drawn |= _sample_corruption(spec, shape, p, draws)
    return AugmentParameters(**drawn)


def _sample_color(spec: frozenset[str], p: Tensor, draws: Draws) -> dict[str, Tensor]:
    drawn: dict[str, Tensor] = {}
    if "brightness" in spec:
        drawn["brightness"] = _gated(draws.normal() * BRIGHTNESS_STD, draws.gate(p), 0.0)
    if "contrast" in spec:
        drawn["contrast"] = _gated(torch.exp2(draws.normal() * CONTRAST_STD), draws.gate(p), 1.0)
    if "lumaflip" in spec:
        drawn["lumaflip"] = _gated(torch.floor(draws.uniform() * 2), draws.gate(p), 0.0)
    if "hue" in spec:
        drawn["hue"] = _angle(draws, p)
    if "saturation" in spec:
        drawn["saturation"] = _gated(torch.exp2(draws.normal() * SATURATION_STD), draws.gate(p), 1.0)
    return drawn


def _sample_corruption(spec: frozenset[str], shape: torch.Size, p: Tensor, draws: Draws) -> dict[str, Tensor]:
    drawn: dict[str, Tensor] = {}
    if "imgfilter" in spec:
        gains = [_gated(torch.exp2(draws.normal() * IMGFILTER_STD), draws.gate(p), 1.0) for _ in range(BANDS)]
        drawn["imgfilter"] = torch.stack(gains, dim=1)
    if "noise" in spec:
        drawn["noise_sigma"] = _gated(draws.half_normal() * NOISE_STD, draws.gate(p), 0.0)
        drawn["noise_field"] = draws.noise_field(*shape[1:])
    if "cutout" in spec:
        open_gate = draws.gate(p)
        drawn["cutout_size"] = torch.where(open_gate, CUTOUT_SIZE, 0.0)
        drawn["cutout_center"] = draws.uniform(2)
    return drawn


def _gated(value: Tensor, gate: Tensor, neutral: float) -> Tensor:
    """Keep the value of images whose gate is open, put the neutral one elsewhere."""
    gate = gate.reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(gate, value, neutral)


def _angle(draws: Draws, probability: Tensor) -> Tensor:
    """Draw [N] from U(−π, π), 0 where the gate is closed."""
    return _gated((draws.uniform() * 2 - 1) * math.pi, draws.gate(probability), 0.0)


def _rotation_probability(p: Tensor) -> Tensor:
    """Give each of the two rotations the probability with which at least one happens with probability p."""
    return 1 - (1 - p).clamp(0, 1).sqrt()
