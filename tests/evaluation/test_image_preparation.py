import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from layouts import write_folder
from PIL import Image
from stock_processors import SIZES, NeverWrong, default_processors, scene, shown_colors, without_borders
from transformers import (
    BeitImageProcessor,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    DPTImageProcessor,
    EfficientNetImageProcessor,
    EomtConfig,
    EomtForUniversalSegmentation,
    Idefics3ImageProcessor,
    ImageGPTImageProcessor,
    Mask2FormerConfig,
    MaskFormerConfig,
    MobileNetV2ImageProcessorPil,
    MobileViTImageProcessor,
    OneFormerConfig,
    SegformerImageProcessor,
    SuperPointImageProcessor,
    ViTConfig,
    ViTImageProcessor,
    VitMatteImageProcessor,
    pipeline,
)

from msctr_hf import MsctrImageProcessor
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.channels import Channels
from msctr_hf.data.settings import DataSettings
from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import InputWarning, UsageError
from msctr_hf.evaluation.image_preparation import ImagePreparation
from msctr_hf.evaluation.prediction import predict_files
from msctr_hf.evaluation.predictor import Predictor, load_predictor
from msctr_hf.evaluation.scoring import score_dataset
from msctr_hf.evaluation.settings import InferenceSettings
from msctr_hf.training.adapted_network import adapt_saved, image_processor_of_saved
from msctr_hf.training.class_weights import ClassPixels
from msctr_hf.training.settings import TrainingSettings
from msctr_hf.training.training_data import build_loader

pytestmark = pytest.mark.filterwarnings("ignore::msctr_hf.errors.InputWarning")

CROPPING_BEIT = {"do_center_crop": True, "size": {"height": 256, "width": 256}, "crop_size": 160}
VARIANTS = {
    "BEiT that crops": lambda: BeitImageProcessor(**CROPPING_BEIT),
    "BGR, cropped": MobileViTImageProcessor,
    "cropped, on PIL": MobileNetV2ImageProcessorPil,
}
MORE_VARIANTS = {
    "crop larger than the image": lambda: BeitImageProcessor(**{**CROPPING_BEIT, "crop_size": 400}),
    "crop that is a part of resizing": lambda: ConvNextImageProcessor(size={"shortest_edge": 224}),
    "crop that is a part of resizing, on PIL": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "multiple of 32, aspect ratio kept": lambda: DPTImageProcessor(keep_aspect_ratio=True, ensure_multiple_of=32),
    "padded to a multiple": lambda: DPTImageProcessor(
        do_pad=True, size_divisor=56, keep_aspect_ratio=True, ensure_multiple_of=1
    ),
    "padded to a size": lambda: ViTImageProcessor(
        size={"max_height": 256, "max_width": 256}, do_pad=True, pad_size={"height": 256, "width": 256}
    ),
    "not rescaled": lambda: SegformerImageProcessor(do_rescale=False, do_normalize=False),
    "not rescaled, but normalized": lambda: SegformerImageProcessor(
        do_rescale=False, image_mean=[120.0, 110.0, 100.0], image_std=[50.0, 60.0, 70.0]
    ),
    "another factor": lambda: SegformerImageProcessor(rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0),
    "not normalized": lambda: SegformerImageProcessor(do_normalize=False),
    "offset": lambda: EfficientNetImageProcessor(
        rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False
    ),
    "not resized": lambda: MobileViTImageProcessor(do_resize=False, crop_size=128),
    "nearest": lambda: BeitImageProcessor(resample=0),
    "shorter and longer side": lambda: SegformerImageProcessor(size={"shortest_edge": 200, "longest_edge": 300}),
    "BGR kept as RGB": lambda: MobileViTImageProcessor(do_flip_channel_order=False),
}


