from pathlib import Path

import pytest

from stages.closure import import_closure, imported_packages


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "from pipeline.sub import b\n",
        "pipeline/unused.py": "",
        "pipeline/types.py": "",
        "pipeline/sub/__init__.py": "",
        "pipeline/sub/b.py": "from .c import thing\nimport numpy\n",
        "pipeline/sub/c.py": "thing = 1\n",
        "pipeline/lazy.py": "",
        "stages/__init__.py": "",
        "stages/work.py": (
            "from typing import TYPE_CHECKING\nimport pipeline.a\n"
            "if TYPE_CHECKING:\n    import pipeline.types\n"
            "def f():\n    from pipeline import lazy\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_closure_follows_packages_relative_and_late_imports_but_not_type_checking(tree: Path) -> None:
    assert import_closure(Path("stages/work.py")) == {
        "stages/__init__.py",
        "stages/work.py",
        "pipeline/__init__.py",
        "pipeline/a.py",
        "pipeline/lazy.py",
        "pipeline/sub/__init__.py",
        "pipeline/sub/b.py",
        "pipeline/sub/c.py",
    }


def test_imported_packages(tree: Path) -> None:
    assert imported_packages(Path("stages/work.py")) == {"pipeline"}
