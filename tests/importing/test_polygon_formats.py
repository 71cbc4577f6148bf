"""Polygons of COCO, LabelMe and ultralytics are filled in the convention of their format, in the layouts of tools."""

import base64
import io
import json
import shutil
import tracemalloc

import exports
import numpy as np
import pytest
import yaml
from exports import Scene
from PIL import Image, ImageDraw
from test_drawing import HEIGHT, WIDTH, inside, intersection_over_union, outlines

from msctr_hf.errors import UsageError
from msctr_hf.importing import coco, labelme
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "shape")
NUMBER = 8
SPLITS = ("train", "validation")


def scenes(count=NUMBER):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [Scene(f"{number}", image, None) for number, image in enumerate(images)]


def write_coco(root, polygons):
    document = exports.coco_document(scenes(), CLASSES[1:])
    for number, scene in enumerate(scenes()):
        exports.save_image(root / "images/default" / f"{scene.name}.png", scene.image)
        exports.add_annotation(document, number + 1, 1, [polygons[number].ravel().tolist()])
    exports.write_json(root / "annotations/instances_default.json", document)


def write_labelme(root, polygons):
    for number, scene in enumerate(scenes()):
        exports.save_image(root / f"{scene.name}.png", scene.image)
        shape = {"label": "shape", "points": polygons[number].tolist()}
        exports.write_json(root / f"{scene.name}.json", exports.labelme_document(scene, [shape]))


def write_yolo(root, polygons):
    described = {str(number): [(0, points)] for number, points in enumerate(polygons)}
    exports.write_yolo(root, scenes(), CLASSES[1:], described)


def write_label_studio(root, polygons):
    tasks = []
    for number, scene in enumerate(scenes()):
        exports.save_image(root / "photos" / f"{scene.name}.png", scene.image)
        points = (100 * polygons[number] / (WIDTH, HEIGHT)).tolist()
        region = exports.label_studio_region(scene, "polygonlabels", "shape", points=points, closed=True)
        tasks.append(exports.label_studio_task(number, f"/data/local-files/?d=photos/{scene.name}.png", [region]))
    exports.write_json(root / "project-1.json", tasks)


def write_supervisely(root, polygons):
    exports.write_json(root / "meta.json", {"classes": [{"title": "shape", "shape": "polygon", "color": "#FF0000"}]})
    for number, scene in enumerate(scenes()):
        exports.save_image(root / "ds0/img" / f"{scene.name}.png", scene.image)
        points = {"exterior": polygons[number].tolist(), "interior": []}
        document = exports.supervisely_document(scene, [exports.supervisely_object("shape", "polygon", points=points)])
        exports.write_json(root / "ds0/ann" / f"{scene.name}.png.json", document)


