"""What the tab "Find" of the demo page finds, what it keeps between clicks, and what it says where something fails."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TIMM_TINY
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import UsageError
from msctr_hf.evaluation import find_tab, visitor_images
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.find_tab import (
    Actions,
    Finder,
    Search,
    found_figures,
    with_image,
    with_pixel,
    without_pixels,
)
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.visitor_images import describe_fault

SIZE = (64, 96)


def network(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "auxiliary_hidden_size": 16, "projection_dim": 8, "num_labels": 3}
    return MsctrForSemanticSegmentation(MsctrConfig(backbone_config=TIMM_TINY, **sizes, **settings)).eval()


@pytest.fixture(scope="module")
def predictor():
    return Predictor(network(), MsctrImageProcessor(size_divisor=32))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Write four images, of which 3.png shows a piece of 0.png."""
    folder = tmp_path_factory.mktemp("uploads")
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(4)]
    pixels[3][:, :64] = pixels[0][:, :64]
    files = [str(folder / f"{number}.png") for number in range(4)]
    for file, values in zip(files, pixels, strict=True):
        Image.fromarray(values).save(file)
    return files


@pytest.fixture
def embedded(monkeypatch):
    """Return a list of the sizes of images that ran through a network, which grows."""
    sizes, whole = [], Embedder.whole

    def counted(self, image, **options):
        sizes.append(image.size)
        return whole(self, image, **options)

    monkeypatch.setattr(Embedder, "whole", counted)
    return sizes


def clicked(path, *pixels):
    search = with_image(Search(), path)
    for row, column in pixels:
        search = with_pixel(search, row, column)
    return search


def names(search):
    return [match.compared.path.name for match in search.matches]


def drawn_pixels(figure, original):
    """Return where a figure differs from its image, (H, W), bool."""
    return (np.asarray(figure) != np.asarray(original)).any(axis=-1)


def test_other_images_are_ranked_and_masked_by_the_largest_cosine_with_a_clicked_pixel(predictor, paths):
    search = Finder(predictor).find(clicked(paths[0], (10, 20), (40, 70)), paths[1:], "projection", None)
    maps = [Embedder(predictor)(Image.open(path)).numpy().astype(np.float64) for path in paths]
    queries = [maps[0][:, 2, 5], maps[0][:, 10, 17]]  # cells of 4 pixels
    cosines = {
        path: np.array([[max(query @ each[:, y, x] for query in queries) for x in range(24)] for y in range(16)])
        for path, each in zip(paths[1:], maps[1:], strict=True)
    }
    order = sorted(cosines, key=lambda path: -cosines[path].max())
    assert names(search) == [path.rpartition("/")[2] for path in order]
    assert names(search)[0] == "3.png"
    for rank, (path, (figure, text)) in enumerate(zip(order, found_figures(search, 0.9), strict=True), start=1):
        upsampled = torch.nn.functional.interpolate(torch.tensor(cosines[path])[None, None], SIZE, mode="bilinear")
        upsampled = upsampled[0, 0].numpy()
        clear = np.abs(upsampled - 0.9) > 2e-3  # the embeddings are float16
        assert np.array_equal(drawn_pixels(figure, Image.open(path))[clear], (upsampled >= 0.9)[clear])
        share = 100 * (upsampled >= 0.9).mean()
        assert text.startswith(f"{rank}. {path.rpartition('/')[2]}: cosine ")
        assert float(text.split()[3].removesuffix(",")) == pytest.approx(cosines[path].max(), abs=0.006)
        assert float(text.split()[4]) == pytest.approx(share, abs=0.5)


def test_an_image_runs_through_the_network_once_however_often_it_is_searched(predictor, paths, embedded):
    finder = Finder(predictor)
    search = finder.find(clicked(paths[0], (10, 20)), paths[1:3], "projection", 2)
    assert len(embedded) == 3
    search = finder.find(with_pixel(search, 50, 50), paths[1:3], "projection", 2)
    shares = [float(text.split()[4]) for threshold in (0, 0.5, 1) for _, text in found_figures(search, threshold)]
    assert shares == sorted(shares, reverse=True)
    search = finder.find(with_pixel(without_pixels(search), 50, 50), paths[1:3], "projection", 2)
    assert len(embedded) == 3
    search = finder.find(with_pixel(with_image(search, paths[1]), 3, 3), paths, "projection", 2)
    assert len(embedded) == 4
    finder.find(search, paths, "projection", 1)
    assert len(embedded) == 8


def test_embeddings_are_kept_within_a_bound_and_all_images_are_searched_without_it(predictor, paths, embedded):
    one = finder_bytes(Finder(predictor), paths[0])
    finder = Finder(predictor, kept_bytes=int(2.5 * one))
    whole = Finder(predictor).find(clicked(paths[0], (10, 20)), paths, "projection", None)
    embedded.clear()
    search = finder.find(clicked(paths[0], (10, 20)), paths, "projection", None)
    assert [key[0] for key in search.kept] == paths[:2]
    assert len(embedded) == 4
    search = finder.find(search, paths, "projection", None)
    assert len(embedded) == 4 + 2  # those that did not fit
    assert names(search) == names(whole)
    pairs = zip(search.matches, whole.matches, strict=True)
    assert all(torch.equal(*(match.compared.cosines for match in pair)) for pair in pairs)


def finder_bytes(finder, path):
    (kept,) = finder.find(clicked(path, (0, 0)), [], "projection", None).kept.values()
    assert kept.whole.embeddings.dtype == torch.float16
    return kept.whole.embeddings.nbytes


