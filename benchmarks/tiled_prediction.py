"""Memory and time of predicting a large image in tiles, and how far the result is from that in one piece.

    python benchmarks/tiled_prediction.py MODEL [--side 4000] [--tiles 1536 1024] [--threads 1] [--json]

MODEL is the folder of one segmenter, such as models/base. The image is a drawn phantom of SIDE × SIDE pixels,
predicted at that resolution, whatever the model's own, in one view: first in one piece, then in tiles. Each
way has a process of its own, because the most memory that a process ever held is what is measured.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import cv2
import numpy as np
import torch
from memory import peak_rss_bytes

from pipeline.allocation import keep_freed_memory
from pipeline.errors import UserError
from pipeline.inference import SegmenterPredictor
from pipeline.model_folder import load_model
from pipeline.phantom import MIN_SIZE, draw_phantom
from pipeline.tiling import check_tile

WHOLE = 0  # instead of a tile's side


def predict(model: Path, image: Path, tile: int, threads: int, out: Path) -> dict[str, float]:
    """Predict, as the only work of this process; probabilities and mask go to `out`.

    Returns:
        Count of tiles; GB with image and model loaded, and at most; seconds of the clock and the processor.
    """
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    keep_freed_memory()  # as the commands do
    network, config = load_model(model, torch.device("cpu"))
    predictor = SegmenterPredictor(network, config.model_copy(update={"resolution": "native"}))
    pixels = np.load(image)
    loaded, begin, spent = peak_rss_bytes(), time.perf_counter(), time.process_time()
    probability = predictor.predict(pixels, views="none", tile=tile or None)
    clock, processor = time.perf_counter() - begin, time.process_time() - spent
    peak = peak_rss_bytes()
    np.savez(out, probability=probability, mask=predictor.mask(probability))
    return {
        "tiles": predictor.tile_count(*pixels.shape[:2], tile or None),
        "loaded_gb": loaded / 1e9,
        "peak_gb": peak / 1e9,
        "clock_s": clock,
        "processor_s": processor,
    }


def measure(model: Path, side: int, tiles: list[int], threads: int) -> dict[str, Any]:
    """Predict in every way; for each the figures of `predict` and the differences to the whole image."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.npy"
        np.save(image, draw_phantom(0, 0, side).image)
        results = {tile: Path(scratch) / f"{tile}.npz" for tile in (WHOLE, *tiles)}
        for tile, out in results.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[str(tile)] = pool.submit(predict, model, image, tile, threads, out).result()
        whole = np.load(results[WHOLE])
        for tile in tiles:
            part = np.load(results[tile])
            apart = np.abs(part["probability"] - whole["probability"])
            found[str(tile)]["largest_difference"] = float(apart.max())
            found[str(tile)]["other_mask_pixels"] = int((part["mask"] != whole["mask"]).sum())
        found[str(WHOLE)]["vessel_share"] = float(whole["mask"].mean())
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line; ends with a message where something is out of range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1536, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.side < MIN_SIZE:
        parser.error(f"--side: got {args.side}; expected at least {MIN_SIZE}")
    if args.threads < 1:
        parser.error(f"--threads: got {args.threads}; expected at least 1")
    try:
        for tile in args.tiles:
            check_tile(tile)
        load_model(args.model, torch.device("cpu"))
    except UserError as error:
        parser.error(str(error))
    return args


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    found = measure(args.model, args.side, args.tiles, args.threads)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{date.today()}, {platform.machine()}, {args.side} × {args.side} px, threads: {args.threads}\n")
    print("| | tiles | loaded, GB | peak, GB | clock s | processor s | largest difference | mask pixels |")
    print("|---|---|---|---|---|---|---|---|")
    for tile, row in found.items():
        name = "whole" if tile == str(WHOLE) else f"tiles of {tile}"
        apart = f"{row['largest_difference']:.1e}" if "largest_difference" in row else ""
        numbers = f"{row['tiles']} | {row['loaded_gb']:.2f} | {row['peak_gb']:.2f} | {row['clock_s']:.1f}"
        last = f"{row['processor_s']:.1f} | {apart} | {row.get('other_mask_pixels', '')}"
        print(f"| {name} | {numbers} | {last} |")
    print(f"\nVessels: {found[str(WHOLE)]['vessel_share']:.1%} of the pixels.")


if __name__ == "__main__":
    main()
