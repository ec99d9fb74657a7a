"""Draws fundus phantoms: photographs that look like a retina, with the exact vessel and FOV masks.

An eye is geometry and appearance in units of the FOV radius (`pipeline.phantom_vessels` grows the vessels);
the image size only decides how finely it is sampled, so that (seed, index) is the same eye at every size.
Vessels are drawn once, at a multiple of the image size: the mask holds the pixels whose area they cover by at
least one half, and the photograph is the background dimmed by the blood in the same vessels.
"""

import functools
import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.errors import Problems
from pipeline.phantom_vessels import Anatomy, Kind, Vessel, grow_vessels, random_anatomy

MIN_SIZE = 32
"""Smallest image side in pixels: below it no vessel covers half a pixel."""

_COARSE_CANVAS, _FINE_CANVAS = 768, 2400  # widths in pixels of the canvas that vessels are drawn on
_SHIFT = 4  # OpenCV's fixed-point coordinates: 1/16 of a canvas pixel
_CHUNK = 8  # phantoms per message between processes
_NATIVE = 584.0  # height of a DRIVE image, where the sensor noise was measured

# Statistics of the training images of DRIVE (Staal et al. 2004), RGB: logarithm of the median colour inside
# the FOV, its standard deviation and correlation between images; absorbance of a vessel 7 px across.
_LOG_COLOUR = np.array([5.21, 4.55, 4.00])
_LOG_COLOUR_STD = np.array([0.19, 0.22, 0.25])
_LOG_COLOUR_CORRELATION = np.array([[1.0, 0.76, 0.61], [0.76, 1.0, 0.86], [0.61, 0.86, 1.0]])
_BRIGHTEST = 226.0  # a brighter red would saturate all over and hide the vessels
_ABSORBANCE = np.array([0.11, 0.34, 0.23])
_ABSORBANCE_DIAMETER = 0.026  # 7 px in FOV radii

FloatArray = NDArray[np.float32]
_DrawChunk = Callable[[Sequence[int]], list["Phantom"]]


@dataclass(frozen=True)
class Phantom:
    """One phantom photograph with its truth.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        vessels: bool [H, W], true where vessels cover at least half of the pixel; only inside `fov`.
        fov: bool [H, W], the field of view.
    """

    image: NDArray[np.uint8]
    vessels: NDArray[np.bool_]
    fov: NDArray[np.bool_]


