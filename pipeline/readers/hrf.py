"""HRF: 45 photographs of 3504×2336, 15 each of healthy (h), glaucomatous (g) and diabetic (dr) eyes.

    images/01_dr.JPG  manual1/01_dr.tif  mask/01_dr_mask.tif

No split is official; by convention the first five of each kind train and the other 30 test.
"""

import re

from pipeline.errors import Problems
from pipeline.readers.raw import RawFile, RawFolder, RawItem, pair

LAYOUT = "HRF as its owners pack it: images/01_dr.JPG, manual1/01_dr.tif and mask/01_dr_mask.tif, or all.zip"
_LAST_TRAINING_NUMBER = 5
_NAME = re.compile(r"\d\d_(h|g|dr)")


def read_hrf(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List HRF's images in the conventional split."""
    kinds = {
        kind: [file for file in folder.images(subfolder) if _NAME.fullmatch(_name(file))]
        for kind, subfolder in (("image", "images"), ("label", "manual1"), ("mask", "mask"))
    }
    images = kinds.pop("image")
    if not images:
        problems.add(f"{folder.path}: no image named like images/01_dr.JPG; expected {LAYOUT}")
    return [
        RawItem(
            id=name,
            image=files["image"],
            vessels=files["label"],
            fov=files["mask"],
            patient=name,
            split="train" if int(name[:2]) <= _LAST_TRAINING_NUMBER else "test",
        )
        for name, files in pair(images, kinds, _name, problems).items()
    ]


def _name(file: RawFile) -> str:
    return file.stem.removesuffix("_mask")
