"""Grows the two vascular trees of a fundus phantom: arteries and veins as centrelines with radii.

Everything is geometry in units of the FOV radius: origin at the centre of the field of view, x to the right,
y down, the optic disc on the right (drawing mirrors it for the other eye). Vessels grow step by step, the
thickest first. A vessel steers along its arcade (trunks) or towards the tissue that it feeds (branches), away
from tissue that is already supplied, and forks by two laws:

- Murray (1926), "The physiological principle of minimum work. I": ``r0³ = r1³ + r2³``.
- Murray (1926), "The physiological principle of minimum work applied to the angle of branching of arteries":
  ``cos θ1 = (r0⁴ + r1⁴ − r2⁴) / (2 r0² r1²)``, and θ2 likewise with r1 and r2 exchanged.

The arcades follow a parabola with its vertex at the disc, as in Foracchia, Grisan & Ruggeri (2004),
"Detection of optic disc in retinal images by means of a geometrical model of vessel structure".
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["artery", "vein"]
Point = tuple[float, float]

MIN_RADIUS = 0.0024
"""Radius in FOV radii below which a vessel is not drawn: 1.3 px across in DRIVE (FOV radius 267 px)."""

_FORKING_RADIUS = 1.3 * MIN_RADIUS  # a thinner vessel has no daughters thick enough to see
_STEP = 0.018
_REACH = 1.04  # grow a little past the edge of the FOV, so that vessels are cut by it and do not end at it
_CELL = 0.03
_GRID = 76  # cells a side: covers ±1.14
_MACULAR_RADIUS = 0.0075
_AVASCULAR = 0.11  # no visible vessel closer than this to the fovea


@dataclass(frozen=True)
class Anatomy:
    """Where things lie in one eye, in FOV radii.

    Attributes:
        disc: centre of the optic disc (x > 0).
        disc_radius: half the height of the optic disc.
        fovea: centre of the macula.
        spread: height of the arcades above and below the disc where they pass the fovea.
        tortuosity: 1 is an ordinary eye; scales how much vessels wind.
        richness: 1 is an ordinary eye; scales how closely branches follow one another.
    """

    disc: Point
    disc_radius: float
    fovea: Point
    spread: tuple[float, float]
    tortuosity: float
    richness: float


@dataclass(frozen=True)
class Vessel:
    """One vessel between two forks (or up to its end).

    Attributes:
        kind: artery or vein.
        points: centreline, float64 [N, 2] as (x, y) in FOV radii, N ≥ 2.
        radii: radius at each point, float64 [N] in FOV radii.
        parent: index of the vessel that it leaves, or −1 at the disc. A vessel has no children or two.
        heading: initial direction in radians (x right, y down), exactly as set by the branching law.
        final_heading: direction at the last point.
    """

    kind: Kind
    points: NDArray[np.float64]
    radii: NDArray[np.float64]
    parent: int
    heading: float
    final_heading: float


@dataclass
class _Tip:
    """A growing end: what `_Grower` needs to know in order to continue it."""

    kind: Kind
    position: Point
    heading: float
    radius: float
    parent: int
    inner: bool
    guide: list[Point] = field(default_factory=list)


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of one macula-centred photograph with a field of view of about 45°.

    Args:
        rng: source of randomness.

    Returns:
        Positions around those of DRIVE: the fovea near the centre, the disc 0.7 FOV radii (16°) nasal.
    """
    disc = (float(rng.normal(0.73, 0.045)), float(np.clip(rng.normal(-0.06, 0.09), -0.26, 0.2)))
    fovea = (disc[0] - float(rng.normal(0.71, 0.03)), disc[1] + float(rng.normal(0.09, 0.035)))
    return Anatomy(
        disc=disc,
        disc_radius=float(np.clip(rng.normal(0.157, 0.014), 0.125, 0.19)),
        fovea=fovea,
        spread=(float(rng.uniform(0.52, 0.76)), float(rng.uniform(0.52, 0.76))),
        tortuosity=float(np.exp(rng.normal(0.0, 0.25))),
        richness=float(np.exp(rng.normal(0.06, 0.28))),
    )


