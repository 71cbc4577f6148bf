"""Tasks of Label Studio with more than one image: none of them gets the regions of another."""

import json

import exports
import numpy as np
import pytest
from exports import Scene
from PIL import Image

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

SQUARE = [[25, 25], [75, 25], [75, 75], [25, 75]]  # percents of an image


def scene(name, size=(8, 12)):
    image = np.random.default_rng([*name.encode()]).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Scene(name, image, None)


def write(root, tags):
    """Write tasks with a photo, rgb, and a thermal image, and a region on the image of each of `tags`."""
    tasks = []
    for number in range(3):
        scenes = {"rgb": scene(f"rgb_{number}"), "thermal": scene(f"thermal_{number}", (4, 8))}
        for each in scenes.values():
            exports.save_image(root / f"{each.name}.png", each.image)
        regions = [
            exports.label_studio_region(scenes[tag], "polygonlabels", "car", points=SQUARE) | {"to_name": tag}
            for tag in tags
        ]
        task = exports.label_studio_task(number, f"/data/upload/1/rgb_{number}.png", regions)
        task["data"]["thermal"] = f"/data/upload/1/thermal_{number}.png"
        tasks.append(task)
    exports.write_json(root / "project.json", tasks)
    return root


def labels_of(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*/labels/*.png")}


def test_regions_of_several_images_are_refused(tmp_path):
    source = write(tmp_path / "export", ["rgb", "thermal"])
    sentence = r"several images of a task \(`to_name`\): 'rgb' in .*, region 1, 'thermal' in .*, region 2; label each"
    with pytest.raises(UsageError, match=sentence):
        import_export(source, tmp_path / "data")


def test_regions_of_one_image_in_one_task_and_of_another_in_the_next_are_refused(tmp_path):
    source = write(tmp_path / "export", ["rgb"])
    tasks = json.loads((source / "project.json").read_text())
    tasks[1]["annotations"][0]["result"][0]["to_name"] = "thermal"
    exports.write_json(source / "project.json", tasks)
    with pytest.raises(UsageError, match=r"'rgb' in .*task 2, region 1, 'thermal' in .*task 1, region 1"):
        import_export(source, tmp_path / "data")


@pytest.mark.parametrize(("tag", "size"), [("rgb", (8, 12)), ("thermal", (4, 8))])
def test_regions_of_one_image_are_drawn_on_it(tmp_path, tag, size):
    import_export(write(tmp_path / "export", [tag, tag]), tmp_path / "data")
    labels = labels_of(tmp_path / "data")
    assert sorted(labels) == [f"{tag}_{number}" for number in range(3)]
    expected = np.zeros(size, np.uint8)
    expected[size[0] // 4 : size[0] * 3 // 4, size[1] // 4 : size[1] * 3 // 4] = 1
    assert all(np.array_equal(each, expected) for each in labels.values())


def test_regions_of_another_size_than_the_first_are_refused(tmp_path):
    source = write(tmp_path / "export", ["rgb", "rgb"])
    tasks = json.loads((source / "project.json").read_text())
    tasks[1]["annotations"][0]["result"][1] |= {"original_width": 6, "original_height": 4}
    exports.write_json(source / "project.json", tasks)
    with pytest.raises(UsageError, match=r"task 1, region 2 was drawn on an image of 6x4 pixels, .* of 12x8\."):
        import_export(source, tmp_path / "data")


@pytest.mark.parametrize("without", [{"original_width": None, "original_height": None}, None])
@pytest.mark.parametrize("of", [(0,), (1,), (0, 1)])
def test_regions_without_a_size_have_that_of_the_first_with_one(tmp_path, without, of):
    source = write(tmp_path / "export", ["rgb", "rgb"])
    tasks = json.loads((source / "project.json").read_text())
    regions = tasks[1]["annotations"][0]["result"]
    for number in of:
        region = {key: value for key, value in regions[number].items() if not key.startswith("original_")}
        regions[number] = region | (without or {})
    exports.write_json(source / "project.json", tasks)
    if len(of) == 2:
        with pytest.raises(UsageError, match=r"task 1, region 1: 'original_width' and 'original_height' are missing"):
            import_export(source, tmp_path / "data")
        return
    import_export(source, tmp_path / "data")
    first, *others = labels_of(tmp_path / "data").values()
    assert first.any() and all(np.array_equal(first, other) for other in others)
