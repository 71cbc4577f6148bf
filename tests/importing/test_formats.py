"""Malformed exports of every format are refused in one sentence with the file and the item, and nothing is written."""

import json
import re

import exports
import numpy as np
import pytest
from exports import Scene

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "road", "car")
TRIANGLE = [[1, 1], [9, 1], [5, 9]]


def scenes():
    labels = np.kron([[0, 1], [2, 1]], np.ones((6, 8), int)).astype(np.uint8)
    image = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    return [Scene(name, np.roll(image, shift), labels, "train") for shift, name in enumerate("ab")]


def edit(path, change):
    """Change a JSON file by a function."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_polygons(root, written, classes):
    return exports.write_yolo(
        root, written, classes, {scene.name: [(1, TRIANGLE), (2, TRIANGLE)] for scene in written}
    )


def write_coco_polygons(root, written, classes):
    exports.write_coco(root, written, classes)
    edit(
        root / "annotations/instances_train.json",
        lambda document: [
            each.update(segmentation=[[value for point in TRIANGLE for value in point]])
            for each in document["annotations"]
        ],
    )
    return root


COCO, PANOPTIC = "annotations/instances_train.json", "annotations/panoptic_train.json"
TASKS, FIGURES = "project-1-at-2026-01-31.json", "train/ann/b.png.json"
POLYGON = {"polygonlabels": ["car"], "points": [[10, 10], [50, 50]]}
EXTERIOR = {"exterior": [[1, 1], [5, 5]], "interior": []}


def region(tasks):
    return tasks[1]["annotations"][0]["result"][0]


WRITERS = {
    "cvat": exports.write_cvat,
    "roboflow": exports.write_roboflow,
    "coco": write_coco_polygons,
    "coco_panoptic": exports.write_coco_panoptic,
    "labelme": exports.write_labelme,
    "yolo": write_polygons,
    "label_studio": exports.write_label_studio,
    "supervisely": exports.write_supervisely,
}
SMALL = np.zeros((5, 4), np.uint8)
MALFORMED = [  # format, name of the fault, function that damages the export, regular expression of the sentence
    (
        "cvat",
        "missing image",
        lambda r: (r / "JPEGImages/b.png").unlink(),
        r"Train\.txt: the image 'b' is not in .*JPEG",
    ),
    (
        "cvat",
        "class without a name",
        lambda r: replace(r / "labelmap.txt", "road:", ":"),
        r"labelmap\.txt, line 3: the class has no name",
    ),
    (
        "cvat",
        "class without a color",
        lambda r: replace(r / "labelmap.txt", "60,241,7", ""),
        r"labelmap\.txt, line 3: a line must be like 'car:128,0,0::', got 'road:::'",
    ),
    (
        "cvat",
        "color of no class",
        lambda r: replace(r / "labelmap.txt", "60,241,7", "1,2,3"),
        r"SegmentationClass/a\.png: label colors \[\[60, 241, 7\]\] are not listed",
    ),
    (
        "cvat",
        "wrong size",
        lambda r: exports.save_image(r / "SegmentationClass/b.png", np.zeros((5, 4, 3), np.uint8)),
        r"SegmentationClass/b\.png has 4x5 pixels, but the image .*b\.png has 16x12",
    ),
    (
        "cvat",
        "damaged image",
        lambda r: (r / "JPEGImages/b.png").write_bytes((r / "JPEGImages/b.png").read_bytes()[:90]),
        r"export/JPEGImages/b\.png cannot be read as an image",
    ),
    (
        "roboflow",
        "missing image",
        lambda r: (r / "train/b.png").unlink(),
        r"b_mask\.png: the image .*'b', is not beside",
    ),
    (
        "roboflow",
        "class without a name",
        lambda r: replace(r / "train/_classes.csv", "2, car", "2, "),
        r"_classes\.csv, line 4: the class has no name",
    ),
    (
        "roboflow",
        "value of no class",
        lambda r: replace(r / "train/_classes.csv", "2, car", "3, car"),
        r"a_mask\.png: label values \[2\] are not listed",
    ),
    (
        "roboflow",
        "wrong size",
        lambda r: exports.save_image(r / "train/b_mask.png", SMALL),
        r"b_mask\.png has 4x5 pixels, but the image .*b\.png has 16x12",
    ),
    (
        "roboflow",
        "broken line",
        lambda r: replace(r / "train/_classes.csv", "2, car", "two, car"),
        r"_classes\.csv, line 4: a line must be like '1, car', got 'two, car'",
    ),
    (
        "coco",
        "missing image",
        lambda r: (r / "images/train/b.png").unlink(),
        r"instances_train\.json, image 2: the image 'b\.png' is not below",
    ),
    (
        "coco",
        "class without a name",
        lambda r: edit(r / COCO, lambda d: d["categories"][1].pop("name")),
        r"instances_train\.json: the category 2 has no name",
    ),
    (
        "coco",
        "category that is not listed",
        lambda r: edit(r / COCO, lambda d: d["annotations"][3].update(category_id=9)),
        r"instances_train\.json, annotation 4: the category 9 is not listed",
    ),
    (
        "coco",
        "image that is not listed",
        lambda r: edit(r / COCO, lambda d: d["annotations"][3].update(image_id=9)),
        r"instances_train\.json, annotation 4: the image with the id 9 is not listed",
    ),
    (
        "coco",
        "annotation that is no object",
        lambda r: edit(r / COCO, lambda d: d["annotations"].insert(1, None)),
        r"instances_train\.json, annotation at position 1: 'image_id' must be an integer or text, got None",
    ),
    (
        "coco",
        "polygon of two points",
        lambda r: edit(r / COCO, lambda d: d["annotations"][2].update(segmentation=[[1, 1, 5, 5]])),
        r"instances_train\.json, annotation 3: a polygon has 2 points but needs three",
    ),
    (
        "coco",
        "half a point",
        lambda r: edit(r / COCO, lambda d: d["annotations"][2].update(segmentation=[[1, 1, 5, 5, 1, 2, 3]])),
        r"annotation 3: a polygon has 7 coordinates",
    ),
    (
        "coco",
        "huge coordinates",
        lambda r: edit(
            r / COCO, lambda d: d["annotations"][2].update(segmentation=[[-1e308, -1e308, 1e308, 1e308, 4, 9]])
        ),
        r"annotation 3: a polygon must be a list of finite numbers up to 1e9",
    ),
    (
        "coco",
        "coordinates that are no numbers",
        lambda r: edit(r / COCO, lambda d: d["annotations"][2].update(segmentation=[[1, 1, 5, 5, 1, "2"]])),
        r"annotation 3: a polygon must be a list of finite numbers",
    ),
    (
        "coco",
        "box without segmentation",
        lambda r: edit(r / COCO, lambda d: d["annotations"][2].update(segmentation=[])),
        r"annotation 3 has no `segmentation`; a box alone",
    ),
    (
        "coco",
        "wrong size",
        lambda r: edit(r / COCO, lambda d: d["images"][1].update(width=99)),
        r"instances_train\.json, image 2 \(b\.png\) has 99x12 pixels, but the image .*b\.png has 16x12",
    ),
    (
        "coco",
        "mask of another size",
        lambda r: edit(r / COCO, lambda d: d["annotations"][0].update(segmentation={"size": [3, 3], "counts": [9]})),
        r"annotation 1: the mask has the size \[3, 3\], but the image \[12, 16\]",
    ),
    (
        "coco",
        "runs that are too short",
        lambda r: edit(r / COCO, lambda d: d["annotations"][0].update(segmentation={"size": [12, 16], "counts": [9]})),
        r"annotation 1: the run lengths add up to 9 pixels, but the image has 192",
    ),
    (
        "coco",
        "text that is too short",
        lambda r: edit(r / COCO, lambda d: d["annotations"][0].update(segmentation={"size": [12, 16], "counts": "9"})),
        r"annotation 1: the run lengths add up to 9 pixels, but the image has 192",
    ),
    (
        "coco",
        "text that encodes nothing",
        lambda r: edit(r / COCO, lambda d: d["annotations"][0].update(segmentation={"size": [12, 16], "counts": "é"})),
        r"annotation 1: the `counts` of a mask must be run lengths or text, got 'é'",
    ),
    (
        "coco",
        "broken JSON",
        lambda r: (r / COCO).write_text((r / COCO).read_text()[:-30]),
        r"instances_train\.json is not valid JSON: .* line 1 column",
    ),
    (
        "coco_panoptic",
        "missing image",
        lambda r: (r / "train/b.png").unlink(),
        r"panoptic_train\.json, image 2: the image 'b\.png' is not below",
    ),
    (
        "coco_panoptic",
        "class without a name",
        lambda r: edit(r / PANOPTIC, lambda d: d["categories"][0].update(name=" ")),
        r"panoptic_train\.json: the category 7 has no name",
    ),
    (
        "coco_panoptic",
        "segment that is not listed",
        lambda r: edit(r / PANOPTIC, lambda d: d["annotations"][1]["segments_info"].pop(0)),
        r"panoptic_train/b\.png has the segment 300, which .*annotation of image 2 does not list",
    ),
    (
        "coco_panoptic",
        "missing PNG",
        lambda r: (r / "annotations/panoptic_train/b.png").unlink(),
        r"The file .*panoptic_train/b\.png does not exist",
    ),
    (
        "coco_panoptic",
        "wrong size",
        lambda r: exports.save_image(r / "annotations/panoptic_train/b.png", np.zeros((5, 4, 3), np.uint8)),
        r"panoptic_train\.json, image 2 \(b\.png\) has 4x5 pixels, but the image",
    ),
    (
        "coco_panoptic",
        "broken JSON",
        lambda r: (r / PANOPTIC).write_text((r / PANOPTIC).read_text() + "}"),
        r"panoptic_train\.json is not valid JSON: Extra data",
    ),
    (
        "labelme",
        "missing image",
        lambda r: (r / "train/b.png").unlink(),
        r"train/b\.json: the image 'b\.png' is not below",
    ),
    (
        "labelme",
        "class without a name",
        lambda r: edit(r / "train/b.json", lambda d: d["shapes"][1].update(label="")),
        r"train/b\.json, shape 2: the class has no name",
    ),
    (
        "labelme",
        "polygon of two points",
        lambda r: edit(r / "train/b.json", lambda d: d["shapes"][1].update(shape_type="polygon")),
        r"train/b\.json, shape 2: a polygon has 2 points but needs three",
    ),
    (
        "labelme",
        "points of three coordinates",
        lambda r: edit(
            r / "train/b.json", lambda d: d["shapes"][1].update(shape_type="polygon", points=4 * [[1, 2, 3]])
        ),
        r"train/b\.json, shape 2: a polygon must be a list of points \[x, y\], got \[\[1, 2, 3\]",
    ),
    *(
        (
            "labelme",
            f"{kind} of {name} coordinates",
            lambda r, kind=kind, value=value: edit(
                r / "train/b.json",
                lambda d: d["shapes"][1].update(
                    shape_type=kind, points=[[1, value], [value, 2], [3, 1]][: 3 if kind == "polygon" else 2]
                ),
            ),
            r"train/b\.json, shape 2",
        )
        for kind in ("polygon", "rectangle", "circle")
        for name, value in (("huge", 1e308), ("long", 10**400), ("infinite", float("inf")))
    ),
    (
        "labelme",
        "shape without area",
        lambda r: edit(r / "train/b.json", lambda d: d["shapes"][1].update(shape_type="linestrip")),
        r"train/b\.json, shape 2 is a linestrip, which has no area",
    ),
    (
        "labelme",
        "mask outside the image",
        lambda r: edit(r / "train/b.json", lambda d: d["shapes"][1].update(points=[[12, 6], [20, 9]])),
        r"train/b\.json, shape 2: the mask does not lie within the 16x12 pixels",
    ),
    (
        "labelme",
        "mask that is no PNG",
        lambda r: edit(r / "train/b.json", lambda d: d["shapes"][1].update(mask="AAAA")),
        r"train/b\.json, shape 2: the mask cannot be read",
    ),
    (
        "labelme",
        "wrong size",
        lambda r: edit(r / "train/b.json", lambda d: d.update(imageHeight=99)),
        r"train/b\.json has 16x99 pixels, but the image .*b\.png has 16x12",
    ),
    (
        "labelme",
        "broken JSON",
        lambda r: (r / "train/b.json").write_text("{"),
        r"train/b\.json is not valid JSON: Expecting property name",
    ),
    (
        "labelme",
        "another JSON file",
        lambda r: (r / "train/c.json").write_text("{}"),
        r"train/c\.json: 'shapes' must be a list, got None",
    ),
    (
        "yolo",
        "missing image",
        lambda r: exports.write_yolo(r, scenes(), CLASSES, listed=True) and (r / "images/train/b.png").unlink(),
        r"train\.txt, line 2: the image data/images/train/b\.png does not exist",
    ),
    (
        "yolo",
        "missing image in a folder",
        lambda r: (r / "images/train/b.png").unlink(),
        r"1 of 2 label files have no image in .*images/train: .*labels/train/b\.txt; put the images there",
    ),
    (
        "yolo",
        "class without a name",
        lambda r: replace(r / "data.yaml", "1: road", "1: ''"),
        r"data\.yaml: the class 1 has no name",
    ),
    (
        "yolo",
        "class that is not listed",
        lambda r: replace(r / "labels/train/b.txt", "\n2 ", "\n7 "),
        r"labels/train/b\.txt, line 2: the class 7 is not listed in `names`",
    ),
    (
        "yolo",
        "polygon of two points",
        lambda r: (r / "labels/train/b.txt").write_text("1 0.1 0.1 0.5 0.5\n"),
        r"labels/train/b\.txt, line 1 has four numbers, a box or a polygon of two points",
    ),
    (
        "yolo",
        "coordinates in pixels",
        lambda r: (r / "labels/train/b.txt").write_text("1 1 1 9 1 5 9\n"),
        r"labels/train/b\.txt, line 1: coordinates must be shares of the image, from 0 to 1",
    ),
    (
        "yolo",
        "coordinates that are no numbers",
        lambda r: (r / "labels/train/b.txt").write_text("1 0.1 0.1 0.5 0.5 x 0.1\n"),
        r"labels/train/b\.txt, line 1: a coordinate is not a number",
    ),
    (
        "yolo",
        "missing folder",
        lambda r: (r / "images/train").rename(r / "images/other"),
        r"data\.yaml: `train` names images/train, but .* does not exist",
    ),
    (
        "yolo",
        "broken YAML",
        lambda r: (r / "data.yaml").write_text("names: [a\ntrain: b"),
        r"data\.yaml is not valid YAML",
    ),
    (
        "label_studio",
        "missing image",
        lambda r: (r / "upload/1/1a2b3c4d-b.png").unlink(),
        r"01-31\.json, task 2: the image '/b\.png' is not below",
    ),
    (
        "label_studio",
        "address that is not valid",
        lambda r: edit(r / TASKS, lambda d: d[1].update(data={"image": "http://[x/b.png"})),
        r"task 2: `data` must name one image, or one as 'image', got \{'image': 'http://\[x/b\.png'",
    ),
    (
        "label_studio",
        "two images",
        lambda r: edit(r / TASKS, lambda d: d[1].update(data={"left": "/a.png", "right": "/b.png"})),
        r"task 2: `data` must name one image, or one as 'image', got \{'left': '/a\.png'",
    ),
    (
        "cvat",
        "long number",
        lambda r: replace(r / "labelmap.txt", "60,241,7", "6" * 5000 + ",241,7"),
        r"labelmap\.txt, line 3: a line must be like",
    ),
    (
        "roboflow",
        "long number",
        lambda r: replace(r / "train/_classes.csv", "2, car", "2" * 5000 + ", car"),
        r"_classes\.csv, line 4: a line must be like '1, car', got '2222",
    ),
    (
        "yolo",
        "long number",
        lambda r: replace(r / "labels/train/b.txt", "\n2 ", "\n" + "2" * 5000 + " "),
        r"labels/train/b\.txt, line 2: the class 2222.* is not listed in `names`",
    ),
    (
        "yolo",
        "long name of a folder",
        lambda r: replace(r / "data.yaml", "images/train", "t" * 5000),
        r"data\.yaml: `train` cannot be found: .*File name too long",
    ),
    (
        "labelme",
        "long name of an image",
        lambda r: edit(r / "train/b.json", lambda d: d.update(imagePath="b" * 5000)),
        r"train/b\.json: the image cannot be found: .*File name too long",
    ),
    (
        "label_studio",
        "class without a name",
        lambda r: edit(r / TASKS, lambda d: region(d)["value"].update(brushlabels=[""])),
        r"task 2, region 1: the class has no name",
    ),
    (
        "label_studio",
        "two classes of one region",
        lambda r: edit(r / TASKS, lambda d: region(d)["value"].update(brushlabels=["car", "road"])),
        r"task 2, region 1 has 2 classes but needs one",
    ),
    (
        "label_studio",
        "polygon of two points",
        lambda r: edit(r / TASKS, lambda d: region(d).update(type="polygonlabels", value=POLYGON)),
        r"task 2, region 1: a polygon has 2 points but needs three",
    ),
    (
        "label_studio",
        "box",
        lambda r: edit(r / TASKS, lambda d: region(d).update(type="rectanglelabels")),
        r"task 2, region 1 is one of rectanglelabels; brush masks and polygons",
    ),
    (
        "label_studio",
        "wrong size",
        lambda r: replace(r / TASKS, '"original_width": 16', '"original_width": 99'),
        r"task 1 has 99x12 pixels, but the image .*a\.png has 16x12",
    ),
    (
        "label_studio",
        "mask of another size",
        lambda r: edit(r / TASKS, lambda d: region(d)["value"].update(rle=exports.packed(SMALL > 0))),
        r"task 2, region 1: the mask has 20 pixels, but the image 192",
    ),
    (
        "label_studio",
        "mask that ends too soon",
        lambda r: edit(r / TASKS, lambda d: region(d)["value"].update(rle=region(d)["value"]["rle"][:-2])),
        r"task 2, region 1: the mask ends before all pixels",
    ),
    (
        "label_studio",
        "two annotations",
        lambda r: edit(r / TASKS, lambda d: d[1].update(annotations=2 * d[1]["annotations"])),
        r"task 2 has 2 annotations; delete all but one",
    ),
    (
        "label_studio",
        "annotation that is no object",
        lambda r: edit(r / TASKS, lambda d: d[1].update(annotations=["x"])),
        r"task 2: 'result' must be a list, got None",
    ),
    (
        "label_studio",
        "broken JSON",
        lambda r: (r / TASKS).write_text((r / TASKS).read_text()[:-9]),
        r"01-31\.json is not valid JSON",
    ),
    (
        "supervisely",
        "missing image",
        lambda r: (r / "train/img/b.png").unlink(),
        r"ann/b\.png\.json: the image 'b\.png' is not in .*img",
    ),
    (
        "supervisely",
        "class without a name",
        lambda r: edit(r / "meta.json", lambda d: d["classes"][1].pop("title")),
        r"meta\.json: the class 2 has no name",
    ),
    (
        "supervisely",
        "class that is not listed",
        lambda r: edit(r / FIGURES, lambda d: d["objects"][1].update(classTitle="bus")),
        r"b\.png\.json, object 2: the class 'bus' is not listed in meta\.json",
    ),
    (
        "supervisely",
        "polygon of two points",
        lambda r: edit(r / FIGURES, lambda d: d["objects"][1].update(geometryType="polygon", points=EXTERIOR)),
        r"b\.png\.json, object 2: a polygon has 2 points but needs three",
    ),
    (
        "supervisely",
        "box",
        lambda r: edit(r / FIGURES, lambda d: d["objects"][1].update(geometryType="rectangle")),
        r"b\.png\.json, object 2 is a rectangle; bitmaps and polygons",
    ),
    (
        "supervisely",
        "wrong size",
        lambda r: edit(r / FIGURES, lambda d: d["size"].update(height=99)),
        r"b\.png\.json has 16x99 pixels, but the image .*b\.png has 16x12",
    ),
    (
        "supervisely",
        "bitmap outside the image",
        lambda r: edit(r / FIGURES, lambda d: d["objects"][1]["bitmap"].update(origin=[12, 6])),
        r"b\.png\.json, object 2: the bitmap does not lie within the 16x12 pixels",
    ),
    (
        "supervisely",
        "bitmap that is no PNG",
        lambda r: edit(r / FIGURES, lambda d: d["objects"][1]["bitmap"].update(data="AAAA")),
        r"b\.png\.json, object 2: the bitmap cannot be read",
    ),
    (
        "supervisely",
        "broken JSON",
        lambda r: (r / FIGURES).write_text("["),
        r"b\.png\.json is not valid JSON",
    ),
]


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [pytest.param(name, damage, sentence, id=f"{name}, {fault}") for name, fault, damage, sentence in MALFORMED],
)
def test_a_malformed_export_gets_a_sentence_with_file_and_item(tmp_path, name, damage, sentence):
    source = WRITERS[name](tmp_path / "export", scenes(), CLASSES)
    damage(source)
    with pytest.raises(UsageError) as error:
        import_export(source, tmp_path / "data", name)
    message = str(error.value)
    assert re.search(sentence, message), message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_recognized(tmp_path, name):
    from msctr_hf.importing.formats import FORMATS

    assert [*FORMATS] == [*dict.fromkeys([*FORMATS, *WRITERS])]
    source = WRITERS[name](tmp_path / "export", scenes(), CLASSES)
    assert [each for each, kind in FORMATS.items() if kind.is_export(source)] == [name]


def test_a_file_that_is_named_must_have_what_its_format_needs(tmp_path):
    source = write_coco_polygons(tmp_path / "export", scenes(), CLASSES) / COCO
    edit(source, lambda document: document.pop("annotations"))
    with pytest.raises(UsageError, match=r"instances_train\.json: 'annotations' must be a list, got None"):
        import_export(source, tmp_path / "data", "coco", image_dir=tmp_path / "export/images")