# ------------------------------------------------------------------------------------------------
# Murray (1926): radii and angles of a fork that cost the least work.
def fork_radii(radius: float, asymmetry: float) -> tuple[float, float]:
    """Radii of the two daughters by r0³ = r1³ + r2³.

    Args:
        radius: r0 > 0 of the parent.
        asymmetry: r2 / r1 in (0, 1].

    Returns:
        (r1, r2), the larger first.
    """
    larger = radius / (1.0 + asymmetry**3) ** (1.0 / 3.0)
    return larger, asymmetry * larger


def fork_angles(radius: float, larger: float, smaller: float) -> tuple[float, float]:
    """Angles between the parent's direction and its daughters, by minimum work.

    Args:
        radius: r0 of the parent.
        larger: r1.
        smaller: r2.

    Returns:
        (θ1, θ2) in radians, both ≥ 0; the daughters turn to opposite sides.
    """
    r0, r1, r2 = radius**4, larger**4, smaller**4
    cos1 = (r0 + r1 - r2) / (2.0 * math.sqrt(r0 * r1))
    cos2 = (r0 + r2 - r1) / (2.0 * math.sqrt(r0 * r2))
    return math.acos(min(1.0, max(-1.0, cos1))), math.acos(min(1.0, max(-1.0, cos2)))


# ------------------------------------------------------------------------------------------------


def grow_vessels(rng: np.random.Generator, anatomy: Anatomy) -> list[Vessel]:
    """Grow the arteries and veins of one eye.

    Args:
        rng: source of randomness.
        anatomy: where disc and fovea lie.

    Returns:
        The vessels; every parent comes before its children.
    """
    return _Grower(rng, anatomy).grow()


def _wrap(angle: float) -> float:
    """The same angle in [−π, π)."""
    return (angle + math.pi) % (2.0 * math.pi) - math.pi


