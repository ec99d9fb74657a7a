"""Which implementation of the operations runs, and which algorithm its convolutions take.

Implementations: compiled for CUDA, compiled for the CPU, or plain PyTorch. `auto` takes the compiled kernels
of the device that a tensor lies on, where they can be built, and the reference elsewhere. A name asks for
exactly that: `cpu` and `cuda` raise an error where they cannot run, also for a tensor on the other device.

Convolutions: `direct` are those of PyTorch. `winograd` are compiled for the CPU, part of that implementation:
faster, with rounding errors some times as large (`stylegan2.ops.convolution`). `auto` takes them where the
CPU kernels are built for AVX-512. The name asks for them with any processor, and raises an error where the
compiled kernels do not run, or hold none; layers that they do not fit stay direct.

Some things run as reference whatever is asked for: `torch.export` (and so ONNX) and `torch.jit.trace`, whose
graphs should hold nothing but PyTorch's own operations; the transforms of `torch.func`, and forward-mode
differentiation; types other than those of `native.TYPES`; and leaky ReLU of a negative slope, which cannot be
differentiated from its output.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import native, toolchain

IMPLEMENTATIONS = ("auto", "cuda", "cpu", "reference")
VARIABLE = "STYLEGAN2_OPS"
CONVOLUTIONS = ("auto", "direct", "winograd")
CONVOLUTION_VARIABLE = "STYLEGAN2_CONVOLUTION"

log = logging.getLogger(__name__)

_compiled: dict[str, bool] = {}  # by type of device: whether compiled kernels run, as things are selected
_by_winograd: dict[str, bool] = {}  # the same for convolutions
_told: set[str] = set()  # types of device that the log has a line for

# torch 2.6 cannot tell an export from a compilation: there, compilation takes the reference, too.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


# ----------------------------------------------------------------------------------------------------------
# What the user wants
# ----------------------------------------------------------------------------------------------------------


class Setting:
    """A name that is asked for: by the program, else by the environment, else `auto`.

    It holds for the whole process, not for one thread alone. The environment is read once, at the first use.

    Args:
        what: how messages call it.
        variable: of the environment.
        names: that there are.
    """

    def __init__(self, what: str, variable: str, names: tuple[str, ...]) -> None:
        self.what = what
        self.variable = variable
        self.names = names
        self.name: str | None = None  # None: not asked yet what the environment says
        self.by_environment = False

    def get(self) -> str:
        """Give what is asked for, one of the names.

        Raises:
            StyleGAN2Error: the environment names something else.
        """
        if self.name is None:
            name = os.environ.get(self.variable) or "auto"
            self._check(f"${self.variable}", name)
            self.name, self.by_environment = name, bool(os.environ.get(self.variable))
        return self.name

    def set(self, name: str) -> None:
        """Ask for one of the names from now on.

        Raises:
            StyleGAN2Error: it is none of these. Whether it can run shows at the first operation.
        """
        self._check(self.what, name)
        self._assign(name, by_environment=False)

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Ask for one of the names inside a `with` block.

        What was computed inside is also differentiated that way, later. A function compiled by
        `torch.compile` keeps what it was compiled with.

        Raises:
            StyleGAN2Error: it is none of the names.
        """
        before, by_environment = self.get(), self.by_environment
        self.set(name)
        try:
            yield
        finally:
            self._assign(before, by_environment)

    def asked(self) -> str:
        """Say who asked for it, in a few words."""
        name = self.get()
        return f"${self.variable}={name}" if self.by_environment else f"{name} is selected"

    def _check(self, what: str, name: str) -> None:
        if name not in self.names:
            raise StyleGAN2Error(f"{what}: got {name!r}, expected one of {', '.join(self.names)}")

    def _assign(self, name: str, by_environment: bool) -> None:
        self.name, self.by_environment = name, by_environment
        _compiled.clear()
        _by_winograd.clear()


_implementation = Setting("ops", VARIABLE, IMPLEMENTATIONS)
selected, select, use = _implementation.get, _implementation.set, _implementation.use

_convolution = Setting("convolution", CONVOLUTION_VARIABLE, CONVOLUTIONS)
selected_convolution, select_convolution = _convolution.get, _convolution.set
use_convolution = _convolution.use


@contextmanager
def use_reference() -> Iterator[None]:
    """Compute by PyTorch alone inside a `with` block, whatever convolution is asked for."""
    with use_convolution("direct"), use("reference"):
        yield


# ----------------------------------------------------------------------------------------------------------
# What runs
# ----------------------------------------------------------------------------------------------------------


def runs_compiled(x: Tensor) -> bool:
    """Whether the compiled kernels compute for this tensor; builds them at the first time.

    Raises:
        StyleGAN2Error: what is asked for by name cannot run, or not on the device of `x`.
    """
    if x.dtype not in native.TYPES or _is_exporting():
        return False
    if torch.compiler.is_compiling():
        return _settle(x.device.type)
    if torch.jit.is_tracing() or differentiates_forward():
        return False
    known = _compiled.get(x.device.type)
    return _settle(x.device.type) if known is None else known


def differentiates_forward() -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation, looks at every operation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _settle(device_type: str) -> bool:
    """`runs_compiled` by type of device, for the first time."""
    compiled, _ = _choose(device_type)
    if device_type not in _told:
        announce_implementation(device_type)
    _compiled[device_type] = compiled
    return compiled