def scores_of_all_paths(processor, folder):
    """Score a network that is never wrong through evaluation, prediction of files and the pipeline."""
    network = NeverWrong(processor).eval()
    predictor = Predictor(network, processor, InferenceSettings(batch_size=2))
    rows, images = [], []
    for width, height in SIZES:
        image, labels = scene(width, height)
        predictor_shown = len(network.shown)
        next(predictor([image]))
        labels = without_borders(labels, network.shown[predictor_shown])
        rows.append({"image": image, "label": Image.fromarray(labels), "image_id": f"{width}x{height}"})
        images.append(folder / f"{width}x{height}.png")
        image.save(images[-1])
    scores = score_dataset(predictor, rows, num_labels=6, accelerator=Accelerator(cpu=True))
    predict_files(predictor, images, folder / "predicted")
    predicted = [np.asarray(Image.open(folder / "predicted" / path.name)) for path in images]
    segment = pipeline("msctr-segmentation", model=network, image_processor=processor, batch_size=2)
    piped = [result["labels"] for result in segment([str(path) for path in images])]
    return {
        "evaluate": scores.confusion.scores()["mean_iou"],
        "predict": _mean_iou(predicted, rows),
        "pipeline": _mean_iou(piped, rows),
    }


def _mean_iou(predictions, rows):
    """Mean IoU of six classes over the pixels that are not ignored, from sets of pixels."""
    counts = np.zeros((6, 2))
    for prediction, row in zip(predictions, rows, strict=True):
        labels = np.asarray(row["label"])
        valid = labels != 255
        for label in range(6):
            found, true = (prediction == label) & valid, labels == label
            counts[label] += (found & true).sum(), (found | true).sum()
    return float((counts[:, 0] / counts[:, 1]).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_that_is_never_wrong_scores_one(variant, tmp_path):
    scores = scores_of_all_paths(VARIANTS[variant](), tmp_path)
    assert scores == {"evaluate": 1.0, "predict": 1.0, "pipeline": 1.0}


EVERY = {each.__name__: each for each in default_processors()} | MORE_VARIANTS


@pytest.mark.slow
@pytest.mark.parametrize("variant", EVERY)
def test_a_network_that_is_never_wrong_scores_one_with_every_image_processor(variant, tmp_path):
    scores = scores_of_all_paths(EVERY[variant](), tmp_path)
    assert scores == {"evaluate": 1.0, "predict": 1.0, "pipeline": 1.0}


def write_red_blocks(folder):
    """Write a data set of 64 x 64 pixels whose images show a red block at a place without symmetry."""
    write_folder(folder, size=(64, 64))
    pixels = np.full((64, 64, 3), (10, 90, 160), np.uint8)
    pixels[8:32, 32:60] = (231, 24, 41)
    for path in folder.glob("*/images/*.jpg"):
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        path.unlink()
    return DataSettings(
        dataset="folder",
        data_dir=str(folder),
        crop_size=[64, 64],
        scale_range=[1.0, 1.0],
        aspect_range=[1.0, 1.0],
        flip_probability=0.0,
        color_jitter=False,
        num_workers=0,
    )


def value_at(pixel_values, place):
    height, width = pixel_values.shape[-2:]
    return pixel_values[..., int(place[0] * height), int(place[1] * width)].reshape(-1).double().numpy()


def pixel_values_of_training_and_validation(processor, folder):
    """Return the pixel values of a red block in a training batch without augmentation, and in a validation."""
    processor.save_pretrained(folder / "model")
    options = {"do_resize": False, "size_divisor": 1, "padding_mode": "constant"}
    saved = image_processor_of_saved(str(folder / "model"), options)
    data = write_red_blocks(folder / "data")
    train_set, accelerator = data.load("train"), Accelerator(cpu=True)
    class_pixels = ClassPixels(train_set, data.spec, 0)
    loader, _ = build_loader(train_set, data, TrainingSettings(batch_size=2), saved, class_pixels, accelerator)
    predictor = Predictor(NeverWrong(processor), saved)
    return next(iter(loader))["pixel_values"][:1], predictor.prepare([data.load("validation")[0]["image"]])


def assert_red_block(variant, build, folder):
    processor = build()
    trained, validated = pixel_values_of_training_and_validation(processor, folder)
    for place, color in (((0.3, 0.7), [231, 24, 41]), ((0.3, 0.1), [10, 90, 160])):
        values = [value_at(each, place) for each in (trained, validated)]
        magnitude = max(1.0, np.abs(values).max())
        assert np.abs(values[0] - values[1]).max() <= 1e-6 * magnitude, variant
        for each in (trained, validated):  # the color is where the network expects it
            np.testing.assert_allclose(value_at(shown_colors(processor, each), place), color, atol=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_colors_are_the_same_in_training_and_validation(variant, tmp_path):
    assert_red_block(variant, VARIANTS[variant], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", EVERY)
def test_colors_are_the_same_in_training_and_validation_with_every_image_processor(variant, tmp_path):
    assert_red_block(variant, EVERY[variant], tmp_path)


def test_the_padding_of_training_crops_has_the_color_of_padding_in_prediction():
    """Pixel values of 0 if a color has them; BGR without normalization: black."""
    image, random = np.full((8, 8, 3), 200, np.uint8), np.random.default_rng(0)
    for processor in (MobileViTImageProcessor(), SegformerImageProcessor()):
        order, mean, std, _ = ImagePreparation(processor).colors
        augment = TrainingAugmentation((32, 32), mean, std, color_jitter=False, channel_order=order)
        pixel_values, labels = augment(image, np.zeros((8, 8), np.uint8), random)
        assert pixel_values[:, labels.numpy() == 255].abs().max() < 0.01


@pytest.mark.parametrize(
    ("build", "sentences"),
    [
        (MobileViTImageProcessor, ["MobileViTImageProcessor: the center crop is switched off, so that whole images"]),
        (
            lambda: ConvNextImageProcessor(size={"shortest_edge": 224}),
            ["ConvNextImageProcessor: the crop after resizing is switched off, so that whole images are labeled."],
        ),
        (
            lambda: ViTImageProcessor(do_center_crop=True, crop_size=100, do_pad=True, pad_size=300),
            ["ViTImageProcessor: the center crop and the padding are switched off, so that whole images"],
        ),
        (SegformerImageProcessor, []),
        (MsctrImageProcessor, []),
        (BeitImageProcessor, []),
    ],
)
def test_what_is_switched_off_is_reported_in_one_line(build, sentences):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processor = build()
        before = processor.to_dict()
        ImagePreparation(processor)
    reported = [str(each.message) for each in caught if each.category is InputWarning]
    assert len(reported) == len(sentences)
    assert all(line.startswith(sentence) for line, sentence in zip(reported, sentences, strict=True))
    assert processor.to_dict() == before  # a copy is changed


def test_a_pipeline_reports_it_once(tmp_path):
    processor = MobileViTImageProcessor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segment = pipeline("msctr-segmentation", model=NeverWrong(processor), image_processor=processor)
        segment([scene(64, 64)[0]] * 2)
        segment(scene(64, 64)[0])
    assert len([each for each in caught if each.category is InputWarning]) == 1


def test_images_are_padded_to_a_multiple_only_if_the_image_processor_pads():
    image, _ = scene(100, 70)
    for do_pad, expected in ((False, (70, 100)), (True, (96, 128))):
        processor = DPTImageProcessor(do_resize=False, do_pad=do_pad, size_divisor=32)
        network = NeverWrong(processor).eval()
        next(Predictor(network, processor)([image]))
        assert network.shown == [expected]


class Mirrored(SegformerImageProcessor):
    """Image processor that shows mirror images."""

    def rescale_and_normalize(self, images, *args):
        return super().rescale_and_normalize(images.flip(-1), *args)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Mirrored, "Mirrored crops, pads or turns images; "),
        (
            lambda: SuperPointImageProcessor(do_grayscale=True),
            "SuperPointImageProcessor mixes color channels, or does not normalize them linearly; ",
        ),
        (Idefics3ImageProcessor, r"Idefics3ImageProcessor\w* makes pixel values of the shape \(1, \d+, 3, 364, 364\)"),
        (ImageGPTImageProcessor, r"ImageGPTImageProcessor cannot prepare images \(Clusters must be provided"),
        (VitMatteImageProcessor, r"VitMatteImageProcessor cannot prepare images \(.*trimaps'\); "),
    ],
)
def test_image_processors_that_do_not_show_whole_images_are_refused(build, reason):
    with pytest.raises(UsageError, match=f"^{reason}.*save the model with an image processor that only resizes"):
        ImagePreparation(build())


