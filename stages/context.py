"""What every stage needs around its work: parameters, declared inputs and outputs, resume, clean failure.

DVC decides *when* a stage runs; this module makes a stage do what dvc.yaml says: it reads declared
dependencies, writes declared outputs, sees the test split only where that is declared, and leaves either
complete outputs or none.
"""

import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import click
import filelock
from pydantic import BaseModel

from pipeline.allocation import keep_freed_memory
from pipeline.errors import Problems, TestSetError, UserError
from stages.fingerprint import digest_paths, fingerprint
from stages.graph import DVC_FILE, PARAMS_FILE, StageNode, producer_of, read_graph
from stages.params_file import check_sections, read_yaml
from stages.runtime import Runtime

TEST_SPLIT = "data/prepared/test"
# Where test images, or what follows from them, can be seen: closed to a stage that does not declare it.
GUARDED = (TEST_SPLIT, "data/raw", "predictions", "metrics")
SHARED_SECTIONS = ("seed", "runtime", "segmenter")
INTERRUPTED = 130  # the shell's exit code after Ctrl-C
CHECKPOINT_DAYS = 30
Schema = type[BaseModel] | type[int]
CrossCheck = Callable[[Mapping[str, Any]], list[str]]


class StageRun:
    """One run of one stage, as a context manager: outputs appear when the block ends without an error.

    Attributes:
        name: the stage's name.
        params: its validated section of params.yaml.
        shared: validated shared sections that the stage asked for, by name.
        seed: the project's seed.
        runtime: device, threads, workers.
    """

    def __init__(self, name: str, schemas: Mapping[str, Schema]) -> None:
        self.name = name
        self.graph = read_graph()
        if name not in self.graph:
            raise UserError(f"{DVC_FILE} has no stage {name!r}; restore it from the repository")
        self.node: StageNode = self.graph[name]
        self._values = read_yaml(PARAMS_FILE)
        check_all_sections(self._values, self.graph)
        parsed = {section: _parse(schema, self._values[section]) for section, schema in schemas.items()}
        self.params: Any = parsed.pop(name)
        self.seed: int = parsed.pop("seed")
        self.runtime: Runtime = parsed.pop("runtime")
        self.shared: dict[str, Any] = parsed
        self._staged: dict[Path, Path] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._check_inputs()
        self._lock(Path(".checkpoints"), f"{self.name}.lock")
        self._fingerprint = self._current_fingerprint()
        declared = {*self.node.deps, *self.node.outs}
        for folder in GUARDED:
            if not any(path == folder or path.startswith(f"{folder}/") for path in declared):
                forbid_reading(Path(folder), self.name)
        self._previous_handler = signal.signal(signal.SIGTERM, _interrupt)
        keep_freed_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                if kind is None:
                    self._check_nothing_changed()
                    with _undisturbed():
                        self._publish()
                    shutil.rmtree(self._checkpoint_path, ignore_errors=True)
                    self._forget_old_checkpoints()
            finally:
                for staged in self._staged.values():
                    _remove(staged)
                signal.signal(signal.SIGTERM, self._previous_handler)

    def dep(self, path: str) -> Path:
        """Give the path of an input that dvc.yaml declares for this stage."""
        if path not in self.node.deps:
            raise AssertionError(f"stage {self.name} reads {path}, which dvc.yaml does not list in its deps")
        return Path(path)

    def out(self, path: str) -> Path:
        """Give the place to write a declared output to; it moves to `path` when the stage succeeds."""
        if path not in self.node.outs:
            raise AssertionError(f"stage {self.name} writes {path}, which dvc.yaml does not list for it")
        target = Path(path)
        staged = target.with_name(f".{target.name}.partial")
        if target not in self._staged:
            staged.parent.mkdir(parents=True, exist_ok=True)
            _remove(staged)  # of a run that was killed
            self._staged[target] = staged
        return staged

    @cached_property
    def checkpoint_dir(self) -> Path:
        """A private folder to resume from, keyed by code, inputs and parameters; deleted on success."""
        self._lock(self._checkpoint_path.parent, f"{self._checkpoint_path.name}.lock")
        self._checkpoint_path.mkdir(parents=True, exist_ok=True)
        return self._checkpoint_path

    def provenance(self) -> dict[str, Any]:
        """Say what a model was made with: versions, git commit, hash of the input data."""
        packages = ("vesselforge", "torch", "numpy", "opencv-python-headless")
        return {
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "git_commit": git_commit(),
            "data_sha256": digest_paths(self.node.data),
        }

    @property
    def _checkpoint_path(self) -> Path:
        # A queued DVC experiment runs in a temporary copy; DVC_ROOT names the repository that stays.
        root = Path(os.environ.get("DVC_ROOT", "."))
        # How it is computed is no part of the stage's identity, but a state must not go on elsewhere.
        how = self.runtime.model_dump(include={"device", "precision", "ops", "convolution"})
        how |= {"torch": version("torch"), "threads": self.runtime.thread_count()}
        key = fingerprint([], [], {"what": self._fingerprint, **how})
        return root / ".checkpoints" / self.name / key[:20]

    def _forget_old_checkpoints(self) -> None:
        """Delete states of this stage that nobody went on from for a month."""
        limit = time.time() - CHECKPOINT_DAYS * 86400
        for path in self._checkpoint_path.parent.glob("*"):
            if path.stat().st_mtime < limit:
                _remove(path)

    def _lock(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name, timeout=0)
        try:
            self._stack.enter_context(lock)
        except filelock.Timeout:
            self._stack.close()
            raise UserError(
                f"another process is running stage {self.name} (it holds {folder / name}); "
                "wait for it or stop it: a killed `dvc repro` leaves its stage running"
            ) from None

    def _check_inputs(self) -> None:
        missing = [path for path in self.node.deps if not Path(path).exists()]
        if missing:
            lines = []
            for path in missing:
                producer = producer_of(path, self.graph)
                hint = f"run `dvc repro {producer}`" if producer else "restore it from the repository"
                lines.append(f"  - {path} is missing: {hint}")
            raise UserError(f"stage {self.name} lacks its inputs:\n" + "\n".join(lines))

    def _current_fingerprint(self) -> str:
        values = read_yaml(PARAMS_FILE)
        used = {section: values.get(section) for section in self.node.params}
        return fingerprint(self.node.code, self.node.data, used)

    def _check_nothing_changed(self) -> None:
        # dvc.lock takes its hashes after the run: an edit made meanwhile would be recorded as used.
        if self._current_fingerprint() != self._fingerprint:
            raise UserError(
                f"code, inputs or parameters of stage {self.name} changed while it ran, so its result "
                "belongs to neither version and is discarded; run `dvc repro` again"
            )

    def _publish(self) -> None:
        missing = [str(target) for target, staged in self._staged.items() if not staged.exists()]
        if missing:
            raise AssertionError(f"stage {self.name} did not write {', '.join(missing)}")
        for target, staged in self._staged.items():
            _remove(target)
            staged.replace(target)