# torch.compile calls it instead of looking inside: it reads files and runs compilers. This is what
# torch.compiler.assume_constant_result does, which would import the whole compiler here.
_settle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(device_type: str) -> tuple[bool, str]:
    """Whether compiled kernels run on a type of device, and why (not)."""
    name = selected()
    asked = _implementation.asked()
    if name == "reference":
        return False, asked
    if name == "auto":
        if device_type not in native.KINDS:
            return False, f"there are no kernels for {device_type}"
        try:
            return True, native.load(device_type).description()
        except StyleGAN2Error as error:
            return False, _in_one_line(error)
    if device_type == "meta":  # shapes alone
        return False, "nothing is computed on meta"
    if device_type != name:
        raise StyleGAN2Error(
            f"ops: {asked}, but a tensor is on {device_type}; use auto, or reference, or move it to {name}"
        )
    return True, f"{native.load(name).description()}; {asked}"


def convolves_by_winograd(x: Tensor) -> bool:
    """Whether convolutions of a tensor take Winograd's algorithm, where it fits them; builds it at first.

    Whoever asks has made sure that neither a compilation nor a trace is going on.

    Raises:
        StyleGAN2Error: it is asked for by name, and cannot run, or not on the device of `x`.
    """
    device_type = x.device.type
    known = _by_winograd.get(device_type)
    if known is None:
        known, _ = _choose_convolution(device_type)
        if device_type not in _told and _is_chosen(device_type):
            announce_implementation(device_type)
        _by_winograd[device_type] = known
    return known


def _is_chosen(device_type: str) -> bool:
    """Whether what is asked for can run there: `cuda` not for tensors on a CPU."""
    return selected() in ("auto", "reference", device_type)


def _choose_convolution(device_type: str) -> tuple[bool, str]:
    """Whether convolutions on a type of device are Winograd's, and why (not)."""
    name = _convolution.get()
    if name == "direct" or device_type == "meta":
        return False, _convolution.asked() if name == "direct" else ""
    if name == "winograd":
        problem = _winograd_problem(device_type)
        if problem:
            raise StyleGAN2Error(
                f"convolution: {_convolution.asked()}, but {problem}; use auto or direct, or mend that"
            )
        return True, _convolution.asked()
    # Another operation tells that the kernels asked for cannot run here: convolutions can.
    if device_type != "cpu" or not _is_chosen("cpu") or not _choose("cpu")[0]:
        return False, ""
    library = native.load("cpu")
    if not library.has_winograd or library.built_for != "avx512":
        return False, ""
    return True, ""


def _winograd_problem(device_type: str) -> str:
    if device_type != "cpu":
        return f"it is part of the CPU kernels, and a tensor is on {device_type}"
    compiled, reason = _choose("cpu")
    if not compiled:
        return f"it is part of the CPU kernels, which do not run ({reason})"
    library = native.load("cpu")
    return "" if library.has_winograd else f"{library.description()} built the CPU kernels without it"


def _in_one_line(error: StyleGAN2Error) -> str:
    """The text of an error; of a long one, a compiler's, what most likely names the cause."""
    first, *rest = str(error).removeprefix("ops: ").splitlines()
    if not rest:
        return first
    causes = [line for line in rest if "error" in line.lower()] or rest
    return f"the compiler failed: {causes[0].strip()} (`stylegan2 doctor` shows all)"


def announce_implementation(device: torch.device | str) -> None:
    """Log `describe_implementation`; as a warning where kernels were to be expected, and do not run.

    That is: under `auto`, on a device that there are kernels for, where they cannot be built or loaded. Where
    nobody named a C++ compiler and there is none, nobody expects those for the CPU.

    Args:
        device: where the networks compute, such as `cpu` or `cuda:0`.

    Raises:
        StyleGAN2Error: what is asked for by name cannot run there.
    """
    device = torch.device(device)
    line = describe_implementation(device)
    log.log(logging.WARNING if _is_surprising(device.type) else logging.INFO, "%s", line)


def _is_surprising(device_type: str) -> bool:
    """Whether the reference runs where one should expect kernels."""
    if selected() != "auto" or device_type not in native.KINDS or _choose(device_type)[0]:
        return False
    return device_type != "cpu" or not toolchain.is_without_cpu_compiler()


def describe_implementation(device: torch.device | str) -> str:
    """Say in one line which operations and convolutions run on a device, and why.

    Whoever asks is expected to show it: the log gets no line of its own for that kind of device any more.
    Builds the kernels if need be.

    Args:
        device: where the networks compute, such as `cpu` or `cuda:0`.

    Raises:
        StyleGAN2Error: what is asked for by name cannot run there.
    """
    device = torch.device(device)
    compiled, reason = _choose(device.type)
    by_winograd, wish = _choose_convolution(device.type)
    _told.add(device.type)
    algorithm = f"{'winograd' if by_winograd else 'direct'} convolutions{f' ({wish})' if wish else ''}"
    if compiled:
        return f"ops: {device.type} kernels (compiled by {reason}) on {device}, {algorithm}"
    return f"ops: reference (pure torch {torch.__version__}) on {device}, {algorithm}; {reason}"
