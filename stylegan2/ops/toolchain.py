"""What there is to build with: compilers, OpenMP runtimes, the processor, GPUs."""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegan2.errors import StyleGAN2Error

CPU_COMPILERS = ("c++", "g++", "clang++")
# Apple's clang for arm64 learnt -march=native late.
NATIVE_FLAGS = ("-mcpu=native",) if platform.machine() == "arm64" else ("-march=native",)
_CUDA_FOLDERS = ("CUDA_HOME", "CUDA_PATH")
_RUNTIME = re.compile(r"lib(gomp|iomp5|omp)[-.\w]*\.(so|dylib)[.\d]*")
_QUESTION_SECONDS = 60


@dataclass(frozen=True)
class OpenMP:
    """How to use the OpenMP runtime that torch has loaded.

    Two runtimes in one process keep two pools of threads, which spin against each other. So the library is
    linked with the very file that is loaded already.

    Attributes:
        name: of the runtime, or why there is none, for people.
        compile_flags: empty without OpenMP.
        link_flags: likewise.
    """

    name: str
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------
# Compilers
# ----------------------------------------------------------------------------------------------------------


def find_cpu_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: $CXX, else the first of `CPU_COMPILERS` that is there.

    Raises:
        StyleGAN2Error: there is none; the message names what was looked for.
    """
    chosen = _named_cpu_compiler()
    if chosen:
        path = shutil.which(chosen[0])
        if path is None:
            raise StyleGAN2Error(f"ops: no C++ compiler: looked for $CXX={chosen[0]!r}; set it right")
        return path, *chosen[1:]
    for name in CPU_COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return (path,)
    raise StyleGAN2Error(
        f"ops: no C++ compiler: looked for {', '.join(CPU_COMPILERS)} on the PATH; install one (Debian: "
        "g++, macOS: xcode-select --install), or name yours in $CXX"
    )


def _named_cpu_compiler() -> list[str]:
    named = os.environ.get("CXX", "")
    try:
        return shlex.split(named)
    except ValueError as error:
        raise StyleGAN2Error(f"ops: $CXX={named!r} cannot be read ({error}); set it right") from None


def is_without_cpu_compiler() -> bool:
    """Whether nobody named a C++ compiler, and there is none: then nobody expects compiled operations."""
    if os.environ.get("CXX", "").strip():
        return False
    return not any(shutil.which(name) for name in CPU_COMPILERS)


def find_nvcc() -> tuple[str, ...]:
    """The command of nvcc, from $CUDA_HOME, $CUDA_PATH, the PATH or /usr/local/cuda.

    Raises:
        StyleGAN2Error: there is none; the message names what was looked for.
    """
    folders = [Path(os.environ[name]) for name in _CUDA_FOLDERS if os.environ.get(name)]
    for folder in folders:
        path = shutil.which("nvcc", path=str(folder / "bin"))
        if path is not None:
            return (path,)
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is not None:
        return (path,)
    raise StyleGAN2Error(
        "ops: no nvcc: looked in $CUDA_HOME, $CUDA_PATH, on the PATH and in /usr/local/cuda/bin; install the "
        "CUDA toolkit, or set CUDA_HOME to where it is"
    )


def compiler_version(compiler: tuple[str, ...]) -> str:
    """What the compiler calls itself: the line of `--version` that holds the version.

    Raises:
        StyleGAN2Error: it cannot be run.
    """
    output = _ask([*compiler, "--version"])
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]  # nvcc begins with its makers
    return (release or lines or ["unknown version"])[0]


def _ask(command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=_QUESTION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StyleGAN2Error(f"ops: the compiler cannot be run ({error}): {shlex.join(command)}") from None
    if process.returncode != 0:
        output = f"{process.stdout}{process.stderr}".strip() or "(no output)"
        raise StyleGAN2Error(
            f"ops: the compiler failed with exit code {process.returncode}: {shlex.join(command)}\n{output}"
        )
    return process.stdout


# ----------------------------------------------------------------------------------------------------------
# OpenMP
# ----------------------------------------------------------------------------------------------------------


def find_openmp(version: str) -> OpenMP:
    """Say how a compiler of this version gets at the OpenMP runtime that torch has loaded."""
    loaded = loaded_runtimes()
    clang = "clang" in version
    if sys.platform == "darwin":
        if not loaded:
            return OpenMP("none: torch has loaded no OpenMP runtime")
        rpath = f"-Wl,-rpath,{loaded[0].parent}"
        return OpenMP(str(loaded[0]), ("-Xpreprocessor", "-fopenmp"), (str(loaded[0]), rpath))
    if not loaded:
        return OpenMP("the compiler's own", ("-fopenmp",), ("-fopenmp",))
    if clang and loaded[0].name.startswith("libgomp"):
        return OpenMP(f"none: torch has loaded {loaded[0].name}, which clang cannot use; install g++")
    return OpenMP(str(loaded[0]), ("-fopenmp",), (str(loaded[0]),))


def loaded_runtimes() -> list[Path]:
    """Files of the OpenMP runtimes in this process, torch's own first."""
    home = Path(torch.__file__).resolve().parent
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        columns = (line.split(maxsplit=5) for line in maps.splitlines())
        found = {Path(column[5]) for column in columns if len(column) == 6}
    else:
        found = set((home / "lib").glob("lib*omp*"))
    runtimes = sorted(path for path in found if _RUNTIME.fullmatch(path.name))
    of_torch = (home / "lib", home.parent / "torch.libs")
    return sorted(runtimes, key=lambda path: path.parent not in of_torch)


# ----------------------------------------------------------------------------------------------------------
# Processor and GPUs
# ----------------------------------------------------------------------------------------------------------


@functools.cache
def processor() -> str:
    """What -march=native depends on: model and instruction sets, in words."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    fields: dict[str, str] = {}
    for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return " ".join(
        [platform.machine(), *_values(fields, "vendor_id", "cpu family", "model", "flags", "Features")]
    )


def _values(fields: Mapping[str, str], *names: str) -> list[str]:
    return [" ".join(sorted(fields[name].split())) for name in names if name in fields]


def cuda_problem() -> str | None:
    """Why no GPU can be used; None where one can."""
    if torch.cuda.is_available():
        return None
    return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"


def present_architectures() -> tuple[str, ...]:
    """Compute capabilities of the GPUs that torch sees, such as `80`.

    Raises:
        StyleGAN2Error: it sees none.
    """
    problem = cuda_problem()
    if problem is not None:
        raise StyleGAN2Error(f"ops: no GPU to build for: {problem}")
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(capabilities))
