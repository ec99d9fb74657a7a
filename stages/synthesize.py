"""Generate the pool of synthetic images."""

import csv
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from tqdm import tqdm

from pipeline.images import write_png
from pipeline.schema import Strict
from pipeline.synthetic_pool import COLUMNS, MANIFEST
from stages.context import StageRun, stage_command
from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.sampling import load_generator, sample_images


class Params(Strict):
    """The `synthesize` section.

    Attributes:
        pool: number of images; a larger pool holds the smaller one.
        psi: truncation: 1 = full variety, 0 = only the mean image.
        first_seed: image i is made from seed first_seed + i.
        snapshot: the generator at the end of training, or the one of lowest KID (needs train_gan.kid_images).
    """

    pool: Annotated[int, Field(ge=1, le=1_000_000)]
    psi: Annotated[float, Field(ge=0, le=2)] = 0.7
    first_seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    snapshot: Literal["last", "best"] = "last"


def check_snapshot(sections: Mapping[str, Any]) -> list[str]:
    """Say when the best snapshot is asked for but none is measured: late, it costs a training."""
    if sections["synthesize"].snapshot == "last" or sections["train_gan"].kid_images > 0:
        return []
    return ["synthesize.snapshot: got 'best', but train_gan.kid_images is 0; set it, or use 'last'"]


@stage_command("synthesize", Params, cross_check=check_snapshot, expected_errors=(StyleGAN2Error,))
def main(run: StageRun) -> None:
    """Generate the pool of synthetic images."""
    params: Params = run.params
    if run.runtime.ops != "auto":
        ops.select(run.runtime.ops)
    if run.runtime.convolution != "auto":
        ops.select_convolution(run.runtime.convolution)
    gan = run.dep("models/gan")
    if params.snapshot == "best":
        gan = gan / "best"
    generator = load_generator(gan, run.runtime.torch_device())
    folder = run.out("data/synthetic/images")
    folder.mkdir(parents=True)
    seeds = range(params.first_seed, params.first_seed + params.pool)
    images = sample_images(generator, seeds, params.psi)
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as file:
        manifest = csv.writer(file, lineterminator="\n")
        manifest.writerow(COLUMNS)
        for index, image in enumerate(tqdm(images, total=params.pool, desc="synthesize", unit="image")):
            name = f"{index:06d}.png"
            write_png(folder / name, image if image.shape[2] == 3 else image[:, :, 0])
            manifest.writerow([f"{index:06d}", name, seeds[index], params.psi])


if __name__ == "__main__":
    main()
