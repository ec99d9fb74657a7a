"""The section `runtime`, and how it reaches the GAN's operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages import context, synthesize, train_gan
from stages.params_file import read_yaml, section_problems
from stages.runtime import Runtime
from stylegan2 import ops

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_checked() -> None:
    (problem,) = section_problems("runtime", {"convolution": "fft"}, Runtime)
    assert "runtime.convolution: got 'fft'" in problem and "'winograd'" in problem


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"device": "cuda"}, "device: cuda"),
        ({"ops": "reference"}, "ops: reference"),
        ({"device": "mps", "ops": "cuda"}, "device: mps and ops: cuda"),
    ],
)
def test_winograd_is_part_of_the_cpu_kernels(changes: dict[str, str], wrong: str) -> None:
    (problem,) = section_problems("runtime", {"convolution": "winograd", **changes}, Runtime)
    assert problem.startswith("runtime: convolution: got 'winograd'") and f"with {wrong}; expected" in problem
    for other in ("auto", "direct"):
        assert section_problems("runtime", {"convolution": other, **changes}, Runtime) == []


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_winograd_goes_with_the_cpu(device: str, name: str) -> None:
    section = {"convolution": "winograd", "device": device, "ops": name}
    assert section_problems("runtime", section, Runtime) == []


def test_the_same_names_as_those_of_the_operations() -> None:
    fields = Runtime.model_fields
    assert fields["ops"].annotation.__args__ == ops.IMPLEMENTATIONS  # type: ignore[union-attr]
    assert fields["convolution"].annotation.__args__ == ops.CONVOLUTIONS  # type: ignore[union-attr]


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_names_the_convolution_and_the_papers_has_the_originals(path: Path) -> None:
    assert read_yaml(path)["runtime"]["convolution"] == ("direct" if path.stem == "drive-paper" else "auto")


class ReachedError(Exception):
    """The stage is about to work."""


@pytest.mark.parametrize("stage", [train_gan, synthesize])
@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"ops": "reference", "convolution": "direct"}, ("reference", "direct")),
        ({"convolution": "winograd"}, ("cpu", "winograd")),
        ({}, ("cpu", "direct")),
    ],
)
def test_stages_select_what_is_asked_for(
    stage: Any, section: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` leaves what the environment has said, here: cpu and direct."""

    def dep(path: str) -> Path:
        raise ReachedError

    @contextmanager
    def run(name: str, schemas: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(runtime=Runtime(**section), params=None, dep=dep)  # type: ignore[arg-type]

    monkeypatch.setattr(context, "StageRun", run)
    with ops.use("cpu"), ops.use_convolution("direct"):
        with pytest.raises(ReachedError):
            stage.main.callback(debug=True)
        assert (ops.selected(), ops.selected_convolution()) == expected
