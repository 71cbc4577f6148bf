"""Random folders of images and labels give what NumPy and Pillow read from them, or sentences that name the file.

A folder is drawn with what people's folders have: many formats and modes, subfolders, links, hidden files, names in
any script, and damaged files. Its check, its samples for evaluation and for crops, and its copies must agree with what
was written, to the pixel.
"""

import contextlib
import io
import json
import os
import random
import unicodedata
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.decoding import rows_for_crops
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.errors import UsageError

STEMS = (
    "0",
    "img 1",
    "a.b",
    "x.png",
    "UPPER",
    "straße",
    "名前",
    "é",
    "i_mask",
    "-dash",
    "#1",
    "100%",
    "'q'",
    "emoji🙂",
)
FOLDERS = ("", "", "a", "day 1", "x.jpg/b", "ü", "a/b/c", "v1.0")
# suffix and modes of Pillow; what is lossy is compared with what Pillow decodes
IMAGES = {
    ".jpg": ("RGB", "L", "CMYK"), ".JPEG": ("RGB",), ".jfif": ("RGB",), ".jpe": ("RGB", "L"),
    ".png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), ".bmp": ("RGB", "L", "P"), ".webp": ("RGB", "RGBA"),
    ".tif": ("RGB", "L", "RGBA", "I;16"), ".gif": ("P", "L"), ".ppm": ("RGB",), ".PNG": ("RGB",), ".tga": ("RGB",),
    ".jp2": ("RGB",),
}  # fmt: skip
LABELS = {
    "values": {".png": ("L", "P", "I;16"), ".bmp": ("L", "P"), ".tif": ("L", "I;16"), ".TIFF": ("L",), ".pgm": ("L",)},
    "colors": {".png": ("RGB", "RGBA", "P"), ".bmp": ("RGB",), ".tif": ("RGB", "RGBA"), ".ppm": ("RGB",)},
}
CLASSES = ["sky", "road", "car"]
DAMAGES = ("truncated image", "truncated label", "empty image", "text as label", "unlisted", "size", "mode")


@dataclass
class Folder:
    """A folder that was drawn, and what must be read from it."""

    root: Path
    rng: random.Random
    kind: str
    ids: dict = field(default_factory=dict)  # raw label -> train id
    samples: dict = field(default_factory=dict)  # image id -> image (H, W, 3), train ids (H, W)
    broken: dict = field(default_factory=dict)  # image id -> file that must be named
    refused: list = field(default_factory=list)  # images without labels, and links that lead nowhere
    alone: int = 0  # labels without an image
    strangers: int = 0  # other files among the images

    def place(self, kind, name, suffix):
        path = self.root / "train" / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def draw(seed, root):
    rng = random.Random(seed)
    folder = Folder(root, rng, rng.choice(("values", "values", "colors")))
    describe(folder)
    names = {f"{rng.choice(FOLDERS)}/{rng.choice(STEMS)}".lstrip("/") for _ in range(rng.randint(1, 6))}
    for number, name in enumerate(sorted(names)):
        damage = rng.choice(DAMAGES) if number and rng.random() < 0.25 else None
        add_pair(folder, name, damage)
    for add in (add_hidden, add_stranger, add_alone, add_circle, link_folder, link_file):
        if rng.random() < 0.3:
            add(folder)
    if rng.random() < 0.15:
        rng.choice((add_unlabeled, add_broken_link))(folder)
    return folder


def describe(folder):
    rng, description = folder.rng, {}
    if folder.kind == "colors":
        colors = rng.sample([(0, 0, 0), (255, 0, 0), (0, 128, 9), (7, 7, 7), (255, 255, 255)], 5)
        folder.ids = {colors[0]: 0, colors[1]: 1, colors[2]: 2, colors[3]: 2, colors[4]: 255}
        as_text = {color: rng.choice(("{},{},{}", "{}, {}, {}")).format(*color) for color in colors}
        description["label_colors"] = {as_text[c]: CLASSES[label] for c, label in folder.ids.items() if label < 255}
        description["ignored"] = [as_text[c] for c, label in folder.ids.items() if label == 255]
    elif rng.random() < 0.5:
        folder.ids = {0: 0, 1: 1, 2: 2}
        if rng.random() < 0.7:
            description["ignored"] = rng.choice(([255], [255, 9], [0], [1, 255]))
            folder.ids.update(dict.fromkeys(description["ignored"], 255))
    else:
        raw = rng.sample(range(256), 5)
        folder.ids = {raw[0]: 1, raw[1]: 0, raw[2]: 2, raw[3]: 2, raw[4]: 255}
        description["label_values"] = {value: CLASSES[label] for value, label in folder.ids.items() if label < 255}
        description["ignored"] = [raw[4]]
    description |= {"classes": CLASSES, "splits": {"train": {"images": "train/images", "labels": "train/labels"}}}
    for kind in ("images", "labels"):
        (folder.root / "train" / kind).mkdir(parents=True)
    (folder.root / "dataset.yaml").write_text(yaml.safe_dump(description))