def test_older_embeddings_are_kept_while_they_fit_and_give_way_to_those_of_a_search(predictor, paths):
    one = finder_bytes(Finder(predictor), paths[0])
    finder = Finder(predictor, kept_bytes=3 * one)
    search = finder.find(clicked(paths[0], (0, 0)), [paths[1]], "projection", None)
    search = finder.find(with_pixel(with_image(search, paths[2]), 0, 0), [], "projection", None)
    assert [key[0] for key in search.kept] == [paths[2], paths[0], paths[1]]
    search = finder.find(with_pixel(with_image(search, paths[3]), 0, 0), [], "projection", None)
    assert [key[0] for key in search.kept] == [paths[3], paths[2], paths[0]]


def test_only_the_first_images_are_searched_and_the_tab_says_so(predictor, paths, monkeypatch):
    monkeypatch.setattr(find_tab, "MAX_SEARCHED", 2)
    search = Finder(predictor).find(clicked(paths[0], (0, 0)), paths[1:], "projection", None)
    assert sorted(names(search)) == ["1.png", "2.png"]
    assert search.faults == ("<p>Only the first 2 of 3 images are searched.</p>",)


def test_what_is_not_an_image_is_named_and_the_other_images_are_searched(predictor, paths, tmp_path):
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(b"nothing")
    search = Finder(predictor).find(clicked(paths[0], (0, 0)), [str(broken), paths[1]], "projection", None)
    assert names(search) == ["1.png"]
    (fault,) = search.faults
    assert "&lt;b&gt;broken.png" in fault
    assert str(tmp_path) not in fault
    search = with_image(search, str(broken))
    assert search.image is None
    assert search.matches == ()
    assert "&lt;b&gt;broken.png" in search.faults[0]


def test_a_network_that_fails_on_an_image_is_reported_and_its_traceback_logged(predictor, paths, monkeypatch, capsys):
    finder, whole = Finder(predictor), Embedder.whole

    def fail(self, image, **options):
        if image.getpixel((0, 0)) == Image.open(paths[2]).getpixel((0, 0)):
            raise RuntimeError("sizes of tensors must match")
        return whole(self, image, **options)

    monkeypatch.setattr(Embedder, "whole", fail)
    search = finder.find(clicked(paths[0], (0, 0)), paths[1:], "projection", None)
    assert sorted(names(search)) == ["1.png", "3.png"]
    assert "The network failed on this image" in search.faults[0]
    assert "RuntimeError: sizes of tensors must match" in capsys.readouterr().err
    search = finder.find(clicked(paths[2], (0, 0)), paths[:1], "projection", None)
    assert search.matches == ()
    assert "The network failed on this image" in search.faults[0]


def test_features_and_stages_are_those_that_the_network_has(predictor):
    assert Finder(predictor).stages == {name: [1, 2, 3, 4] for name in ("projection", "decode_head", "backbone")}
    plain = Predictor(network(contrastive_mode="ce", decode_head="fcn"), MsctrImageProcessor(size_divisor=32))
    actions = Actions(Finder(plain), "uploads")
    assert actions.finder.stages == {"backbone": [1, 2, 3, 4]}
    assert [name for name, _ in actions.stage_choices("backbone")] == ["all", "1", "2", "3", "4"]


def test_an_adapted_model_is_searched_by_its_hidden_states(paths):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=8, num_labels=3)).eval()
    finder = Finder(Predictor(model, SegformerImageProcessor(do_resize=False)))
    assert finder.stages == {"backbone": [1, 2, 3, 4]}
    search = finder.find(clicked(paths[0], (10, 20)), paths[1:], "backbone", None)
    assert search.faults == ()
    assert names(search)[0] == "3.png"


def test_a_network_without_embeddings_is_refused_in_a_sentence():
    class Network(torch.nn.Module):
        config = SimpleNamespace(num_labels=2, id2label={0: "sky", 1: "road"})

    with pytest.raises(UsageError, match="Network cannot be adapted: it is not a model of transformers"):
        Finder(Predictor(Network(), MsctrImageProcessor()))


def test_nothing_is_searched_before_a_click_or_without_an_image(predictor, paths, embedded):
    finder = Finder(predictor)
    for search in (Search(), with_image(Search(), paths[0]), with_pixel(Search(), 3, 3)):
        assert finder.find(search, paths, "projection", None).matches == ()
    assert embedded == []


def test_clicked_pixels_are_drawn_and_a_new_image_starts_without_them(paths):
    search = clicked(paths[0], (10, 20), (40, 70))
    original, marked = np.asarray(Image.open(paths[0])), np.asarray(search.marked())
    rows, columns = np.nonzero((original != marked).any(axis=-1))
    assert (rows.min(), columns.min()) == pytest.approx((8, 18), abs=1)
    assert (rows.max(), columns.max()) == pytest.approx((42, 72), abs=1)
    assert np.array_equal(without_pixels(search).marked(), original)
    assert np.array_equal(with_image(search, paths[1]).marked(), np.asarray(Image.open(paths[1])))
    assert with_image(search, None).marked() is None


def test_large_images_are_searched_and_shown_downscaled(predictor, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(visitor_images, "LONGEST_SIDE", 512)
    Image.open(paths[0]).resize((1600, 800)).save(tmp_path / "large.png")
    search = with_image(Search(), str(tmp_path / "large.png"))
    assert search.image.size == (512, 256)
    search = Finder(predictor).find(with_pixel(search, 255, 511), [str(tmp_path / "large.png")], "backbone", 4)
    assert search.matches[0].compared.size == (256, 512)
    assert found_figures(search, 0.5)[0][0].size == (480, 240)


def test_a_fault_names_the_file_without_its_folder_and_as_text():
    fault = describe_fault(UsageError("/srv/uploads/<i>.png is not an image."), "/srv/uploads/<i>.png")
    assert fault == '<p class="fault">&lt;i&gt;.png is not an image.</p>'
