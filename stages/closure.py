"""Which of our files a stage really imports, against what dvc.yaml lists: `python -m stages.closure`.

DVC does not see imports. A file missing from `deps` leaves stale results; a superfluous one retrains a
GAN because a comment in the report changed.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from stages.graph import read_graph

PACKAGES = ("pipeline", "stages", "stylegan2")
# Folders of sources in another language, by the module that compiles them.
COMPILED = {"stylegan2/ops/build.py": "stylegan2/csrc"}


def import_closure(file: Path) -> set[str]:
    """List every Python file of ours that running `file` imports, itself included, and `COMPILED` sources.

    Imports inside functions count; those under `if TYPE_CHECKING` do not.

    Args:
        file: relative to the project's root, which must be the working directory.
    """
    found: set[str] = set()
    waiting = [file.as_posix()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for module in _imported_modules(Path(path)):
            waiting.extend(_files_of(module))
        waiting.extend(_files_of(".".join(Path(path).parent.parts)))
    return found | {COMPILED[path] for path in found & COMPILED.keys()}


def imported_packages(file: Path) -> set[str]:
    """Name the packages of ours that `file` imports directly."""
    return {module.split(".")[0] for module in _imported_modules(file)} & set(PACKAGES)


def _imported_modules(file: Path) -> Iterator[str]:
    for node in _runtime_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = file.parent.parts[: len(file.parent.parts) - node.level + 1]
                base = ".".join([*package, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield other
                yield from _runtime_nodes(other)
            continue
        yield node
        yield from _runtime_nodes(node)


def _files_of(module: str) -> Iterator[str]:
    """Yield the files that importing `module` runs: each package's __init__ on the way, and its own."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        path = Path(*parts[:depth])
        if (path / "__init__.py").is_file():
            yield (path / "__init__.py").as_posix()
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py").as_posix()


@click.command()
def main() -> None:
    """Compare every stage's imports with its deps in dvc.yaml; exit 1 when they differ."""
    agree = True
    for name, node in read_graph().items():
        needed = import_closure(Path("stages") / f"{name}.py")
        listed = {path for path in node.code if path.endswith(".py") or path in COMPILED.values()}
        for path in sorted(needed - listed):
            click.echo(f"{name}: add {path}")
        for path in sorted(listed - needed):
            click.echo(f"{name}: remove {path}")
        agree &= needed == listed
    if not agree:
        sys.exit(1)
    click.echo("every stage lists exactly what it imports")


if __name__ == "__main__":
    main()
