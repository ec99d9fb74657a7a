"""One training in a folder: who is kept out, who is not, and what stays behind."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stylegan2.errors import StyleGAN2Error
from stylegan2.training_lock import LOCK, lock_training

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from stylegan2.training_lock import lock_training
with lock_training(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def attempt_elsewhere(*folders: Path) -> str:
    """Ask for folders in another thread; give the error or nothing."""
    errors = [""]

    def attempt() -> None:
        try:
            with lock_training(*folders):
                pass
        except StyleGAN2Error as error:
            errors.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return errors[-1]


def test_others_are_kept_out_and_oneself_is_not(tmp_path: Path) -> None:
    first, second = tmp_path / "out", tmp_path / "out" / "checkpoint"
    with lock_training(first, second):
        for folders in ([first], [second], [tmp_path / "other", first]):
            assert "another process trains here: it holds" in attempt_elsewhere(*folders)
        with lock_training(first, first / "." / "checkpoint", tmp_path / "third"):
            pass
        assert attempt_elsewhere(first)  # the inner one released nothing
        assert attempt_elsewhere(tmp_path / "third") == ""
    assert attempt_elsewhere(first, second) == ""
    assert list(tmp_path.iterdir()) == []  # of what was empty, nothing stays


def test_only_the_lock_goes_from_folders_that_hold_something(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(ZeroDivisionError), lock_training(kept, tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
        raise ZeroDivisionError
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert files == {"kept", "a", "a/b", "a/b/file"}


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StyleGAN2Error, match=LOCK), lock_training(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / LOCK).exists()  # left by a process that could not tidy up
    with lock_training(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_where_files_cannot_be_locked_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with lock_training(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert "cannot be locked (no flock here)" in caplog.text