def labels_of(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*/labels/**/*.png")}


@pytest.mark.parametrize(
    ("write", "offset"),
    [(write_coco, 0.5), (write_labelme, 0.0), (write_yolo, 0.5), (write_label_studio, 0.5), (write_supervisely, 0.0)],
)
def test_polygons_of_a_format_equal_the_even_odd_rule_in_its_convention(tmp_path, write, offset):
    """Where coordinates are centers, their fractions are dropped, and the outline belongs to the object."""
    polygons = list(outlines(seed=7, count=NUMBER))
    if write is write_yolo:
        polygons = [np.clip(points, 0, (WIDTH, HEIGHT)) for points in polygons]
    write(tmp_path / "export", polygons)
    import_export(tmp_path / "export", tmp_path / "data")
    labels = labels_of(tmp_path / "data")
    assert len(labels) == NUMBER
    for number, points in enumerate(polygons):
        if offset == 0:
            points = np.floor(points)
        expected = inside(points, offset) | (outline(points) if offset == 0 else False)
        assert intersection_over_union(labels[str(number)] == 1, expected) >= 0.98


@pytest.mark.parametrize("kind", ["polygon", "rectangle", "circle"])
def test_shapes_of_labelme_lie_where_its_own_conversion_draws_them(tmp_path, kind):
    """Its `shape_to_mask` draws with Pillow, which drops the fractions of coordinates and draws the outline."""
    random = np.random.default_rng(5)
    polygons = list(outlines(seed=7, count=NUMBER))
    boxes = random.uniform(20, 40, (NUMBER, 2, 2)) + [[0, 0], [20, 30]]
    boxes[0] = [[30.2, 30.3], [30.9, 30.4]]  # within one pixel
    expected = []
    for number, scene in enumerate(scenes()):
        exports.save_image(tmp_path / "export" / f"{scene.name}.png", scene.image)
        points = polygons[number] if kind == "polygon" else boxes[number]
        shape = {"label": "shape", "points": points.tolist(), "shape_type": kind}
        exports.write_json(
            tmp_path / "export" / f"{scene.name}.json", exports.labelme_document(scene, [shape], suffix=".png")
        )
        image = Image.new("L", (WIDTH, HEIGHT))
        draw = ImageDraw.Draw(image)
        if kind == "polygon":
            draw.polygon([tuple(point) for point in points], outline=1, fill=1)
        elif kind == "rectangle":
            draw.rectangle([tuple(point) for point in points], outline=1, fill=1)
        else:
            radius = np.hypot(*(points[1] - points[0]))
            draw.ellipse([*(points[0] - radius), *(points[0] + radius)], outline=1, fill=1)
        expected.append(np.array(image) == 1)
    import_export(tmp_path / "export", tmp_path / "data")
    labels = labels_of(tmp_path / "data")
    pairs = [(labels[str(number)] == 1, mask) for number, mask in enumerate(expected)]
    shifts = [np.mean(np.nonzero(drawn), axis=1) - np.mean(np.nonzero(mask), axis=1) for drawn, mask in pairs]
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.15
    assert np.mean([intersection_over_union(*pair) for pair in pairs]) > {"rectangle": 0.999}.get(kind, 0.94)


def outline(points):
    """Test which centers of pixels are on an edge of a polygon."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        within = (x >= min(x0, x1)) & (x <= max(x0, x1)) & (y >= min(y0, y1)) & (y <= max(y0, y1))
        found |= within & ((x - x0) * (y1 - y0) == (y - y0) * (x1 - x0))
    return found


def move(document, folder, target):
    """Put the file of annotations and the images of `write_coco` where another tool puts them."""
    source = folder / "annotations/instances_default.json"
    (folder / document).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, folder / document)
    (folder / target).mkdir(parents=True, exist_ok=True)
    for image in (folder / "images/default").iterdir():
        shutil.move(image, folder / target / image.name)
    for empty in (folder / "images/default", folder / "images", folder / "annotations"):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


LAYOUTS = {  # tool: file of annotations, folder of images, listed path of an image
    "COCO 2017": ("annotations/instances_train2017.json", "train2017", "{}"),
    "COCO below images": ("annotations/instances_train2017.json", "images/train2017", "{}"),
    "Roboflow": ("train/_annotations.coco.json", "train", "{}"),
    "Label Studio": ("result.json", "images", "images/{}"),
    "Label Studio on Windows": ("result.json", "images", "images\\{}"),
    "path of another machine": ("result.json", "images", "/home/user/photos/{}"),
    "path above": ("result.json", "images", "../../data/media/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_is_read_in_the_layouts_of_tools(tmp_path, layout):
    document, folder, listed = LAYOUTS[layout]
    write_coco(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    move(document, tmp_path / "export", folder)
    path = tmp_path / "export" / document
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = listed.format(image["file_name"])
    path.write_text(json.dumps(content))
    # what official folders contain besides
    exports.write_json(tmp_path / "export/annotations/captions_train2017.json", {"images": [], "annotations": []})
    import_export(tmp_path / "export", tmp_path / "data")
    assert sorted(labels_of(tmp_path / "data")) == [str(number) for number in range(NUMBER)]
    import_export(path, tmp_path / "from_file", image_dir=tmp_path / "export" / folder)
    assert sorted(labels_of(tmp_path / "from_file")) == [str(number) for number in range(NUMBER)]


def test_an_image_that_two_folders_have_is_not_guessed(tmp_path):
    write_coco(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    move("result.json", tmp_path / "export", "images")
    shutil.copytree(tmp_path / "export/images", tmp_path / "export/small")
    with pytest.raises(UsageError, match=r"image 1: the image '0.png' may be .*images/0.png, .*small/0.png; name the"):
        import_export(tmp_path / "export", tmp_path / "data")


def test_an_image_of_another_folder_with_the_same_name_is_not_taken(tmp_path):
    write_coco(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    path = tmp_path / "export/annotations/instances_default.json"
    path.write_text(path.read_text().replace('"0.png"', '"left/0.png"'))
    with pytest.raises(UsageError, match="image 1: the image 'left/0.png' is not below"):
        import_export(tmp_path / "export", tmp_path / "data")


def test_ids_of_images_may_be_text(tmp_path):
    write_coco(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    path = tmp_path / "export/annotations/instances_default.json"
    document = json.loads(path.read_text())
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        image["id"] = annotation["image_id"] = f"aachen_{image['id']}"
    path.write_text(json.dumps(document))
    import_export(tmp_path / "export", tmp_path / "data")
    assert all((labels == 1).any() for labels in labels_of(tmp_path / "data").values())


def test_crowd_regions_are_ignored_below_all_objects_or_have_their_class(tmp_path):
    document = exports.coco_document(scenes(2), CLASSES[1:])
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    crowd = [[12, 12, 90, 12, 90, 90, 12, 90]]
    for number, scene in enumerate(scenes(2), 1):
        exports.save_image(tmp_path / "export/images" / f"{scene.name}.png", scene.image)
        exports.add_annotation(document, number, 1, square)
        exports.add_annotation(document, number, 1, crowd, iscrowd=1)
    exports.write_json(tmp_path / "export/result.json", document)
    import_export(tmp_path / "export", tmp_path / "ignored")
    labels = labels_of(tmp_path / "ignored")["0"]
    assert (labels == 1).sum() == 100
    assert (labels == 255).sum() == 78 * 78 - 64
    import_export(tmp_path / "export", tmp_path / "class", crowd_regions="class")
    labels = labels_of(tmp_path / "class")["0"]
    assert np.unique(labels).tolist() == [0, 1]
    assert labels.sum() == 100 + 78 * 78 - 64


def test_compressed_run_lengths_of_pycocotools_are_decoded_as_it_decodes_them(tmp_path):
    rle = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(2)
    document = exports.coco_document(scenes(), CLASSES[1:])
    masks = {}
    for number, scene in enumerate(scenes()):
        exports.save_image(tmp_path / "export/images" / f"{scene.name}.png", scene.image)
        masks[scene.name] = random.random((HEIGHT, WIDTH)) < [0.5, 0.001, 0.999, 0, 1, 0.1, 0.9, 0.3][number]
        encoded = rle.encode(np.asfortranarray(masks[scene.name].astype(np.uint8)))
        segmentation = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
        exports.add_annotation(document, number + 1, 1, segmentation)
    exports.write_json(tmp_path / "export/result.json", document)
    import_export(tmp_path / "export", tmp_path / "data")
    labels = labels_of(tmp_path / "data")
    assert all(np.array_equal(labels[name] == 1, mask) for name, mask in masks.items())


def test_a_class_named_background_is_the_background_of_coco():
    document = {"categories": [{"id": 3, "name": "car"}, {"id": 4, "name": "Background"}]}
    names = coco.read_categories(document, "file").values()
    assert coco.with_background(names) == (["car", "Background"], 1)
    assert coco.with_background(["car", "road", "car"]) == (["background", "car", "road"], 0)


def write_shapes(root, shapes):
    for scene in scenes(2):
        exports.save_image(root / f"{scene.name}.png", scene.image)
        exports.write_json(root / f"{scene.name}.json", exports.labelme_document(scene, shapes))


def test_rectangles_circles_and_masks_of_labelme_have_its_pixels(tmp_path):
    mask = np.zeros((5, 7), dtype=bool)
    mask[2:, 3:] = True
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    shapes = [
        {"label": "box", "points": [[20, 15], [10, 12]], "shape_type": "rectangle"},
        {"label": "box", "points": [[40, 12], [50, 12], [50, 15], [40, 15]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[60.2, 60.4], [60.2, 80.4]], "shape_type": "circle"},
        {
            "label": "mask",
            "points": [[100, 80], [106, 84]],
            "shape_type": "mask",
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        },
        {"label": "__ignore__", "points": [[0, 0], [5, 0], [5, 5], [0, 5]]},
        {"label": "_background_", "points": [[12, 13], [14, 13], [14, 14], [12, 14]]},
    ]
    write_shapes(tmp_path / "export", shapes)
    import_export(tmp_path / "export", tmp_path / "data")
    labels = labels_of(tmp_path / "data")["0"]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[12:16, 10:21] = expected[12:16, 40:51] = 1
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    expected[82:85, 103:107] = 3
    expected[:6, :6] = 255
    expected[13:15, 12:15] = 0
    disc = (x - 59.7) ** 2 + (y - 59.9) ** 2 <= 20.5**2
    assert intersection_over_union(labels == 2, disc) >= 0.97
    assert np.array_equal(np.where(disc | (labels == 2), 0, labels), np.where(disc | (labels == 2), 0, expected))
    assert yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())["classes"] == [
        "background",
        "box",
        "disc",
        "mask",
    ]


def test_files_of_old_versions_of_labelme_have_no_size_and_no_type_of_shapes(tmp_path):
    for scene in scenes(2):
        exports.save_image(tmp_path / "export" / f"{scene.name}.png", scene.image)
        square = {"label": "a", "line_color": None, "fill_color": None, "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}
        document = {"shapes": [square], "lineColor": [0, 255, 0, 128], "fillColor": [255, 0, 0, 128]}
        document |= {"version": "3.4.0", "flags": {}, "imagePath": f"{scene.name}.png", "imageData": "iVBORw0KGgo="}
        exports.write_json(tmp_path / "export" / f"{scene.name}.json", document)
    import_export(tmp_path / "export", tmp_path / "data")
    assert all((labels == 1).sum() == 64 for labels in labels_of(tmp_path / "data").values())


def test_images_inside_the_files_of_labelme_are_not_kept_in_memory(tmp_path):
    write_shapes(tmp_path, [{"label": "a", "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}])
    content = json.loads((tmp_path / "0.json").read_text()) | {"imageData": "A" * 2**20}
    for number in range(2, 20):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
        exports.write_json(tmp_path / f"{number}.json", content | {"imagePath": f"{number}.png"})
    tracemalloc.start()
    try:
        export = labelme.read_export(tmp_path, None, False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(export.images) == 20
    assert peak < 10 * 2**20


def test_labels_txt_gives_the_order_of_classes_of_labelme(tmp_path):
    square = [[2, 2], [9, 2], [9, 9], [2, 9]]
    write_shapes(tmp_path / "export", [{"label": "a", "points": square}])
    (tmp_path / "export/labels.txt").write_text("__ignore__\n_background_\nz\na\n")
    import_export(tmp_path / "export", tmp_path / "data")
    assert yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())["classes"] == ["background", "z", "a"]


def test_polygon_files_are_read_in_the_layouts_of_ultralytics_cvat_and_roboflow(tmp_path):
    polygons = {"0": [(0, [[1, 1], [60, 1], [60, 60]])], "1": [(0, [[9, 9], [60, 9], [60, 60]])]}
    written = [Scene(scene.name, scene.image, None, split) for scene, split in zip(scenes(2), SPLITS, strict=True)]
    exports.write_yolo(tmp_path / "ultralytics", written, CLASSES[1:], polygons)
    exports.write_yolo(tmp_path / "cvat", written, CLASSES[1:], polygons, listed=True)
    for split, place in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            shutil.copytree(tmp_path / "ultralytics" / kind / split, tmp_path / "roboflow" / place / kind)
    description = {"train": "../train/images", "val": "../valid/images", "nc": 1, "names": ["shape"]}
    (tmp_path / "roboflow/data.yaml").write_text(yaml.safe_dump(description))
    results = []
    for name in ("ultralytics", "cvat", "roboflow"):
        import_export(tmp_path / name, tmp_path / f"{name}_data")
        assert (tmp_path / f"{name}_data/val/labels/1.png").is_file()
        results.append(labels_of(tmp_path / f"{name}_data"))
    assert results[0]["0"].sum() > 1000
    for other in results[1:]:
        assert all(np.array_equal(other[name], results[0][name]) for name in "01")


def test_interiors_of_supervisely_are_holes_with_their_outline(tmp_path):
    square, hole = [[10, 10], [29, 10], [29, 29], [10, 29]], [[15, 15], [20, 15], [20, 20], [15, 20]]
    write_supervisely(tmp_path / "export", [np.array(square)] * NUMBER)
    for path in (tmp_path / "export/ds0/ann").iterdir():
        document = json.loads(path.read_text())
        document["objects"][0]["points"]["interior"] = [hole]
        path.write_text(json.dumps(document))
    import_export(tmp_path / "export", tmp_path / "data")
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[10:30, 10:30] = 1
    expected[15:21, 15:21] = 0
    assert np.array_equal(labels_of(tmp_path / "data")["3"], expected)


def test_other_columns_of_label_studio_may_name_the_file_and_contain_any_text(tmp_path):
    write_label_studio(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    path = tmp_path / "export/project-1.json"
    tasks = json.loads(path.read_text())
    for number, task in enumerate(tasks):
        task["data"] |= {"filename": f"{number}.png", "comment": "see http://[1]"}
    path.write_text(json.dumps(tasks))
    import_export(path, tmp_path / "data")
    assert sorted(labels_of(tmp_path / "data")) == [str(number) for number in range(NUMBER)]


@pytest.mark.parametrize("address", ["/data/upload/1/1a2b3c4d-{}", "https://example.com/a/{}", "s3://bucket/x%20y/{}"])
def test_images_of_label_studio_are_found_by_the_addresses_of_its_server(tmp_path, address):
    write_label_studio(tmp_path / "export", list(outlines(seed=7, count=NUMBER)))
    path = tmp_path / "export/project-1.json"
    path.write_text(path.read_text().replace("/data/local-files/?d=photos/", address.format("")))
    import_export(path, tmp_path / "data", image_dir=tmp_path / "export/photos")
    assert sorted(labels_of(tmp_path / "data")) == [str(number) for number in range(NUMBER)]