UNIVERSAL = {"eomt": EomtConfig, "mask2former": Mask2FormerConfig, "maskformer": MaskFormerConfig}


@pytest.mark.parametrize("kind", [*UNIVERSAL, "oneformer"])
def test_saved_universal_models_are_refused_by_name(kind, tmp_path):
    config = UNIVERSAL[kind]() if kind in UNIVERSAL else OneFormerConfig()
    config.save_pretrained(tmp_path)
    sentence = rf"{re.escape(str(tmp_path))} is a universal model \({kind}\), which predicts masks instead of a class"
    with pytest.raises(UsageError, match=f"^`model`: {sentence}"):
        load_predictor(str(tmp_path))
    with pytest.raises(UsageError, match=f"^`model_name_or_path`: {sentence}"):
        adapt_saved(str(tmp_path), {}, DATASETS["synthetic_scenes"])


def test_models_without_classes_of_pixels_are_refused_by_name(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"is not a semantic segmentation model \(vit\); use a semantic"):
        load_predictor(str(tmp_path))


def test_the_pipeline_refuses_a_universal_model_by_name(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 3}
    model = EomtForUniversalSegmentation(EomtConfig(**sizes, image_size=32, patch_size=16))
    model.save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    sentence = r"EomtForUniversalSegmentation is a universal model \(eomt\), which predicts masks"
    with pytest.raises(UsageError, match=f"^{sentence}"):
        pipeline("msctr-segmentation", model=str(tmp_path))
    with pytest.raises(UsageError, match=f"^{sentence}"):
        Predictor(model, SegformerImageProcessor())


