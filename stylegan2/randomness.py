"""Random numbers that follow from (seed, purpose, position), so that nothing has to be stored to resume."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes; each has random numbers of its own. The values are part of the file format: only append."""

    INITIAL_WEIGHTS = 0
    DATA_ORDER = 1
    ITERATION = 2
    LAYER_NOISE = 3
    SAMPLE_GRID = 4
    SUBSET = 5
    KID = 6


def derive_seed(seed: int, stream: Stream, position: int = 0) -> int:
    """Mix a seed, a purpose and a position (images seen, epoch, …) into a seed of 63 bits.

    Args:
        seed: the training's seed, ≥ 0.
        stream: what the numbers are for.
        position: ≥ 0.
    """
    words = np.random.SeedSequence([seed, int(stream), position]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
