"""Write miniature exports in the layouts of labeling tools, with code that shares nothing with their readers."""

import base64
import io
import json
import zlib
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
    return [
        (0, 0, 0) if label == 0 else ((40 + 20 * label) % 256, 250 - 9 * label, 7 * label) for label in range(count)
    ]


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
    pixels = np.concatenate([[0], mask.T.ravel()])
    borders = [0, *np.flatnonzero(np.diff(pixels)).tolist(), mask.size]
    return [end - start for start, end in zip(borders[:-1], borders[1:], strict=True)]


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
    """Write COCO instances, one RLE for each class but the first, which is the background; ignored is a crowd."""
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


def write_cvat_coco(root, scenes, classes, polygons=None):
    """Write "COCO 1.0" of CVAT: masks as numbers, which Datumaro marks as crowds, and polygons, which it does not.

    `polygons`: name of a scene -> [(class from 1 on, points (N, 2) in pixels)].
    """
    for split in dict.fromkeys(scene.split for scene in scenes):
        chosen = [scene for scene in scenes if scene.split == split]
        subset = {None: "default", "validation": "Validation"}.get(split, split)
        document = coco_document(chosen, classes[1:])
        document["info"] |= dict.fromkeys(("contributor", "date_created", "url", "version", "year"), "")
        attributes = {"attributes": {"occluded": False}}
        for number, (scene, image) in enumerate(zip(chosen, document["images"], strict=True), 1):
            image |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
            save_image(root / "images" / subset / f"{scene.name}.png", scene.image)
            for label in [] if scene.labels is None else np.unique(scene.labels[scene.labels > 0]).tolist():
                mask = scene.labels == label
                encoded = {"counts": run_lengths(mask.astype(int)), "size": list(mask.shape)}
                add_annotation(document, number, label, encoded, iscrowd=1, area=float(mask.sum()), **attributes)
            for label, points in (polygons or {}).get(scene.name, ()):
                add_annotation(document, number, label, [np.ravel(points).tolist()], area=1.0, **attributes)
        write_json(root / "annotations" / f"instances_{subset}.json", document)
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
                file.write(f"data/images/{key}/{scene.name}.png\n")  # CVAT puts "data/" before them
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


# ---------------------------------------------------------------------------------------------- Label Studio


def packed(mask):
    """Pack a mask (H, W) bool as RGBA bytes: runs of equal bytes, and every tenth run as single bytes."""
    values = np.repeat(np.where(mask, 255, 0).ravel(), 4)
    bits = f"{len(values):032b}{8 - 1:05b}{3 - 1:04b}{7 - 1:04b}{12 - 1:04b}{16 - 1:04b}"
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for number, (start, end) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        while start < end:
            length = min(end - start, 1 << 16)
            which = next(place for place, size in enumerate((3, 7, 12, 16)) if length <= 1 << size)
            width = (3, 7, 12, 16)[which]
            as_run = number % 10 != 9
            words = f"{values[start]:08b}" * (1 if as_run else length)
            bits += f"{int(as_run)}{which:02b}{length - 1:0{width}b}{words}"
            start += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def label_studio_region(scene, kind, label, **value):
    return {
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": scene.image.shape[1],
        "original_height": scene.image.shape[0],
        "image_rotation": 0,
        "value": {kind: [label], **value},
    }


def label_studio_task(number, address, regions):
    annotation = {"id": number, "was_cancelled": False, "result": regions}
    return {"id": number, "data": {"image": address}, "annotations": [annotation], "predictions": [], "project": 1}


def write_label_studio(root, scenes, classes):
    """Write "JSON" of Label Studio: brush masks for each class but the first; images as the server names them."""
    tasks = []
    for number, scene in enumerate(scenes, 1):
        name = f"1a2b3c4d-{scene.name.replace(' ', '_')}.png"
        save_image(root / "upload/1" / name, scene.image)
        present = [] if scene.labels is None else [label for label in np.unique(scene.labels).tolist() if label]
        regions = [
            label_studio_region(scene, "brushlabels", classes[label], format="rle", rle=packed(scene.labels == label))
            for label in present
        ]
        tasks.append(label_studio_task(number, f"/data/upload/1/{name}", regions))
    write_json(root / "project-1-at-2026-01-31.json", tasks)
    return root


def write_label_studio_coco(root, stored, polygons, classes, orientation=1):
    """Write "COCO with images" of Label Studio, which draws on the turned image but exports with its stored size.

    `stored`: scenes whose images are stored before the EXIF orientation turns them; `polygons`: name of a scene ->
    [(class, points (N, 2) in shares of the turned image)]. A scene without an image could not be downloaded.
    """
    images, annotations = [], []
    for number, scene in enumerate(stored):
        path = root / "images" / f"{scene.name}.png"
        size = {"width": None, "height": None}
        if scene.image is not None:
            exif = Image.Exif()
            exif[274] = orientation
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(path, exif=exif)
            size = {"width": scene.image.shape[1], "height": scene.image.shape[0]}
        images.append({**size, "id": number, "file_name": f"images/{scene.name}.png"})
        for label, points in polygons.get(scene.name, ()):
            flat = (np.asarray(points) * [size["width"], size["height"]]).ravel().tolist()
            common = {"bbox": [0, 0, 1, 1], "ignore": 0, "iscrowd": 0, "area": 1}
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": label, "segmentation": [flat], **common}
            )
    info = {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""}
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    document = {"images": images, "categories": categories, "annotations": annotations, "info": info}
    write_json(root / "result.json", document)
    return root


# ---------------------------------------------------------------------------------------------- Supervisely


def supervisely_bitmap(label, mask, as_alpha=False):
    """Cut a mask to its box and write it as a PNG, compressed and in base64, in gray or as the alpha of RGBA."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    pixels = np.stack([255 - 0 * box, 255 - 0 * box, 0 * box + 9, 255 * box], axis=-1) if as_alpha else box
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return supervisely_object(label, "bitmap", bitmap={"data": data, "origin": [int(columns[0]), int(rows[0])]})


def supervisely_object(label, kind, **content):
    return {"id": 1, "classId": 1, "classTitle": label, "geometryType": kind, "tags": [], **content}


def supervisely_document(scene, objects):
    size = {"height": scene.image.shape[0], "width": scene.image.shape[1]}
    return {"description": "", "tags": [], "size": size, "objects": objects}


def write_supervisely(root, scenes, classes):
    """Write a project: meta.json, and a data set with img/ and ann/ for every split."""
    colors = colors_of(len(classes))
    described = [
        {"title": name, "shape": "any", "color": "#{:02X}{:02x}{:02X}".format(*color)}
        for name, color in zip(classes, colors, strict=True)
    ]
    write_json(root / "meta.json", {"classes": described, "tags": [], "projectType": "images"})
    for number, scene in enumerate(scenes):
        folder = root / {"validation": "val", None: "ds0"}.get(scene.split, scene.split)
        save_image(folder / "img" / f"{scene.name}.png", scene.image)
        present = [] if scene.labels is None else [label for label in np.unique(scene.labels).tolist() if label]
        objects = [supervisely_bitmap(classes[label], scene.labels == label, number % 2) for label in present]
        write_json(folder / "ann" / f"{scene.name}.png.json", supervisely_document(scene, objects))
    return root
