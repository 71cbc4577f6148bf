import sys

import numpy as np
import pytest
import torch
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.embeddings import (
    StageEmbeddings,
    ask_for_pixel,
    collect_embeddings,
    similarity_figure,
    similarity_maps,
    stage_features,
    to_plane,
)
from msctr_hf.evaluation.finite import NotFiniteError
from msctr_hf.evaluation.predictor import Predictor


@pytest.fixture
def predictor(tiny_config):
    model = MsctrForSemanticSegmentation(tiny_config(num_labels=3)).eval()
    return Predictor(model, MsctrImageProcessor(size_divisor=32))


def drawn_sample(seed=0, size=(64, 128)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    labels[:, size[1] // 2 :] = 1
    labels[: size[0] // 4] = 255
    return {"image": Image.fromarray(pixels), "label": Image.fromarray(labels), "image_id": str(seed)}


def test_projections_are_unit_vectors_of_every_stage(predictor):
    projections = stage_features(predictor, drawn_sample()["image"])
    assert list(projections) == list(predictor.model.config.projection_stages)
    assert projections[1].embeddings.shape[1:] == (16, 32)
    for of_stage, *_ in projections.values():
        torch.testing.assert_close(of_stage.norm(dim=0), torch.ones(of_stage.shape[1:]))


@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
def test_an_image_is_padded_as_for_a_prediction_and_its_maps_are_cropped(tiny_config, padding_mode):
    model = MsctrForSemanticSegmentation(tiny_config(num_labels=3)).eval()
    processor = MsctrImageProcessor(size_divisor=32, padding_mode=padding_mode)
    image = drawn_sample(size=(75, 100))["image"]
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = stage_features(Predictor(model, processor), image, "backbone")
    torch.testing.assert_close(seen[0], processor(image, return_tensors="pt")["pixel_values"])
    for stage, tile in features.items():
        stride = 2 << stage
        assert tile.embeddings.shape[1:] == (-(-75 // stride), -(-100 // stride))
        whole = Embedder(Predictor(model, processor), "backbone", stage).whole(image)
        torch.testing.assert_close(tile.embeddings, whole.embeddings)
        assert tile.extent == whole.extent
        for place in ("pixel_rows", "pixel_columns"):
            assert np.array_equal(getattr(tile, place), getattr(whole, place))


@pytest.mark.parametrize("across", [True, False])
def test_every_pixel_of_a_padded_image_has_the_cosine_of_its_own_cell(tiny_config, across):
    predictor = Predictor(
        MsctrForSemanticSegmentation(tiny_config(num_labels=3)).eval(), MsctrImageProcessor(size_divisor=32)
    )
    image, size, pixel = drawn_sample(size=(70, 90))["image"], (70, 90), (66, 83)
    with torch.no_grad():
        padded = torch.nn.functional.pad(predictor.prepare([image]), (0, 6, 0, 26))  # to 96 x 96
        maps = predictor.model.stage_embeddings(padded, "projection")
    found = similarity_maps(stage_features(predictor, image), pixel, size, across)
    for stage, shown in found.items():
        stride = 2 << stage
        of_query = min(maps) if across else stage
        query = maps[of_query][0, :, pixel[0] // (2 << of_query), pixel[1] // (2 << of_query)]
        assert shown.shape == size
        for row in range(0, 70, 3):
            for column in range(0, 90, 4):
                expected = float(query @ maps[stage][0, :, row // stride, column // stride])
                assert shown[row, column] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("times", [1, 2])
def test_sampled_pixels_of_a_padded_image_have_the_label_in_the_middle_of_their_cells(predictor, times):
    sample = drawn_sample(size=(70, 90))
    labels = np.random.default_rng(1).integers(0, 3, (70, 90)).astype(np.uint8)
    given = {**sample, "label": np.kron(labels, np.ones((times, times), np.uint8))}  # of the same image, but larger
    stages = collect_embeddings(predictor, [given], num_labels=3, pixels_per_class=1000)
    for stage, tile in zip(stages, stage_features(predictor, sample["image"]).values(), strict=True):
        stride = 2 << stage.stage
        middles = [
            labels[min(69, row + stride // 2), min(89, column + stride // 2)]
            for row in range(0, 70, stride)
            for column in range(0, 90, stride)
        ]
        assert len(stage.labels) == len(middles) == tile.embeddings[0].numel()
        rows = tile.embeddings.flatten(1).T.numpy()
        for label in range(3):  # all cells are drawn, class by class, in any order
            expected = rows[np.array(middles) == label]
            found = stage.features[stage.labels == label]
            assert np.array_equal(np.sort(found[:, 0]), np.sort(expected[:, 0]))


def test_a_network_without_a_projection_head_is_refused(tiny_config):
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce")), MsctrImageProcessor())
    with pytest.raises(ValueError, match="without contrast"):
        stage_features(predictor, drawn_sample()["image"])


def test_backbone_features_are_the_maps_of_the_backbone_even_without_a_projection_head(tiny_config):
    model = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce")).eval()
    predictor = Predictor(model, MsctrImageProcessor(size_divisor=32))
    image = drawn_sample()["image"]
    features = stage_features(predictor, image, "backbone")
    assert list(features) == [1, 2, 3, 4]
    expected = model.backbone(predictor.prepare([image])).feature_maps
    for tile, map_ in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(tile.embeddings * map_[0].norm(dim=0), map_[0])
    maps = similarity_maps(features, (33, 50), (64, 128), across=False)
    for cosines in maps.values():  # each stage is compared with its own pixel
        assert cosines[33, 50] == pytest.approx(1.0, abs=1e-5)


def test_pyramid_features_are_the_input_of_the_projection_head_and_exist_without_one(tiny_config):
    contrasting = MsctrForSemanticSegmentation(tiny_config(projection_source="decode_head")).eval()
    plain = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce")).eval()
    plain.load_state_dict(contrasting.state_dict(), strict=False)
    predictor, of_plain = (Predictor(model, MsctrImageProcessor(size_divisor=32)) for model in (contrasting, plain))
    image = drawn_sample()["image"]
    pixel_values = predictor.prepare([image])
    with torch.no_grad():
        _, pyramid = contrasting.decode_head(contrasting.backbone(pixel_values).feature_maps)
        projections = contrasting.projection_head(pyramid)
        shown = contrasting(pixel_values, output_projections=True).projections
    torch.testing.assert_close(projections, shown)
    for features in (stage_features(each, image, "decode_head") for each in (predictor, of_plain)):
        assert list(features) == [1, 2, 3, 4]
        for tile, map_ in zip(features.values(), pyramid, strict=True):
            torch.testing.assert_close(tile.embeddings * map_[0].norm(dim=0), map_[0])


def test_a_network_without_a_pyramid_is_refused(tiny_config):
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config(decode_head="fcn")), MsctrImageProcessor())
    with pytest.raises(ValueError, match="only UPerNet .* has; use `features='projection'` or `features='backbone'`"):
        stage_features(predictor, drawn_sample()["image"], "decode_head")


def test_silhouette_is_one_for_separated_classes_and_zero_for_overlapping_ones():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    apart = np.eye(8)[labels] + 0.01 * random.standard_normal((400, 8))
    cloud = random.standard_normal((400, 8))
    apart, cloud = (
        StageEmbeddings(1, rows / np.linalg.norm(rows, axis=1, keepdims=True), labels) for rows in (apart, cloud)
    )
    assert apart.silhouette() > 0.99
    assert abs(cloud.silhouette()) < 0.02
    assert np.isnan(StageEmbeddings(1, cloud.features, np.zeros(400)).silhouette())
    assert np.isnan(StageEmbeddings(1, cloud.features, np.arange(400)).silhouette())


def test_an_image_with_features_that_are_not_finite_is_named(predictor, monkeypatch):
    prepare = predictor.prepare
    monkeypatch.setattr(predictor, "prepare", lambda images: prepare(images) * float("nan"))
    with pytest.raises(NotFiniteError, match="7: The features of the network are not finite"):
        collect_embeddings(predictor, [drawn_sample(seed=7)], num_labels=3, pixels_per_class=10)


def test_sampled_pixels_have_the_projection_and_the_label_of_their_position(predictor):
    sample = drawn_sample()
    stages = collect_embeddings(predictor, [sample], num_labels=3, pixels_per_class=10)
    projections = stage_features(predictor, sample["image"])
    for stage in stages:
        of_stage = projections[stage.stage].embeddings
        width = of_stage.shape[-1]
        for features, label in zip(stage.features, stage.labels, strict=True):
            distances = (of_stage - torch.from_numpy(features)[:, None, None]).norm(dim=0)
            column = int(distances.argmin()) % width
            assert distances.min() < 1e-5
            assert (column >= width // 2) == label
    counts = np.bincount(stages[0].labels, minlength=3)
    assert counts.tolist() == [10, 10, 0]


def test_similarity_is_the_cosine_with_the_pixel_of_the_finest_stage(predictor):
    projections = stage_features(predictor, drawn_sample()["image"])
    maps = similarity_maps(projections, (33, 50), (64, 128))
    assert maps[1][33, 50] == pytest.approx(1.0, abs=1e-5)
    anchor = projections[1].embeddings[:, 8, 12]
    coarse = projections[4].embeddings
    expected = torch.nn.functional.cosine_similarity(anchor[:, None, None], coarse, dim=0)
    np.testing.assert_allclose(maps[4], expected.numpy().repeat(32, axis=0).repeat(32, axis=1), atol=1e-6)
    with pytest.raises(ValueError, match="outside the image"):
        similarity_maps(projections, (64, 0), (64, 128))


def test_separate_clusters_stay_apart_when_mapped_to_the_plane():
    random = np.random.default_rng(0)
    centers = np.eye(8)[[0, 3]]
    features = np.concatenate([center + 0.05 * random.standard_normal((20, 8)) for center in centers])
    points = to_plane((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))
    means = points[:20].mean(0), points[20:].mean(0)
    spread = max(
        np.linalg.norm(points[:20] - means[0], axis=1).max(), np.linalg.norm(points[20:] - means[1], axis=1).max()
    )
    assert np.linalg.norm(means[0] - means[1]) > spread


def test_missing_libraries_and_too_few_pixels_are_reported_in_one_sentence(monkeypatch):
    features = np.eye(6, dtype=np.float32)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match="umap-learn"):
        to_plane(features, "umap")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match="scikit-learn"):
        to_plane(features, "tsne")
    with pytest.raises(ValueError, match="too few"):
        to_plane(features[:2])
    with pytest.raises(ValueError, match="tsne, umap"):
        to_plane(features, "pca")


def test_choosing_a_pixel_by_click_without_a_display_is_refused(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib

    matplotlib.use("agg")
    with pytest.raises(ValueError, match="`pixel`"):
        ask_for_pixel(Image.new("RGB", (4, 4)))


def test_the_figure_of_a_very_high_image_is_bounded():
    figure = similarity_figure(Image.new("RGB", (8, 4000)), (0, 0), {1: np.zeros((4, 4))})
    assert max(figure.get_size_inches()) <= 15
