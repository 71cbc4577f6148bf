import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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
from msctr_hf.evaluation.embeddings import stage_features
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.visitor_images import IMAGE_LIFETIME

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

    def start(config, examples=()):
        pages.append(build_page(predictor(config), "network", examples))
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


def test_projections_that_are_kept_take_half_the_memory_and_show_the_same(tiny_config, image_path):
    shown_by = predictor(tiny_config())
    segmented = segment_image(shown_by, image_path)
    exact = stage_features(shown_by, segmented.image)
    for projection, *_ in segmented.projections.values():
        assert (projection.dtype, projection.device.type) == (torch.float16, "cpu")
    figures = similarity_figures(segmented, column=50, row=20)
    expected = similarity_figures(replace(segmented, projections=exact), column=50, row=20)
    for figure, wanted in zip(figures, expected, strict=True):
        assert np.abs(np.asarray(figure, int) - np.asarray(wanted, int)).max() <= 1  # of 255 levels


def test_files_of_visitors_are_deleted_after_an_hour_and_examples_are_not(serve, tiny_config, image_path, tmp_path):
    Image.new("RGB", (64, 64), "green").save(tmp_path / "example.png")
    served = serve(tiny_config("fcn"), [str(tmp_path / "example.png")])
    from gradio.route_utils import delete_files_created_by_app  # what gradio calls when it is time

    uploaded = served.upload(image_path)
    assert served.call("segment", uploaded, 0.5)[0]
    uploads = tmp_path / "uploads"
    examples = set(uploads.rglob("example.png"))
    files = {path for path in uploads.rglob("*") if path.is_file()}
    assert examples
    assert len(files - examples) >= 2  # the upload, and its classes

    every, age = served.page.delete_cache
    assert every <= 600
    assert age == IMAGE_LIFETIME
    delete_files_created_by_app(served.page, age)
    assert {path for path in uploads.rglob("*") if path.is_file()} == files
    delete_files_created_by_app(served.page, 0)  # as after an hour
    assert {path for path in uploads.rglob("*") if path.is_file()} == examples
    succeeded, output = served.call("segment", uploaded, 0.5)
    assert succeeded
    assert "image.png" in output["data"][1]  # a sentence


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
    assert served.call("choose", None, uploaded)[0]
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
        calls = [("segment", request, 0.5)]
        if request == {"path": str(image_path), **mark}:
            galleries = [[{kind: request, "caption": None}] for kind in ("image", "video")]
            calls += [("choose", None, request), *(("find", None, each, "backbone", 0, 0.5) for each in galleries)]
        for call in calls:
            succeeded, output = served.call(*call)
            assert not succeeded, call
            assert "data" not in output, call
            assert str(image_path) not in json.dumps(output), call


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


def test_every_control_of_the_tab_that_finds_answers_with_what_it_shows(serve, tiny_config, image_path):
    served = serve(tiny_config(), [str(image_path)])
    uploaded = served.upload(image_path)
    gallery = [{"image": uploaded, "caption": None}] * 2

    def call(function, *values, clicked=None):
        succeeded, output = served.call(function, *values, clicked=clicked)
        assert succeeded, output
        return output["data"]

    marked, _, found, fault = call("choose", None, uploaded)
    assert (served.image(marked).size, found, fault) == ((96, 64), [], "")
    assert call("find", None, gallery, "projection", 0, 0.8)[1] == []  # nothing was clicked
    marked, _, found, fault = call("click", None, gallery, "projection", 0, 0.8, clicked=[50, 20])
    assert served.image(marked).size == (96, 64)
    assert [each["caption"][:26] for each in found] == ["1. image.png: cosine 1.00,", "2. image.png: cosine 1.00,"]
    assert served.image(found[0]["image"]).size == (96, 64)
    choices, _, found, _ = call("change_features", None, gallery, "backbone", 0.8)
    assert [value for _, value in choices["choices"]] == [0, 1, 2, 3, 4]
    assert (choices["value"], len(found)) == (0, 2)
    assert len(call("find", None, gallery[:1], "backbone", 2, 0.8)[1]) == 1
    ((found,),) = call("redraw", None, 0)
    assert " 100.0 % of the image" in found["caption"]
    _, _, found, _ = call("clear", None)
    assert found == []
    assert call("redraw", None, 0) == [[]]
    assert call("choose", None, None)[0] is None


def test_a_click_on_an_image_to_search_by_that_the_server_has_deleted_empties_the_tab(serve, tiny_config):
    served = serve(tiny_config())
    succeeded, output = served.call("click", None, None, "projection", 0, 0.8, clicked=[50, 20])
    assert succeeded, output
    assert output["data"] == [None, None, [], ""]


def test_a_network_without_embeddings_still_has_a_page_and_its_tab_says_why(image_path, monkeypatch, tmp_path):
    pytest.importorskip("gradio")

    class Network(torch.nn.Module):
        config = SimpleNamespace(num_labels=2, id2label={0: "sky", 1: "road"})

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 1)

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.layer(pixel_values))

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build_page(Predictor(Network().eval(), MsctrImageProcessor()), "network")
    served = Served(page)
    try:
        assert served.call("segment", served.upload(image_path), 0.5)[0]
        assert not any(each.name == "click" for each in page.fns.values())
        (fault,) = (each.value for each in page.blocks.values() if getattr(each, "elem_id", None) == "find-faults")
        assert "Network cannot be adapted: it is not a model of transformers" in fault
    finally:
        page.close(verbose=False)