def _arcade(rng: np.random.Generator, anatomy: Anatomy, side: int, weave: float) -> list[Point]:
    """Guide of a temporal trunk: parabola with its vertex at the disc, flattened beyond the fovea.

    `weave` displaces it sideways in a slow wave; artery and vein of a pair get opposite signs and so cross.
    """
    x0, y0 = anatomy.disc
    height = anatomy.spread[0 if side < 0 else 1]
    flattening = rng.uniform(0.14, 0.3)
    phase, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(2.5, 5.0)
    u = np.linspace(0.08, 1.5, 48)  # s = u² spaces the points evenly where the parabola is steep
    s = u * u
    rise = height * u**0.86 * (1.0 - flattening * s) / (1.0 - flattening)
    path = np.stack([x0 - 0.78 * s, y0 + side * rise], axis=1)
    tangent = np.gradient(path, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.linalg.norm(
        tangent, axis=1, keepdims=True
    )
    offset = weave * np.sin(frequency * s + phase) * np.minimum(1.0, 3.0 * u)
    return [(float(x), float(y)) for x, y in path + offset[:, None] * normal]


def _ray(start: Point, angle: float, bend: float) -> list[Point]:
    """Guide of a nasal trunk: a gently bending ray."""
    x, y = start
    guide = []
    for _ in range(20):
        x, y = x + 0.05 * math.cos(angle), y + 0.05 * math.sin(angle)
        angle += bend
        guide.append((x, y))
    return guide


class _Grower:
    """State of one eye while its vessels grow: the finished ones, the tips, and how crowded the tissue is."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy) -> None:
        self.rng = rng
        self.anatomy = anatomy
        self.vessels: list[Vessel] = []
        self.tips: list[tuple[float, int, _Tip]] = []
        self.count = 0
        axis = np.arange(-2, 3) * _CELL
        self.stamp = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 0.032**2))
        self.crowd: dict[Kind, NDArray[np.float64]] = {
            "artery": np.zeros((_GRID, _GRID)),
            "vein": np.zeros((_GRID, _GRID)),
        }

    def grow(self) -> list[Vessel]:
        """Plant the trunks and grow every tip, the thickest first."""
        self._plant()
        while self.tips:
            tip = heapq.heappop(self.tips)[2]
            self._extend(tip)
        return self.vessels

    # -- planting ----------------------------------------------------------------------------------

    def _plant(self) -> None:
        """Start the trunks of four quadrants in the disc, and a few thin vessels on its temporal side."""
        rng, (x0, y0) = self.rng, self.anatomy.disc
        kinds: tuple[Kind, ...] = ("vein", "artery")
        calibre: dict[Kind, float] = {
            "vein": rng.uniform(0.0135, 0.0175),
            "artery": rng.uniform(0.0108, 0.0138),
        }
        for side in (-1, 1):
            weave = rng.uniform(0.03, 0.07) * rng.choice([-1.0, 1.0])
            for kind in kinds:
                sign = 1.0 if kind == "vein" else -1.0
                start = (x0 + rng.normal(0.015, 0.012), y0 + side * rng.uniform(-0.012, 0.015))
                guide = _arcade(rng, self.anatomy, side, sign * weave)
                scale = rng.uniform(0.88, 1.08)
                self._push(kind, start, side * math.pi / 2, calibre[kind] * scale, guide)
                angle = side * rng.uniform(0.75, 1.35)
                start = (x0 + rng.normal(0.02, 0.012), y0 + side * rng.uniform(-0.012, 0.015))
                guide = _ray(start, angle, rng.uniform(-0.02, 0.03) * side)
                self._push(kind, start, angle, calibre[kind] * rng.uniform(0.5, 0.75), guide)
        for _ in range(int(rng.integers(1, 5))):
            kind = kinds[int(rng.integers(2))]
            angle = math.pi + rng.uniform(-0.9, 0.9)
            start = (
                x0 + 0.4 * self.anatomy.disc_radius * math.cos(angle),
                y0 + 0.6 * self.anatomy.disc_radius * math.sin(angle),
            )
            self._push(kind, start, angle, rng.uniform(0.003, 0.0055), [])
        for _ in range(int(rng.integers(0, 3))):
            kind = kinds[int(rng.integers(2))]
            self._push(kind, (x0 + 0.03, y0), rng.uniform(-1.0, 1.0), rng.uniform(0.003, 0.005), [])

    def _push(self, kind: Kind, start: Point, heading: float, radius: float, guide: list[Point]) -> None:
        """Queue a vessel that starts in the disc."""
        self._queue(_Tip(kind, start, heading, radius, -1, math.cos(heading) < 0, guide))

    def _queue(self, tip: _Tip) -> None:
        self.count += 1
        heapq.heappush(self.tips, (-tip.radius, self.count, tip))

    # -- growing -----------------------------------------------------------------------------------

    def _crowding(self, kind: Kind, x: float, y: float, other: float) -> float:
        """How well a place is already supplied: by the same kind, plus `other` times the other kind."""
        i, j = int((y + 1.14) / _CELL), int((x + 1.14) / _CELL)
        if not (0 <= i < _GRID and 0 <= j < _GRID):
            return 0.0
        artery, vein = self.crowd["artery"][i, j], self.crowd["vein"][i, j]
        return float(artery + other * vein if kind == "artery" else vein + other * artery)

    def _mark(self, kind: Kind, points: list[Point]) -> None:
        """Note that the tissue along a vessel is supplied."""
        crowd = self.crowd[kind]
        for x, y in points:
            i, j = int((y + 1.14) / _CELL), int((x + 1.14) / _CELL)
            if 2 <= i < _GRID - 2 and 2 <= j < _GRID - 2:
                crowd[i - 2 : i + 3, j - 2 : j + 3] += self.stamp

    def _wanted(self, tip: _Tip, x: float, y: float, heading: float) -> float:
        """Direction that the vessel is drawn to: its guide, the macula (inner) or the periphery (outer)."""
        guide = tip.guide
        while guide and math.hypot(guide[0][0] - x, guide[0][1] - y) < 0.1:
            guide.pop(0)
        if guide:
            return math.atan2(guide[0][1] - y, guide[0][0] - x)
        (xd, yd), (xf, yf) = self.anatomy.disc, self.anatomy.fovea
        if not tip.inner:
            return math.atan2(y - 0.5 * (yd + yf), x - 0.6 * xd - 0.4 * xf)
        dx, dy = xf - x, yf - y
        if math.hypot(dx, dy) < 2.2 * _AVASCULAR:  # go round the fovea on the side that is nearer
            tangent = math.atan2(dy, dx) + math.pi / 2
            return tangent if math.cos(tangent - heading) > 0 else tangent + math.pi
        return math.atan2(dy, -0.3 if dx < 0 else -0.12)  # to the horizontal raphe, in temporal direction

    def _extend(self, tip: _Tip) -> None:
        """Grow one vessel until it forks, leaves the field of view, or finds all tissue supplied."""
        trunk = bool(tip.guide)
        too_thin = tip.radius < _FORKING_RADIUS
        steps = max(3, round(self._length(tip.radius, trunk) / _STEP))
        wander = self.anatomy.tortuosity * (0.055 if trunk else 0.115)
        noise = self.rng.normal(0.0, wander, 8 * steps)
        (x, y), heading, drift = tip.position, tip.heading, 0.0
        points = [(x, y)]
        ended = True
        for taken, kick in enumerate(noise):
            if taken >= steps and (too_thin or self._can_fork(tip, x, y, heading)):
                ended = too_thin
                break
            turn, blocked = self._steer(tip, x, y, heading, fresh=taken < 3)
            drift = 0.7 * drift + float(kick)
            heading = _wrap(heading + max(-0.45, min(0.45, turn + drift)))
            x, y = x + _STEP * math.cos(heading), y + _STEP * math.sin(heading)
            if blocked or self._barred(tip.radius, x, y, heading):
                break
            points.append((x, y))
        self._finish(tip, points, heading, ended)

    def _steer(self, tip: _Tip, x: float, y: float, heading: float, fresh: bool) -> tuple[float, bool]:
        """Turn of the next step in radians, and whether a thin vessel finds nothing left to supply ahead.

        A fresh vessel, still beside its parent, pays no heed to crowding.
        """
        fovea = self.anatomy.fovea
        near = math.hypot(x - fovea[0], y - fovea[1]) < 2.0 * _AVASCULAR
        pull = 0.3 if near else 0.22 if tip.guide else 0.09
        turn = pull * _wrap(self._wanted(tip, x, y, heading) - heading)
        if fresh:
            return turn, False
        thin = tip.radius < 0.0052
        left, ahead, right = (
            self._crowding(tip.kind, x + 0.085 * math.cos(a), y + 0.085 * math.sin(a), 0.75 if thin else 0.25)
            for a in (heading - 0.6, heading, heading + 0.6)
        )
        turn += max(-0.2, min(0.2, (0.05 if tip.guide else 0.16) * (left - right)))
        return turn, thin and ahead > 1.5 and min(left, right) > 0.8

    def _length(self, radius: float, trunk: bool) -> float:
        """Length to the next fork in FOV radii: gamma distributed, longer for thick vessels."""
        mean = (0.175 if trunk else 0.115 + 8.0 * radius) / self.anatomy.richness
        if radius < _FORKING_RADIUS:
            mean = 0.2
        return float(self.rng.gamma(4.0, mean / 4.0))

    def _barred(self, radius: float, x: float, y: float, heading: float) -> bool:
        """Whether a vessel must end before (x, y): out of the field of view, at the fovea or just past it."""
        dx, dy = self.anatomy.fovea[0] - x, self.anatomy.fovea[1] - y
        distance = math.hypot(dx, dy)
        passed = dx * math.cos(heading) + dy * math.sin(heading) < 0 and radius < _MACULAR_RADIUS
        return math.hypot(x, y) > _REACH or distance < (1.6 if passed else 1.0) * _AVASCULAR

    def _can_fork(self, tip: _Tip, x: float, y: float, heading: float) -> bool:
        """Whether a branch would find tissue to supply on either side."""
        return min(self._sides(tip, x, y, heading)) < 1.6

    def _sides(self, tip: _Tip, x: float, y: float, heading: float) -> tuple[float, float]:
        """Crowding where a branch would go, to the left and to the right."""
        left, right = (
            sum(
                self._crowding(tip.kind, x + d * math.cos(heading + a), y + d * math.sin(heading + a), 0.7)
                for d in (0.09, 0.15)
            )
            for a in (-1.1, 1.1)
        )
        return left, right

    def _finish(self, tip: _Tip, points: list[Point], heading: float, ended: bool) -> None:
        """Store the vessel and queue its daughters."""
        if len(points) < 3:
            ended = True
            while len(points) < 3:
                x, y = points[-1]
                points.append(
                    (x + 0.5 * _STEP * math.cos(tip.heading), y + 0.5 * _STEP * math.sin(tip.heading))
                )
        fraction = np.linspace(0.0, 1.0, len(points))
        radii = tip.radius * (1.0 - 0.015 * fraction)  # the many twigs too thin to see take their share
        inside = math.hypot(*points[-1]) < 1.0
        if ended and inside:  # nothing ends bluntly: fade to the thinnest visible vessel
            tail = np.clip(2.0 * fraction - 1.0, 0.0, 1.0)
            radii = radii + tail * np.minimum(0.0, MIN_RADIUS - radii)
        if ended and tip.parent < 0 and len(points) < 8:  # it found no room beside the other trunks
            return
        self._mark(tip.kind, points)
        index = len(self.vessels)
        self.vessels.append(Vessel(tip.kind, np.array(points), radii, tip.parent, tip.heading, heading))
        if not ended:
            self._fork(tip, points[-1], heading, float(radii[-1]), index)

    def _fork(self, tip: _Tip, at: Point, heading: float, radius: float, index: int) -> None:
        """Queue the two daughters: the smaller goes to the side with less supply."""
        rng = self.rng
        smallest = MIN_RADIUS / radius
        left, right = self._sides(tip, *at, heading)
        side = -1.0 if left + rng.normal(0, 0.3) < right else 1.0
        inner = tip.inner
        if tip.guide:  # a branch of an arcade feeds the macula or the periphery, according to its side
            aim, (xf, yf) = heading + side, self.anatomy.fovea
            inner = (xf - at[0]) * math.cos(aim) + (yf - at[1]) * math.sin(aim) > 0
        even = rng.random() < 0.14  # now and then a vessel splits into two of a size
        spread = rng.uniform(0.55, 1.0) if even else rng.beta(1.3, 2.5 if tip.guide else 2.1)
        asymmetry = smallest + (1.0 - smallest) * float(spread)
        if inner:  # the macula has thin vessels only
            asymmetry = min(asymmetry, max(smallest, _MACULAR_RADIUS / radius))
        larger, smaller = fork_radii(radius, asymmetry)
        angle1, angle2 = fork_angles(radius, larger, smaller)
        branch_heading = heading + side * angle2
        for child_heading, r, guide, goal in (
            (heading - side * angle1, larger, tip.guide, tip.inner),
            (branch_heading, smaller, [], inner),
        ):
            self._queue(_Tip(tip.kind, at, child_heading, r, index, goal, guide))
