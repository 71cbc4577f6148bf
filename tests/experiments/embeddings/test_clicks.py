import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from experiments.embeddings import clicks as protocol
from experiments.embeddings.clicks import THRESHOLDS, Click, draw_clicks, score_clicks
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.finding import EmbeddedImages, Query, compare, embed_query
from msctr_hf.evaluation.predictor import load_predictor

IGNORED = 255


@pytest.fixture
def labels():
    """Images of class 0 with 10 x 20 pixels of class 1, in two also of class 3, in one of 4, and too few of 2."""
    images = {}
    for place in (2, 5, 7):
        images[place] = np.zeros((40, 60), np.uint8)
        images[place][5:15, 10:30] = 1
        images[place][0, :50] = 2
        images[place][30:, 50:] = IGNORED
    images[5][20:40, 5:25] = images[7][20:40, 30:50] = 3
    images[2][20:40, 5:25] = 4
    return images


def test_clicks_are_on_every_class_in_turn_where_an_image_shows_enough_of_it_and_follow_the_seed(labels):
    clicks = draw_clicks(labels, 5, seed=0)
    assert [click.label for click in clicks] == [(0, 1, 3)[number % 3] for number in range(200)]
    assert all(labels[click.image][click.row, click.column] == click.label for click in clicks)
    assert {click.image for click in clicks if click.label == 1} == {2, 5, 7}
    assert {click.image for click in clicks if click.label == 3} == {5, 7}
    assert clicks == draw_clicks(labels, 5, seed=0) != draw_clicks(labels, 5, seed=1)


def test_scores_equal_those_of_the_masks_that_a_search_writes(tmp_path, monkeypatch, labels):
    """The masks of `msctr find` on image files, counted in a plain loop."""
    monkeypatch.setattr(protocol, "_CLICKS_AT_ONCE", 2)
    embedder = Embedder(load_predictor(str(ROOT / "examples/street_scenes")), "projection")
    scene = Image.open(ROOT / "examples/images/scene_0.png").convert("RGB")
    dataset = {place: {"image": scene.crop((place * 9, 40, place * 9 + 60, 80))} for place in labels}
    clicks = [Click(2, 10, 20, 1), Click(5, 10, 20, 1), Click(5, 38, 6, 3), Click(7, 39, 10, 0)]
    scores = score_clicks(embedder, dataset, labels, clicks, num_classes=5)
    search, paths = EmbeddedImages(embedder), {place: tmp_path / f"{place}.png" for place in labels}
    for place, path in paths.items():
        dataset[place]["image"].save(path)
    for step in (0, 30, 50, 60):
        expected = {"iou": {}, "background": {}}
        for click in clicks:
            query = embed_query(embedder, Query(dataset[click.image]["image"], (click.row, click.column)))
            right = wrong = of_class = others = 0
            for place in set(labels) - {click.image}:
                mask = compare(paths[place], search(paths[place]), query).mask(THRESHOLDS[step])
                is_class, is_labeled = labels[place] == click.label, labels[place] != IGNORED
                right += (mask & is_class).sum()
                wrong += (mask & ~is_class & is_labeled).sum()
                of_class += is_class.sum()
                others += (~is_class & is_labeled).sum()
            expected["iou"].setdefault(click.label, []).append(right / (of_class + wrong))
            expected["background"].setdefault(click.label, []).append(wrong / others)
        for measure, by_class in expected.items():
            assert set(scores[measure]) == {0, 1, 3}
            for label, values in by_class.items():
                assert scores[measure][label][step] == pytest.approx(np.mean(values), abs=1e-12)