@dataclass(frozen=True)
class _Frame:
    """How the camera frames the eye: maps FOV radii to pixels of an image `size` pixels wide.

    Attributes:
        size: image side in pixels.
        centre: centre of the FOV (x, y) as a fraction of the side.
        radius: FOV radius as a fraction of the side.
        mirror: −1 for the eye whose disc is on the left, else 1.
        tab: whether the camera's orientation mark, a small tab, sticks out at the upper right.
        cut: the camera's mask cuts the circle at |y| > cut FOV radii (1: a full circle).
    """

    size: int
    centre: tuple[float, float]
    radius: float
    mirror: float
    tab: bool
    cut: float

    def grid(self) -> tuple[FloatArray, FloatArray]:
        """Pixel centres in the eye's coordinates: x and y, float32 [H, W] each."""
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        x = self.mirror * (axis - self.centre[0]) / self.radius
        y = (axis - self.centre[1]) / self.radius
        return np.broadcast_to(x[None, :], (self.size,) * 2), np.broadcast_to(y[:, None], (self.size,) * 2)

    def distance(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Distance from the centre of the FOV, stretched so that it is below 1 exactly inside cut and tab."""
        distance = np.maximum(np.hypot(x, y), 1.0 + np.abs(y) - np.float32(self.cut))
        if self.tab:
            corner = np.float32(math.sqrt(0.5))
            tab = 0.95 + np.hypot(x - np.float32(self.mirror) * corner, y + corner)
            distance = np.minimum(distance, tab)
        return distance

    def to_pixels(self, points: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
        """Eye coordinates [..., 2] to pixel indices (x, y) on a canvas `scale` times as fine."""
        side = self.size * scale
        x = (self.centre[0] + self.mirror * self.radius * points[..., 0]) * side - 0.5
        y = (self.centre[1] + self.radius * points[..., 1]) * side - 0.5
        return np.stack([x, y], axis=-1)


def draw_phantom(seed: int, index: int, size: int, blood: float = 1.0) -> Phantom:
    """Draw one phantom.

    Args:
        seed: seed of the collection, ≥ 0.
        index: number of the phantom within the collection, ≥ 0.
        size: side of the square image in pixels, at least 32.
        blood: factor on the absorbance of the vessels: 1 as in DRIVE, more for darker vessels, > 0. The
            masks do not depend on it.

    Returns:
        The phantom: it depends on the arguments only, and the eye on seed and index only.

    Raises:
        UserError: if an argument is out of range.
    """
    _check(seed, [index], size, blood=blood)
    streams = np.random.SeedSequence([seed, index]).spawn(3)
    anatomy_rng, look_rng, sensor_rng = (np.random.default_rng(stream) for stream in streams)
    anatomy = random_anatomy(anatomy_rng)
    vessels = grow_vessels(anatomy_rng, anatomy)
    frame = _random_frame(look_rng, size)

    x, y = frame.grid()
    distance = frame.distance(x, y)
    fov = distance < 1.0
    image = _retina(look_rng, anatomy, x, y)
    coverage, absorbance = _draw_vessels(vessels, frame, look_rng)
    colour = np.float32(blood) * _ABSORBANCE.astype(np.float32) * _random_tint(look_rng)
    image *= np.exp(-absorbance[..., None] * colour)
    photograph = _photograph(image, distance, x, frame, look_rng, sensor_rng)
    return Phantom(image=photograph, vessels=(coverage >= 0.5) & fov, fov=fov)


def draw_phantoms(
    seed: int,
    indices: Sequence[int],
    size: int,
    processes: int = 1,
    progress: bool = False,
    blood: float = 1.0,
) -> Iterator[Phantom]:
    """Draw many phantoms, in order, in parallel.

    Args:
        seed: seed of the collection, ≥ 0.
        indices: numbers of the phantoms, each ≥ 0.
        size: side of the square images in pixels, at least 32.
        processes: worker processes; 1 draws in this process. It never changes the result.
        progress: show a progress bar on stderr.
        blood: factor on the absorbance of the vessels, as in `draw_phantom`.

    Returns:
        An iterator over the phantoms in the order of `indices`. Only a few chunks are drawn ahead of the
        reader, so memory does not grow with their number. With several processes a script needs the usual
        `if __name__ == "__main__":` guard, because workers are started afresh (spawn).

    Raises:
        UserError: if an argument is out of range (at once, not at the first phantom).
    """
    _check(seed, indices, size, processes, blood)
    draw = functools.partial(_draw_chunk, seed=seed, size=size, blood=blood)
    phantoms = _in_process(draw, indices) if processes == 1 else _pooled(draw, indices, processes)
    if progress:
        return iter(tqdm(phantoms, total=len(indices), desc="drawing phantoms", unit="image"))
    return phantoms


def _in_process(draw: _DrawChunk, indices: Sequence[int]) -> Iterator[Phantom]:
    for index in indices:
        yield from draw([index])


def _pooled(draw: _DrawChunk, indices: Sequence[int], processes: int) -> Iterator[Phantom]:
    chunks = [list(indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK)]
    context = multiprocessing.get_context("spawn")  # fork is unsafe once OpenCV or torch run threads
    pending: deque[Future[list[Phantom]]] = deque()
    with ProcessPoolExecutor(
        min(processes, max(1, len(chunks))), mp_context=context, initializer=_start_worker
    ) as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(draw, chunk))
                if len(pending) > 2 * processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:  # the reader stopped early
                future.cancel()


def _start_worker() -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism


def _draw_chunk(indices: Sequence[int], seed: int, size: int, blood: float) -> list[Phantom]:
    return [draw_phantom(seed, index, size, blood) for index in indices]


def _check(seed: int, indices: Sequence[int], size: int, processes: int = 1, blood: float = 1.0) -> None:
    """Report every argument that is out of range."""
    problems = Problems("cannot draw phantoms")
    if seed < 0:
        problems.add(f"seed: got {seed}; expected an integer of at least 0")
    negative = [index for index in indices if index < 0]
    if negative:
        problems.add(f"index: got {negative[0]}; expected integers of at least 0")
    if size < MIN_SIZE:
        problems.add(f"size: got {size} px; expected at least {MIN_SIZE} (smaller images show no vessels)")
    if processes < 1:
        problems.add(f"processes: got {processes}; expected at least 1 (1 draws without worker processes)")
    if not 0 < blood < math.inf:
        problems.add(f"blood: got {blood}; expected a finite factor > 0 (1 = as in DRIVE)")
    problems.raise_if_any()


# -- framing and colour ------------------------------------------------------------------------------


def _random_frame(rng: np.random.Generator, size: int) -> _Frame:
    """Choose the eye, the size and place of the field of view, and whether the camera cuts it off."""
    mirror = 1.0 if rng.random() < 0.5 else -1.0
    radius = float(rng.uniform(0.455, 0.492))
    slack = 0.5 - radius
    centre = (0.5 + float(rng.uniform(-0.5, 0.5)) * slack, 0.5 + float(rng.uniform(-0.5, 0.5)) * slack)
    tab = bool(rng.random() < 0.5)
    cut = float(rng.uniform(0.93, 0.99))
    return _Frame(size, centre, radius, mirror, tab, cut if rng.random() < 0.15 else 1.0)


def _random_colour(rng: np.random.Generator) -> FloatArray:
    """Colour of a fundus, RGB: correlated log-normal as in DRIVE."""
    root = np.linalg.cholesky(_LOG_COLOUR_CORRELATION)
    z = np.clip(rng.standard_normal(3), -2.0, 2.0)
    colour = np.exp(_LOG_COLOUR + 0.9 * _LOG_COLOUR_STD * (root @ z))
    return np.minimum(colour, _BRIGHTEST).astype(np.float32)


def _random_tint(rng: np.random.Generator) -> FloatArray:
    """How strongly blood shows in this photograph, one factor per channel."""
    return np.exp(rng.normal(0.0, 0.14) + rng.normal(0.0, 0.1, 3)).astype(np.float32)


def _reduce(values: FloatArray, side: int) -> FloatArray:
    """Average a map down to [side, side]."""
    return np.asarray(cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int, x: FloatArray, y: FloatArray) -> FloatArray:
    """Band-limited noise with about unit variance: random values `cells` a side, cubic in between.

    The values belong to places in the eye, so every image size samples the same field. Where the image is
    coarser than the cells, neighbouring values are averaged first, as a sensor would.
    """
    values = rng.standard_normal((cells, cells)).astype(np.float32)
    pixels = 2.2 / abs(float(x[0, 1] - x[0, 0]))
    if cells > pixels:
        cells = max(8, int(pixels))
        values = _reduce(values, cells)
    scale = np.float32(cells / 2.2)
    map_x, map_y = (x + np.float32(1.1)) * scale - 0.5, (y + np.float32(1.1)) * scale - 0.5
    field = cv2.remap(values, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(field, dtype=np.float32)


def _blob(x: FloatArray, y: FloatArray, centre: tuple[float, float], sigma: float) -> FloatArray:
    """Gaussian bump of height 1."""
    square = (x - np.float32(centre[0])) ** 2 + (y - np.float32(centre[1])) ** 2
    return np.exp(-square / np.float32(2 * sigma**2))


def _retina(rng: np.random.Generator, anatomy: Anatomy, x: FloatArray, y: FloatArray) -> FloatArray:
    """The fundus without its retinal vessels: float32 RGB [H, W, 3] in grey levels."""
    light = _illumination(rng, x, y)
    haze = rng.uniform(0.05, 0.2) * _blob(x, y, anatomy.disc, 0.42)  # nerve fibres are thickest at the disc
    macula = rng.uniform(0.1, 0.3) * _blob(x, y, anatomy.fovea, rng.uniform(0.15, 0.24))
    fovea = rng.uniform(0.06, 0.22) * _blob(x, y, anatomy.fovea, rng.uniform(0.05, 0.085))
    tint = np.array([0.75, 1.0, 0.9], np.float32)
    shade = (haze - macula - fovea)[..., None] * tint

    # choroid: soft mottling, and in some eyes the larger choroidal vessels shine through as orange bands
    mottling = 0.012 * _smooth_noise(rng, 14, x, y) + 0.012 * _smooth_noise(rng, 56, x, y)
    grain = 0.012 * _smooth_noise(rng, 150, x, y) + 0.012 * _smooth_noise(rng, 260, x, y)
    bands = 0.5 - np.abs(_smooth_noise(rng, 26, x, y))
    bands *= rng.uniform(0.0, 1.0) ** 3 * 0.07 * (1.0 - _blob(x, y, anatomy.fovea, 0.4))
    texture = (mottling + grain)[..., None] + bands[..., None] * np.array([0.6, 1.0, 1.1], np.float32)

    image = _random_colour(rng) * light * (1.0 + shade) * (1.0 + texture)
    return _add_disc(rng, anatomy, image, x, y)


def _illumination(rng: np.random.Generator, x: FloatArray, y: FloatArray) -> FloatArray:
    """Uneven flash light: vignetting, a tilt, broad patches, and a greenish or reddish cast at the rim."""
    radius2 = x * x + y * y
    direction = rng.uniform(0, 2 * math.pi)
    tilt = rng.uniform(0.0, 0.24) * (
        x * np.float32(math.cos(direction)) + y * np.float32(math.sin(direction))
    )
    patches = rng.uniform(0.03, 0.09) * _smooth_noise(rng, 5, x, y)
    off = rng.normal(0.0, 0.1, 2).astype(np.float32)
    falloff = ((x - off[0]) ** 2 + (y - off[1]) ** 2) ** np.float32(1.4) - np.float32(0.42)  # mean about 0
    vignette = (
        np.float32(rng.uniform(0.12, 0.45)) * falloff[..., None] * np.array([1.0, 0.55, 0.35], np.float32)
    )
    light = (1.03 + tilt + patches)[..., None] - vignette
    cast = rng.normal(0.0, 0.05, 3).astype(np.float32)
    hue = rng.normal(0.0, 0.02, 3).astype(np.float32) * _smooth_noise(rng, 4, x, y)[..., None]
    return np.maximum(light, 0.25) * (1.0 + cast * (radius2 - 0.5)[..., None] + hue)


def _add_disc(
    rng: np.random.Generator, anatomy: Anatomy, image: FloatArray, x: FloatArray, y: FloatArray
) -> FloatArray:
    """Lay the optic disc over the fundus: a yellowish rim around a pale cup."""
    (xd, yd), height = anatomy.disc, anatomy.disc_radius
    width = height * rng.uniform(0.84, 0.97)
    tilt = rng.uniform(-0.25, 0.25)
    u = np.float32(math.cos(tilt)) * (x - np.float32(xd)) + np.float32(math.sin(tilt)) * (y - np.float32(yd))
    v = np.float32(math.cos(tilt)) * (y - np.float32(yd)) - np.float32(math.sin(tilt)) * (x - np.float32(xd))
    wobble = 1.0 + 0.05 * _smooth_noise(rng, 9, x, y)
    reach = np.hypot(u / np.float32(width), v / np.float32(height)) * wobble
    softness = rng.uniform(0.03, 0.075)
    disc = 1.0 / (1.0 + np.exp(np.clip((reach - 1.0) / np.float32(softness), -30, 30)))
    cup_size = rng.uniform(0.35, 0.6)
    shift = np.float32(-0.12 * width)  # the cup sits a little temporal of the middle
    cup = np.hypot((u - shift) / np.float32(width * cup_size), v / np.float32(height * cup_size))
    cup = 1.0 / (1.0 + np.exp(np.clip((cup - 1.0) / np.float32(0.22), -30, 30)))

    red = np.float32(np.exp(_LOG_COLOUR[0]))
    brightness = float(np.clip(image[..., 0].mean() / red / 0.75, 0.8, 1.12))
    rim_colour = brightness * (np.array([232, 172, 88]) + rng.normal(0, [8, 12, 10])).astype(np.float32)
    cup_colour = brightness * (np.array([250, 226, 150]) + rng.normal(0, [5, 10, 18])).astype(np.float32)
    temporal = np.clip(-u / np.float32(width), -1, 1)[..., None]  # the temporal rim is thinner and paler
    colour = rim_colour * (1.0 + 0.07 * temporal) + (cup_colour - rim_colour) * cup[..., None]
    colour = colour * (1.0 + 0.025 * _smooth_noise(rng, 60, x, y))[..., None]
    opacity = (rng.uniform(0.82, 0.95) * disc)[..., None]
    return image + opacity * (colour - image)


# -- vessels -----------------------------------------------------------------------------------------


def _draw_vessels(
    vessels: list[Vessel], frame: _Frame, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw both trees on a fine canvas and average it down to the image.

    Returns:
        Two float32 [H, W] maps: covered area in [0, 1], and absorbance relative to a vessel 7 px across in
        DRIVE (lower along the light reflex on the axis of a vessel).
    """
    scale = max(2, math.ceil(_COARSE_CANVAS / frame.size), min(4, math.ceil(_FINE_CANVAS / frame.size)))
    side = frame.size * scale
    pixel = 1.0 / (frame.radius * side)  # of the canvas, in FOV radii
    covered = np.zeros((side, side), np.uint8)
    absorbance = np.zeros((side, side), np.float32)
    kinds: tuple[Kind, ...] = ("vein", "artery")
    for kind in kinds:
        strength = rng.uniform(0.95, 1.2) if kind == "vein" else rng.uniform(0.68, 0.88)
        glint = rng.uniform(0.05, 0.15) if kind == "vein" else rng.uniform(0.25, 0.55)
        radius = _radius_map([v for v in vessels if v.kind == kind], frame, scale)
        inside = radius > 0
        covered |= inside.view(np.uint8)
        edge = cv2.distanceTransform(inside.view(np.uint8), cv2.DIST_L2, 3)[inside] * np.float32(pixel)
        r = radius[inside]
        across = np.clip(1.0 - edge / r, 0.0, 1.0)  # 0 on the axis, 1 at the wall
        depth = 2.0 * r * np.sqrt(1.0 - 0.98 * across**2)  # of blood in the line of sight
        wide = np.clip((r - 0.0045) / 0.004, 0.0, 1.0)  # the reflex shows on wide vessels only
        single = edge < 1.2 * r  # no reflex where vessels merge into one broad patch
        reflex = np.float32(glint) * wide * single * np.exp(-((across / 0.3) ** 2))
        dimming = np.float32(strength) * (depth / np.float32(_ABSORBANCE_DIAMETER)) ** 0.68
        absorbance[inside] += dimming * (1.0 - reflex)
    return _reduce(covered.astype(np.float32), frame.size), _reduce(absorbance, frame.size)


def _radius_map(vessels: list[Vessel], frame: _Frame, scale: int) -> FloatArray:
    """Canvas [S·H, S·W] with the radius of the vessel that covers a pixel, in FOV radii, and 0 elsewhere.

    Where vessels overlap the wider one wins.
    """
    side, one = frame.size * scale, 1 << _SHIFT
    canvas = np.zeros((side, side), np.float32)
    owner = np.repeat(np.arange(len(vessels)), [len(vessel.radii) for vessel in vessels])
    radii = np.concatenate([vessel.radii for vessel in vessels])
    points = frame.to_pixels(np.concatenate([vessel.points for vessel in vessels]), scale)
    # OpenCV also fills the pixels that an outline touches: half a pixel on either side is taken off
    reach = np.maximum(radii * frame.radius * side - 0.5, 0.3)[:, None]

    start = np.flatnonzero(owner[:-1] == owner[1:])  # a piece joins two neighbours of the same vessel
    end = start + 1
    along = points[end] - points[start]
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.hypot(along[:, 0], along[:, 1])[:, None]
    sides = [(start, 1), (end, 1), (end, -1), (start, -1)]
    pieces = np.stack([points[i] + sign * reach[i] * normal for i, sign in sides], axis=1)
    quads = np.round(pieces * one).astype(np.int32)
    joints = np.round(np.concatenate([points, reach], axis=1) * one).astype(np.int32).tolist()

    values = np.concatenate([0.5 * (radii[start] + radii[end]), radii])
    for i in np.argsort(values, kind="stable").tolist():
        value = float(values[i])
        if i < len(quads):
            cv2.fillConvexPoly(canvas, quads[i], value, cv2.LINE_8, _SHIFT)
        else:
            x, y, radius = joints[i - len(quads)]
            cv2.circle(canvas, (x, y), radius, value, cv2.FILLED, cv2.LINE_8, _SHIFT)
    return canvas


# -- camera ------------------------------------------------------------------------------------------


def _photograph(
    image: FloatArray,
    distance: FloatArray,
    x: FloatArray,
    frame: _Frame,
    look_rng: np.random.Generator,
    sensor_rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Optical blur, the edge of the field of view with its colour fringe, and sensor noise."""
    radius = frame.radius * frame.size
    blur = look_rng.uniform(0.0013, 0.0035) * radius  # 0.35 to 0.9 px in DRIVE
    if blur > 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), dtype=np.float32)
    softness = max(0.006, 0.7 / radius)
    fringe = look_rng.normal(0.0, 0.0025) * np.array(
        [1.0, 0.0, -1.0], np.float32
    )  # lateral chromatic aberration
    edge = (distance[..., None] + x[..., None] * fringe - 1.0) / np.float32(softness)
    inside = np.clip(0.5 - 0.5 * edge, 0.0, 1.0)
    rim = 1.0 + look_rng.uniform(0.0, 0.08) * np.exp(-(((distance[..., None] - 0.985) / 0.012) ** 2))
    dark = look_rng.uniform(2.0, 9.0)
    image = image * rim * inside + np.float32(dark) * (1.0 - inside)

    level = look_rng.uniform(1.6, 2.6) * min(1.0, math.sqrt(frame.size / _NATIVE))
    grey = sensor_rng.standard_normal((frame.size, frame.size, 1), dtype=np.float32)
    colour = sensor_rng.standard_normal((frame.size, frame.size, 3), dtype=np.float32)
    noise = np.float32(level) * (0.6 * grey + 0.8 * colour) * (0.35 + 0.65 * inside)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
