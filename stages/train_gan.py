"""Stage `train_gan`: train the GAN on the training images."""

from pathlib import Path, PurePosixPath

from pydantic import field_validator

from pipeline.gan_images import load_square_images
from pipeline.prepared import load_samples
from stages.context import StageRun, stage_command
from stylegan2.config import TrainingOptions
from stylegan2.errors import StyleGAN2Error
from stylegan2.training import train

PRETRAINED = "data/pretrained"


class Params(TrainingOptions):
    """Section `train_gan`: all of `TrainingOptions`; `init` must lie where DVC sees it."""

    @field_validator("init")
    @classmethod
    def _below_pretrained(cls, init: str | None) -> str | None:
        if init is not None:
            parts = PurePosixPath(init).parts
            if parts[:2] != ("data", "pretrained") or len(parts) < 3 or ".." in parts:
                raise ValueError(f"expected null or a folder below {PRETRAINED}; copy the networks there")
            if not Path(init).is_dir():
                raise ValueError(f"there is no folder {init}; expected a copy of a models/gan folder")
        return init


@stage_command("train_gan", Params, expected_errors=(StyleGAN2Error,))
def main(run: StageRun) -> None:
    """Train the StyleGAN2-ADA generator on the training images."""
    options: Params = run.params
    run.dep(PRETRAINED)  # where options.init lies
    samples = load_samples(run.dep("data/prepared/development"), "train")
    train(
        load_square_images(samples, options.resolution),
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
