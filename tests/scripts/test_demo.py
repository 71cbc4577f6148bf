"""The demo in a headless browser: everything that a person can click, wrong files, two visitors, a small screen."""

import base64
import contextlib
import http.client
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

COPY = """async content => {
    const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
}"""
PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def examples(folder):
    (folder / "examples").mkdir()
    return [draw(folder / f"examples/{seed}.png", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def address(folder, examples):
    """Serve the demo of a small network with two examples, and yield its address."""
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
    command += ["--examples", examples[0].parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "127.0.0.1,localhost"}
    environment["GRADIO_TEMP_DIR"] = environment["TMPDIR"] = str(folder / "temporary")  # the examples are elsewhere
    (folder / "temporary").mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=environment, cwd=ROOT / "tests"
        )
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


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Return a function that opens the page for a new visitor; at the end no page may show or log an error."""
    pages, errors = [], []

    def start():
        context = browser.new_context(viewport={"width": 1200, "height": 1000})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        pages.append(page)
        return page

    yield start
    shown = [page.get_by_text("Error", exact=True).count() for page in pages]
    for page in pages:
        page.context.close()
    assert not any(shown)
    assert errors == []


@pytest.fixture
def page(visit):
    return visit()


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((288, 192), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def image(folder):
    return draw(folder / "image.png", seed=0)


def upload(page, path):
    page.set_input_files("#upload input[type=file]", path)


def open_find(page):
    """Open the second tab."""
    page.get_by_role("tab", name="Find").click()
    page.wait_for_selector("#find-upload input[type=file]", state="attached")


def shown(page, selector):
    """Read an image of the page as an array, from the file that the page shows."""
    page.wait_for_selector(f"{selector} img")
    for _ in range(3):
        source = page.locator(f"{selector} img").first.get_attribute("src")
        # Gradio writes a file anew, in place, when the same image is shown again: half a file is read once more.
        with contextlib.suppress(OSError, http.client.IncompleteRead), urllib.request.urlopen(source) as response:
            return np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"))
        page.wait_for_timeout(500)
    raise AssertionError(f"{source} is no image")


def wait(page, condition, *arguments):
    """Wait until something is true of a page."""
    deadline = time.monotonic() + 60
    while not condition(page, *arguments):
        assert page.get_by_text("Error", exact=True).count() == 0, page.locator("body").inner_text()
        assert time.monotonic() < deadline, page.locator("body").inner_text()
        page.wait_for_timeout(100)


def is_empty(page):
    return page.locator("#classes img, .similar img, #areas td").count() == 0


def shows(page, path, opacity):
    """Return whether every pixel of the labeled image is a blend of a file and the color of a class."""
    if page.locator("#classes img").count() == 0:
        return False
    difference = shown(page, "#classes") - (1 - opacity) * np.asarray(Image.open(path), dtype=float)
    distances = [np.abs(difference - opacity * np.asarray(color)).max(axis=-1) for color in PALETTE]
    return np.min(distances, axis=0).max() < 2


def click(page, column, row):
    """Click a pixel of the image (288 x 192), which is shown in its own size where its frame allows."""
    click_in(page, "#classes img", column, row)
    page.wait_for_function("document.querySelectorAll('.similar img').length == 4")


def click_in(page, selector, column, row):
    box = page.locator(selector).bounding_box()
    scale = min(box["width"] / 288, box["height"] / 192, 1)
    left, top = (box["width"] - 288 * scale) / 2, (box["height"] - 192 * scale) / 2
    page.locator(selector).click(position={"x": left + (column + 0.5) * scale, "y": top + (row + 0.5) * scale})


def found(page):
    """Read the captions of the images that were found."""
    return page.locator("#found .caption-label").all_inner_texts()


def lists(page, number):
    return len(found(page)) == number


def shows_shares(page, condition):
    return bool(found(page)) and all(condition(float(text.split()[4])) for text in found(page))


def screenshot(page, folder, name):
    """Save a screenshot, in the folder MSCTR_SCREENSHOTS if it is set, and return its pixels."""
    target = Path(os.environ.get("MSCTR_SCREENSHOTS", folder)) / f"{name}.png"
    page.screenshot(path=target, full_page=True)
    return np.asarray(Image.open(target).convert("RGB"))


def test_an_upload_is_labeled_and_a_click_shows_similar_pixels(page, image, folder):
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


def test_everything_that_a_person_can_click_works(page, image, examples):
    for number in (0, 1, 0):
        page.locator("button.gallery-item").nth(number).click()
        wait(page, shows, examples[number], 0.55)
        assert page.locator("#areas td.share").count()
        assert page.locator(".similar img").count() == 0  # those of the image before
        click(page, column=50, row=50)

    slider, number = page.locator("input[type=range]"), page.locator("input[type=number]")
    slider.focus()
    slider.press("Home")
    wait(page, shows, examples[0], 0)
    slider.press("ArrowRight")
    wait(page, shows, examples[0], 0.05)
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    wait(page, shows, examples[0], 1)
    number.fill("0.5")
    number.blur()
    wait(page, shows, examples[0], 0.5)
    page.get_by_label("Reset to default value").click()
    wait(page, shows, examples[0], 0.55)

    panels = page.locator("#classes, .similar")
    for panel in [panels.nth(index) for index in range(panels.count())]:
        assert panel.get_by_label("Share").count() == 0  # it would send the image to another site
        with page.expect_download() as download:
            panel.get_by_label("Download").click()
        assert Image.open(download.value.path()).size == (288, 192)
        panel.get_by_label("Fullscreen").click()
        panel.get_by_label("Exit fullscreen mode").click()

    page.get_by_label("Remove Image").click()
    wait(page, is_empty)
    upload(page, image)
    wait(page, shows, image, 0.55)
    page.get_by_label("Remove Image").click()
    wait(page, is_empty)
    page.evaluate(COPY, base64.b64encode(image.read_bytes()).decode())
    page.get_by_label("Paste from clipboard").click()
    wait(page, shows, image, 0.55)


def test_two_visitors_at_once_see_their_own_images(visit, image, examples):
    first, second = visit(), visit()
    first.locator("button.gallery-item").nth(0).click()
    upload(second, image)
    wait(first, shows, examples[0], 0.55)
    wait(second, shows, image, 0.55)
    second.locator("button.gallery-item").nth(1).click()
    wait(second, shows, examples[1], 0.55)
    for page in (first, second):
        click(page, column=100, row=100)
    assert shows(first, examples[0], 0.55)


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


def test_everything_that_a_person_can_click_in_the_tab_that_finds_works(page, image, folder):
    open_find(page)
    wait(page, lambda page: page.locator("#searched img").count() == 2)  # the examples
    page.locator("button.gallery-item:visible").first.click()
    page.wait_for_selector("#clicked img")
    click_in(page, "#clicked img", column=200, row=60)
    wait(page, lists, 2)
    assert found(page)[0].startswith("1. 1.png: cosine 1.00, ")  # the same image
    marked = shown(page, "#clicked").astype(int) - np.asarray(Image.open(folder / "examples/1.png"), dtype=int)
    rows, columns = np.nonzero(np.abs(marked).max(axis=-1) > 60)
    assert (rows.mean(), columns.mean()) == pytest.approx((60, 200), abs=4)

    slider = page.locator("input[type=range]:visible")
    slider.focus()
    slider.press("End")
    wait(page, shows_shares, lambda share: share < 50)
    slider.press("Home")
    wait(page, shows_shares, lambda share: share > 50)
    page.get_by_label("Reset to default value").locator("visible=true").click()
    for name in ("backbone", "decode head", "projection"):
        page.get_by_label(name, exact=True).check()
        wait(page, lists, 2)
    for name in ("2", "4", "all"):
        page.get_by_label(name, exact=True).check()
        wait(page, lists, 2)
    screenshot(page, folder, "find")

    page.get_by_role("button", name="Clear the clicks").click()
    wait(page, lists, 0)
    click_in(page, "#clicked img", column=20, row=20)
    click_in(page, "#clicked img", column=250, row=150)
    wait(page, lists, 2)
    page.set_input_files("#find-upload input[type=file]", image)
    wait(page, lists, 0)


def test_the_tab_that_finds_fits_a_phone(page, folder):
    page.set_viewport_size({"width": 390, "height": 844})
    open_find(page)
    page.locator("button.gallery-item:visible").first.click()
    page.wait_for_selector("#clicked img")
    click_in(page, "#clicked img", column=100, row=100)
    wait(page, lists, 2)
    screenshot(page, folder, "find_phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#clicked img").bounding_box()["width"] > 200
    caption = page.locator("#found .caption-label").first
    assert caption.evaluate("element => element.scrollWidth <= element.clientWidth")  # not cut off
    assert page.locator("#found img").first.bounding_box()["width"] > 200
    rows = page.locator("#found .grid-wrap")
    assert rows.evaluate("element => element.scrollHeight <= element.clientHeight")  # all are seen
