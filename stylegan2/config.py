"""Training options as a person writes them, and their resolution into the numbers that training uses.

`TrainingOptions` is the whole `train_gan` section of params.yaml. A field left at `auto` takes its value from
the table of base configurations; `resolve` is a pure function, so that the outcome can be shown beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Cfg = Literal["auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"]
AugPipe = Literal[
    "blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"
]
Architecture = Literal["orig", "skip", "resnet"]
HalfPrecision = Literal["float16", "bfloat16"]

CountField = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BaseGrid = Annotated[list[Annotated[int, Field(ge=1, le=4)]], Field(min_length=2, max_length=2)]

FULL_CHANNEL_BASE = 32768  # feature maps × resolution of the full-size networks (fmaps = 1)


class Section(BaseModel):
    """Unknown keys are errors, nothing is converted ("3" is no number), instances are read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class TrainingOptions(Section):
    """What to train and for how long: the `train_gan` section.

    Attributes:
        resolution: longer side of the training images in pixels, a power of two.
        base_grid: [height, width] of the smallest feature maps, 4 the larger: [3, 4] is for images of 3:4.
        kimg: length of training in thousands of real images shown to the discriminator.
        cfg: base configuration that answers every field left at `auto`.
        batch: images per iteration. Overriding it leaves gamma, ema_kimg, lr and mbstd_group alone.
        fmaps: capacity, as a factor on the number of feature maps; channel_base = 32768 · fmaps.
        channel_max: most feature maps of any layer; auto = 512.
        z_dim: length of the latent vector z; auto = 512.
        w_dim: length of the intermediate latent vector w; auto = 512.
        mapping_layers: layers of the mapping network.
        num_fp16_res: on CUDA, so many of the highest resolutions compute in half precision (all, where there
            are fewer); auto = 0.
        half_precision: which half precision that is.
        conv_clamp: convolutions are limited to ± this; auto = 256 with half precision, else no limit (null).
        lr: learning rate of both networks, before the correction for lazy regularisation.
        gamma: weight of the R1 penalty.
        ema_kimg: half-life of the generator's moving average, in thousands of images.
        ema_rampup: the half-life is at most this fraction of the images seen so far; null = no ramp-up.
        mbstd_group: group size of the minibatch standard deviation.
        aug: `ada` adapts the augmentation strength, `fixed` holds it at p, `noaug` switches it off.
        augpipe: which families of augmentations: letters of blit, geom, color, filter, noise, cutout.
        p: strength of the augmentation: at the start (`ada`) or throughout (`fixed`).
        target: value of r_t = E[sign D(real)] that `ada` steers towards.
        ada_kimg: thousands of images in which p can move by 1; auto = 500, or 100 when fine-tuning.
        ada_interval: iterations between adjustments of p.
        mirror: also show every image mirrored left to right.
        cond: condition both networks on the labels of the images.
        subset: train on so many images, drawn by the seed; null = all.
        freezed: so many layers of the discriminator, from the image on, keep their weights ("Freeze-D").
        style_mixing_prob: probability of mixing two latents in a batch.
        g_reg_interval: iterations between path-length regularisations; null = main loss only.
        d_reg_interval: iterations between R1 regularisations; null = main loss only.
        pl_weight: weight of the path-length penalty; 0 switches it off.
        pl_batch_shrink: path lengths are measured on batch / pl_batch_shrink images.
        pl_decay: step of the running mean of path lengths.
        kimg_per_tick: thousands of images between two rows of history.csv.
        snapshot_ticks: ticks between two snapshots: sample grid and KID.
        kid_images: generated images that a snapshot's KID is measured on; 0 = do not measure.
        keep_snapshots: keep the averaged generator of every snapshot, in snapshots/<images shown>/.
        grid_size: the sample grid shows grid_size × grid_size images.
        init: networks to fine-tune from: a name (such as ffhq256; they stand in `stylegan2.sources`, and an
            unknown one lists them), an https address of an NVIDIA-format pickle, such a pickle, or the folder
            of a trained GAN. Of fmaps, channel_max, z_dim, w_dim, mapping_layers, num_fp16_res and
            conv_clamp, what is `auto` is theirs.
        grow: `init` may have a lower resolution: the layers that it has not start afresh.
    """

    resolution: Annotated[int, Field(ge=8, le=2048)]
    base_grid: BaseGrid = [4, 4]
    kimg: Auto | PositiveFloat = "auto"
    cfg: Cfg = "auto"
    batch: Auto | CountField = "auto"
    fmaps: Auto | PositiveFloat = "auto"
    channel_max: Auto | CountField = "auto"
    z_dim: Auto | CountField = "auto"
    w_dim: Auto | CountField = "auto"
    mapping_layers: Auto | CountField = "auto"
    num_fp16_res: Auto | Annotated[int, Field(ge=0)] = "auto"
    half_precision: HalfPrecision = "float16"
    conv_clamp: Auto | PositiveFloat | None = "auto"
    lr: Auto | PositiveFloat = "auto"
    gamma: Auto | NonNegativeFloat = "auto"
    ema_kimg: Auto | NonNegativeFloat = "auto"
    ema_rampup: Auto | PositiveFloat | None = "auto"
    mbstd_group: Auto | CountField = "auto"
    aug: Literal["ada", "fixed", "noaug"] = "ada"
    augpipe: AugPipe = "bgc"
    p: Probability = 0.0
    target: Annotated[float, Field(ge=-1, le=1)] = 0.6
    ada_kimg: Auto | PositiveFloat = "auto"
    ada_interval: CountField = 4
    mirror: bool = False
    cond: bool = False
    subset: CountField | None = None
    freezed: Annotated[int, Field(ge=0)] = 0
    style_mixing_prob: Auto | Probability = "auto"
    g_reg_interval: CountField | None = 4
    d_reg_interval: CountField | None = 16
    pl_weight: Auto | NonNegativeFloat = "auto"
    pl_batch_shrink: CountField = 2
    pl_decay: Annotated[float, Field(gt=0, le=1)] = 0.01
    kimg_per_tick: PositiveFloat = 4.0
    snapshot_ticks: CountField = 50
    kid_images: Annotated[int, Field(ge=0)] = 0
    keep_snapshots: bool = False
    grid_size: Annotated[int, Field(ge=1, le=32)] = 4
    init: str | None = None
    grow: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = []
        if self.resolution & (self.resolution - 1):
            below = 1 << (self.resolution.bit_length() - 1)
            problems.append(
                f"resolution: got {self.resolution}, expected a power of two; use {below} or {2 * below}"
            )
        if max(self.base_grid) != 4:
            problems.append(f"base_grid: got {self.base_grid}, expected the larger of both to be 4")
        if self.grow and self.init is None:
            problems.append("grow: there is nothing to grow from; set init or leave grow out")
        if self.freezed and (self.init is None or self.grow):
            problems.append("freezed: layers that start afresh would never learn; needs init and no grow")
        if self.kid_images == 1:
            problems.append("kid_images: got 1, expected 0 (off) or at least 2")
        if self.aug == "fixed" and self.p == 0:
            problems.append(
                "p: aug 'fixed' needs a strength above 0; set p (for example 0.2) or use aug 'noaug'"
            )
        if self.aug == "noaug" and self.p > 0:
            problems.append(
                f"p: got {self.p:g} with aug 'noaug', which applies none; set p to 0 or aug to 'fixed'"
            )
        if not problems:
            problems += batch_problems(resolve(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True)
class BaseConfiguration:
    """One row of the table of base configurations.

    The numbers are the training settings published with Karras et al. 2020 (2006.06676), under their usual
    names; a test compares the table with recorded settings of the reference.

    Attributes:
        kimg: thousands of images.
        batch: images per iteration.
        mbstd_group: group size of the minibatch standard deviation.
        fmaps: factor on the number of feature maps.
        lr: learning rate.
        gamma: weight of R1.
        ema_kimg: half-life of the moving average in thousands of images.
        ema_rampup: bound on the half-life as a fraction of the images seen.
        mapping_layers: layers of the mapping network.
        d_architecture: architecture of the discriminator.
        pl_weight: weight of the path-length penalty.
        style_mixing_prob: probability of style mixing.
    """

    kimg: float
    batch: int
    mbstd_group: int
    fmaps: float
    lr: float
    gamma: float
    ema_kimg: float
    ema_rampup: float | None
    mapping_layers: int
    d_architecture: Architecture = "resnet"
    pl_weight: float = 2.0
    style_mixing_prob: float = 0.9


FIXED_CONFIGURATIONS: dict[str, BaseConfiguration] = {
    "stylegan2": BaseConfiguration(25000, 32, 4, 1.0, 0.002, 10.0, 10.0, None, 8),
    "paper256": BaseConfiguration(25000, 64, 8, 0.5, 0.0025, 1.0, 20.0, None, 8),
    "paper512": BaseConfiguration(25000, 64, 8, 1.0, 0.0025, 0.5, 20.0, None, 8),
    "paper1024": BaseConfiguration(25000, 32, 4, 1.0, 0.002, 2.0, 10.0, None, 8),
    "cifar": BaseConfiguration(100000, 64, 32, 1.0, 0.0025, 0.01, 500.0, 0.05, 2, "orig", 0.0, 0.0),
}


def base_configuration(cfg: Cfg, resolution: int, gpus: int = 1) -> BaseConfiguration:
    """Look up a base configuration; `auto` derives one from the resolution.

    Args:
        cfg: name in the table.
        resolution: side of the images in pixels.
        gpus: number of devices that share a batch (only `auto` depends on it).
    """
    if cfg != "auto":
        return FIXED_CONFIGURATIONS[cfg]
    # A device takes at most 4096 rows of pixels and 32 images, all together 64 images, none less than one.
    share = min(32, 4096 // resolution)
    batch = max(gpus, min(64, gpus * share))
    return BaseConfiguration(
        kimg=25000,
        batch=batch,
        mbstd_group=min(batch // gpus, 4),
        fmaps=1.0 if resolution >= 512 else 0.5,
        lr=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
        ema_rampup=0.05,
        mapping_layers=2,
    )


class ResolvedOptions(Section):
    """`TrainingOptions` without any `auto`: the numbers that training uses. Same names, same meaning."""

    resolution: int
    base_grid: list[int]
    kimg: float
    batch: int
    channel_base: int
    channel_max: int
    z_dim: int
    w_dim: int
    mapping_layers: int
    num_fp16_res: int
    half_precision: HalfPrecision
    conv_clamp: float | None
    d_architecture: Architecture
    mbstd_group: int
    lr: float
    gamma: float
    ema_kimg: float
    ema_rampup: float | None
    aug: Literal["ada", "fixed", "noaug"]
    augpipe: AugPipe
    p: float
    target: float
    ada_kimg: float
    ada_interval: int
    mirror: bool
    cond: bool
    subset: int | None
    freezed: int
    style_mixing_prob: float
    g_reg_interval: int | None
    d_reg_interval: int | None
    pl_weight: float
    pl_batch_shrink: int
    pl_decay: float
    kimg_per_tick: float
    snapshot_ticks: int
    kid_images: int
    keep_snapshots: bool
    grid_size: int
    init: str | None
    grow: bool

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = (side * self.resolution // 4 for side in self.base_grid)
        return height, width


ARCHITECTURE_DEFAULTS: dict[str, Any] = {"channel_max": 512, "z_dim": 512, "w_dim": 512, "num_fp16_res": 0}


def resolve(
    options: TrainingOptions, gpus: int = 1, source: Mapping[str, Any] | None = None
) -> ResolvedOptions:
    """Replace every `auto` by its number.

    Fine-tuning (`init`) adapts p five times faster and drops the ramp-up of the moving average: the loaded
    generator is already worth averaging.

    Args:
        options: as written.
        gpus: number of devices that share a batch.
        source: architecture of the networks to fine-tune from, by the names in `ResolvedOptions`: these win
            over the table.
    """
    base = base_configuration(options.cfg, options.resolution, gpus)
    tuning = options.init is not None
    if tuning:
        base = replace(base, ema_rampup=None)
    fmaps = base.fmaps if options.fmaps == "auto" else options.fmaps
    named = {name: getattr(options, name) for name in ResolvedOptions.model_fields if hasattr(options, name)}
    named["channel_base"] = "auto" if options.fmaps == "auto" else int(fmaps * FULL_CHANNEL_BASE)
    named["d_architecture"] = "auto"
    defaults = {
        **ARCHITECTURE_DEFAULTS,
        **vars(base),
        "channel_base": int(fmaps * FULL_CHANNEL_BASE),
        "ada_kimg": 100.0 if tuning else 500.0,
        **(source or {}),
    }
    half = defaults["num_fp16_res"] if named["num_fp16_res"] == "auto" else named["num_fp16_res"]
    if defaults.get("conv_clamp") is None:
        defaults["conv_clamp"] = 256.0 if half else None  # half precision overflows without a limit
    return ResolvedOptions.model_validate(
        {name: defaults[name] if value == "auto" else value for name, value in named.items()}
    )


def batch_problems(resolved: ResolvedOptions) -> list[str]:
    """Say what does not fit together in the resolved numbers (empty when all is well)."""
    problems = []
    group = min(resolved.mbstd_group, resolved.batch)
    if resolved.batch % group:
        problems.append(
            f"mbstd_group: {resolved.mbstd_group} does not divide batch {resolved.batch}; choose a divisor"
        )
    if resolved.pl_weight > 0 and resolved.g_reg_interval and resolved.pl_batch_shrink > resolved.batch:
        problems.append(
            f"pl_batch_shrink: got {resolved.pl_batch_shrink}, expected at most batch = {resolved.batch}"
        )
    problems += freezing_problems(resolved)
    if resolved.channel_base < resolved.resolution:
        least = resolved.resolution / FULL_CHANNEL_BASE
        problems.append(f"fmaps: too small for resolution {resolved.resolution}; use at least {least:g}")
    return problems


def freezing_problems(resolved: ResolvedOptions) -> list[str]:
    """Say whether more layers of the discriminator are to be frozen than it has (empty when not)."""
    blocks = resolved.resolution.bit_length() - 3  # from 8 pixels on
    layers = 1 + blocks * {"orig": 2, "skip": 3, "resnet": 3}[resolved.d_architecture]
    if resolved.freezed <= layers:
        return []
    return [f"freezed: got {resolved.freezed}, but the blocks have {layers} layers in all"]
