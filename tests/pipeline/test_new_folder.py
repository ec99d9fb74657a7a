import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.new_folder import new_folder


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", ["nothing", "empty", "full"])
def test_the_folder_takes_the_place_of_what_was_there(tmp_path: Path, before: str) -> None:
    target = tmp_path / ("above/out" if before == "nothing" else "out")
    if before != "nothing":
        target.mkdir()
    if before == "full":
        (target / "old").write_text("old")
    with new_folder(target) as folder:
        (folder / "new").write_text("new")
        assert contents(target) == ({"old": "old"} if before == "full" else {})
    assert contents(target) == {"new": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_link_goes_on_pointing_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far")
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "out").is_symlink() and contents(tmp_path / "far") == {"new": "new"}


@pytest.mark.parametrize("how", ["error", "SIGTERM"])
@pytest.mark.parametrize("place", ["out", "a/b/out"])
def test_after_a_failure_everything_is_as_it_was(tmp_path: Path, how: str, place: str) -> None:
    if place == "out":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/old").write_text("old")
    before = contents(tmp_path), sorted(tmp_path.rglob("*"))
    handler = signal.getsignal(signal.SIGTERM)
    error = ValueError if how == "error" else KeyboardInterrupt
    with pytest.raises(error), new_folder(tmp_path / place) as folder:
        (folder / "new").write_text("new")
        if how == "error":
            raise ValueError
        os.kill(os.getpid(), signal.SIGTERM)
    assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_cannot_be_put_in_place_leaves_the_old(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), new_folder(target) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {"out/old": "old"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_interruption_is_reported_of_results_that_stand(tmp_path: Path, monkeypatch, number: int) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    remove, called = shutil.rmtree, []

    def interrupted(*arguments, **options) -> None:
        called.append(arguments)
        os.kill(os.getpid(), number)
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with new_folder(target) as folder:
        (folder / "new").write_text("new")
    assert called and contents(tmp_path) == {"out/new": "new"}
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
