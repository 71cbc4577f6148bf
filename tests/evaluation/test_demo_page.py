import numpy as np
import pytest
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.demo_page import (
    area_table,
    build_page,
    example_images,
    segment_image,
    similarity_figures,
)
from msctr_hf.evaluation.predictor import Predictor


@pytest.fixture
def image_path(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def predictor(config):
    return Predictor(MsctrForSemanticSegmentation(config).eval(), MsctrImageProcessor())


def test_large_images_are_downscaled_and_labeled_at_that_size(tiny_config, tmp_path):
    Image.new("RGB", (2000, 500)).save(tmp_path / "wide.png")
    segmented = segment_image(predictor(tiny_config("fcn")), tmp_path / "wide.png")
    assert segmented.image.size == (1280, 320)
    assert segmented.labels.shape == (320, 1280)


def test_a_pixel_is_most_similar_to_itself_and_every_stage_is_shown(tiny_config, image_path):
    segmented = segment_image(predictor(tiny_config()), image_path)
    figures = similarity_figures(segmented, column=50, row=20)
    assert [each.size for each in figures] == [(96, 64)] * 4
    assert figures[0].getpixel((50, 20)) == (178, 24, 43)


def test_a_network_without_projections_still_labels_images(tiny_config, image_path):
    assert segment_image(predictor(tiny_config(contrastive_mode="ce")), image_path).projections == {}


def test_the_table_of_areas_lists_present_classes_by_size_and_escapes_their_names():
    table = area_table(np.array([[0, 2], [2, 2]]), ["sky", "road", "<i>"], [(1, 2, 3)] * 3)
    assert table.index("75.0 %") < table.index("25.0 %")
    assert "&lt;i&gt;" in table
    assert "road" not in table


def test_example_images_come_from_the_given_folder_and_an_empty_folder_is_refused(tiny_config, image_path, tmp_path):
    config = tiny_config()
    assert example_images(image_path.parent, config, tmp_path) == [str(image_path)]
    assert example_images(None, config, tmp_path) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        example_images(tmp_path / "empty", config, tmp_path)


def test_example_images_come_from_linked_folders_but_not_from_hidden_ones(tiny_config, image_path, tmp_path):
    folder = tmp_path / "examples"
    (folder / ".thumbnails").mkdir(parents=True)
    for name in (".thumbnails/0.png", "._1.png", "2.jfif"):
        (folder / name).write_bytes(image_path.read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / image_path.name).write_bytes(image_path.read_bytes())
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    found = example_images(folder, tiny_config(), tmp_path)
    assert found == [str(folder / "2.jfif"), str(folder / "linked" / image_path.name)]
    with pytest.raises(UsageError, match="is not a folder"):
        example_images(tmp_path / "gone", tiny_config(), tmp_path)


def test_a_network_that_fails_leaves_the_page_usable_and_its_traceback_in_the_log(
    tiny_config, image_path, capsys, monkeypatch
):
    page = build_page(predictor(tiny_config()), "network")
    segment = next(each.fn for each in page.fns.values() if each.fn.__name__ == "segment")
    assert isinstance(segment(str(image_path), 0.5)[0], Image.Image)

    def fail(*_):
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(Predictor, "__call__", fail)
    shown, table, *_ = segment(str(image_path), 0.5)
    assert shown is None
    assert "The network failed on this image" in table
    error = capsys.readouterr().err
    assert "demo_page.py" in error
    assert "RuntimeError: sizes of tensors must match" in error
