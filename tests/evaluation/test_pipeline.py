import base64
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.predictor import load_predictor
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


def test_an_unknown_setting_is_refused(saved):
    with pytest.raises(ValueError, match="`scale` is not a setting of this pipeline"):
        pipeline("msctr-segmentation", model=saved, scale=2)


def test_the_stock_pipeline_accepts_the_model(saved, image, caplog):
    segments = pipeline("image-segmentation", model=saved)(image)
    assert "not supported" not in caplog.text
    total = sum((np.array(segment["mask"]) > 0).astype(int) for segment in segments)
    assert np.all(total == 1)
