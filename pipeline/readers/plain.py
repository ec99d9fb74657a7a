"""A person's own data: `images/`, `labels/` and, if there are any, `masks/`, matched by file name.

    images/a.png  labels/a.png  [masks/a.png]          no split: the test images are drawn
    train/images/… train/labels/…  test/images/… test/labels/…          the test images are given
    train/images/… train/labels/…  test/images/…          as before, but test/ is only predicted

`masks/` holds fields of view; they are estimated where a part has none. Suffixes may differ (a.jpg, a.png).
"""

from pipeline.errors import Problems
from pipeline.readers.raw import OfficialSplit, RawFile, RawFolder, RawItem, pair

LAYOUT = "images/ and labels/ [and masks/] with files of the same names, or train/ and test/ with these each"
_KINDS = ("images", "labels", "masks")
_PARTS = ("train", "test")


def read_plain(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List a plain folder's images; every image counts as a patient of its own."""
    groups = _group(folder, problems)
    parts = {part for part, kind in groups if kind == "images"}
    if not parts:
        problems.add(f"{folder.path}: no image in images/; expected {LAYOUT}")
    if "" in parts and len(parts) > 1:
        problems.add(f"{folder.path}: images/ both by itself and in train/ or test/; expected {LAYOUT}")
    items: list[RawItem] = []
    for part in sorted(parts):
        has_labels = bool(groups.get((part, "labels"))) or part != "test"
        others = {"label": groups.get((part, "labels"), [])} if has_labels else {}
        if (part, "masks") in groups:
            others["mask"] = groups[part, "masks"]
        for name, files in pair(groups[part, "images"], others, lambda file: file.stem, problems).items():
            item_id = f"{part}_{name}" if part else name
            items.append(
                RawItem(
                    id=item_id,
                    image=files["image"],
                    vessels=files.get("label"),
                    fov=files.get("mask"),
                    patient=item_id,
                    split=_official_split(part, groups),
                )
            )
    return items


_Groups = dict[tuple[str, str], list[RawFile]]


def _group(folder: RawFolder, problems: Problems) -> _Groups:
    """Sort the files by part (`train`, `test`, or "" for none) and kind; report those of neither."""
    groups: _Groups = {}
    for file in folder.images():
        *outer, kind = ("", *file.source.parent.parts)
        if kind not in _KINDS:
            problems.add(f"{file.source}: in none of the folders {', '.join(_KINDS)}; move it or take it out")
            continue
        part = outer[-1] if outer and outer[-1] in _PARTS else ""
        groups.setdefault((part, kind), []).append(file)
    return groups


def _official_split(part: str, groups: _Groups) -> OfficialSplit | None:
    has_labelled_test = ("test", "labels") in groups
    if part == "test":
        return "test" if has_labelled_test else "unlabelled"
    return "train" if has_labelled_test else None
