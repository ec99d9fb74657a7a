"""Verifying a dataset before anything is written: everything is decoded, all problems reported at once."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.errors import Problems, UserError
from pipeline.fov import estimate_fov
from pipeline.images import Array8, ArrayBool, read_gray, read_rgb
from pipeline.prepared import Frame
from pipeline.readers.raw import RawFile, RawItem

_MOST_VESSELS = 0.5  # of the field of view; real labels hold 5 to 20%, more means black on white
_LEAST_INSIDE = 0.9  # of the vessel pixels; real labels lie inside the field of view up to its rim
_LEAST_SIDE = 32  # pixels


def read_item(item: RawItem) -> Frame:
    """Decode an image with its label, and its field of view, estimated if there is no mask.

    Raises:
        UserError: a file is unreadable, the sizes differ, or the label or mask is not usable; all at once.
    """
    problems = Problems(f"{item.image.source} is not usable")
    frame = _read(item, problems)
    problems.raise_if_any()
    assert frame is not None
    return frame


def verify(items: Sequence[RawItem], problems: Problems, *, progress: bool = False) -> None:
    """Decode every image, label and mask and add whatever is wrong to `problems`.

    Found are: unreadable files, sizes that differ, labels that are not binary, empty, full, inverted or of
    another image, empty masks, and duplicates: the same photograph twice, also mirrored or turned by a right
    angle (it would leak from one split into another), and the same label for two photographs.

    Args:
        items: what the reader listed.
        problems: receives one message for each problem.
        progress: whether to show a progress bar on stderr.
    """
    photographs: dict[str, RawItem] = {}
    labels: dict[str, RawItem] = {}
    names: dict[str, RawItem] = {}
    for item in tqdm(items, desc="verifying", unit="image", disable=not progress):
        namesake = names.setdefault(item.id.casefold(), item)
        if namesake is not item:
            problems.add(
                f"{item.image.source}: its name {item.id!r} is taken by {namesake.image.source}; expected "
                "names that differ by more than upper and lower case; rename one"
            )
        frame = _read(item, problems)
        if frame is None:
            continue
        twin = photographs.setdefault(_colour_statistics(frame.image), item)
        if twin is not item:
            problems.add(
                f"{item.image.source}: the same photograph as {twin.image.source}, as it is, mirrored or "
                "turned; expected each photograph once; take the copies out"
            )
        elif frame.vessels is not None and item.vessels is not None:
            owner = labels.setdefault(hashlib.sha256(frame.vessels.tobytes()).hexdigest(), item)
            if owner is not item and owner.vessels is not None:
                problems.add(
                    f"{item.vessels.source}: the same label as {owner.vessels.source}; expected one "
                    "photograph for each label; take augmented copies out, or supply the right label"
                )


def _read(item: RawItem, problems: Problems) -> Frame | None:
    """Decode one item; None, and at least one problem more, if it is not usable."""
    before = len(problems)
    image = _guarded_rgb(item.image, problems)
    label = None if item.vessels is None else _guarded_gray(item.vessels, problems)
    mask = None if item.fov is None else _guarded_gray(item.fov, problems)
    if image is None or len(problems) > before:
        return None
    height, width = image.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        problems.add(
            f"{item.image.source}: {width}×{height} pixels; expected at least {_LEAST_SIDE} on each side"
        )
    for kind, file, array in (("label", item.vessels, label), ("mask", item.fov, mask)):
        if file is not None and array is not None and array.shape != image.shape[:2]:
            problems.add(
                f"{file.source}: a {kind} of {array.shape[1]}×{array.shape[0]} pixels; expected {width}×"
                f"{height} like {item.image.source}; supply it at the image's own size"
            )
    if len(problems) > before:
        return None
    fov = _field_of_view(item, image, mask, problems)
    vessels = None if item.vessels is None or label is None else _binary(item.vessels, label, problems)
    if fov is None or len(problems) > before:
        return None
    if item.vessels is not None and vessels is not None:
        _check_plausible(item.vessels, vessels, fov, is_estimated=item.fov is None, problems=problems)
    return None if len(problems) > before else Frame(item.id, image, vessels, fov)


def _guarded_rgb(file: RawFile, problems: Problems) -> Array8 | None:
    try:
        return read_rgb(file.path)
    except UserError as error:
        problems.add(_by_source(error, file))
        return None


def _guarded_gray(file: RawFile, problems: Problems) -> npt.NDArray[np.unsignedinteger] | None:
    try:
        return read_gray(file.path)
    except UserError as error:
        problems.add(_by_source(error, file))
        return None


def _by_source(error: UserError, file: RawFile) -> str:
    """Name the file as the user knows it: out of a zip file it lies in a temporary folder meanwhile."""
    return str(error).replace(str(file.path), str(file.source))


def _binary(file: RawFile, label: npt.NDArray[np.unsignedinteger], problems: Problems) -> ArrayBool | None:
    """Turn a label of {0, 1} or {0, 255} into bool; others are degraded, or mean something else."""
    levels = [int(level) for level in np.unique(label)]
    if set(levels) <= {0, 1} or set(levels) <= {0, 255}:
        if len(levels) == 2:
            return label != 0
        what = "without a vessel pixel" if levels == [0] else "that is all vessel"
        problems.add(f"{file.source}: a label {what}; expected vessels on background; supply the right file")
        return None
    shown = ", ".join(map(str, levels[:4])) + (", …" if len(levels) > 4 else "")
    hint = (
        "it looks re-coded; use the original file"
        if len(levels) == 2
        else "a lossy format or resizing blurs labels; use the original file, or threshold this one"
    )
    problems.add(
        f"{file.source}: a label of {len(levels)} grey levels ({shown}); expected two, 0 and 255 or 0 and 1; "
        f"{hint}"
    )
    return None


def _field_of_view(
    item: RawItem, image: Array8, mask: npt.NDArray[np.unsignedinteger] | None, problems: Problems
) -> ArrayBool | None:
    if item.fov is None or mask is None:
        try:
            return estimate_fov(image)
        except UserError as error:
            problems.add(f"{item.image.source}: {error}")
            return None
    # A mask's rim may be blurred; half of its brightest value divides inside from outside.
    fov: ArrayBool = mask > int(mask.max()) // 2
    if not fov.any():
        problems.add(
            f"{item.fov.source}: a field of view without a pixel; expected the lit disc; supply the right "
            "file, or leave all masks out to have them estimated"
        )
        return None
    return fov


def _check_plausible(
    file: RawFile, vessels: ArrayBool, fov: ArrayBool, *, is_estimated: bool, problems: Problems
) -> None:
    share = float(vessels[fov].mean())
    inside = float(fov[vessels].mean())
    if share > _MOST_VESSELS:
        problems.add(
            f"{file.source}: {share:.0%} of the field of view is vessel; expected 5 to 20%; if the label is "
            "black on white, invert it"
        )
    elif inside < _LEAST_INSIDE:
        cause = (
            "the label belongs to another image, or the estimated field of view is wrong: supply masks then"
            if is_estimated
            else "the label or the mask belongs to another image, or the mask is inverted"
        )
        problems.add(
            f"{file.source}: {1 - inside:.0%} of the vessel pixels lie outside the field of view; expected "
            f"almost none; {cause}"
        )


def _colour_statistics(image: Array8) -> str:
    """Return a hash that mirroring and turning by right angles leave alone: the channels' histograms."""
    digest = hashlib.sha256(repr(sorted(image.shape[:2])).encode())
    for channel in range(3):
        digest.update(np.bincount(image[..., channel].ravel(), minlength=256).astype(np.int64).tobytes())
    return digest.hexdigest()
