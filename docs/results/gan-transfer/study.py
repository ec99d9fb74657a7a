"""Fine-tuning the shipped generator against training from scratch, at equal cost.

    python docs/results/gan-transfer/study.py phantom OUT
    python docs/results/gan-transfer/study.py drive OUT --data data/raw/drive

Both trainings use the same images, network sizes, seed and number of images shown, so an image costs both the
same. KID at every snapshot is to the training images; for phantoms the networks at the end are also compared
with phantoms that no training saw.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from PIL import Image

from pipeline.gan_images import fit
from pipeline.laterality import turn_disc
from pipeline.phantom import draw_phantoms
from stylegan2.config import TrainingOptions
from stylegan2.features import extract_features, load_feature_network
from stylegan2.images import write_png
from stylegan2.metrics import compare_image_sets
from stylegan2.sampling import load_generator, sample_images
from stylegan2.training import train

SIZE = 128
INIT = "phantom128"
SEED = 0
HELD_OUT_SEED = 7  # neither the pretraining's nor the default preset's collection


def training_images(dataset: str, data: Path | None) -> np.ndarray:
    """Give the uint8 [N, 128, 128, 3] training images of the default preset or of DRIVE, as right eyes."""
    if dataset == "phantom":
        return np.stack([turn_disc(phantom.image, "right") for phantom in draw_phantoms(0, range(16), SIZE)])
    paths = sorted((data / "training" / "images").glob("*.tif"))
    if len(paths) != 20:
        raise SystemExit(f"{data}/training/images: {len(paths)} images, expected DRIVE's 20")
    images = (fit(np.asarray(Image.open(path).convert("RGB")), (SIZE, SIZE)) for path in paths)
    return np.stack([turn_disc(image, "right") for image in images])


def options(init: str | None, kimg: float) -> TrainingOptions:
    """Give the options of a training; but for `init` both variants resolve to the same networks."""
    return TrainingOptions(
        resolution=SIZE,
        kimg=kimg,
        batch=8,
        fmaps=0.0625,
        channel_max=64,
        z_dim=128,
        w_dim=128,
        mapping_layers=2,
        gamma=0.1,
        ema_kimg=0.5,
        augpipe="bg",
        p=0.2,
        aug="fixed",
        kimg_per_tick=0.5,
        snapshot_ticks=1,
        kid_images=200,
        init=init,
    )


def main() -> None:
    """Run one of both studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", choices=["phantom", "drive"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of DRIVE")
    parser.add_argument("--kimg", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.dataset == "drive" and arguments.data is None:
        parser.error("drive needs --data")
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    images = training_images(arguments.dataset, arguments.data)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    results = {}
    for name, init in (("fine-tuned", INIT), ("from scratch", None)):
        folder = arguments.out / f"{arguments.dataset}-{name.replace(' ', '-')}"
        asked = options(init, arguments.kimg)
        if not (folder / "config.json").exists():
            train(images, asked, seed=SEED, out_dir=folder, progress=False)
        require_same_training(folder, asked)
        table = pd.read_csv(folder / "kid.csv")
        axes.plot(table.kimg, table.kid, marker="o", ms=3, label=name)
        axes.fill_between(table.kimg, table.kid_lo, table.kid_hi, alpha=0.2)
        results[name] = {
            "kimg": arguments.kimg,
            "seed": SEED,
            "threads": arguments.threads,
            **compare(folder, images, arguments.dataset),
        }
        last = sorted((folder / "samples").glob("generated_*.png"))[-1]
        write_png(
            arguments.out / f"{arguments.dataset}-{name.replace(' ', '-')}.png", np.asarray(Image.open(last))
        )
    axes.set(xlabel="thousands of images shown", ylabel="KID to the training images (95%)", yscale="log")
    axes.legend()
    figure.savefig(arguments.out / f"{arguments.dataset}-kid.svg", metadata={"Date": None})
    (arguments.out / f"{arguments.dataset}.json").write_text(json.dumps(results, indent=2) + "\n")


def require_same_training(folder: Path, asked: TrainingOptions) -> None:
    """Stop when the networks in the folder come from another training than the one asked for."""
    found = json.loads((folder / "config.json").read_text())["options"]
    wanted = asked.model_dump(mode="json")
    different = [
        f"{key}: {found[key]!r} there, {value!r} asked"
        for key, value in wanted.items()
        if value != "auto" and key in found and found[key] != value
    ]
    if different:
        raise SystemExit(
            f"{folder} holds another training ({'; '.join(different)}); delete it or give another OUT"
        )


def compare(folder: Path, images: np.ndarray, dataset: str) -> dict[str, object]:
    """Compare 500 images of the finished generator with the training images, or with unseen phantoms."""
    network = load_feature_network()
    if dataset == "phantom":
        unseen = draw_phantoms(HELD_OUT_SEED, range(500), SIZE)
        images = np.stack([turn_disc(phantom.image, "right") for phantom in unseen])
    generator = load_generator(folder, torch.device("cpu"))
    drawn = np.stack(list(sample_images(generator, range(500), 1.0)))
    comparison = compare_image_sets(
        extract_features(network, images), extract_features(network, drawn), network.name
    )
    return comparison.as_dict()


if __name__ == "__main__":
    main()
