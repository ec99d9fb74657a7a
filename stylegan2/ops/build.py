"""Builds the compiled operations: on first use, once for each source, compiler and machine.

A build is a folder of the cache that holds the library and `build.json`. It is made under another name and
renamed when it is complete and on the disk, so whoever finds it finds all of it. `build.json` holds size and
SHA-256 of the library: to load a damaged one would end the process, without a message.

Whoever adds or removes builds of a kind holds the lock of that kind. To find and load one takes no lock:
should it vanish between both, loading fails, and `native.load` builds again. What is loaded stays so without
its file.
"""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import torch

from stylegan2 import cache
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import toolchain

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
RECORD = "build.json"
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_CPU_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    # What lets loops become vectors; infinities and NaN keep their meaning.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILER_SECONDS = 900
# A new build ends the life of those that nobody has used for so long, but for the last few of its kind.
UNUSED_DAYS = 30
KEPT_BUILDS = 3
_DAY = 86400
_SHOWN_LINES, _SHOWN_COLUMNS = 20, 400  # of a compiler's output, from the start and from the end

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a library is built from; whatever changes the result is part of `key`.

    Attributes:
        kind: cpu or cuda.
        compiler: command, as words.
        version: first line of what the compiler says about itself.
        flags: what it is asked for; a CPU compiler that does not know one of them goes without.
        openmp: the OpenMP runtime to share; None on CUDA.
        key: hash of all that and of sources, processor and torch.
    """

    kind: str
    compiler: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    openmp: toolchain.OpenMP | None
    key: str

    @property
    def name(self) -> str:
        """Name of the build's folder."""
        return f"{self.kind}-{self.key[:20]}"


@dataclass(frozen=True)
class Build:
    """A finished library.

    Attributes:
        kind: cpu or cuda.
        library: its file.
        compiler: command that built it.
        version: of the compiler.
        flags: that the compiler was called with.
        openmp: which OpenMP runtime it uses, or why none.
        notes: what was asked for and refused by the compiler.
        seconds: that the build took.
        built_at: time of the build, in seconds since 1970.
        size: of the library in bytes.
        sha256: of the library, hexadecimal.
    """

    kind: str
    library: Path
    compiler: str
    version: str
    flags: tuple[str, ...]
    openmp: str
    notes: tuple[str, ...]
    seconds: float
    built_at: float
    size: int
    sha256: str


# ----------------------------------------------------------------------------------------------------------
# What to build
# ----------------------------------------------------------------------------------------------------------


def cpu_recipe() -> Recipe:
    """Find the compiler for the CPU and say how to call it.

    Raises:
        StyleGAN2Error: there is no compiler; the message names those that were looked for.
    """
    compiler = toolchain.find_cpu_compiler()
    version = toolchain.compiler_version(compiler)
    openmp = toolchain.find_openmp(version)
    flags = (*_CPU_FLAGS, *toolchain.NATIVE_FLAGS, *openmp.compile_flags)
    machine = (toolchain.processor(), *openmp.link_flags)
    return Recipe("cpu", compiler, version, flags, openmp, _key("cpu", compiler, version, flags, machine))


def cuda_recipe(architectures: tuple[str, ...] | None = None) -> Recipe:
    """Find nvcc and say how to call it.

    Args:
        architectures: compute capabilities to build for, such as `80`; None = those of the GPUs present.

    Raises:
        StyleGAN2Error: there is no nvcc, or no GPU and no `architectures`.
    """
    if architectures is None:
        architectures = toolchain.present_architectures()
    compiler = toolchain.find_nvcc()
    version = toolchain.compiler_version(compiler)
    targets = [word for a in architectures for word in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    position = () if sys.platform == "win32" else ("-Xcompiler", "-fPIC,-fvisibility=hidden")
    flags = ("-O3", "-std=c++17", *position, *targets)
    return Recipe("cuda", compiler, version, flags, None, _key("cuda", compiler, version, flags, ()))


def _key(
    kind: str, compiler: tuple[str, ...], version: str, flags: tuple[str, ...], machine: tuple[str, ...]
) -> str:
    described = [kind, compiler, version, flags, machine, torch.__version__, sorted(Build.__annotations__)]
    return hashlib.sha256(json.dumps([source_digest(), *described]).encode()).hexdigest()


def source_digest() -> str:
    """SHA-256 over the kernels' source files, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------
# Building, once
# ----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where builds are kept: `ops` in the cache folder of this package ($STYLEGAN2_CACHE names another)."""
    return cache.cache_folder() / "ops"


def find_build(recipe: Recipe, folder: Path) -> Build | None:
    """The finished build of a recipe in a folder, if there is one that can be read and is undamaged."""
    record = folder / recipe.name / RECORD
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        content["library"] = record.with_name(content["library"])
        build = Build(**{**content, "flags": tuple(content["flags"]), "notes": tuple(content["notes"])})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return build if _is_whole(build) else None


def _is_whole(build: Build) -> bool:
    """Whether the library is the one that was built."""
    try:
        return build.library.stat().st_size == build.size and _sha256(build.library) == build.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_once(recipe: Recipe, rebuild: bool = False) -> Build:
    """Give the finished build, building it first where there is none, and then removing old ones.

    Processes that ask at the same time wait for the one that builds. Where the cache cannot be written, the
    library is built in a temporary folder that lives as long as the process.

    Args:
        recipe: from `cpu_recipe` or `cuda_recipe`.
        rebuild: replace a build that is there.

    Raises:
        StyleGAN2Error: the compiler failed; the message holds its output.
    """
    try:
        folder = cache_folder()
        found = None if rebuild else _use_build(recipe, folder)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, recipe.kind)
        lock.acquire(timeout=2 * _COMPILER_SECONDS)
    except filelock.Timeout as error:
        raise StyleGAN2Error(
            f"ops: another process has been building {error.lock_file} for half an hour; end it and try again"
        ) from None
    except (OSError, NotImplementedError, RuntimeError) as error:  # read-only, no locks, no home
        log.warning("ops: the cache cannot be written (%s): building in a temporary folder", error)
        return _build(recipe, _temporary_folder())
    try:
        found = None if rebuild else _use_build(recipe, folder)
        if found is None:
            if not rebuild and (folder / recipe.name).exists():
                log.warning("ops: %s is damaged and is built again", folder / recipe.name)
            found = _build(recipe, folder)
            _prune(recipe, folder)
        return found
    finally:
        lock.release()


