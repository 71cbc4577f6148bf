"""Write miniature exports in the layouts of labeling tools, with code that shares nothing with their readers."""

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
import yaml
from PIL import Image

IGNORED = 255
PLACES = {"train": "train", "validation": "valid", "test": "test", None: "default"}


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8 with labels (H, W) uint8 in 0 ... num_classes - 1, or 255; no labels: not annotated."""

    name: str
    image: np.ndarray
    labels: np.ndarray | None
    split: str | None = None


def save_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def colors_of(count):
    return [(0, 0, 0) if label == 0 else (40 + 20 * label, 250 - 9 * label, 7 * label) for label in range(count)]


# ---------------------------------------------------------------------------------------------- CVAT


def write_cvat(root, scenes, classes):
    """Write "Segmentation mask 1.1": colors in labelmap.txt, RGB masks, a list of names for every subset."""
    colors = colors_of(len(classes))
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in zip(classes, colors, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    table = np.array(colors, dtype=np.uint8)
    bits = np.arange(len(classes))[:, None] >> np.arange(3) & 1
    instances = (128 * bits).astype(np.uint8)  # the colors of PASCAL VOC, for up to 8 instances
    lists = {}
    for scene in scenes:
        subset = {"validation": "Validation", "train": "Train"}.get(scene.split, scene.split or "default")
        lists.setdefault(subset, []).append(f'"{scene.name}"' if " " in scene.name else scene.name)
        save_image(root / "JPEGImages" / f"{scene.name}.png", scene.image)
        if scene.labels is not None:
            save_image(root / "SegmentationClass" / f"{scene.name}.png", table[scene.labels])
            save_image(root / "SegmentationObject" / f"{scene.name}.png", instances[scene.labels])
    for subset, names in lists.items():
        path = root / "ImageSets/Segmentation" / f"{subset}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
    return root


# ---------------------------------------------------------------------------------------------- COCO


def run_lengths(mask):
    """Count the pixels of a mask column by column, in runs that alternate from 0."""
    runs, value, length = [], 0, 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def compressed(runs):
    """Write run lengths as text: from the third on as differences, in groups of 5 bits from the lowest on."""
    text = []
    for number, length in enumerate(runs):
        value = length - runs[number - 2] if number > 2 else length
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr((group | 0x20 if more else group) + 48))
    return "".join(text)


def coco_document(scenes, classes, first_id=1):
    images = [
        {"id": number, "width": scene.image.shape[1], "height": scene.image.shape[0], "file_name": f"{scene.name}.png"}
        for number, scene in enumerate(scenes, 1)
    ]
    categories = [{"id": first_id + label, "name": name, "supercategory": ""} for label, name in enumerate(classes)]
    return {
        "info": {"description": ""},
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "images": images,
        "annotations": [],
        "categories": categories,
    }


def add_annotation(document, image_id, category_id, segmentation, iscrowd=0, **more):
    document["annotations"].append(
        {
            "id": len(document["annotations"]) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": segmentation,
            "iscrowd": iscrowd,
            "bbox": [0, 0, 1, 1],
            **more,
        }
    )


def write_coco(root, scenes, classes, *, text=False):
    """Write "COCO 1.0" of CVAT, one RLE for each class but the first, which is the background; ignored is a crowd."""
    for split in dict.fromkeys(scene.split for scene in scenes):
        chosen = [scene for scene in scenes if scene.split == split]
        document = coco_document(chosen, classes[1:])
        for number, scene in enumerate(chosen, 1):
            save_image(root / "images" / PLACES[split] / f"{scene.name}.png", scene.image)
            for label in [] if scene.labels is None else np.unique(scene.labels).tolist():
                runs = run_lengths((scene.labels == label).astype(int))
                counts = compressed(runs) if text else runs
                size = list(scene.labels.shape)
                if label:
                    is_crowd = label == IGNORED
                    add_annotation(
                        document, number, 1 if is_crowd else label, {"counts": counts, "size": size}, int(is_crowd)
                    )
        write_json(root / "annotations" / f"instances_{PLACES[split]}.json", document)
    return root


def write_coco_panoptic(root, scenes, classes):
    """Write COCO panoptic: PNGs whose colors are segment ids, every class in two segments; ignored is id 0."""
    for split in dict.fromkeys(scene.split for scene in scenes):
        place = PLACES[split]
        chosen = [scene for scene in scenes if scene.split == split]
        document = coco_document(chosen, classes, first_id=7)
        for category, color in zip(document["categories"], colors_of(len(classes)), strict=True):
            category |= {"color": list(color), "isthing": 0}
        for number, scene in enumerate(chosen, 1):
            save_image(root / place / f"{scene.name}.png", scene.image)
            if scene.labels is None:
                continue
            columns = np.arange(scene.labels.shape[1]) // (scene.labels.shape[1] // 2 + 1)
            ids = np.where(scene.labels == IGNORED, 0, 300 * (scene.labels.astype(int) + 1) + 70000 * columns)
            segments = [
                {
                    "id": value,
                    "category_id": 7 + value % 70000 // 300 - 1,
                    "area": 1,
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": 0,
                }
                for value in np.unique(ids).tolist()
                if value
            ]
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            save_image(root / "annotations" / f"panoptic_{place}" / f"{scene.name}.png", rgb)
            document["annotations"].append(
                {"image_id": number, "file_name": f"{scene.name}.png", "segments_info": segments}
            )
        write_json(root / "annotations" / f"panoptic_{place}.json", document)
    return root


# ---------------------------------------------------------------------------------------------- Roboflow


def write_roboflow(root, scenes, classes):
    """Write "Semantic Segmentation Masks": images, masks and _classes.csv side by side in every split."""
    for scene in scenes:
        folder = root if scene.split is None else root / PLACES[scene.split]
        save_image(folder / f"{scene.name}.png", scene.image)
        if scene.labels is not None:
            save_image(folder / f"{scene.name}_mask.png", scene.labels)
        rows = [f"{value}, {name}" for value, name in enumerate(classes)]
        (folder / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]) + "\n")
    (root / "README.roboflow.txt").write_text("made by hand\n")
    return root


# ---------------------------------------------------------------------------------------------- LabelMe


def labelme_document(scene, shapes, suffix=".png"):
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"group_id": None, "description": "", "flags": {}, "mask": None, "shape_type": "polygon", **shape}
            for shape in shapes
        ],
        "imagePath": f"{scene.name.rpartition('/')[2]}{suffix}",
        "imageData": None,
        "imageHeight": scene.image.shape[0],
        "imageWidth": scene.image.shape[1],
    }


def labelme_mask(label, mask):
    """Cut a mask to its box and write it as a PNG in base64; the last row and column of the box belong to it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = (int(value) for value in (rows[0], rows[-1], columns[0], columns[-1]))
    buffer = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(buffer, format="PNG")
    return {
        "label": label,
        "points": [[left, top], [right, bottom]],
        "shape_type": "mask",
        "mask": base64.b64encode(buffer.getvalue()).decode(),
    }


