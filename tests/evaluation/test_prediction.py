"""Prediction of image files: which images are found, which files are written, how batches are formed."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import write_image
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.images import read_labels
from msctr_hf.data.labels import LabelMapping
from msctr_hf.data.specs import DatasetSpec, Submission
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.prediction import predict_files, save_labels
from msctr_hf.evaluation.predictor import Predictor, load_predictor
from msctr_hf.evaluation.settings import InferenceSettings
from msctr_hf.evaluation.visualization import overlay

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [7, 7, 7]]


@pytest.fixture
def predictor(tiny_config):
    # in float64 the size of a batch does not change the labels
    model = MsctrForSemanticSegmentation(tiny_config(palette=PALETTE)).double().eval()
    return Predictor(model, MsctrImageProcessor(size_divisor=32))


@pytest.fixture
def images(tmp_path):
    """Write images of two sizes in a mixed order, and one image in a sub-folder."""
    folder = tmp_path / "images"
    for number, size in enumerate([(40, 56), (40, 56), (40, 56), (33, 70), (40, 56), (33, 70), (33, 70)]):
        write_image(folder / f"{number}.png", size, seed=number)
    write_image(folder / "night/0.png", (40, 56), seed=9)
    return folder


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def label_maps(predictor, source, folder, **settings):
    predict_files(replace(predictor, settings=InferenceSettings(**settings)), source, folder)
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


@pytest.mark.parametrize(
    "settings",
    [{}, {"flip": True, "scales": (0.75, 1.0)}, {"window_size": (32, 32)}, {"flip": True, "window_size": (32, 48)}],
    ids=str,
)
def test_batches_write_the_same_files_as_single_images(predictor, images, tmp_path, settings):
    singles = label_maps(predictor, images, tmp_path / "singles", batch_size=1, **settings)
    assert len(singles) == 16
    # no two images have the same labels, so that exchanged files would be noticed
    assert len({content for name, content in singles.items() if "overlay" not in name}) == 8
    assert label_maps(predictor, images, tmp_path / "batches", batch_size=3, **settings) == singles


def test_overlays_are_compressed_fast_and_their_pixels_are_kept(predictor, tmp_path):
    write_image(tmp_path / "0.png", (80, 112), seed=0)
    predict_files(predictor, tmp_path / "0.png", tmp_path / "maps")
    labels = np.asarray(Image.open(tmp_path / "maps/0.png"))
    image = Image.open(tmp_path / "0.png").convert("RGB")
    expected = overlay(image, labels, PALETTE, predictor.class_names)
    written = tmp_path / "maps/0_overlay.png"
    assert np.array_equal(np.asarray(Image.open(written)), np.asarray(expected))
    content = written.read_bytes()
    flags = content[content.index(b"IDAT") + 5]
    assert flags >> 6 == 0  # of the header of zlib: its fastest level


def test_no_batch_is_larger_than_asked_for_and_no_more_than_one_image_is_read_ahead(predictor):
    sizes, read = [], []
    predictor.model.register_forward_pre_hook(
        lambda model, arguments, options: sizes.append(len(options["pixel_values"])), with_kwargs=True
    )

    def images():
        for width in [64, 64, 64, 64, 64, 96, 64]:
            read.append(width)
            yield Image.new("RGB", (width, 64))

    predictor.settings = InferenceSettings(batch_size=2)
    ahead = [len(read) - done for done, _ in enumerate(predictor(images()))]
    assert sizes == [2, 2, 1, 1, 1]
    assert max(ahead) <= 3


@pytest.mark.parametrize("flip", [False, True])
def test_images_resized_to_one_size_share_a_batch_and_are_labeled_at_their_own_sizes(flip):
    config = SegformerConfig(
        num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).double().eval()
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in [(40, 50), (70, 30), (9, 9)]]
    singles = list(Predictor(model, processor, InferenceSettings(flip=flip))(images))
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    batch = list(Predictor(model, processor, InferenceSettings(flip=flip, batch_size=6))(images))
    assert len(calls) == 1
    assert [labels.shape for labels in batch] == [(40, 50), (70, 30), (9, 9)]
    assert all(np.array_equal(one, other) for one, other in zip(batch, singles, strict=True))


def test_files_folders_and_patterns_are_labeled_together_each_image_once(predictor, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    written = predict_files(predictor, ["0.png", "../images/0.png", "./[12].png", "n*"], tmp_path / "maps")
    assert written == 4
    names = [name for name in files_below(tmp_path / "maps") if "overlay" not in name]
    assert names == ["0.png", "1.png", "2.png", "night/0.png"]


def test_patterns_keep_sub_folders_and_leave_other_files_out(predictor, images, tmp_path):
    (images / "night/notes.txt").write_text("no image")
    assert predict_files(predictor, str(images / "**/0*"), tmp_path / "maps") == 2
    assert predict_files(predictor, str(images / "*/*"), tmp_path / "night") == 1
    assert files_below(tmp_path / "maps") == ["0.png", "0_overlay.png", "night/0.png", "night/0_overlay.png"]
    assert files_below(tmp_path / "night") == ["night/0.png", "night/0_overlay.png"]


def test_a_second_call_does_not_label_the_files_of_the_first(predictor, images, monkeypatch):
    monkeypatch.chdir(images)
    for sources in (".", ".", "**/*.png", images, "../images"):
        assert predict_files(predictor, sources, "predictions") == 8
    assert len(files_below(images / "predictions")) == 16
    assert predict_files(predictor, "predictions/0.png", "again") == 1  # but it may be asked to


def maps_below(folder):
    return [name for name in files_below(folder) if not name.endswith("_overlay.png")]


@pytest.fixture
def archive(images, tmp_path):
    """Add a linked folder, links that lead back, hidden files and other formats to the eight images."""
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "linked/night/back").symlink_to(images)
    (images / "here").symlink_to(".")
    write_image(images / "photo.jfif", (40, 56))
    write_image(images / "linked/photo.jpe", (40, 56))
    for name in (".ipynb_checkpoints/0.png", "linked/.thumbnails/0.png", "linked/._0.png"):
        write_image(images / name, (40, 56))
    return images


MAPS = [*(f"linked/{number}.png" for number in range(7)), "linked/night/0.png", "linked/photo.png", "photo.png"]


def test_linked_folders_are_searched_once_and_hidden_ones_are_not(predictor, archive, tmp_path):
    for sources in (archive, str(archive / "**"), str(archive / "**/*"), str(archive / "*")):
        assert predict_files(predictor, sources, tmp_path / "maps") == 10
        assert maps_below(tmp_path / "maps") == MAPS


def test_a_hidden_folder_that_is_named_is_searched(predictor, archive, tmp_path):
    assert predict_files(predictor, archive / ".ipynb_checkpoints", tmp_path / "maps") == 1
    assert predict_files(predictor, str(archive / ".ipynb*/*"), tmp_path / "maps") == 1


def test_files_of_an_earlier_call_are_not_labeled_where_a_link_leads_to_them(predictor, archive, tmp_path):
    (archive / "results").symlink_to(tmp_path / "maps")
    for _ in range(2):
        assert predict_files(predictor, archive, tmp_path / "maps") == 10


def test_links_that_lead_nowhere_are_reported_and_the_other_images_are_labeled(predictor, archive, tmp_path):
    (archive / "gone.png").symlink_to(tmp_path / "gone")
    (archive / "folder").symlink_to(tmp_path / "gone")
    for sources in (archive, str(archive / "*")):
        with pytest.raises(UsageError, match="2 of 12 images cannot be read") as error:
            predict_files(predictor, sources, tmp_path / "maps")
        assert str(archive / "gone.png") in str(error.value)
        assert str(archive / "folder") in str(error.value)
    assert maps_below(tmp_path / "maps") == MAPS


def test_a_folder_whose_name_ends_as_that_of_an_image_is_searched(predictor, tmp_path):
    write_image(tmp_path / "images/video.png/0.png", (40, 56))
    assert predict_files(predictor, tmp_path / "images", tmp_path / "maps") == 1
    assert maps_below(tmp_path / "maps") == ["video.png/0.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(predictor, tmp_path):
    write_image(tmp_path / "images/a[1].png")
    write_image(tmp_path / "images/a1.png")
    assert predict_files(predictor, tmp_path / "images/a[1].png", tmp_path / "maps") == 1
    assert files_below(tmp_path / "maps") == ["a[1].png", "a[1]_overlay.png"]


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        (["0.png", "night/0.png"], "0.png and night/0.png would both be written to"),
        (["0.png", "night"], "would both be written to"),
        (["1.png", "1_overlay.jpg"], "1.png and 1_overlay.jpg would both be written to"),
        (["0.png", "*.tif"], r"`sources`: nothing matches '\*.tif'"),
        (["*.txt"], r"`sources`: \*.txt has no images"),
        (["none.png"], "none.png is neither a file nor a folder"),
        ([], "name an image, a folder or a pattern"),
    ],
)
def test_inputs_that_match_nothing_or_share_an_output_file_are_refused_before_writing(
    predictor, images, tmp_path, monkeypatch, sources, sentence
):
    write_image(images / "1_overlay.jpg")
    (images / "notes.txt").write_text("no image")
    monkeypatch.chdir(images)
    with pytest.raises(UsageError, match=sentence):
        predict_files(predictor, sources, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_label_files_show_the_class_colors_and_hold_the_classes(predictor, images, tmp_path):
    predict_files(predictor, images / "0.png", tmp_path / "colors")
    predict_files(predictor, images / "0.png", tmp_path / "gray", palette=False)
    colors, gray = (Image.open(tmp_path / folder / "0.png") for folder in ("colors", "gray"))
    assert (colors.mode, gray.mode) == ("P", "L")
    assert np.array_equal(np.asarray(colors), np.asarray(gray))
    assert np.array_equal(np.asarray(colors.convert("RGB")), np.asarray(PALETTE, np.uint8)[np.asarray(gray)])


@pytest.mark.parametrize("num_colors", [2, 3, 16, 19, 256])
def test_every_value_survives_a_palette_of_any_length(tmp_path, num_colors):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_labels(labels, tmp_path / "labels.png", [(color, 0, 1) for color in range(num_colors)])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels)


def test_a_palette_may_have_more_colors_than_a_file_can_hold(tmp_path):
    save_labels(np.array([[0, 255]], np.uint8), tmp_path / "labels.png", [(1, 2, 3)] * 300)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), [[0, 255]])


def test_a_network_with_more_than_256_classes_labels_images(images, tmp_path):
    config = SegformerConfig(
        num_labels=300, depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    model = SegformerForSemanticSegmentation(config).eval()
    torch.nn.init.constant_(model.decode_head.classifier.weight, 0)
    model.decode_head.classifier.bias.data[299] = 1
    predictor = Predictor(model, SegformerImageProcessor(size={"height": 64, "width": 64}))
    predict_files(predictor, images / "0.png", tmp_path / "maps")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "maps/0.png")), np.full((40, 56), 299))
    assert Image.open(tmp_path / "maps/0_overlay.png").width == 56


def test_more_than_256_classes_get_16_bits(tmp_path):
    labels = np.array([[0, 255], [256, 1000]])
    save_labels(labels, tmp_path / "labels.png", [(0, 0, 0)] * 1001)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels)


def test_predicted_files_can_be_read_as_labels_of_a_data_set(predictor, images, tmp_path):
    predict_files(predictor, images / "0.png", tmp_path / "maps")
    path = tmp_path / "maps/0.png"
    mapping = LabelMapping({value: value for value in range(len(PALETTE))})
    ids = read_labels({"path": str(path), "bytes": path.read_bytes()}, mapping)
    assert ids.mode == "L"
    assert np.array_equal(np.asarray(ids), np.asarray(Image.open(path)))


def test_raw_values_above_255_are_submitted_in_16_bits(images, tmp_path):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (40, 56), dtype=np.uint8)
    spec = DatasetSpec("wide", ["a", "b", "c"], PALETTE, None, {300: 0, 7: 1, 65_535: 2}, submission=Submission())
    predictor = Predictor(types.SimpleNamespace(), None)
    predictor.__class__ = type(
        "Known",
        (Predictor,),
        {
            "__call__": lambda self, images: (labels for _ in images),
            "class_names": ["a", "b", "c"],
            "palette": PALETTE,
        },
    )
    predict_files(predictor, images / "0.png", tmp_path / "upload", submission_for=spec)
    written = np.asarray(Image.open(tmp_path / "upload/0.png"))
    assert np.array_equal(written, np.array([300, 7, 65_535])[labels])


def test_more_classes_than_a_png_has_values_are_refused_before_anything_is_written(images, tmp_path):
    config = types.SimpleNamespace(num_labels=65_537, id2label=None)
    predictor = Predictor(types.SimpleNamespace(config=config), None)
    with pytest.raises(UsageError, match="65537 classes, but a PNG stores at most 65536"):
        predict_files(predictor, images / "0.png", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "unlabeled", "void"])
def test_a_first_class_for_the_background_is_black_and_the_others_have_the_colors_of_voc(name):
    config = types.SimpleNamespace(num_labels=3, id2label={0: name, 1: "road", 2: "car"})
    palette = Predictor(types.SimpleNamespace(config=config), None).palette
    assert [tuple(color) for color in palette] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def test_colors_that_a_configuration_leaves_out_are_distinct_defaults():
    config = types.SimpleNamespace(num_labels=300, id2label=None, palette=[[1, 2, 3]])
    palette = [tuple(color) for color in Predictor(types.SimpleNamespace(config=config), None).palette]
    assert palette[0] == (1, 2, 3)
    assert len(set(palette)) == 300


def test_a_model_that_is_neither_a_folder_here_nor_on_the_hub_is_reported_as_both():
    with pytest.raises(UsageError, match="`model`: examples/street is not a folder here, and cannot be loaded"):
        load_predictor("examples/street")