def discard(build: Build) -> None:
    """Remove a build that cannot be used, unless another process has replaced it by now."""
    folder = build.library.parent
    try:
        with _lock(folder.parent, build.kind).acquire(timeout=2 * _COMPILER_SECONDS):
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["built_at"] == build.built_at:
                _remove(folder)
    except (OSError, NotImplementedError, RuntimeError, ValueError, KeyError, TypeError) as error:
        # Gone already, or not ours to remove, or so damaged that nobody finds it.
        log.debug("ops: %s stays as it is (%s)", folder, error)


def _lock(folder: Path, kind: str) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / f"{kind}.lock")


def _use_build(recipe: Recipe, folder: Path) -> Build | None:
    """Find a build and note that it is in use; None where there is none, or it has just been removed."""
    found = find_build(recipe, folder)
    if found is None:
        return None
    record = found.library.with_name(RECORD)
    try:
        if time.time() - record.stat().st_mtime > _DAY:
            os.utime(record)
    except FileNotFoundError:
        return None
    except OSError as error:  # of another user, or read-only
        log.debug("ops: the use of %s cannot be noted (%s)", found.library, error)
    return found


def _prune(recipe: Recipe, folder: Path) -> None:
    """Remove what nobody has used for long, of the kind of a new build; the caller holds its lock.

    Also what killed builds have left behind, and lock files of earlier versions.
    """
    used: dict[Path, float] = {}
    for path in [*folder.glob(f"{recipe.kind}-*"), *folder.glob(f".{recipe.kind}-*")]:
        with contextlib.suppress(OSError):
            used[path] = _last_use(path)
    builds = [path for path in used if path.name[0] != "." and (path / RECORD).exists()]
    builds.sort(key=lambda path: -used[path])
    kept = {folder / recipe.name, *builds[:KEPT_BUILDS]}
    for path in used.keys() - kept:
        # Asked again: it may have been found, and so used, a moment ago.
        with contextlib.suppress(OSError):
            if time.time() - _last_use(path) > UNUSED_DAYS * _DAY:
                log.debug("ops: removing %s, which nobody has used for %d days", path, UNUSED_DAYS)
                _remove(path)


def _last_use(path: Path) -> float:
    """Time of the last use of a build, else of the last change; in seconds since 1970."""
    record = path / RECORD
    return (record if record.exists() else path).stat().st_mtime


def _remove(path: Path) -> None:
    """Remove a build as a whole or not at all, as far as those who look for it can tell.

    Raises:
        OSError: it cannot be removed; on Windows: it is loaded.
    """
    if not path.is_dir():
        path.unlink()
        return
    doomed = path.with_name(f".{path.name.lstrip('.')}-removed-{os.getpid()}")
    path.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stylegan2-ops-"))  # only this user can read it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _build(recipe: Recipe, folder: Path) -> Build:
    """Build into `folder`; the caller holds its lock."""
    prefix = f".{recipe.name}-"
    for remains in folder.glob(f"{prefix}*"):  # of a build that was killed
        shutil.rmtree(remains, ignore_errors=True)
    log.info("ops: building the %s kernels with %s, once", recipe.kind, recipe.version)
    try:
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        try:
            build = _compile_into(work, recipe, folder / recipe.name)
        except BaseException:  # also an interruption
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise StyleGAN2Error(
            f"ops: building the {recipe.kind} kernels in {folder} failed ({error})"
        ) from None
    log.info("ops: built in %.1f s: %s", build.seconds, build.library)
    return build


