"""The page of a check of labels: what it shows, escaped names, and every control in a headless browser."""

import csv
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from color_network import COLORS, color_embedder, write_boxes
from PIL import Image

from msctr_hf.evaluation.label_checking import Suspects, check_labels
from msctr_hf.evaluation.label_regions import Region
from msctr_hf.evaluation.label_report import region_views, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLIP = """</script><b title='"'>&tree"""
NAMES = ("ground", CLIP, "car")
PALETTE = [(10, 20, 30), (0, 255, 0), (0, 0, 255)]
FILE = "<img src=x onerror=alert(1)> & 'its'"
TREE, CAR = (COLORS[1], 1), (COLORS[2], 2)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Write the report of three planted errors; return its folder and the suspects."""
    root = tmp_path_factory.mktemp("report")
    objects = {f"{video}_{number}": TREE if number % 2 else CAR for video in "abcd" for number in range(2)}
    wrong = {"c_0": (COLORS[2], 1), FILE: (COLORS[1], 2), "d_0": (COLORS[2], 1)}
    dataset = write_boxes(root / "data", {**objects, **wrong})
    labels = np.asarray(Image.open(root / "data/train/labels/d_0.png")).copy()
    labels[28:40, 24:56] = 20  # the upper part of this box is wrong
    Image.fromarray(labels).save(root / "data/train/labels/d_0.png")
    out = root / "out"
    suspects = check_labels(color_embedder(), dataset, NAMES, out, neighbors=5, pixels_per_class=100, min_area=100)
    for _ in range(2):  # the second replaces the first
        write_report(suspects, dataset, NAMES, PALETTE, out, CLIP)
    return out, suspects


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for each, attributes in self.tags if each == tag]


def test_the_page_shows_every_region_and_its_figures_exist(report):
    out, suspects = report
    page = Page((out / "check_labels.html").read_text())
    assert len(suspects.regions) == 3
    shown = [(each["data-image"], each["data-label"], each["data-suggestion"]) for each in page.all("article")]
    assert shown == [(each.image_id, NAMES[each.label], NAMES[each.suggestion]) for each in suspects.regions]
    assert sorted(image for image, *_ in shown) == sorted([FILE, "c_0", "d_0"])
    assert [float(each["data-score"]) for each in page.all("article")] == [each.score for each in suspects.regions]
    figures = [each["src"] for each in page.all("img")]
    assert len(figures) == 9
    assert {f"figures/{path.name}" for path in (out / "figures").iterdir()} == set(figures)
    assert all(each["loading"] == "lazy" for each in page.all("img"))
    options = page.text.split("Show")[1].split("Accept")[0].splitlines()
    assert [line.strip() for line in options if line.strip()] == [
        *("all pairs (3)", f"{CLIP} → car (2)", f"car → {CLIP} (1)")
    ]
    assert "divided into 5 blocks" in page.text
    assert "it may have learned some of their errors" in page.text
    assert "5 neighbors voted, by embeddings of projection, all stages" in page.text


def test_names_of_classes_and_files_are_escaped(report):
    text = (report[0] / "check_labels.html").read_text()
    page = Page(text)
    assert text.count("</script>") == 1
    assert page.all("b") == []
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(CLIP) >= 6
    assert FILE in page.text


def test_the_pattern_of_the_groups_is_stated(report, tmp_path):
    state = {**report[1].state, "group_pattern": "<i>.", "stage": 2}
    write_report(Suspects([], ["a", "b"], state), [], NAMES, PALETTE, tmp_path, "none")
    page = Page((tmp_path / "check_labels.html").read_text())
    assert "of 2 groups, by the pattern <i>.; only images of other groups" in page.text
    assert "stage 2" in page.text
    assert "No region is suspicious." in page.text


def test_views_show_image_labels_and_suggestion_with_the_outline():
    image = Image.new("RGB", (200, 160), (100, 100, 100))
    labels = np.zeros((160, 200), dtype=np.uint8)
    mask = np.ones((24, 32), dtype=bool)
    views = region_views(image, labels, Region(0, "a", 0, 2, 1.0, 16, 24, mask), PALETTE)
    # 24 pixels more on every side, but not beyond the image: rows 0 to 63, columns 0 to 79, enlarged 4 times
    assert {view.size for view in views} == {(320, 256)}
    plain, given, suggested = (np.asarray(view) for view in views)
    inside, outside = (4 * 28, 4 * 40), (4 * 5, 4 * 5)
    assert plain[inside].tolist() == plain[outside].tolist() == [100, 100, 100]
    assert given[inside].tolist() == given[outside].tolist() == [55, 60, 65]
    assert suggested[outside].tolist() == [55, 60, 65]
    np.testing.assert_allclose(suggested[inside], [50, 50, 177.5], atol=0.5)
    for view in (plain, given, suggested):
        assert (view[4 * 16 : 4 * 40, 4 * 24] == (255, 255, 0)).all()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_every_control_of_the_page_works(report, browser, width, tmp_path):
    out, suspects = report
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((out / "check_labels.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def shown():
        return [int(each.get_attribute("data-rank")) for each in page.query_selector_all("article:not([hidden])")]

    def count():
        return page.text_content("#count")

    ranked = dict(enumerate(suspects.regions, start=1))
    assert (shown(), count()) == ([1, 2, 3], "0 of 3 accepted, 3 shown")
    page.select_option("#order", "image")
    assert shown() == sorted(ranked, key=lambda rank: ranked[rank].image_id)
    page.select_option("#order", "area")
    assert shown() == sorted(ranked, key=lambda rank: -ranked[rank].area)
    page.select_option("#order", "score")
    page.select_option("#pair", "0")
    of_pair = [rank for rank, each in ranked.items() if (each.label, each.suggestion) == (1, 2)]
    assert shown() == of_pair
    page.click("#accept")
    assert count() == "2 of 3 accepted, 2 shown"
    page.select_option("#pair", "")
    (other,) = {*ranked} - {*of_pair}
    page.check(f"article[data-rank='{other}'] input")
    page.uncheck(f"article[data-rank='{of_pair[0]}'] input")
    page.reload()
    assert count() == "2 of 3 accepted, 3 shown"
    with page.expect_download() as started:
        page.click("#download")
    started.value.save_as(tmp_path / "accepted.csv")
    assert started.value.suggested_filename == "accepted.csv"
    with (tmp_path / "accepted.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    names = [
        [suspects.key, str(rank), ranked[rank].image_id, NAMES[ranked[rank].label], NAMES[ranked[rank].suggestion]]
        for rank in sorted([other, of_pair[1]])
    ]
    assert rows == [["report", "rank", "image", "label", "suggestion"], *names]
    page.click("#reject")
    assert count() == "0 of 3 accepted, 3 shown"
    images = page.evaluate("[...document.images].map(each => each.complete && each.naturalWidth > 0)")
    assert all(images)
    assert errors == []
    context.close()
