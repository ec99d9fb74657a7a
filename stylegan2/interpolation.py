"""Closed walks through the latent space, as GIF or MP4."""

import io
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.networks.generator import Generator
from stylegan2.sampling import (
    BATCH,
    class_label,
    latent,
    raise_problems,
    sampling_problems,
    seeds_to_ws,
)

SPACES = ("w", "z")
SUFFIXES = (".gif", ".mp4")
MAX_FRAMES = 100_000
MAX_GIF_FPS = 50  # viewers slow a GIF down whose frames last less than 20 ms
MAX_FPS = 240


def closed_spline(keys: NDArray[np.floating], frames_per_segment: int) -> NDArray[np.float64]:
    """Walk smoothly through the key points and back to the first.

    A cubic spline with periodic ends: place, speed and acceleration are continuous, also where it closes.

    Args:
        keys: [K, …], K ≥ 2.
        frames_per_segment: steps from one key point to the next.

    Returns:
        [K · frames_per_segment, …]; row k · frames_per_segment is key point k.

    Raises:
        StyleGAN2Error: for fewer than two key points, or less than one frame.
    """
    if len(keys) < 2 or frames_per_segment < 1:
        raise StyleGAN2Error(
            f"got {len(keys)} key points and {frames_per_segment} frames per segment; expected at least 2 "
            "and at least 1"
        )
    knots = np.arange(len(keys) + 1)
    spline = CubicSpline(knots, np.concatenate([keys, keys[:1]]), bc_type="periodic")
    places = np.arange(len(keys) * frames_per_segment) / frames_per_segment
    return np.asarray(spline(places), np.float64)


def interpolate_ws(
    generator: Generator,
    seeds: Sequence[int],
    frames_per_segment: int,
    truncation_psi: float = 1.0,
    *,
    space: str = "w",
    class_index: int | None = None,
    truncation_cutoff: int | None = None,
) -> Tensor:
    """Compute the latents of a closed walk through the images of the seeds.

    Args:
        generator: from `sampling.load_generator`.
        seeds: at least two; one may occur again.
        frames_per_segment: frames from one seed to the next.
        truncation_psi: 1 = full variety, 0 = the mean image.
        space: `w` (even changes) or `z` (passes through what the network was trained on: the spline's points
            are brought back to the sphere by the mapping network's normalisation).
        class_index: the class to draw; None exactly when the generator has no classes.
        truncation_cutoff: truncate only this many of the first layers; None = all.

    Returns:
        float32 [len(seeds) · frames_per_segment, num_ws, w_dim] on the processor.

    Raises:
        StyleGAN2Error: for arguments out of range.
    """
    if space not in SPACES:
        raise StyleGAN2Error(f"space: got {space!r}, expected one of {', '.join(SPACES)}")
    if len(seeds) * frames_per_segment > MAX_FRAMES:
        raise StyleGAN2Error(
            f"got {len(seeds)} seeds × {frames_per_segment} frames, expected at most {MAX_FRAMES} frames"
        )
    if space == "w":
        keys = seeds_to_ws(
            generator, seeds, truncation_psi, class_index=class_index, truncation_cutoff=truncation_cutoff
        )
        return torch.from_numpy(closed_spline(keys.cpu().numpy(), frames_per_segment).astype(np.float32))
    problems = sampling_problems(
        generator, seeds, truncation_psi, class_index=class_index, truncation_cutoff=truncation_cutoff
    )
    raise_problems(problems)
    label = class_label(generator, class_index)
    z_keys = torch.cat([latent(seed, generator.z_dim) for seed in seeds]).numpy()  # [K, z_dim]
    # Points of equal length, so that no seed pulls harder than another.
    z_keys = z_keys / np.linalg.norm(z_keys, axis=1, keepdims=True)
    walk = torch.from_numpy(closed_spline(z_keys, frames_per_segment).astype(np.float32))
    walk = walk * generator.z_dim**0.5  # length of a typical latent: the normalisation's ε stays negligible
    device = next(generator.parameters()).device
    parts = []
    with torch.no_grad():
        for z in walk.split(BATCH):
            labels = None if label is None else label.expand(len(z), -1)
            ws = generator.mapping(
                z.to(device), labels, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff
            )
            parts.append(ws.cpu())
    return torch.cat(parts)


def video_problems(path: Path, fps: float) -> list[str]:
    """Name everything that keeps `write_video` from writing to `path` at `fps` frames a second."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return [f"{path}: expected a file name ending in {' or '.join(SUFFIXES)}"]
    most = MAX_GIF_FPS if suffix == ".gif" else MAX_FPS
    if not 0 < fps <= most:
        return [f"fps: got {fps:g}, expected more than 0 and at most {most} in a {suffix[1:].upper()}"]
    return []


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """Write an endlessly repeating GIF, or an MP4, complete or not at all.

    Args:
        path: ends in .gif or .mp4.
        frames: uint8 [H, W, 1 or 3] each, at least one; they may come one at a time.
        fps: frames a second. A GIF counts in hundredths of a second; its frames take turns so that the mean
            is right.

    Raises:
        StyleGAN2Error: for another suffix or speed, no frame, or when no MP4 encoder is there.
    """
    raise_problems(video_problems(path, fps))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        _write_gif(path, frames, fps)
    else:
        _write_mp4(path, frames, fps)


def _write_gif(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    # Quantised at once: a palette image takes a third of the memory, and Pillow needs the list of durations.
    pictures = [_palette_image(frame) for frame in frames]
    if not pictures:
        raise StyleGAN2Error(f"{path}: no frames to write")
    ticks = [round(100 * index / fps) for index in range(len(pictures) + 1)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(ticks)]
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=1
    )
    write_atomically(path, encoded.getvalue())


def _palette_image(frame: NDArray[np.uint8]) -> Image.Image:
    if frame.shape[2] == 1:
        return Image.fromarray(frame[:, :, 0])
    # Dithering would flicker from frame to frame.
    return Image.fromarray(frame).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _write_mp4(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    import cv2  # here, since it is needed for nothing else in this package

    # The encoder chooses the container by the suffix.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    writer = None
    try:
        for frame in frames:
            height, width = frame.shape[:2]
            if writer is None:
                writer = cv2.VideoWriter(
                    str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height)
                )
                if not writer.isOpened():
                    raise StyleGAN2Error(
                        f"{path}: this OpenCV has no encoder for MP4 at {width}×{height}, {fps:g} fps; write "
                        "a .gif instead"
                    )
            colours = np.broadcast_to(frame, (height, width, 3))[:, :, ::-1]  # RGB or grey to BGR
            writer.write(np.ascontiguousarray(colours))
        if writer is None:
            raise StyleGAN2Error(f"{path}: no frames to write")
        writer.release()
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise StyleGAN2Error(f"{path}: OpenCV wrote no video; write a .gif instead")
        temporary.replace(path)
    finally:
        if writer is not None:
            writer.release()
        temporary.unlink(missing_ok=True)