def add_pair(folder, name, damage):
    rng = folder.rng
    height, width = rng.randint(4, 9), rng.randint(10, 15)
    image = write_image(folder, name, (height, width))
    raw = np.array(rng.choices(sorted(folder.ids), k=height * width)).reshape(height, width, -1)
    label = write_label(folder, unicodedata.normalize(rng.choice(("NFC", "NFD")), name), raw, damage)
    image_id = image.relative_to(folder.root / "train/images").as_posix().removesuffix(image.suffix)
    if damage is not None:
        folder.broken[image_id] = spoil(image, label, damage)
        return
    look_up = np.vectorize(lambda *value: folder.ids[value if len(value) > 1 else value[0]], otypes=[np.uint8])
    folder.samples[image_id] = read_by_pillow(image), look_up(*np.moveaxis(raw, -1, 0))


def write_image(folder, name, size):
    rng = folder.rng
    suffix = rng.choice(list(IMAGES))
    mode = rng.choice(IMAGES[suffix])
    path = folder.place("images", name, suffix)
    noise = np.random.default_rng(rng.randrange(2**32))
    turned = suffix in (".jpg", ".jpe") and rng.random() < 0.3
    shape = size[::-1] if turned else size
    if mode == "I;16":
        Image.fromarray(noise.integers(0, 65536, shape, np.uint16)).save(path)
        return path
    image = Image.fromarray(noise.integers(0, 256, (*shape, 3), np.uint8)).convert(mode)
    if turned:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((5, 6, 7, 8))  # EXIF orientation: the stored image lies on its side
        image.save(path, exif=exif)
    else:
        image.save(path)
    return path


def write_label(folder, name, raw, damage):
    rng = folder.rng
    suffix = rng.choice(list(LABELS[folder.kind]))
    mode = rng.choice(LABELS[folder.kind][suffix])
    raw = raw.copy()
    if damage == "unlisted":
        raw[0, 0] = next(value for value in range(256) if value not in folder.ids and (value,) * 3 not in folder.ids)
    if damage == "size":
        raw = raw[:, :-1]
    if damage == "mode":
        suffix, mode = ".png", "L" if folder.kind == "colors" else "RGB"
        raw = raw.mean(axis=-1, keepdims=True) if folder.kind == "colors" else raw.repeat(3, axis=-1)
    path = folder.place("labels", name, suffix)
    if folder.kind == "values" and mode == "P":
        image = Image.fromarray(raw[..., 0].astype(np.uint8), "L")
        image.putpalette(random.Random(0).randbytes(768))
    elif mode in ("L", "I;16"):
        image = Image.fromarray(raw[..., 0].astype(np.uint16 if mode == "I;16" else np.uint8))
    else:
        image = Image.fromarray(raw.astype(np.uint8))
        image = image.quantize(256) if mode == "P" else image.convert(mode)
    image.save(path)
    return path


