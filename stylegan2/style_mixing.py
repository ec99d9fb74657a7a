"""Style mixing: some layers of an image follow one latent, the others another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.images import image_grid
from stylegan2.networks.generator import Generator
from stylegan2.sampling import BATCH, draw_ws, raise_problems, seeds_to_ws

_SHOWN = 5  # wrong layers in a message


@dataclass(frozen=True)
class StyleMixture:
    """Images of two groups of seeds and of all their combinations; all uint8.

    Attributes:
        rows: [R, H, W, C], the images of the row seeds.
        columns: [K, H, W, C], the images of the column seeds.
        mixed: [R, K, H, W, C]; chosen layers from the column's seed, the others from the row's.
    """

    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]
    mixed: NDArray[np.uint8]

    def grid(self) -> NDArray[np.uint8]:
        """Lay out as a table [(R + 1)·H, (K + 1)·W, C]: columns above, rows on the left, the corner white."""
        corner = np.full_like(self.rows[:1], 255)
        lines = [np.concatenate([corner, self.columns])]
        lines += [
            np.concatenate([row[None], mixed]) for row, mixed in zip(self.rows, self.mixed, strict=True)
        ]
        return image_grid(np.concatenate(lines), columns=len(self.columns) + 1)


def default_layers(generator: Generator) -> list[int]:
    """The first half of the layers: what decides on layout rather than on colour and texture."""
    return list(range(generator.num_ws // 2))


def layer_problems(layers: Sequence[int], num_ws: int) -> list[str]:
    """Name the layers that a network of `num_ws` layers does not have."""
    wrong = [str(layer) for layer in layers if not 0 <= layer < num_ws]
    if not wrong:
        return []
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return [
        f"styles: got layer {', '.join(wrong[:_SHOWN])}{more}, expected 0 to {num_ws - 1}, the layers of "
        "this network"
    ]


def mix_ws(base: Tensor, donor: Tensor, layers: Sequence[int]) -> Tensor:
    """Replace the w of some layers by those of another latent (Karras et al. 2018, 1812.04948, §3.1).

    Args:
        base: [N, num_ws, w_dim].
        donor: [N, num_ws, w_dim], or [1, num_ws, w_dim] for all.
        layers: the layers that follow `donor`; 0 is the coarsest.

    Returns:
        [N, num_ws, w_dim], a new tensor.

    Raises:
        StyleGAN2Error: for layers that are not there.
    """
    raise_problems(layer_problems(layers, num_ws=base.shape[1]))
    mixed = base.clone()
    chosen = list(layers)
    mixed[:, chosen] = donor[:, chosen]
    return mixed


@torch.no_grad()
def mix_styles(
    generator: Generator,
    row_seeds: Sequence[int],
    column_seeds: Sequence[int],
    layers: Sequence[int],
    truncation_psi: float = 1.0,
    *,
    class_index: int | None = None,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
    batch: int = BATCH,
) -> StyleMixture:
    """Draw the images of all seeds and of every pair (row seed, column seed).

    Args:
        generator: from `sampling.load_generator`.
        row_seeds: they decide on every layer that is not named.
        column_seeds: they decide on the layers named.
        layers: layers that follow the column's seed; 0 is the coarsest.
        truncation_psi: 1 = full variety, 0 = the mean image.
        class_index: the class to draw; None exactly when the generator has no classes.
        truncation_cutoff: truncate only this many of the first layers; None = all.
        noise_mode: `const` or `none`; random noise would differ between the images that are compared.
        batch: images computed at once.

    Raises:
        StyleGAN2Error: for arguments out of range.
    """
    if noise_mode == "random":
        raise StyleGAN2Error("noise mode: got 'random', expected 'const' or 'none', so that images compare")
    seeds = [*row_seeds, *column_seeds]
    ws = seeds_to_ws(
        generator, seeds, truncation_psi, class_index=class_index, truncation_cutoff=truncation_cutoff
    )
    row_ws, column_ws = ws[: len(row_seeds)], ws[len(row_seeds) :]
    pairs = [mix_ws(row[None].expand_as(column_ws), column_ws, layers) for row in row_ws]
    images = np.stack(list(draw_ws(generator, torch.cat([ws, *pairs]), noise_mode, batch)))
    singles, mixed = images[: len(seeds)], images[len(seeds) :]
    return StyleMixture(
        rows=singles[: len(row_seeds)],
        columns=singles[len(row_seeds) :],
        mixed=mixed.reshape(len(row_seeds), len(column_seeds), *mixed.shape[1:]),  # [R, K, H, W, C]
    )
