import io
import json

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

httpx = pytest.importorskip("httpx")  # gradio needs it


@pytest.fixture
def image_path(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def predictor(config):
    return Predictor(MsctrForSemanticSegmentation(config).eval(), MsctrImageProcessor())


class Served:
    """The page, served in this process, and a visitor who sends requests to it without a browser."""

    def __init__(self, page):
        self.page = page
        self.address = page.launch(prevent_thread_lock=True, quiet=True)[1] + "gradio_api/"

    def upload(self, path):
        (stored,) = httpx.post(self.address + "upload", files={"files": (path.name, path.read_bytes())}).json()
        return {"path": stored, "meta": {"_type": "gradio.FileData"}}

    def call(self, function, *values, clicked=None):
        """Call a function of the page as a browser does; return whether it succeeded, and its output."""
        index = next(index for index, each in self.page.fns.items() if each.name == function)
        event = None if clicked is None else {"index": clicked, "value": None}
        request = {"fn_index": index, "data": values, "event_data": event, "session_hash": "visitor"}
        httpx.post(self.address + "queue/join", json=request).raise_for_status()
        with httpx.stream(
            "GET", self.address + "queue/data", params={"session_hash": "visitor"}, timeout=60
        ) as answer:
            messages = (json.loads(line.removeprefix("data:")) for line in answer.iter_lines() if line)
            completed = next(message for message in messages if message["msg"] == "process_completed")
        return completed["success"], completed["output"]

    def image(self, shown):
        return Image.open(io.BytesIO(httpx.get(shown["url"]).content))


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Return a function that serves the page of a network; uploads are kept outside the folder of the images."""
    pytest.importorskip("gradio")
    pages = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def start(config):
        pages.append(build_page(predictor(config), "network"))
        return Served(pages[-1])

    yield start
    for page in pages:
        page.close(verbose=False)


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


def test_files_of_the_server_are_refused_and_only_uploads_are_served(serve, tiny_config, image_path):
    served = serve(tiny_config("fcn"))
    uploaded = served.upload(image_path)
    assert served.call("segment", uploaded, 0.5)[0]
    assert httpx.get(f"{served.address}file={uploaded['path']}").content == image_path.read_bytes()
    for path in (image_path, __file__, "/etc/passwd", served.page.local_url):
        assert httpx.get(f"{served.address}file={path}").status_code == 403
    mark = {"meta": {"_type": "gradio.FileData"}}
    for request in (
        {"path": str(image_path)},
        {"path": str(image_path), **mark},
        {"path": str(image_path), "meta": {"_type": "other"}},
        {"path": str(image_path), "orig_name": "drawing.svg", "is_stream": True},
        {"path": f"{uploaded['path']}/../../../{image_path.name}"},
        {"path": f"{served.page.local_url}favicon.ico", **mark},
        {"path": f"{served.page.local_url}favicon.ico", "is_stream": True, **mark},
        {"url": image_path.as_uri()},
    ):
        succeeded, output = served.call("segment", request, 0.5)
        assert not succeeded, request
        assert "data" not in output, request
        assert str(image_path) not in json.dumps(output), request


@pytest.mark.parametrize("stages", [[3], [1, 3, 4]])
def test_a_click_fills_the_panel_of_every_stage_even_of_a_single_one(serve, tiny_config, image_path, stages):
    served = serve(tiny_config(projection_stages=stages))
    assert served.call("segment", served.upload(image_path), 0.5)[0]
    succeeded, output = served.call("compare", None, clicked=[50, 20])
    assert succeeded, output
    assert [served.image(shown).size for shown in output["data"]] == [(96, 64)] * len(stages)


def test_a_click_on_an_image_that_the_server_has_deleted_empties_the_panels(serve, tiny_config):
    served = serve(tiny_config())
    succeeded, output = served.call("compare", None, clicked=[50, 20])
    assert succeeded, output
    assert output["data"] == [None] * 4


def test_a_network_that_fails_leaves_the_page_usable_and_its_traceback_in_the_log(
    serve, tiny_config, image_path, capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("sizes of tensors must match")

    served = serve(tiny_config())
    uploaded = served.upload(image_path)
    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "__call__", fail)
        succeeded, output = served.call("segment", uploaded, 0.5)
    assert succeeded
    assert output["data"][0] is None
    assert "The network failed on this image" in output["data"][1]
    error = capsys.readouterr().err
    assert "demo_page.py" in error
    assert "RuntimeError: sizes of tensors must match" in error
    shown = served.call("segment", uploaded, 0.5)[1]["data"][0]
    assert served.image(shown).size == (96, 64)
