"""The section `train_gan`."""

import pytest
from pydantic import ValidationError

from stages.train_gan import Params


def test_mirrored_and_turned_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="disc_side: got 'right' with mirror: true"):
        Params(resolution=32, kimg=1, mirror=True, disc_side="right")


@pytest.mark.parametrize(("mirror", "disc_side"), [(True, "any"), (False, "left"), (False, "any")])
def test_either_is_fine(mirror: bool, disc_side: str) -> None:
    assert Params(resolution=32, kimg=1, mirror=mirror, disc_side=disc_side).disc_side == disc_side
