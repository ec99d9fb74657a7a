"""Stage `train_gan`: train the GAN on the training images."""

from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import field_validator, model_validator

from pipeline.gan_images import load_images
from pipeline.prepared import load_samples
from stages.context import StageRun, stage_command
from stylegan2 import ops
from stylegan2.config import TrainingOptions, resolve
from stylegan2.errors import StyleGAN2Error
from stylegan2.sources import NAMED_ADDRESSES, is_local_path, shipped_names
from stylegan2.training import train

PRETRAINED = "data/pretrained"
SHIPPED_NETWORKS = "stylegan2/pretrained"


class Params(TrainingOptions):
    """Section `train_gan`: all of `TrainingOptions`; a local `init` must lie where DVC sees it.

    Attributes:
        disc_side: mirror training images so that every optic disc lies on this side; `any` mirrors none.
    """

    disc_side: Literal["any", "left", "right"] = "any"

    @field_validator("init")
    @classmethod
    def _below_pretrained(cls, init: str | None) -> str | None:
        if init is not None and is_local_path(init):
            parts = PurePosixPath(init).parts
            names = ", ".join([*shipped_names(), *NAMED_ADDRESSES])
            if parts[:2] != ("data", "pretrained") or len(parts) < 3 or ".." in parts:
                raise ValueError(
                    f"expected null, a name ({names}), an https address, or a pickle or folder below "
                    f"{PRETRAINED}; copy the networks there"
                )
            if not Path(init).exists():
                raise ValueError(
                    f"there is no {init}; expected a copy of a models/gan folder or an NVIDIA-format pickle"
                )
        return init

    @model_validator(mode="after")
    def _one_eye_or_both(self) -> Self:
        if self.mirror and self.disc_side != "any":
            raise ValueError(
                f"disc_side: got {self.disc_side!r} with mirror: true, which shows every image on both "
                "sides; expected disc_side: any, or mirror: false"
            )
        return self

    @field_validator("cond")
    @classmethod
    def _without_labels(cls, cond: bool) -> bool:
        if cond:
            raise ValueError("the prepared images have no classes; use false, or `stylegan2 train --cond`")
        return cond


@stage_command("train_gan", Params, expected_errors=(StyleGAN2Error,))
def main(run: StageRun) -> None:
    """Train the StyleGAN2-ADA generator on the training images."""
    options: Params = run.params
    if run.runtime.ops != "auto":
        ops.select(run.runtime.ops)
    if run.runtime.convolution != "auto":
        ops.select_convolution(run.runtime.convolution)
    run.dep(PRETRAINED)  # one of both is where a local options.init lies
    run.dep(SHIPPED_NETWORKS)
    samples = load_samples(run.dep("data/prepared/development"), "train")
    side = None if options.disc_side == "any" else options.disc_side
    train(
        load_images(samples, resolve(options).image_size, side),
        options,
        seed=run.seed,
        out_dir=run.out("models/gan"),
        checkpoint_dir=run.checkpoint_dir,
        checkpoint_minutes=run.runtime.checkpoint_minutes,
        device=run.runtime.torch_device(),
        provenance=run.provenance(),
    )


if __name__ == "__main__":
    main()