def test_another_image_processor_in_a_copy_of_a_predictor_is_used():
    predictor = Predictor(torch.nn.Conv2d(3, 2, 1), SegformerImageProcessor(size={"height": 32, "width": 32}))
    assert replace(predictor, settings=InferenceSettings(flip=True)).preparation is predictor.preparation
    other = replace(predictor, image_processor=SegformerImageProcessor(size={"height": 64, "width": 48}))
    assert other.prepare([Image.new("RGB", (90, 70))]).shape == (1, 3, 64, 48)


@pytest.mark.parametrize(("count", "dtype", "white"), [(1, np.uint8, 255), (4, np.uint16, 65535), (7, np.float32, 1)])
def test_training_sees_images_of_any_channels_as_prediction_does(count, dtype, white, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (50, 40, count)).astype(dtype)
    mean, std = (np.linspace(*ends, count).tolist() for ends in ((0.3, 0.6), (0.2, 0.4)))
    processor = MsctrImageProcessor(
        num_channels=count, value_type=np.dtype(dtype).name, rescale_factor=1 / white, image_mean=mean, image_std=std
    )
    preparation = ImagePreparation(processor)
    assert preparation.channels == Channels(count, np.dtype(dtype).name)
    predicted = preparation([image, image])
    expected = (torch.from_numpy(image / white) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(predicted[1], expected.permute(2, 0, 1).float(), rtol=1e-4, atol=1e-4)
    order, *colors, white_of_training = preparation.colors
    augmentation = TrainingAugmentation(
        (50, 40), *colors, scale_range=(1, 1), aspect_range=(1, 1), max_class_share=2, flip_probability=0,
        color_jitter=False, channel_order=order, white=white_of_training,
    )  # fmt: skip
    trained, _ = augmentation(image, np.zeros((50, 40), np.uint8), np.random.default_rng(0))
    torch.testing.assert_close(trained, predicted[0], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("msctr_hf.evaluation.image_preparation.PREPARED_ROWS", 16)
    torch.testing.assert_close(preparation([image]), predicted[:1])
