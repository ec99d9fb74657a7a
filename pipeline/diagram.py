"""A directed acyclic graph of stages drawn as SVG, layer by layer from left to right.

The steps are those of Sugiyama, Tagawa & Toda (1981): assign layers by longest path, put a waypoint into
every layer that an edge crosses, order each layer by the mean place of its predecessors, draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_BOX_WIDTH, _BOX_HEIGHT = 124, 38
_COLUMN, _ROW = 158, 62
_MARGIN = 8


@dataclass(frozen=True)
class Stage:
    """One box of the graph.

    Attributes:
        name: unique.
        parents: names of the stages whose outputs it reads.
        outputs: what it writes, shown in the tooltip.
    """

    name: str
    parents: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass
class _Node:
    layer: int
    place: float = 0.0
    before: list[str] = field(default_factory=list)


def stage_graph(stages: Sequence[Stage]) -> str:
    """Draw the graph. Edges that a longer path implies are left out.

    Args:
        stages: every parent stands before its children.

    Returns:
        SVG without fixed size; colours come from the page through the classes `stage` and `edge`.

    Raises:
        ValueError: when a parent does not stand before its child.
    """
    parents = _reduced_parents(stages)
    nodes = _layered(stages, parents)
    _place(nodes)
    height = max(node.place for node in nodes.values()) * _ROW + _BOX_HEIGHT + 2 * _MARGIN
    width = max(node.layer for node in nodes.values()) * _COLUMN + _BOX_WIDTH + 2 * _MARGIN
    edges = [_edge(nodes, before, name) for name, node in nodes.items() for before in node.before]
    boxes = [_box(stage, nodes[stage.name]) for stage in stages]
    label = "Stages and what they read: " + "; ".join(
        f"{stage.name} from {', '.join(stage.parents) or 'raw data'}" for stage in stages
    )
    return (
        f'<svg class="graph" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="arrow" d="M0 0L8 4L0 8z"/></marker></defs>'
        f"{''.join(edges)}{''.join(boxes)}</svg>"
    )


def _reduced_parents(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Drop each parent that is an ancestor of another parent."""
    ancestors: dict[str, set[str]] = {}
    reduced: dict[str, list[str]] = {}
    for stage in stages:
        unknown = [parent for parent in stage.parents if parent not in ancestors]
        if unknown:
            raise ValueError(f"stage {stage.name!r}: parents {unknown} do not stand before it")
        reduced[stage.name] = [
            parent
            for parent in stage.parents
            if not any(parent in ancestors[other] for other in stage.parents if other != parent)
        ]
        ancestors[stage.name] = {*stage.parents}.union(*(ancestors[parent] for parent in stage.parents))
    return reduced


def _layered(stages: Sequence[Stage], parents: dict[str, list[str]]) -> dict[str, _Node]:
    """Assign layers, and split long edges at waypoints (their names hold a tab, which no stage has)."""
    nodes: dict[str, _Node] = {}
    for stage in stages:
        layer = max((nodes[parent].layer + 1 for parent in parents[stage.name]), default=0)
        nodes[stage.name] = node = _Node(layer)
        for parent in parents[stage.name]:
            last = parent
            for between in range(nodes[parent].layer + 1, layer):
                waypoint = f"{parent}\t{stage.name}\t{between}"
                nodes[waypoint] = _Node(between, before=[last])
                last = waypoint
            node.before.append(last)
    return nodes


def _place(nodes: dict[str, _Node]) -> None:
    """Order each layer by its predecessors' mean place, and centre the layers on one another."""
    layers: dict[int, list[_Node]] = {}
    for node in nodes.values():
        layers.setdefault(node.layer, []).append(node)
    tallest = max(len(layer) for layer in layers.values())
    for index in sorted(layers):
        layer = layers[index]
        layer.sort(key=lambda node: sum(nodes[name].place for name in node.before) / max(len(node.before), 1))
        offset = (tallest - len(layer)) / 2
        for row, node in enumerate(layer):
            node.place = offset + row


def _centre(node: _Node) -> tuple[float, float]:
    x = _MARGIN + node.layer * _COLUMN + _BOX_WIDTH / 2
    return x, _MARGIN + node.place * _ROW + _BOX_HEIGHT / 2


def _edge(nodes: dict[str, _Node], start: str, end: str) -> str:
    (x0, y0), (x1, y1) = _centre(nodes[start]), _centre(nodes[end])
    is_waypoint = "\t" in end
    x0 += 0 if "\t" in start else _BOX_WIDTH / 2
    x1 -= 0 if is_waypoint else _BOX_WIDTH / 2
    middle = (x0 + x1) / 2
    arrow = "" if is_waypoint else ' marker-end="url(#arrow)"'
    return f'<path class="edge" d="M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"{arrow}/>'


def _box(stage: Stage, node: _Node) -> str:
    x, y = _centre(node)
    tooltip = f"{stage.name} writes {', '.join(stage.outputs) or 'nothing'}"
    return (
        f'<g class="stage"><title>{escape(tooltip)}</title>'
        f'<rect x="{x - _BOX_WIDTH / 2:g}" y="{y - _BOX_HEIGHT / 2:g}" width="{_BOX_WIDTH}" '
        f'height="{_BOX_HEIGHT}" rx="7"/>'
        f'<text x="{x:g}" y="{y + 4.5:g}">{escape(stage.name)}</text></g>'
    )
