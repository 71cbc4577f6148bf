import base64
import contextlib
import functools
import re
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.predictor import Predictor, load_predictor
from msctr_hf.evaluation.settings import InferenceSettings


@pytest.fixture
def saved(tmp_path, tiny_config):
    MsctrForSemanticSegmentation(tiny_config(palette=[[50 * label] * 3 for label in range(5)])).save_pretrained(
        tmp_path
    )
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))


def test_settings_can_be_given_to_the_pipeline_or_to_a_call(saved, image):
    settings = {"scales": (0.75, 1.0), "flip": True, "window_size": (48, 48), "window_stride": (32, 40)}
    expected = next(load_predictor(saved, InferenceSettings(**settings))([image]))
    made = pipeline("msctr-segmentation", model=saved, **settings)(image)
    called = pipeline("msctr-segmentation", model=saved)(image, **settings)
    assert np.array_equal(made["labels"], expected)
    assert np.array_equal(called["labels"], expected)
    assert not np.array_equal(pipeline("msctr-segmentation", model=saved)(image)["labels"], expected)


@pytest.mark.parametrize("settings", [{}, {"window_size": (48, 48), "window_stride": (32, 40), "batch_size": 3}])
def test_embeddings_are_returned_on_request(saved, image, settings):
    segment = pipeline("msctr-segmentation", model=saved, return_embeddings=True)
    result = segment(image, **settings)
    windows = {name: value for name, value in settings.items() if name != "batch_size"}
    predictor = load_predictor(saved, InferenceSettings(**windows), device="cpu")
    np.testing.assert_allclose(result["embeddings"], Embedder(predictor)(image).numpy(), rtol=0, atol=1e-6)
    of_stage = segment([image, image], features="backbone", stage=2, **settings)
    channels = predictor.model.backbone.channels[1]
    assert [each["embeddings"].shape[0] for each in of_stage] == [channels, channels]
    assert "embeddings" not in segment(image, return_embeddings=False)
    with pytest.raises(UsageError, match="`stage` must be one of 1, 2, 3, 4"):
        segment(image, stage=5)


def test_areas_and_overlay_match_the_labels(saved, image):
    result = pipeline("msctr-segmentation", model=saved)(image, opacity=1.0)
    for label in range(5):
        assert result["areas"].get(f"class {label}", 0) == pytest.approx((result["labels"] == label).mean())
    assert np.array_equal(np.array(result["overlay"])[..., 0], 50 * result["labels"])
    assert pipeline("msctr-segmentation", model=saved)(image, legend=True)["overlay"].height > image.height


def test_paths_and_lists_are_accepted(saved, image, tmp_path):
    image.save(tmp_path / "image.png")
    segment = pipeline("msctr-segmentation", model=saved)
    results = segment([str(tmp_path / "image.png"), image])
    assert np.array_equal(results[0]["labels"], results[1]["labels"])


