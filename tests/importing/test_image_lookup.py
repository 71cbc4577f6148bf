"""Which file and which split an image of an export is, by the names of files and folders."""

import exports
import numpy as np
import pytest
from exports import Scene

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "car")


def scenes(names, split=None):
    labels = np.zeros((8, 12), np.uint8)
    labels[2:5, 3:7] = 1
    images = [np.random.default_rng([*name.encode()]).integers(0, 256, (8, 12, 3), dtype=np.uint8) for name in names]
    return [Scene(name, image, labels, split) for name, image in zip(names, images, strict=True)]


def names_in(folder):
    return {
        split: sorted(path.stem for path in (folder / split / "labels").rglob("*.png")) for split in ("train", "val")
    }


def write_coco(root, **files):
    """Write a JSON file of COCO for each list of scenes, with the images in a folder of the split's name."""
    for name, (folder, listed) in files.items():
        document = exports.coco_document(listed, CLASSES[1:])
        for number, scene in enumerate(listed, 1):
            exports.save_image(root / folder / f"{scene.name}.png", scene.image)
            encoded = {"counts": exports.run_lengths(scene.labels), "size": list(scene.labels.shape)}
            exports.add_annotation(document, number, 1, encoded)
        exports.write_json(root / f"{name}.json", document)
    return root


@pytest.mark.parametrize("pattern", ["{}_annotations", "instances-{}", "my.{}2017.objects", "instances_{}"])
def test_any_part_of_the_name_of_a_coco_file_may_be_its_split(tmp_path, pattern):
    files = {"train": scenes("abc"), "val": scenes("xy")}
    source = write_coco(tmp_path / "export", **{pattern.format(split): (split, each) for split, each in files.items()})
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == {"train": ["a", "b", "c"], "val": ["x", "y"]}


def test_several_coco_files_of_which_one_does_not_say_its_split_are_refused(tmp_path):
    source = write_coco(tmp_path / "export", part_train=("one", scenes("abc")), train_val=("two", scenes("xyz")))
    with pytest.raises(UsageError, match=r"The split of .*export/train_val\.json is not known; .* `validation_share`"):
        import_export(source, tmp_path / "data")
    import_export(source, tmp_path / "data", validation_share=0.5)
    found = names_in(tmp_path / "data")
    assert len(found["train"]) == len(found["val"]) == 3
