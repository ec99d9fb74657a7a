"""Stage `pseudo_label`: label the synthetic images with the base segmenter's vessel probabilities."""

from tqdm import tqdm

from pipeline.frames import Views
from pipeline.images import read_rgb, write_probability
from pipeline.inference import Predictor
from pipeline.schema import Strict
from pipeline.synthetic_pool import read_pool
from stages.context import StageRun, stage_command


class Params(Strict):
    """Section `pseudo_label`.

    Attributes:
        flips: average the teacher over the four mirror images; takes four times as long.
    """

    flips: bool = True


@stage_command("pseudo_label", Params)
def main(run: StageRun) -> None:
    """Label the synthetic images with the base segmenter."""
    teacher = Predictor.from_folder(run.dep("models/base"), run.runtime.torch_device())
    pool = read_pool(run.dep("data/synthetic/images"))
    folder = run.out("data/synthetic/probabilities")
    folder.mkdir(parents=True)
    views: Views = "flips" if run.params.flips else "none"
    for image in tqdm(pool, desc="pseudo_label", unit="image"):
        probability = teacher.predict(read_rgb(image.path), views=views)
        write_probability(image.probability_path(folder), probability)


if __name__ == "__main__":
    main()