@pytest.fixture
def images():
    """Images of three sizes, some next to images of their size."""
    random = np.random.default_rng(1)
    shapes = [(33, 40), (33, 40), (32, 24), (20, 40), (33, 40)]
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def argmax_of_stock_model(folder, image):
    """Class map that transformers' own classes compute in float64: pixel values, padding, logits, resizing, argmax."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).double().eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    prepared = processor(image, return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        logits = model(pixel_values=prepared).logits
    resized = torch.nn.functional.interpolate(logits, prepared.shape[-2:], mode="bilinear", align_corners=False)
    return resized[0, :, : image.height, : image.width].argmax(dim=0).numpy()


def test_batches_of_any_sizes_are_labeled_as_single_images(saved, images):
    segment = pipeline("msctr-segmentation", model=saved, dtype=torch.float64)
    predictor = Predictor(segment.model, segment.image_processor)
    expected = [next(predictor([image])) for image in images]
    for image, labels in zip(images, expected, strict=True):
        assert np.array_equal(labels, argmax_of_stock_model(saved, image))
    inputs = {
        "list": images,
        "tuple": tuple(images),
        "generator": (image for image in images),
        "iterator": iter(images),
        "column": datasets.Dataset.from_dict({"image": images})["image"],
        "dataset": KeyDataset([{"image": image} for image in images], "image"),
        "arrays": [np.asarray(image) for image in images],
    }
    for name, given in inputs.items():
        results = list(segment(given, batch_size=2))
        same = [np.array_equal(*pair) for pair in zip([one["labels"] for one in results], expected, strict=True)]
        assert all(same), name
        assert [np.asarray(one["overlay"]).shape[:2] for one in results] == [one.shape for one in expected], name


def test_batches_with_windows_are_labeled_as_single_images(saved, images):
    settings = {"flip": True, "window_size": (24, 32)}
    segment = pipeline("msctr-segmentation", model=saved, dtype=torch.float64, **settings)
    predictor = Predictor(segment.model, segment.image_processor, InferenceSettings(**settings))
    for result, image in zip(segment(images[:3], batch_size=2), images, strict=False):
        assert np.array_equal(result["labels"], next(predictor([image])))


def test_a_batch_size_of_the_pipeline_and_workers_do_not_change_results(saved, images):
    segment = pipeline("msctr-segmentation", model=saved, dtype=torch.float64)
    expected = [segment(image)["labels"] for image in images]
    for settings in ({"batch_size": 2, "num_workers": 1}, {"batch_size": 100}):
        results = pipeline("msctr-segmentation", model=saved, dtype=torch.float64, **settings)(images)
        assert all(np.array_equal(one["labels"], labels) for one, labels in zip(results, expected, strict=True))


def test_images_of_one_size_share_a_forward_pass(saved, images):
    segment, seen = pipeline("msctr-segmentation", model=saved, batch_size=2), []
    segment.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    segment(images[:2])
    assert seen == [2]
    segment(images[0], window_size=(20, 32), window_stride=(20, 32))
    assert seen == [2, 2, 2]  # four windows


def test_a_generator_is_read_a_batch_at_a_time(saved, images):
    read = []
    results = pipeline("msctr-segmentation", model=saved)((read.append(1) or image for image in images), batch_size=2)
    assert not isinstance(results, list)
    next(results)
    assert len(read) <= 3


def test_arrays_are_read_as_files_with_the_same_values(saved, image, tmp_path):
    segment = pipeline("msctr-segmentation", model=saved)
    pixels = np.asarray(image)
    deep = pixels.astype(np.uint16) * 256 + 255
    expected, gray = segment(image)["labels"], segment(Image.fromarray(pixels[..., 0]))["labels"]
    assert np.array_equal(segment(pixels)["labels"], expected)
    assert np.array_equal(segment(deep)["labels"], expected)
    assert np.array_equal(segment(np.dstack([pixels, pixels[..., 0]]))["labels"], expected)
    for values in (pixels[..., 0], pixels[..., :1], deep[..., 0], deep[..., 0].astype(">u2")):
        assert np.array_equal(segment(values)["labels"], gray)
    assert [np.array_equal(one["labels"], expected) for one in segment(np.stack([pixels, pixels]))] == [True, True]
    assert segment([]) == segment(np.empty((0, 8, 8, 3), np.uint8)) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), "8 or 16 bits .* got float32"),
        (np.zeros((3, 40, 50), np.uint8), r"got the shape \(3, 40, 50\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got the shape \(0, 4, 3\)"),
        ({"image": "street.jpg"}, "a PIL image or an array of numpy, got dict"),
        ([["street.jpg"]], "a PIL image or an array of numpy, got list"),
    ],
)
def test_what_is_not_an_image_is_refused(saved, given, sentence):
    with pytest.raises(UsageError, match=sentence):
        pipeline("msctr-segmentation", model=saved)(given)


def test_a_batch_size_below_one_is_refused(saved, image):
    for given in (image, [image]):
        with pytest.raises(UsageError, match="`batch_size` must be at least 1, got 0"):
            pipeline("msctr-segmentation", model=saved)(given, batch_size=0)


def test_files_are_read_as_for_prediction(saved, image, tmp_path):
    """Pillow alone would clip 16-bit values at 255, read floats as black, and accept pixels with a wrong checksum."""
    segment = pipeline("msctr-segmentation", model=saved)
    deep = np.asarray(image)[..., 0].astype(np.uint16) * 256
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = segment(Image.fromarray((deep >> 8).astype(np.uint8)))["labels"]
    data = (tmp_path / "deep.png").read_bytes()
    inputs = {
        "text": str(tmp_path / "deep.png"),
        "path": tmp_path / "deep.png",
        "image": Image.open(tmp_path / "deep.png"),
        "address of data": "data:image/png;base64," + base64.b64encode(data).decode(),
        "base64": base64.b64encode(data).decode(),
    }
    same = {name: np.array_equal(segment(given)["labels"], expected) for name, given in inputs.items()}
    assert same == dict.fromkeys(inputs, True)
    Image.fromarray(deep / np.float32(65535)).save(tmp_path / "floats.tif")
    for given in (str(tmp_path / "floats.tif"), Image.open(tmp_path / "floats.tif")):
        with pytest.raises(UsageError, match=r"floats\.tif: images must have 8 or 16 bits"):
            segment(given)
    image.save(tmp_path / "damaged.png")
    damaged = bytearray((tmp_path / "damaged.png").read_bytes())
    damaged[-16] ^= 1  # the last byte but three of the checksum of the pixels' chunk
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(UsageError, match=r"damaged\.png cannot be read as an image: the checksum"):
        segment(str(tmp_path / "damaged.png"))


def test_a_truncated_image_of_pillow_is_refused_by_name(saved, image, tmp_path):
    image.save(tmp_path / "photo.png")
    (tmp_path / "photo.png").write_bytes((tmp_path / "photo.png").read_bytes()[:-200])
    with Image.open(tmp_path / "photo.png") as photo, pytest.raises(UsageError, match=r"photo\.png cannot be read"):
        pipeline("msctr-segmentation", model=saved)(photo)


def test_images_are_loaded_from_addresses(saved, image, tmp_path):
    image.save(tmp_path / "image.png")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        segment = pipeline("msctr-segmentation", model=saved)
        result = segment(f"http://127.0.0.1:{server.server_port}/image.png")
        server.shutdown()
    assert np.array_equal(result["labels"], segment(image)["labels"])


class CutShort(BaseHTTPRequestHandler):
    """Server that ends a connection within an answer, or does not answer before `released` is set."""

    released = threading.Event()

    def do_GET(self):
        if self.path == "/hangs":
            self.released.wait(30)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"too little")

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_may_have_letters_and_spaces_as_browsers_accept_them(saved, image, tmp_path):
    (tmp_path / "Straße im Nebel").mkdir()
    image.save(tmp_path / "Straße im Nebel/1 %.png")
    segment = pipeline("msctr-segmentation", model=saved)
    expected = segment(image)["labels"]
    with serving(functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as address:
        for path in ("/Straße im Nebel/1 %25.png?größe=1 2#oben", "/Stra%C3%9Fe%20im%20Nebel/1%20%25.png?a=1&b=%20"):
            assert np.array_equal(segment(address + path)["labels"], expected)


def test_addresses_that_cannot_be_loaded_are_refused_in_a_sentence(saved, monkeypatch):
    monkeypatch.setattr("msctr_hf.evaluation.pipeline._ANSWER_TIMEOUT", 0.5)
    segment = pipeline("msctr-segmentation", model=saved)
    with serving(CutShort) as address:
        urls = [f"{address}/cut", f"{address}/hangs", "http://[::1/a.png", "http://127.0.0.1:port/a.png", "http://"]
        for url in urls:
            with pytest.raises(UsageError, match=rf"^{re.escape(url)} cannot be loaded: .") as refused:
                segment(url)
            assert "\n" not in str(refused.value)
        CutShort.released.set()


def test_settings_of_the_wrong_type_are_refused_by_name(saved, image):
    segment = pipeline("msctr-segmentation", model=saved)
    for settings, sentence in (
        ({"scales": 1.0}, "`scales` must be a list of positive numbers, got 1.0."),
        ({"window_size": 64}, "`window_size` must be a height and a width, two integers, got 64."),
    ):
        with pytest.raises(UsageError) as refused:
            segment(image, **settings)
        assert str(refused.value) == sentence


def test_an_unknown_setting_is_refused(saved):
    with pytest.raises(ValueError, match="`scale` is not a setting of this pipeline"):
        pipeline("msctr-segmentation", model=saved, scale=2)


def test_the_stock_pipeline_accepts_the_model(saved, image, caplog):
    segments = pipeline("image-segmentation", model=saved)(image)
    assert "not supported" not in caplog.text
    total = sum((np.array(segment["mask"]) > 0).astype(int) for segment in segments)
    assert np.all(total == 1)