def write_labelme(root, scenes, classes):
    """Write a JSON file beside each image, one mask for each class; ignored pixels have the label __ignore__."""
    for scene in scenes:
        folder = root if scene.split is None else root / PLACES[scene.split]
        save_image(folder / f"{scene.name}.png", scene.image)
        if scene.labels is None:
            continue
        names = {label: classes[label] for label in range(1, len(classes))} | {IGNORED: "__ignore__"}
        present = [label for label in np.unique(scene.labels).tolist() if label in names]
        shapes = [labelme_mask(names[label], scene.labels == label) for label in present]
        write_json(folder / f"{scene.name}.json", labelme_document(scene, shapes))
    return root


# ---------------------------------------------------------------------------------------------- ultralytics


def write_yolo(root, scenes, classes, polygons=None, listed=False):
    """Write images/ and labels/ with data.yaml; `polygons`: name of a scene -> [(class, points (N, 2) in pixels)]."""
    splits = dict.fromkeys(scene.split or "train" for scene in scenes)
    description = {"path": ".", "names": dict(enumerate(classes))}
    for split in splits:
        key = {"validation": "val"}.get(split, split)
        description[key] = f"{key}.txt" if listed else f"images/{key}"
    for scene in scenes:
        key = {"validation": "val"}.get(scene.split, scene.split or "train")
        save_image(root / "images" / key / f"{scene.name}.png", scene.image)
        if listed:
            with open(root / f"{key}.txt", "a") as file:
                file.write(f"images/{key}/{scene.name}.png\n")
        size = np.array([scene.image.shape[1], scene.image.shape[0]])
        lines = [
            " ".join([str(label), *(f"{value:.8f}" for value in (np.asarray(points) / size).ravel())])
            for label, points in (polygons or {}).get(scene.name, ())
        ]
        path = root / "labels" / key / f"{scene.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return root
