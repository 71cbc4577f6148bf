"""Files of small images and labels, as `datasets.Image(decode=False)` returns them, and their pixels by Pillow."""

from io import BytesIO

import numpy as np
from PIL import Image

from msctr_hf.data.labels import LabelMapping

SHOWN = {  # EXIF orientation -> pixels as a screen shows them, from the specification: where row 0 and column 0 are
    1: lambda stored: stored, 2: lambda stored: stored[:, ::-1], 3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1], 5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1), 7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}  # fmt: skip
MAPPING = LabelMapping({value: value for value in range(5)})


def encode(array, kind="PNG", **options):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": f"name.{kind.lower()}"}


def sample(size=(37, 53)):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (*size, 3), dtype=np.uint8), random.integers(0, 5, size, dtype=np.uint8)


def pillow(data):
    try:
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def written(file, folder):
    path = folder / file["path"]
    path.write_bytes(file["bytes"])
    return path
