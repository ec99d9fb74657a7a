"""The cache is where the environment says, and its size is known."""

from pathlib import Path

import pytest

from stylegan2.cache import CACHE_VARIABLE, cache_folder, folder_sizes


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stylegan2"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "stylegan2"


def test_sizes_are_those_of_all_files_below(tmp_path: Path) -> None:
    assert folder_sizes(tmp_path / "absent") == {}
    (tmp_path / "ops" / "cpu-1").mkdir(parents=True)
    (tmp_path / "ops" / "cpu-1" / "library.so").write_bytes(b"12345")
    (tmp_path / "ops" / "cpu.lock").write_bytes(b"")
    (tmp_path / "ops" / "elsewhere").symlink_to(tmp_path.parent)
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "empty").mkdir()
    sizes = folder_sizes(tmp_path)
    assert sizes == {"empty": 0, "file": 3, "ops": 5}