def spoil(image, label, damage):
    """Damage a file, and return the one that must be named."""
    if damage == "truncated image":
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 3])
    elif damage == "truncated label":
        label.write_bytes(label.read_bytes()[: label.stat().st_size // 3])
    elif damage == "empty image":
        image.write_bytes(b"")
    elif damage == "text as label":
        label.write_text("<svg/>")
    return image if damage.endswith("image") else label


def read_by_pillow(path):
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "I;16":
            return np.stack([np.asarray(image) >> 8] * 3, axis=-1).astype(np.uint8)
        return np.asarray(image.convert("RGB"))


def add_hidden(folder):
    for kind in ("images", "labels"):
        for name in (".ipynb_checkpoints/0-checkpoint", "._0", "a/.git/x/0"):
            folder.place(kind, name, ".png").write_bytes(b"hidden")
    (folder.root / "train/images/.link").symlink_to("nowhere")


def add_stranger(folder):
    for name, suffix in (("notes", ".txt"), ("0", ".npy"))[: folder.rng.randint(1, 2)]:
        folder.place("images", name, suffix).write_bytes(b"x")
        folder.strangers += 1


def add_alone(folder):
    for number in range(folder.rng.randint(1, 3)):
        folder.place("labels", f"alone {number}", ".png").write_bytes(b"x")
        folder.alone += 1


def add_circle(folder):
    for kind in ("images", "labels"):
        (folder.root / "train" / kind / "circle").symlink_to(folder.rng.choice((".", "..", folder.root)))


def link_folder(folder):
    """Move folders of images out of the data set, and leave links to them."""
    for kind in ("images", "labels"):
        for place in [path for path in (folder.root / "train" / kind).iterdir() if path.is_dir()]:
            if not place.is_symlink() and not place.name.startswith("."):
                move(folder, place, kind)


def link_file(folder):
    files = [path for path in (folder.root / "train").rglob("*") if path.is_file() and not path.is_symlink()]
    for path in folder.rng.sample(files, min(3, len(files))):
        if not any(part.startswith(".") for part in path.relative_to(folder.root).parts):
            move(folder, path, "file")


def move(folder, path, kind):
    store = folder.root.parent / "store" / f"{kind} {len(os.listdir(folder.root.parent))} {path.name}"
    number = 0
    while store.exists():
        store, number = store.with_name(f"{number} {store.name}"), number + 1
    store.parent.mkdir(exist_ok=True)
    path.rename(store)
    path.symlink_to(store)


def add_unlabeled(folder):
    path = folder.place("images", "unlabeled", ".png")
    Image.new("RGB", (4, 4)).save(path)
    folder.refused.append(path)


def add_broken_link(folder):
    path = folder.place("images", "gone", folder.rng.choice(("", ".png")))
    path.symlink_to("nowhere")
    folder.refused.append(path)


def check(folder, work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if folder.refused:
            with pytest.raises(UsageError) as error:
                load_segmentation_dataset("folder", "train", folder.root)
            assert all(str(path) in str(error.value) for path in folder.refused)
        else:
            check_samples(folder, load_segmentation_dataset("folder", "train", folder.root))
    said = " ".join(str(warning.message) for warning in caught)
    assert (f"{folder.alone} label" in said) == (folder.alone > 0 and not folder.refused), said
    # a text is mentioned by the check only
    assert ("1 file among" in said) == (folder.strangers > 1 and not folder.refused), said
    for predecode in (False, True):
        check_copy(folder, work / f"copy_{predecode}", predecode)


def check_samples(folder, dataset):
    assert dataset.with_format(None)["image_id"][:] == sorted([*folder.samples, *folder.broken])
    for_crops = rows_for_crops(dataset)
    for number, image_id in enumerate(sorted([*folder.samples, *folder.broken])):
        if image_id in folder.broken:
            for rows in (dataset, for_crops):
                with pytest.raises(UsageError) as error:
                    rows[number]
                assert folder.broken[image_id].name in str(error.value)
        else:
            assert_equal(folder, dataset[number], image_id)
            assert_equal(folder, for_crops[number], image_id)


def assert_equal(folder, sample, image_id):
    image, labels = folder.samples[image_id]
    assert sample["image_id"] == image_id
    assert np.array_equal(np.asarray(sample["label"]), labels), image_id
    assert np.array_equal(np.asarray(sample["image"]), image), image_id


def run_prepare(folder, **settings):
    spec, said = get_dataset_spec("folder", folder.root), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            prepare(spec, ["train"], folder.root, SavedDataset(), **settings)
    except UsageError as error:
        return said.getvalue(), str(error)
    return said.getvalue(), None


def check_copy(folder, copy, predecode):
    faulty = [*folder.refused, *folder.broken.values()]
    said, error = run_prepare(folder, output_dir=copy, predecode=predecode)
    assert (error is not None) == bool(faulty), error
    assert all(path.stem in said for path in faulty), said  # faults of one kind are one line, with the ids of images
    assert (f"{folder.alone} label" in said) == (folder.alone > 0), said
    assert (f"{folder.strangers} file" in said) == (folder.strangers > 0), said
    if faulty:
        assert not copy.exists()
        said, error = run_prepare(folder, output_dir=copy, predecode=predecode, skip_broken=True)
        assert error is None
    check_report(folder, json.loads((copy / "report_train.json").read_text()))
    streamed = {} if predecode else {"streaming": True}  # without a copy of the copy on this disk
    samples = load_segmentation_dataset("folder", "train", copy, **streamed)
    for sample, image_id in zip(samples, sorted(folder.samples), strict=True):
        assert_equal(folder, sample, image_id)
    if predecode:
        for sample, image_id in zip(rows_for_crops(samples), sorted(folder.samples), strict=True):
            assert_equal(folder, sample, image_id)


def check_report(folder, report):
    labels = [labels for _, labels in folder.samples.values()]
    assert report["images"] == len(labels)
    assert list(report["pixels"].values()) == [sum(int((each == c).sum()) for each in labels) for c in range(3)]
    assert list(report["in_images"].values()) == [sum(bool((each == c).any()) for each in labels) for c in range(3)]
    assert report["ignored"] == sum(int((each == 255).sum()) for each in labels)
    assert set(report["broken"]) == set(folder.broken)


def check_seeds(seeds, tmp_path):
    for seed in seeds:
        work = tmp_path / str(seed)
        folder = draw(seed, work / "data")
        try:
            check(folder, work)
        except BaseException as error:
            error.add_note(f"seed {seed}: {sorted(path.as_posix() for path in folder.root.rglob('*'))}")
            raise


def test_random_folders_are_read_checked_and_copied_as_they_were_written(tmp_path):
    check_seeds(range(40), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("hundred", range(5))
def test_many_random_folders_are_read_checked_and_copied_as_they_were_written(tmp_path, hundred):
    check_seeds(range(100 * hundred, 100 * hundred + 100), tmp_path)
