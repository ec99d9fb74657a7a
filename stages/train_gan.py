"""Train the GAN on the training images."""

from pipeline.gan_images import load_square_images
from pipeline.prepared import load_samples
from stages.context import StageRun, stage_command
from stylegan2.config import TrainingOptions
from stylegan2.errors import StyleGAN2Error
from stylegan2.training import train


@stage_command("train_gan", TrainingOptions, expected_errors=(StyleGAN2Error,))
def main(run: StageRun) -> None:
    """Train the StyleGAN2-ADA generator on the training images."""
    options: TrainingOptions = run.params
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
