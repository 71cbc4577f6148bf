"""The demo in a headless browser: uploads, clicks, opacity, wrong files, a small screen."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(folder):
    """Serve the demo of a small network, and yield its address."""
    from conftest import TIMM_TINY

    from msctr_hf import MsctrConfig

    names = dict(enumerate(["sky", "building", "road", "<b>tree</b>", "car"]))
    config = MsctrConfig(backbone_config=TIMM_TINY, hidden_size=16, projection_dim=8, id2label=names, palette=PALETTE)
    MsctrForSemanticSegmentation(config).save_pretrained(folder / "network")
    MsctrImageProcessor().save_pretrained(folder / "network")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "scripts/demo.py", "--model", folder / "network", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "127.0.0.1,localhost"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        time.sleep(0.5)
        try:
            urllib.request.urlopen(url, timeout=2).close()
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
    yield url
    process.terminate()
    process.wait(120)


@pytest.fixture
def page(address):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=options)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached")
        yield page
        browser.close()


@pytest.fixture
def image(folder):
    path = folder / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((288, 192), Image.Resampling.BICUBIC).save(path)
    return path


def upload(page, path):
    page.set_input_files("input[type=file]", path)


def shown(page, selector):
    """Read an image of the page as an array, from the file that the page shows."""
    page.wait_for_selector(f"{selector} img")
    source = page.locator(f"{selector} img").first.get_attribute("src")
    with urllib.request.urlopen(source) as response:
        return np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"))


def click(page, column, row):
    """Click a pixel of the image (288 x 192), which is shown in its own size where its frame allows."""
    box = page.locator("#classes img").bounding_box()
    scale = min(box["width"] / 288, box["height"] / 192, 1)
    left, top = (box["width"] - 288 * scale) / 2, (box["height"] - 192 * scale) / 2
    page.locator("#classes img").click(position={"x": left + (column + 0.5) * scale, "y": top + (row + 0.5) * scale})
    page.wait_for_function("document.querySelectorAll('.similar img').length == 4")


def screenshot(page, folder, name):
    """Save a screenshot, in the folder MSCTR_SCREENSHOTS if it is set, and return its pixels."""
    target = Path(os.environ.get("MSCTR_SCREENSHOTS", folder)) / f"{name}.png"
    page.screenshot(path=target, full_page=True)
    return np.asarray(Image.open(target).convert("RGB"))


def test_an_upload_is_labeled_a_click_shows_similar_pixels_and_a_slider_sets_the_opacity(page, image, folder):
    upload(page, image)
    page.wait_for_selector("#areas td.share")
    shares = [float(text.removesuffix(" %")) for text in page.locator("#areas td.share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert shares == sorted(shares, reverse=True)
    blended = shown(page, "#classes")
    original = np.asarray(Image.open(image))
    colors = (blended - 0.45 * original.astype(float)) / 0.55
    distances = [np.abs(colors - color).max(axis=-1) for color in PALETTE]
    assert np.min(distances, axis=0).max() < 4  # every pixel is a blend of the image and the color of a class
    labels = np.argmin(distances, axis=0)
    assert 100 * np.bincount(labels.ravel()).max() / labels.size == pytest.approx(shares[0], abs=0.06)

    click(page, column=200, row=60)
    similar = shown(page, ".similar").astype(int)
    rows, columns = np.nonzero(similar.max(axis=-1) < 30)  # a black ring around the pixel
    assert (rows.mean(), columns.mean()) == pytest.approx((60, 200), abs=4)
    assert tuple(similar[60, 200]) == (178, 24, 43)  # its cosine to itself is 1
    image_of_page = screenshot(page, folder, "desktop")
    assert np.unique(image_of_page.reshape(-1, 3), axis=0).shape[0] > 500  # the page is not empty

    slider = page.locator("input[type=range]")
    slider.focus()
    slider.press("Home")
    slider.dispatch_event("pointerup")
    deadline = time.monotonic() + 120
    while np.abs(shown(page, "#classes").astype(int) - original).max() > 1:  # opacity 0: the image itself
        assert time.monotonic() < deadline
        page.wait_for_timeout(200)


def test_class_names_are_shown_as_text_not_as_html(page, image):
    upload(page, image)
    page.wait_for_selector("#areas td.share")
    assert page.locator("#areas b").count() == 0


@pytest.mark.parametrize("name", ["broken.png", "words.png"])
def test_a_file_that_is_not_an_image_is_reported_on_the_page(page, folder, image, name):
    content = image.read_bytes()[:300] if name == "broken.png" else b"no image at all"
    (folder / name).write_bytes(content)
    upload(page, folder / name)
    page.wait_for_selector("#areas .fault")
    text = page.locator("#areas .fault").inner_text()
    assert name in text
    assert str(folder) not in text
    screenshot(page, folder, f"wrong_{name.split('.')[0]}")
    upload(page, image)  # the page still works
    page.wait_for_selector("#areas td.share")


def test_the_page_fits_a_phone(page, image, folder):
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, image)
    page.wait_for_selector("#areas td.share")
    click(page, column=100, row=100)
    screenshot(page, folder, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#classes img").bounding_box()["width"] > 200