class StageCommand(click.Command):
    """A stage's click command, which also knows the schemas of the sections it reads."""

    schemas: Mapping[str, Schema]
    cross_check: CrossCheck | None


def stage_command(
    name: str,
    params: type[BaseModel],
    *,
    expected_errors: tuple[type[Exception], ...] = (),
    cross_check: CrossCheck | None = None,
    **shared: type[BaseModel],
) -> Callable[[Callable[[StageRun], None]], StageCommand]:
    """Turn `main(run)` into the command line of a stage.

    Args:
        name: the stage's name in dvc.yaml and its section in params.yaml.
        params: schema of that section.
        expected_errors: exceptions, besides UserError, that mean bad input and are shown without traceback.
        cross_check: looks at all parsed sections and says what does not fit together, a line per problem.
        shared: schemas of shared sections that the stage reads, by section name.
    """
    schemas: dict[str, Schema] = {"seed": int, "runtime": Runtime, **shared, name: params}
    expected: tuple[type[Exception], ...] = (UserError, *expected_errors)

    def decorate(work: Callable[[StageRun], None]) -> StageCommand:
        def run_stage(debug: bool) -> None:
            try:
                with StageRun(name, schemas) as run:
                    work(run)
            except KeyboardInterrupt:
                click.echo(
                    f"Interrupted. The same command goes on with {name} from its last checkpoint.", err=True
                )
                sys.exit(INTERRUPTED)
            except expected as error:
                if debug:
                    raise
                click.echo(f"Error: {error}", err=True)
                sys.exit(2)

        option = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        command = StageCommand(name, callback=run_stage, params=[option], help=work.__doc__)
        command.schemas = schemas
        command.cross_check = cross_check
        return command

    return decorate


def check_all_sections(
    values: Mapping[str, Any], graph: Mapping[str, StageNode], source: str = "params.yaml"
) -> None:
    """Check the whole of params.yaml: a typo in the last section must not show only after the first ran.

    The other stages' modules are loaded for their schemas alone; nothing of theirs takes part in this run.

    Raises:
        UserError: with every problem of every section.
    """
    commands: list[StageCommand] = [importlib.import_module(f"stages.{name}").main for name in graph]
    schemas: dict[str, Schema] = {}
    for command in commands:
        schemas |= command.schemas
    check_sections(values, schemas, (*SHARED_SECTIONS, *graph), source)
    sections = {section: _parse(schema, values[section]) for section, schema in schemas.items()}
    problems = Problems(f"{source} is not valid")
    for command in commands:
        for message in command.cross_check(sections) if command.cross_check else []:
            problems.add(message)
    problems.raise_if_any()


def forbid_reading(folder: Path, stage: str) -> None:
    """From now on, this process fails where Python opens or lists something below `folder`.

    Libraries that open files by themselves and child processes are not seen; our code uses neither for data
    (a test checks that).

    Raises (later, where the attempt is made):
        TestSetError
    """
    root = folder.resolve()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in {"open", "os.listdir", "os.scandir"} or not isinstance(arguments[0], str | bytes):
            return
        path = Path(os.fsdecode(arguments[0]))
        # A file below the folder may be a link into DVC's cache, so the link's own place counts as well.
        places = (path.parent.resolve() / path.name, path.resolve())
        if any(place.is_relative_to(root) for place in places):
            raise TestSetError(
                f"stage {stage} tried to read {path}, which dvc.yaml does not declare for it: "
                "only evaluate and report may see the test split"
            )

    sys.addaudithook(hook)


def git_commit() -> str | None:
    """Name the project's checked-out commit, with `-dirty` when tracked files differ.

    Returns:
        None without git, or when the project is no repository of its own (a ZIP unpacked inside another).
    """
    if not Path(".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block is done.

    Raises (at the end):
        KeyboardInterrupt: one of them came.
    """
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parse(schema: Schema, value: Any) -> Any:
    return value if schema is int else schema.model_validate(value)  # type: ignore[union-attr]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
