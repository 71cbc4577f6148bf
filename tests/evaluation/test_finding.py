"""The search of images: cosines with pixels or a box, the ranked list, masks, what is kept, and the page."""

import csv
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TIMM_TINY
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor, progress
from msctr_hf.commands import find
from msctr_hf.errors import UsageError
from msctr_hf.evaluation import finding
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.finding import (
    EmbeddedImages,
    Query,
    draw_mask,
    embed_image,
    embed_query,
    find_alike,
    write_found,
)
from msctr_hf.evaluation.finite import NotFiniteError
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.settings import InferenceSettings

SIZE = (64, 96)
PAPER_CLIP = '<img src=x onerror=alert(1)> & "it\'s".png'


def network(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "auxiliary_hidden_size": 16, "projection_dim": 8}
    return MsctrForSemanticSegmentation(MsctrConfig(backbone_config=TIMM_TINY, num_labels=3, **sizes)).eval()


@pytest.fixture(scope="module")
def embedder():
    return Embedder(Predictor(network(), MsctrImageProcessor(size_divisor=32)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a network and five images, of which 3.png shows a piece of 0.png."""
    root = tmp_path_factory.mktemp("find")
    network().save_pretrained(root / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(root / "model")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(4)]
    pixels[3][:, :64] = pixels[0][:, :64]
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(root / "images" / f"{number}.png")
    Image.fromarray(pixels[1][:48]).save(root / "images" / PAPER_CLIP)
    return root


@pytest.fixture
def paths(folder):
    return sorted((folder / "images").iterdir())


def plain_cosines(embedder, path, queries):
    values = embedder(Image.open(path)).half().float().numpy()
    return np.array([[max(query @ values[:, y, x] for query in queries) for x in range(24)] for y in range(16)])


def test_pixels_and_the_mean_of_a_box_are_searched(embedder, folder):
    image = Image.open(folder / "images/0.png")
    values = embedder(image).numpy()
    found = embed_query(embedder, Query(image, pixels=[10, 20, 63, 95])).numpy()
    np.testing.assert_allclose(found, [values[:, 2, 5], values[:, 15, 23]], atol=1e-6)
    mean = values[:, 2:5, 3:4].mean(axis=(1, 2))  # the centers of cells are pixels 2, 6, 10, ...
    found = embed_query(embedder, Query(image, box=[9, 14, 19, 18])).numpy()
    np.testing.assert_allclose(found, [mean / np.linalg.norm(mean)], atol=1e-6)
    small = embed_query(embedder, Query(image, box=[12, 15, 13, 16])).numpy()  # between the centers
    np.testing.assert_allclose(small, [values[:, 3, 3]], atol=1e-6)


def test_pixels_and_small_boxes_at_the_border_of_a_padded_image_are_in_their_own_cells(embedder):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    whole = Embedder(embedder.predictor, "backbone", stage=4).whole(image)  # of 96 x 96 pixels
    places = [(row, column) for row in range(70) for column in range(90)]
    expected = [row // 32 * 3 + column // 32 for row, column in places]
    assert Query(image, pixels=np.ravel(places).tolist()).cells(whole).tolist() == expected
    boxes = [Query(image, box=[row, column, row + 1, column + 1]).cells(whole).tolist() for row, column in places]
    assert boxes == [[cell] for cell in expected]
    assert Query(image, box=[58, 82, 64, 88]).cells(whole).tolist() == [5]


def test_images_are_ranked_by_their_largest_cosine_and_masks_are_where_it_reaches_the_threshold(
    embedder, folder, paths
):
    queries = embed_query(embedder, Query(Image.open(folder / "images/0.png"), pixels=[10, 20, 40, 70]))
    found, unreadable = find_alike(EmbeddedImages(embedder), paths, queries, threshold=0.9, top=3)
    assert unreadable == []
    scores = {path: plain_cosines(embedder, path, queries.numpy()).max() for path in paths if path.name[0] in "0123"}
    expected = sorted(scores, key=lambda path: -scores[path])
    listed = [each.path for each in found if each.path in scores]
    assert listed == expected[: len(listed)]
    assert {each.path.name for each in found[:2]} == {"0.png", "3.png"}  # both show the first pixel
    assert len(found) == 3
    for each in found:
        if each.path in scores:
            assert each.score == pytest.approx(scores[each.path], abs=1e-6)
        mask = each.mask(0.9)
        assert mask.shape == each.size
        assert each.area == pytest.approx(mask.mean())
        upsampled = torch.nn.functional.interpolate(each.cosines[None, None], each.size, mode="bilinear")[0, 0]
        assert np.array_equal(mask, upsampled.numpy() >= 0.9)
    assert found[0].mask(0.9)[10, 20]


class LargestMap(TorchDispatchMode):
    """Number of elements of the largest result in float32 that has as many channels as the embeddings."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.elements = channels, 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32 and self.channels in each.shape[:2]:
                self.elements = max(self.elements, each.numel())
        return result


def test_an_image_that_is_searched_by_windows_is_never_in_float32_as_a_whole():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    settings = InferenceSettings(window_size=(64, 64), window_stride=(64, 64), batch_size=1)
    embedder = Embedder(Predictor(network(), MsctrImageProcessor(size_divisor=32), settings))
    expected = embedder.whole(Image.fromarray(image))
    with LargestMap(len(expected.embeddings)) as largest:
        found = embed_image(embedder, Image.fromarray(image))
    assert torch.equal(found.embeddings, expected.embeddings.half())
    assert found.embeddings.dtype == torch.float16
    assert found.extent == expected.extent
    assert 0 < largest.elements <= expected.embeddings.numel() / 2  # features of one of 16 windows


def test_kept_embeddings_give_the_same_result_without_the_network(embedder, folder, paths, tmp_path, monkeypatch):
    queries = embed_query(embedder, Query(Image.open(folder / "images/0.png"), pixels=[10, 20]))
    images = EmbeddedImages(embedder, tmp_path / "kept")
    first, _ = find_alike(images, paths, queries, threshold=0.9, top=9)
    calls = []
    monkeypatch.setattr(EmbeddedImages, "_embed", lambda self, path: calls.append(path))
    again, _ = find_alike(EmbeddedImages(embedder, tmp_path / "kept"), paths, queries, threshold=0.9, top=9)
    assert calls == []
    assert [each.path for each in again] == [each.path for each in first]
    assert all(torch.equal(*(each.cosines for each in pair)) for pair in zip(first, again, strict=True))
    assert len(list((tmp_path / "kept").iterdir())) == len(paths)


def test_kept_embeddings_of_another_network_or_image_or_damaged_ones_are_made_anew(embedder, tmp_path):
    image, kept = tmp_path / "image.png", tmp_path / "kept"
    random = np.random.default_rng(1)

    def write():
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(image)

    write()
    EmbeddedImages(embedder, kept)(image)
    others = {
        "features": Embedder(embedder.predictor, "decode_head"),
        "network": Embedder(Predictor(network(seed=1), MsctrImageProcessor(size_divisor=32))),
    }
    for other in (*others.values(), embedder):
        embeddings, size, extent = EmbeddedImages(other, kept)(image)
        assert torch.equal(embeddings, other(Image.open(image)).half())
        assert size == extent == SIZE
    write()
    assert torch.equal(EmbeddedImages(embedder, kept)(image)[0], embedder(Image.open(image)).half())
    brighter = Embedder(Predictor(network(), MsctrImageProcessor(size_divisor=32, image_mean=[0.2, 0.2, 0.2])))
    assert torch.equal(EmbeddedImages(brighter, kept)(image)[0], brighter(Image.open(image)).half())
    assert torch.equal(EmbeddedImages(embedder, kept)(image)[0], embedder(Image.open(image)).half())
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(EmbeddedImages(embedder, kept)(image)[0], embedder(Image.open(image)).half())


def test_masks_do_not_move_where_the_last_cells_reach_beyond_the_image(embedder, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(image)
    coarse = Embedder(embedder.predictor, "backbone", stage=4)
    queries = coarse(Image.open(image))[:, 1, 1][None]  # the cell of pixels 32 to 63
    for images in (EmbeddedImages(coarse, tmp_path / "kept"),) * 2:
        ((found,), _) = find_alike(images, [image], queries, threshold=0.99, top=1)
        assert found.cosines.shape == (3, 3)
        whole = torch.nn.functional.interpolate(found.cosines[None, None], (96, 96), mode="bilinear")[0, 0]
        expected = whole[:70, :90].numpy() >= 0.99
        assert expected.any()
        assert not expected.all()
        assert np.array_equal(found.mask(0.99), expected)
        assert found.area == pytest.approx(expected.mean())


def test_only_images_that_cannot_be_read_are_left_out_of_a_search(embedder, folder, paths, tmp_path, monkeypatch):
    queries = embed_query(embedder, Query(Image.open(folder / "images/0.png"), pixels=[10, 20]))
    for path in (tmp_path / "none.png", tmp_path / "broken.png"):
        if path.stem == "broken":
            path.write_bytes(b"nothing")
        images = EmbeddedImages(embedder, tmp_path / "kept")
        found, unreadable = find_alike(images, [path, *paths], queries, threshold=0.9, top=9)
        assert (len(found), len(unreadable)) == (len(paths), 1)
        assert path.name in unreadable[0]
    with pytest.raises(UsageError, match=r"`cache_dir`: .*broken.png.* cannot be written"):
        find_alike(EmbeddedImages(embedder, path), paths, queries, threshold=0.9, top=9)
    monkeypatch.setattr(Embedder, "_embed", lambda *_: (_ for _ in ()).throw(NotFiniteError("not finite")))
    with pytest.raises(NotFiniteError, match="0.png: not finite"):
        find_alike(EmbeddedImages(embedder), paths, queries, threshold=0.9, top=9)


def test_the_page_of_an_earlier_search_does_not_stay_over_the_images_of_an_interrupted_one(
    embedder, folder, paths, tmp_path, monkeypatch
):
    query = Query(Image.open(folder / "images/0.png"), pixels=[10, 20])
    found, _ = find_alike(EmbeddedImages(embedder), paths, embed_query(embedder, query), threshold=0.5, top=9)
    write_found(found, query, tmp_path / "out", 0.5)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finding, "draw_mask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_found(found, query, tmp_path / "out", 0.5)
    assert "This search was not finished" in (tmp_path / "out/find.html").read_text()
    write_found(found, query, tmp_path / "out", 0.5)
    assert "The most similar images first" in (tmp_path / "out/find.html").read_text()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_lists_images_whose_names_are_escaped_and_whose_files_exist(embedder, folder, paths, tmp_path):
    query = Query(Image.open(folder / "images/0.png"), pixels=[10, 20])
    found, _ = find_alike(EmbeddedImages(embedder), paths, embed_query(embedder, query), threshold=0.5, top=9)
    write_found(found, query, tmp_path / "out", 0.5)
    write_found(found[:4], query, tmp_path / "out", 0.5)  # replaces the earlier one
    write_found(found, query, tmp_path / "out", 0.5, origin=f"Searched image: {PAPER_CLIP}.")
    page = Page((tmp_path / "out/find.html").read_text())
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert shown == ["query.png", *(f"{rank:03d}.png" for rank in range(1, 6))]
    assert all((tmp_path / "out" / file).exists() for file in shown)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert PAPER_CLIP in page.text
    assert f"Searched image: {PAPER_CLIP}." in page.text
    assert "searched: row 10 column 20" in page.text
    rows = list(csv.reader((tmp_path / "out/matches.csv").open()))
    assert rows[0] == ["rank", "image", "cosine", "area"]
    assert [row[1] for row in rows[1:]] == [str(each.path) for each in found]
    for rank, each in enumerate(found, start=1):
        mask = np.asarray(Image.open(tmp_path / f"out/{rank:03d}_mask.png"))
        assert np.array_equal(mask, each.mask(0.5) * 255)
        shown, image = (np.asarray(Image.open(path)) for path in (tmp_path / f"out/{rank:03d}.png", each.path))
        assert np.array_equal(shown[mask == 0], image[mask == 0])


def test_pictures_are_compressed_fast_and_their_progress_is_shown(
    embedder, folder, paths, tmp_path, monkeypatch, capsys
):
    query = Query(Image.open(folder / "images/0.png"), pixels=[10, 20])
    found, _ = find_alike(EmbeddedImages(embedder), paths, embed_query(embedder, query), threshold=0.5, top=2)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    write_found(found, query, tmp_path, 0.5)
    assert "drawing: 2/2 images" in capsys.readouterr().err
    for name in ("query.png", "001.png", "002.png"):
        content = (tmp_path / name).read_bytes()
        assert content[content.index(b"IDAT") + 5] >> 6 == 0  # of the header of zlib: its fastest level


@pytest.mark.parametrize("color", ["red", "yellow", "black", "white"])
def test_what_is_found_and_what_is_searched_are_seen_on_an_image_of_any_color(color):
    image = Image.new("RGB", (96, 64), color)
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:40, 20:70] = True
    figure = np.asarray(draw_mask(image, mask)).astype(int)
    contrast = np.abs(figure - np.asarray(image)).max(axis=-1)
    assert contrast[10:12, 21:69].max(axis=0).min() > 200  # in one of the two lines of the upper outline
    assert contrast[~mask].max() == 0
    assert contrast[12:38, 22:68].max() <= 0.3 * 255 + 1  # the color of the object shows through
    for query in (Query(image, pixels=[30, 40]), Query(image, box=[20, 30, 40, 60])):
        assert np.abs(np.asarray(query.marked()).astype(int) - np.asarray(image)).max() > 200


def test_a_search_is_described_by_rows_and_columns():
    image = Image.new("RGB", (96, 64))
    assert Query(image, pixels=[3, 4, 5, 6]).in_words() == "row 3 column 4, row 5 column 6"
    assert Query(image, box=[3, 4, 5, 8]).in_words() == "box of rows 3 to 4 and columns 4 to 7"


def test_places_outside_the_image_are_refused():
    image = Image.new("RGB", (96, 64))
    with pytest.raises(UsageError, match="`pixel` 64 0 is outside the image of 64 rows and 96 columns"):
        Query(image, pixels=[3, 3, 64, 0])
    with pytest.raises(UsageError, match="`box` 4 4 4 9 is empty"):
        Query(image, box=[4, 4, 4, 9])


def run_find(folder, capsys, *flags):
    words = ["--model", folder / "model", "--image", folder / "images/0.png", "--device", "cpu"]
    code = 0
    try:
        find.main([str(word) for word in (*words, *flags)])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def test_the_command_writes_the_list_and_names_images_that_cannot_be_read(folder, capsys, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/broken.png").write_bytes(b"nothing")
    searched = ["--input", folder / "images", tmp_path / "broken", "--box", 8, 8, 24, 24]
    flags = [*searched, "--output_dir", tmp_path / "out"]
    code, out, error = run_find(folder, capsys, *flags, "--top", 2, "--features", "decode_head", "--stage", 1)
    assert (code, out) == (2, f"2 of 6 images are listed in {tmp_path / 'out/find.html'}\n")
    assert "1 of 6 images cannot be read" in error
    assert "broken.png" in error
    page = (tmp_path / "out/find.html").read_text()
    assert f"Searched image: {folder / 'images/0.png'}. Network: {folder / 'model'}, decode_head." in page
    names = {"find.html", "matches.csv", "query.png", "001.png", "001_mask.png", "002.png", "002_mask.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --pixel or --box"),
        (["--pixel", "3", "4", "--box", "0", "0", "4", "4"], "either --pixel or --box"),
        (["--pixel", "3", "4", "5"], "--pixel needs a row and a column of every pixel, got [3, 4, 5]."),
        (["--pixel", "64", "0"], "--pixel 64 0 is outside the image"),
        (["--pixel", "1", "1", "--stage", "9"], "--stage must be one of 1, 2, 3, 4"),
        (["--pixel", "1", "1", "--output_dir", "."], "--output_dir: . is not empty and has no find.html"),
        (["--pixel", "1", "1", "--input", "none"], "--input: none is neither a file nor a folder."),
    ],
)
def test_wrong_input_of_the_command_is_one_sentence(folder, capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    code, _, error = run_find(folder, capsys, "--input", str(folder / "images"), *flags)
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
