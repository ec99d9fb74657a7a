"""For the tests of this folder: reference numbers of ../shared, and implementations of the operations."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, native, toolchain

REPO_ROOT = Path(__file__).resolve().parents[2]

# Every test of these files runs once for each implementation; of the latter, once for each but CUDA.
ALL_IMPLEMENTATIONS = {
    "test_networks_reference",
    "test_ops_bias_act",
    "test_ops_convolution",
    "test_ops_reference",
    "test_ops_upfirdn2d",
}
CPU_IMPLEMENTATIONS = {"test_augment_reference", "test_loss_reference"}
# These once more, with every 3×3 convolution by Winograd's algorithm.
CONVOLVING = {"test_loss_reference", "test_networks_reference", "test_ops_convolution"}


class StyleGAN2Reference:
    """The reference numbers: an index of cases and one safetensors file for each group of cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._entries = {entry["file"]: entry for entry in self.index["files"]}
        self.tensors = functools.lru_cache(maxsize=8)(self._tensors)

    def entry(self, file: str) -> dict[str, Any]:
        """The index entry of ``file`` (with or without ``.safetensors``)."""
        return self._entries.get(file) or self._entries[f"{file}.safetensors"]

    def cases(self, file: str) -> list[dict[str, Any]]:
        """The cases of ``file``: dicts with ``id, args, inputs, outputs`` and maybe notes."""
        return self.entry(file)["cases"]

    def case(self, file: str, case_id: str) -> dict[str, Any]:
        """The case of ``file`` called ``case_id``."""
        return next(case for case in self.cases(file) if case["id"] == case_id)

    def tolerance(self, file: str) -> float:
        """Allowed max|a − b| / max|b| in ``file``."""
        return self.entry(file)["recommended_tolerance_rel_max"]

    def _tensors(self, file: str) -> dict[str, torch.Tensor]:
        """Every tensor of ``file`` by its key; do not change them in place."""
        return load_file(self.folder / self.entry(file)["file"])

    def inputs(self, file: str, case_id: str) -> dict[str, torch.Tensor]:
        """The tensors ``<case>/in/<name>`` by name."""
        return self._section(file, f"{case_id}/in/")

    def outputs(self, file: str, case_id: str) -> dict[str, torch.Tensor]:
        """The tensors ``<case>/out/<name>`` by name."""
        return self._section(file, f"{case_id}/out/")

    def state(self, file: str) -> dict[str, torch.Tensor]:
        """The tensors ``state/<parameter>`` by parameter: a state dict."""
        return self._section(file, "state/")

    def _section(self, file: str, prefix: str) -> dict[str, torch.Tensor]:
        tensors = self.tensors(file)
        device = torch.get_default_device()
        return {
            key.removeprefix(prefix): value.to(device)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }


@functools.cache
def find_reference() -> StyleGAN2Reference | None:
    """The reference beside the checkout, or None where there is none."""
    shared = Path(os.environ.get("VESSELFORGE_SHARED", REPO_ROOT.parent / "shared"))
    folder = shared / "fixtures" / "stylegan2"
    return StyleGAN2Reference(folder) if (folder / "index.json").is_file() else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests once per implementation, and those marked ``reference_cases(file, …)`` once per case."""
    module = metafunc.module.__name__.rpartition(".")[2]
    if module in ALL_IMPLEMENTATIONS | CPU_IMPLEMENTATIONS:
        cuda = module in ALL_IMPLEMENTATIONS and torch.cuda.is_available()
        names = [
            "reference",
            "cpu",
            *(["winograd"] if module in CONVOLVING else []),
            *(["cuda"] if cuda else []),
        ]
        metafunc.parametrize("ops_implementation", names, indirect=True)
    marker = metafunc.definition.get_closest_marker("reference_cases")
    if marker is None:
        return
    reference = find_reference()
    if reference is None:
        skip = pytest.mark.skip(reason="reference numbers are absent (set VESSELFORGE_SHARED)")
        metafunc.parametrize(("file", "case"), [pytest.param(None, None, id="absent", marks=skip)])
        return
    select: Callable[[dict[str, Any]], bool] = marker.kwargs.get("select", lambda case: True)
    params = [
        pytest.param(file, case, id=f"{file}-{case['id']}" if len(marker.args) > 1 else case["id"])
        for file in marker.args
        for case in reference.cases(file)
        if select(case)
    ]
    metafunc.parametrize(("file", "case"), params)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "reference_cases(*files, select=None): run once per case of these reference files"
    )
    # Of `make test-gpu`. Tests that know nothing of CUDA compute on the CPU, and so do their processes.
    if os.environ.get(ops.VARIABLE) == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError(f"{ops.VARIABLE}=cuda, but torch sees no CUDA device")
        del os.environ[ops.VARIABLE]


@pytest.fixture(autouse=True)
def ops_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation of the operations that a test runs with; new tensors lie on its device.

    `winograd` is `cpu` with convolutions by Winograd's algorithm, also the small ones where it does not pay;
    the others have direct ones, so that the tolerances of the fixtures hold.
    """
    name: str | None = getattr(request, "param", None)
    on_cuda = name == "cuda"
    tf32 = torch.backends.cudnn.allow_tf32
    with contextlib.ExitStack() as stack:
        if name == "winograd":
            skip_without_winograd()
            stack.enter_context(_winograd_everywhere())
        elif name is not None:
            stack.enter_context(ops.use_convolution("direct"))
            stack.enter_context(ops.use(name))
        if name == "cpu":
            skip_without_compiler()
        if on_cuda:
            stack.enter_context(torch.device("cuda"))
        torch.backends.cudnn.allow_tf32 = tf32 and not on_cuda
        yield name or ops.selected()
        torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def gradient_slack(ops_implementation: str) -> float:
    """How much larger than the fixture's own tolerance gradients of whole networks may deviate.

    Winograd's results are off by 2·10⁻⁶ where direct ones are off by 4·10⁻⁷. Values follow smoothly. But of a
    hundred thousand inputs of a leaky ReLU one may lie so close to 0 that its sign, and so its slope, is
    another one: a gradient that sums few of them has been seen to deviate by 6·10⁻⁴ instead of 10⁻⁴.
    """
    return 10.0 if ops_implementation == "winograd" else 1.0


@pytest.fixture
def always_winograd() -> Iterator[None]:
    """Convolve by Winograd's algorithm wherever it can, also where it does not pay."""
    skip_without_winograd()
    with _winograd_everywhere():
        yield


@contextlib.contextmanager
def _winograd_everywhere() -> Iterator[None]:
    least = {stride: dict.fromkeys(limits, (1, 1)) for stride, limits in convolution._LEAST.items()}
    with pytest.MonkeyPatch.context() as patch, ops.use("cpu"), ops.use_convolution("winograd"):
        patch.setattr(convolution, "_LEAST", least)
        patch.setattr(convolution, "_LEAST_STYLED", (1, 1))
        yield


def skip_without_winograd() -> None:
    """Skip the test where the CPU kernels cannot be built, or hold no convolution."""
    skip_without_compiler()
    if not native.load("cpu").has_winograd:
        pytest.skip("the compiler builds no convolution")


def skip_without_compiler() -> None:
    """Skip the test where there is nothing to build the CPU kernels with."""
    try:
        toolchain.find_cpu_compiler()
    except StyleGAN2Error as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def stylegan2_reference(shared_dir: Path) -> StyleGAN2Reference:
    """The reference numbers; skips without them."""
    reference = find_reference()
    if reference is None:
        pytest.skip(f"{shared_dir}/fixtures/stylegan2/index.json is absent")
    return reference


@pytest.fixture(scope="session")
def assert_close_to_reference() -> Callable[..., None]:
    """A function (actual, expected, tolerance, what="") that fails when max|a − b| / max|b| > tolerance."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str = "") -> None:
        assert tuple(actual.shape) == tuple(expected.shape), f"{what}: shape {tuple(actual.shape)}"
        actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
        assert bool(torch.isfinite(actual).all()), f"{what}: not finite"
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        if scale == 0:
            largest = float(actual.abs().max()) if actual.numel() else 0.0
            assert largest <= 1e-6, f"{what}: expected zeros, got up to {largest:.3g}"
            return
        deviation = float((actual - expected).abs().max()) / scale
        assert deviation <= tolerance, f"{what}: deviates by {deviation:.3g}, allowed {tolerance:.3g}"

    return check
