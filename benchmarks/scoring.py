"""How long all figures of one model take, from stored predictions: pixels, shapes, boundaries, intervals.

    python benchmarks/scoring.py EVALUATION --dataset drive --data data/raw/drive [--threads 1]

EVALUATION is what `vesselforge evaluate` wrote for that data. Images and labels are read from the disk within
the time, as in an evaluation.
"""

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import cv2
import torch

from pipeline.binarise import Binarisation
from pipeline.commands.evaluate import DATASETS
from pipeline.labelled_data import open_labelled
from pipeline.scoring import Draws, score_predictions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    settings = json.loads((args.evaluation / "evaluation.json").read_text(encoding="utf-8"))
    fitted = settings.get("binarisation")
    with open_labelled(args.dataset, args.data) as labelled:
        begin, spent = time.perf_counter(), time.process_time()
        scores = score_predictions(
            args.evaluation / "predictions",
            labelled.samples,
            "model",
            Draws(settings["bootstrap_samples"], settings["seed"]),
            threshold=settings["threshold"],
            binarisation=Binarisation.model_validate(fitted) if fitted else None,
        )
        clock, processor = time.perf_counter() - begin, time.process_time() - spent
    found = (len(labelled.samples), len(scores.intervals), clock, processor)
    print(
        "{}: {} images, {} intervals, {:.1f} s of the clock, {:.1f} s of the processor".format(
            date.today(), *found
        )
    )


if __name__ == "__main__":
    main()
