"""Embeddings of images by windows equal a plain loop: crop, embed, and take every cell from the nearest center."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.finite import NotFiniteError
from msctr_hf.evaluation.predictor import Predictor, load_predictor
from msctr_hf.evaluation.settings import InferenceSettings


@pytest.fixture(scope="module")
def model():
    from conftest import TIMM_TINY

    from msctr_hf import MsctrConfig

    torch.manual_seed(0)
    config = MsctrConfig(
        backbone_config=TIMM_TINY, hidden_size=16, auxiliary_hidden_size=16, projection_dim=8, num_labels=3
    )
    return MsctrForSemanticSegmentation(config).eval()


def drawn_image(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def starts(side, window, stride):
    found = [0]
    while found[-1] + window < side:
        found.append(min(found[-1] + stride, side - window))
    return found


def plain_loop(model, image, window, stride, cell, features, stage):
    """Embed every window, and take every cell of the image from the window whose center is nearest to the cell's."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    values = (np.asarray(image) / 255 - mean) / std
    values = torch.from_numpy(values.transpose(2, 0, 1)).float()[None]
    height, width = image.height, image.width
    maps = {}
    for top in starts(height, window[0], stride[0]):
        for left in starts(width, window[1], stride[1]):
            crop = torch.zeros(1, 3, *window)
            part = values[:, :, top : top + window[0], left : left + window[1]]
            crop[:, :, : part.shape[2], : part.shape[3]] = part
            with torch.no_grad():
                maps[top, left] = model.embed(crop, features, stage)[0].numpy()
    rows, columns = -(-height // cell), -(-width // cell)
    result = np.empty((len(next(iter(maps.values()))), rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            y, x = (min(place * cell + cell // 2, side - 1) for place, side in ((row, height), (column, width)))
            holding = [
                (abs(y + 0.5 - top - window[0] / 2), abs(x + 0.5 - left - window[1] / 2), top, left)
                for top, left in maps
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            *_, top, left = min(holding)
            result[:, row, column] = maps[top, left][:, (y - top) // cell, (x - left) // cell]
    return result


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("size", "window", "stride", "features", "stage", "cell"),
    [
        ((96, 128), (64, 64), (32, 32), "projection", None, 4),
        ((90, 131), (64, 64), (42, 42), "projection", None, 4),  # strides and borders between cells
        ((90, 131), (64, 96), (42, 50), "decode_head", 2, 8),
        ((50, 131), (64, 64), (40, 64), "backbone", None, 4),  # padded to the height of a window, no overlap
    ],
)
def test_windows_equal_a_plain_loop(model, size, window, stride, features, stage, cell, batch_size):
    image = drawn_image(*size)
    settings = InferenceSettings(window_size=window, window_stride=stride, batch_size=batch_size)
    embedder = Embedder(Predictor(model, MsctrImageProcessor(size_divisor=32), settings), features, stage)
    expected = plain_loop(model, image, window, stride, cell, features, stage)
    np.testing.assert_allclose(embedder(image).numpy(), expected, rtol=0, atol=1e-5)


def test_a_whole_image_has_the_embeddings_of_the_padded_image_without_the_padding(model):
    image = drawn_image(70, 90)
    predictor = Predictor(model, MsctrImageProcessor(size_divisor=32))
    padded = torch.nn.functional.pad(predictor.prepare([image]), (0, 6, 0, 26))
    with torch.no_grad():
        expected = model.embed(padded)[0, :, :18, :23]
    torch.testing.assert_close(Embedder(predictor)(image), expected)


def test_chosen_cells_have_the_embeddings_and_pixels_of_their_places(model):
    image = drawn_image(90, 131)
    settings = InferenceSettings(window_size=(64, 64), window_stride=(42, 42))
    embedder = Embedder(Predictor(model, MsctrImageProcessor(size_divisor=32), settings))
    whole = embedder(image).flatten(1).T.numpy()
    cells = np.array([0, 5, 33 * 11 + 2, 23 * 33 - 1])

    def choose(tile):
        assert (len(tile.pixel_rows), len(tile.pixel_columns)) == (23, 33)
        return cells

    embeddings, pixels = embedder.embed_cells(image, choose)
    assert np.array_equal(embeddings, whole[cells])
    assert pixels.tolist() == [[2, 2], [2, 22], [46, 10], [89, 130]]


def test_pixels_are_those_of_the_image_where_the_image_processor_resizes(model):
    processor = MsctrImageProcessor(size_divisor=32, do_resize=True, size={"shortest_edge": 32})
    embedder = Embedder(Predictor(model, processor))
    _, pixels = embedder.embed_cells(drawn_image(64, 128), lambda tile: np.array([0, len(tile.pixel_columns) + 1]))
    assert pixels.tolist() == [[5, 5], [13, 13]]  # the centers of pixels 2 and 6 of an image half as large


def test_a_transformers_model_is_embedded_with_the_head_that_was_saved_next_to_it(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    adapter = ContrastiveAdapter(SegformerForSemanticSegmentation(SegformerConfig(**sizes)), projection_dim=6).eval()
    adapter.save_pretrained(tmp_path)
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    predictor = load_predictor(str(tmp_path), device="cpu")
    image = drawn_image(64, 96)
    with torch.no_grad():
        expected = adapter.embed(predictor.prepare([image]))[0]
    torch.testing.assert_close(Embedder(predictor)(image), expected)
    (tmp_path / "projection_head.safetensors").unlink()
    predictor = load_predictor(str(tmp_path), device="cpu")
    assert len(Embedder(predictor, "backbone")(image)) == 8 + 8 + 16 + 16
    with pytest.raises(UsageError, match="no projection head.*use `features='backbone'`"):
        Embedder(predictor)


def test_features_that_are_not_finite_are_refused(model):
    predictor = Predictor(model, MsctrImageProcessor(size_divisor=32))
    embedder = Embedder(predictor)
    head = model.projection_head.stages[0].output
    before = head.bias.data.clone()
    head.bias.data.fill_(float("nan"))
    try:
        with pytest.raises(NotFiniteError, match="features of the network are not finite"):
            embedder(drawn_image(64, 64))
    finally:
        head.bias.data.copy_(before)
