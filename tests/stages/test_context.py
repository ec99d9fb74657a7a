"""A toy project of one or two stages around the real StageRun."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline.errors import TestSetError, UserError
from pipeline.schema import Strict
from stages.context import StageRun, forbid_reading, git_commit, stage_command
from stages.fingerprint import digest_paths, fingerprint
from stages.runtime import Runtime

DVC_YAML = """
stages:
  toy:
    cmd: python -m stages.toy
    deps: [data/in, stages/toy.py]
    params: [seed, toy]
    outs: [data/out]
    metrics:
    - metrics/toy.json:
        cache: false
  maker:
    cmd: python -m stages.maker
    deps: []
    params: [seed]
    outs: [data/in]
"""
PARAMS = """
seed: 3
runtime: {device: cpu, threads: 1}
segmenter: {}
toy: {size: 4}
maker: {}
"""


class Toy(Strict):
    size: int


class Maker(Strict):
    pass


SCHEMAS: dict[str, Any] = {"seed": int, "runtime": Runtime, "toy": Toy}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "data/in").mkdir(parents=True)
    (tmp_path / "data/in/a.txt").write_text("a")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/toy.py").write_text("code = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name, schema in (("toy", Toy), ("maker", Maker)):
        module = SimpleNamespace(main=SimpleNamespace(schemas={"seed": int, name: schema}, cross_check=None))
        monkeypatch.setitem(sys.modules, f"stages.{name}", module)  # type: ignore[arg-type]
    return tmp_path


def toy_command(work: Any) -> click.Command:
    return stage_command("toy", Toy)(work)


def write_outputs(run: StageRun, text: str = "done") -> None:
    run.out("data/out").mkdir()
    (run.out("data/out") / "file.txt").write_text(text)
    run.out("metrics/toy.json").write_text("{}")


def test_outputs_appear_only_at_the_end(project: Path) -> None:
    def work(run: StageRun) -> None:
        """Do it."""
        assert run.params == Toy(size=4)
        assert run.seed == 3
        assert run.dep("data/in") == Path("data/in")
        write_outputs(run)
        assert not (project / "data/out").exists()

    result = CliRunner().invoke(toy_command(work), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (project / "data/out/file.txt").read_text() == "done"
    assert (project / "metrics/toy.json").exists()
    assert not list(project.rglob("*.partial"))


def test_a_failing_stage_leaves_nothing_half_written_and_keeps_its_checkpoint(project: Path) -> None:
    def work(run: StageRun) -> None:
        """Do it."""
        (run.checkpoint_dir / "state").write_text("half")
        write_outputs(run)
        raise UserError("bad image")

    result = CliRunner().invoke(toy_command(work))
    assert result.exit_code == 2
    assert "Error: bad image" in result.output
    assert "Traceback" not in result.output
    assert not (project / "data/out").exists()
    assert not list(project.rglob("*.partial"))
    assert [path.read_text() for path in project.glob(".checkpoints/toy/*/state")] == ["half"]


def test_debug_shows_the_error_itself(project: Path) -> None:
    def work(run: StageRun) -> None:
        """Do it."""
        raise UserError("bad image")

    result = CliRunner().invoke(toy_command(work), ["--debug"])
    assert isinstance(result.exception, UserError)


def test_the_checkpoint_is_found_again_and_deleted_on_success(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StageRun("toy", SCHEMAS) as run:
        (run.checkpoint_dir / "state").write_text("half")
        raise KeyboardInterrupt
    with StageRun("toy", SCHEMAS) as run:
        assert (run.checkpoint_dir / "state").read_text() == "half"
        write_outputs(run)
    assert not list(project.glob(".checkpoints/toy/*/state"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("params.yaml", PARAMS.replace("size: 4", "size: 5")),
        ("stages/toy.py", "code = 2\n"),
        ("data/in/a.txt", "b"),
    ],
)
def test_a_change_means_another_checkpoint_and_an_edit_while_running_fails(
    project: Path, file: str, text: str
) -> None:
    with pytest.raises(UserError, match="changed while it ran"), StageRun("toy", SCHEMAS) as run:
        first = run.checkpoint_dir
        write_outputs(run)
        (project / file).write_text(text)
    assert not (project / "data/out").exists()
    with StageRun("toy", SCHEMAS) as run:
        assert run.checkpoint_dir != first


def test_a_change_of_runtime_keeps_the_checkpoint(project: Path) -> None:
    with StageRun("toy", SCHEMAS) as run:
        first = run.checkpoint_dir
    (project / "params.yaml").write_text(PARAMS.replace("threads: 1", "threads: 1, workers: 2"))
    with StageRun("toy", SCHEMAS) as run:
        assert run.checkpoint_dir == first


def test_a_second_run_of_the_same_stage_is_refused(project: Path) -> None:
    with StageRun("toy", SCHEMAS), pytest.raises(UserError, match="another process is running stage toy"):
        StageRun("toy", SCHEMAS).__enter__()
    with StageRun("toy", SCHEMAS):
        pass


def test_missing_inputs_say_who_makes_them(project: Path) -> None:
    (project / "data/in/a.txt").unlink()
    (project / "data/in").rmdir()
    result = CliRunner().invoke(toy_command(lambda run: None))
    assert result.exit_code == 2
    assert "data/in is missing: run `dvc repro maker`" in result.output


def test_undeclared_paths_are_a_programming_error(project: Path) -> None:
    with StageRun("toy", SCHEMAS) as run:
        with pytest.raises(AssertionError, match="does not list"):
            run.dep("data/secret")
        with pytest.raises(AssertionError, match="does not list"):
            run.out("data/elsewhere")


def test_a_typo_in_another_stages_section_stops_this_one(project: Path) -> None:
    (project / "params.yaml").write_text(PARAMS.replace("maker: {}", "maker: {colour: 1}"))
    result = CliRunner().invoke(toy_command(lambda run: None))
    assert result.exit_code == 2
    assert "maker.colour: unknown key" in result.output


def test_no_process_of_a_forbidden_stage_opens_the_test_split(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    (tmp_path / "test.txt").write_text("not below it")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "cache").write_bytes(b"x")
    (folder / "cached.png").symlink_to(tmp_path / "cache")
    forbid_reading(folder, "train_base")
    for attempt in (
        lambda: (folder / "a.png").read_bytes(),
        lambda: (tmp_path / "link" / "a.png").read_bytes(),
        lambda: (folder / "cached.png").read_bytes(),
        lambda: list(folder.iterdir()),
        lambda: list(folder.rglob("*")),
        lambda: (tmp_path / "x" / ".." / "test" / "a.png").open(),
    ):
        with pytest.raises(TestSetError, match="only evaluate and report"):
            attempt()
    assert (tmp_path / "test.txt").read_text() == "not below it"


def test_digest_sees_names_contents_and_absence_but_not_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a").write_text("1")
    before = digest_paths(["d"])
    Path("d/__pycache__").mkdir()
    Path("d/__pycache__/a.cpython.pyc").write_text("x")
    assert digest_paths(["d"]) == before
    Path("d/a").rename("d/b")
    renamed = digest_paths(["d"])
    assert renamed != before
    Path("d/b").write_text("2")
    assert digest_paths(["d"]) not in {before, renamed}
    assert digest_paths(["absent"]) != digest_paths([])


def test_fingerprint_depends_on_parameters_not_on_their_order() -> None:
    assert fingerprint([], [], {"a": 1, "b": 2}) == fingerprint([], [], {"b": 2, "a": 1})
    assert fingerprint([], [], {"a": 1}) != fingerprint([], [], {"a": 2})


def test_a_queued_experiment_keeps_its_checkpoint_in_the_repository_that_stays(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path_factory.mktemp("repository")
    monkeypatch.setenv("DVC_ROOT", str(repository))
    with pytest.raises(KeyboardInterrupt), StageRun("toy", SCHEMAS) as run:
        assert run.checkpoint_dir.parent == repository / ".checkpoints" / "toy"
        raise KeyboardInterrupt
    assert [path for path in (repository / ".checkpoints/toy").iterdir() if path.is_dir()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_from_outside_a_stage_says_how_to_go_on(project: Path, number: int) -> None:
    def work(run: StageRun) -> None:
        """Do it."""
        (run.checkpoint_dir / "state").write_text("half")
        signal.raise_signal(number)

    result = CliRunner().invoke(toy_command(work))
    assert result.exit_code == 130
    assert "goes on with toy from its last checkpoint" in result.output
    assert list(project.glob(".checkpoints/toy/*/state"))


@pytest.mark.parametrize("how", ["threads: 2", "threads: 1, precision: bfloat16"])
def test_a_state_of_other_threads_or_precision_is_not_gone_on_with(project: Path, how: str) -> None:
    with StageRun("toy", SCHEMAS) as run:
        first = run.checkpoint_dir
    (project / "params.yaml").write_text(PARAMS.replace("threads: 1", how))
    with StageRun("toy", SCHEMAS) as run:
        assert run.checkpoint_dir != first


def test_forgotten_checkpoints_go_when_the_stage_succeeds(project: Path) -> None:
    old, recent = project / ".checkpoints/toy/old", project / ".checkpoints/toy/recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    with StageRun("toy", SCHEMAS) as run:
        write_outputs(run)
    assert not old.exists()
    assert recent.exists()


def test_sections_that_do_not_fit_together_are_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = stage_command(
        "maker", Maker, cross_check=lambda values: [f"toy.size: {values['toy'].size} is odd"]
    )
    monkeypatch.setitem(sys.modules, "stages.maker", SimpleNamespace(main=checked(lambda run: None)))  # type: ignore[arg-type]
    result = CliRunner().invoke(toy_command(lambda run: None))
    assert result.exit_code == 2
    assert "toy.size: 4 is odd" in result.output


def test_the_commit_of_an_enclosing_repository_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert git_commit() is None


def test_an_interruption_while_outputs_move_into_place_waits(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = StageRun._publish

    def interrupted_publish(run: StageRun) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        publish(run)

    monkeypatch.setattr(StageRun, "_publish", interrupted_publish)
    with pytest.raises(KeyboardInterrupt), StageRun("toy", SCHEMAS) as run:
        write_outputs(run)
    assert (project / "data/out/file.txt").read_text() == "done"
    assert (project / "metrics/toy.json").exists()