def _compile_into(work: Path, recipe: Recipe, target: Path) -> Build:
    """Compile in the folder `work` and rename that to `target`."""
    start = time.perf_counter()
    library = work / f"stylegan2_{recipe.kind}{_SUFFIX}"
    compiled = _compile_cpu(recipe, work, library) if recipe.kind == "cpu" else _compile_cuda(recipe, library)
    build = Build(
        kind=recipe.kind,
        library=target / library.name,
        compiler=shlex.join(recipe.compiler),
        version=recipe.version,
        flags=compiled.flags,
        openmp=compiled.openmp,
        notes=compiled.notes,
        seconds=round(time.perf_counter() - start, 2),
        built_at=round(time.time(), 3),
        size=library.stat().st_size,
        sha256=_sha256(library),
    )
    record = json.dumps({**asdict(build), "library": library.name}, indent=1)
    (work / RECORD).write_text(record, encoding="utf-8")
    for path in (library, work / RECORD, work):
        _to_disk(path)
    shutil.rmtree(target, ignore_errors=True)  # damaged, or to be replaced
    work.replace(target)
    _to_disk(target.parent)
    return build


def _to_disk(path: Path) -> None:
    """Make sure that a file, or the names in a folder, outlast a power failure."""
    if path.is_dir() and sys.platform == "win32":  # has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------
# Calling compilers
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compiled:
    flags: tuple[str, ...]
    openmp: str
    notes: tuple[str, ...] = ()


def _compile_cpu(recipe: Recipe, work: Path, library: Path) -> _Compiled:
    """Compile and link in two steps, so that the compiler does not add an OpenMP runtime of its own."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        flags, link, left_out = _accepted_flags(recipe, Path(folder))
    notes = tuple(f"without {' '.join(words)}, which the compiler refuses" for words in left_out)
    for note in notes:
        log.warning("ops: %s", note)
    object_file = work / "cpu.o"
    _run([*recipe.compiler, *flags, "-c", str(SOURCES / "cpu.cpp"), "-o", str(object_file)])
    _run([*recipe.compiler, "-shared", str(object_file), "-o", str(library), *link])
    object_file.unlink()
    assert recipe.openmp is not None
    refused = recipe.openmp.compile_flags in left_out
    return _Compiled(
        (*flags, *link), "none: the compiler refuses it" if refused else recipe.openmp.name, notes
    )


def _accepted_flags(
    recipe: Recipe, folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The flags that the compiler knows: (to compile, to link, groups that are left out)."""
    assert recipe.openmp is not None
    openmp, native = recipe.openmp.compile_flags, toolchain.NATIVE_FLAGS
    choices = ((), (native,), (openmp,), (native, openmp)) if openmp else ((), (native,))
    source = folder / "probe.cpp"
    binary, linked = folder / "probe.o", folder / f"probe{_SUFFIX}"
    source.write_text(_PROBE, encoding="utf-8")
    error: StyleGAN2Error | None = None
    for left_out in choices:
        flags = tuple(flag for flag in recipe.flags if not any(flag in group for group in left_out))
        link = () if openmp in left_out else recipe.openmp.link_flags
        try:
            _run([*recipe.compiler, *flags, "-c", str(source), "-o", str(binary)])
            _run([*recipe.compiler, "-shared", str(binary), "-o", str(linked), *link])
            return flags, link, left_out
        except StyleGAN2Error as failure:
            error = failure
    assert error is not None
    raise error  # the last one: with the plainest flags


_PROBE = """
extern "C" float sg2_probe(float* x, int n) {
    float sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}
"""


def _compile_cuda(recipe: Recipe, library: Path) -> _Compiled:
    _run([*recipe.compiler, *recipe.flags, "-shared", str(SOURCES / "cuda.cu"), "-o", str(library)])
    return _Compiled(recipe.flags, "not used")


def _run(command: list[str]) -> None:
    """Run a compiler.

    Raises:
        StyleGAN2Error: it failed, with the end of its output.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=_COMPILER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StyleGAN2Error(
            f"ops: the compiler did not finish within {_COMPILER_SECONDS} s: {shlex.join(command)}"
        ) from None
    except OSError as error:
        raise StyleGAN2Error(f"ops: the compiler cannot be run ({error}): {shlex.join(command)}") from None
    if process.returncode != 0:
        lines = process.stdout.decode(errors="replace").strip().splitlines()
        left_out = [f"… {len(lines) - 2 * _SHOWN_LINES} lines …"] if len(lines) > 2 * _SHOWN_LINES else []
        shown = [*lines[:_SHOWN_LINES], *left_out, *lines[_SHOWN_LINES:][-_SHOWN_LINES:]]
        output = "\n".join(line[:_SHOWN_COLUMNS] for line in shown) or "(no output)"
        raise StyleGAN2Error(
            f"ops: the compiler failed with exit code {process.returncode}: {shlex.join(command)}\n{output}"
        )
