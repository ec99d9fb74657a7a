from pathlib import Path

from pipeline.digest import digest_paths
from stages import fingerprint


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_the_digest_is_that_which_stages_record(tmp_path, monkeypatch) -> None:
    project = tmp_path / "project"
    write(project, "data/b/x.png", "data/a.csv", "data/b-c/y", "data/__pycache__/z", "data/m.pyc", "one.txt")
    paths = ["one.txt", "data", "absent"]
    found = digest_paths(paths, project)
    monkeypatch.chdir(project)
    assert found == fingerprint.digest_paths(paths) == digest_paths(reversed(paths))


def test_names_and_contents_count_and_bytecode_does_not(tmp_path) -> None:
    write(tmp_path, "data/a", "data/b")
    before = digest_paths(["data"], tmp_path)
    write(tmp_path, "data/__pycache__/a", "data/b.pyc")
    assert digest_paths(["data"], tmp_path) == before
    (tmp_path / "data/b").rename(tmp_path / "data/c")
    renamed = digest_paths(["data"], tmp_path)
    (tmp_path / "data/c").write_text("other")
    assert len({before, renamed, digest_paths(["data"], tmp_path)}) == 3
