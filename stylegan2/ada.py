"""Adaptive strength of the discriminator's augmentation."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def adjusted_p(p: float, r_t: float, *, target: float, images: int, ada_kimg: float) -> float:
    """Move p one step towards the target.

    Args:
        p: present strength, ≥ 0.
        r_t: measured overfitting, −1..1.
        target: value that r_t should have.
        images: real images shown since the previous step.
        ada_kimg: thousands of images in which p moves by 1.

    Returns:
        The new strength, rounded to float32: ≥ 0 and without an upper bound.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2020 (2006.06676), section 3: r_t = E[sign D(real)] near 1 means overfitting; p moves by a
    # fixed amount against sign(target − r_t) and is clamped at 0.
    # -------------------------------------------------------------------------------------------------------
    step = np.sign(r_t - target) * images / (ada_kimg * 1000)
    return float(np.maximum(np.float32(p) + np.float32(step), np.float32(0)))


class AdaController:
    """Watches the discriminator's verdicts on real images and adjusts p.

    Args:
        p: strength at the start.
        target: value of r_t to steer towards.
        ada_kimg: thousands of images in which p can move by 1.
        interval: iterations between adjustments.

    Attributes:
        p: present strength.
    """

    def __init__(self, p: float, target: float, ada_kimg: float, interval: int) -> None:
        self.p = p
        self.target = target
        self.ada_kimg = ada_kimg
        self.interval = interval
        self._sign_sum: float | Tensor = 0.0  # stays on CUDA: reading it waits for all that the GPU has to do
        self._sign_count = 0

    def report(self, real_logits: Tensor) -> None:
        """Take note of logits of real images, of any shape."""
        total = torch.sign(real_logits.detach()).sum()
        self._sign_sum = self._sign_sum + (total.double() if total.is_cuda else float(total))
        self._sign_count += real_logits.numel()

    def after_iteration(self, iterations_done: int, batch: int) -> float:
        """Adjust p when it is time to.

        Args:
            iterations_done: finished iterations, this one included.
            batch: images per iteration.

        Returns:
            p, changed or not.
        """
        if iterations_done % self.interval == 0 and self._sign_count > 0:
            r_t = float(self._sign_sum) / self._sign_count
            images = batch * self.interval
            self.p = adjusted_p(self.p, r_t, target=self.target, images=images, ada_kimg=self.ada_kimg)
            self._sign_sum, self._sign_count = 0.0, 0
        return self.p

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs, ready for JSON."""
        return {"p": self.p, "sign_sum": float(self._sign_sum), "sign_count": self._sign_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.p = float(state["p"])
        self._sign_sum = float(state["sign_sum"])
        self._sign_count = int(state["sign_count"])
