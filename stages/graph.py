"""dvc.yaml as data: what each stage runs, reads and writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from stages.params_file import read_yaml

DVC_FILE = Path("dvc.yaml")
PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class StageNode:
    """One stage of dvc.yaml.

    Attributes:
        deps: every path it reads, code and data, as written.
        params: sections of params.yaml that it reads.
        outs: every path it writes: outs, metrics and plots.
    """

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def code(self) -> tuple[str, ...]:
        """The deps that are Python files or templates of ours."""
        return tuple(dep for dep in self.deps if dep.split("/")[0] in {"pipeline", "stages", "stylegan2"})

    @property
    def data(self) -> tuple[str, ...]:
        """The deps that are not code."""
        return tuple(dep for dep in self.deps if dep not in self.code)


def read_graph(path: Path = DVC_FILE) -> dict[str, StageNode]:
    """Read all stages of dvc.yaml, in the file's order.

    Raises:
        UserError: when dvc.yaml is missing or has no stages.
    """
    stages = read_yaml(path).get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{path} lists no stages; restore it from the repository")
    return {name: _node(name, content) for name, content in stages.items()}


def _node(name: str, content: Mapping[str, Any]) -> StageNode:
    outs = [*content.get("outs", []), *content.get("metrics", []), *content.get("plots", [])]
    return StageNode(
        name=name,
        deps=tuple(content.get("deps", [])),
        params=tuple(content.get("params", [])),
        outs=tuple(entry if isinstance(entry, str) else next(iter(entry)) for entry in outs),
    )


def producer_of(path: str, graph: Mapping[str, StageNode]) -> str | None:
    """Name the stage that writes `path`, or None when no stage does."""
    return next((node.name for node in graph.values() if path in node.outs), None)
