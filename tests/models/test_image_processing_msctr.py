from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor, MsctrImageProcessorPil


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_images_are_padded_with_the_mean_color_and_labels_with_the_ignore_index():
    processor = MsctrImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, size_divisor=32)
    image, labels = noise(40, 50), np.full((40, 50), 3, dtype=np.uint8)
    batch = processor(image, segmentation_maps=labels, return_tensors="pt")
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch["pixel_values"][0, :, :40, :50], expected)
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["pixel_values"][0, :, 40:].abs().max() == 0
    assert batch["labels"][0, :40, :50].unique().tolist() == [3]
    assert batch["labels"][0, 40:].unique().tolist() == [255]


@pytest.mark.parametrize("cls", [MsctrImageProcessor, MsctrImageProcessorPil])
def test_padding_can_reflect_the_image_but_never_its_labels(cls):
    labels = np.full((40, 50), 3, dtype=np.uint8)
    plain = cls()(noise(40, 50), return_tensors="pt")["pixel_values"]
    batch = cls(size_divisor=32, padding_mode="reflect")(noise(40, 50), segmentation_maps=labels, return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], F.pad(plain, (0, 14, 0, 24), mode="reflect"))
    assert batch["labels"][0, 40:].unique().tolist() == [255]
    assert batch["labels"][0, :, 50:].unique().tolist() == [255]


@pytest.mark.parametrize("options", [{}, {"size_divisor": 32}, {"do_resize": True, "size": {"shortest_edge": 48}}])
def test_both_backends_prepare_the_same_images(options):
    images = [noise(60, 80), noise(60, 80)]
    torchvision, pil = (
        cls(**options)(images, return_tensors="pt")["pixel_values"]
        for cls in (MsctrImageProcessor, MsctrImageProcessorPil)
    )
    assert torchvision.shape == pil.shape
    assert (torchvision - pil).abs().max() < 0.03  # one gray level after resizing


def test_images_of_different_sizes_are_padded_to_one_batch():
    batch = MsctrImageProcessor(size_divisor=16)([noise(30, 50), noise(40, 20)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 48, 64)


@pytest.mark.parametrize("align_corners", [True, False])
def test_post_processing_cuts_off_padding_and_undoes_resizing(align_corners):
    processor = MsctrImageProcessor(
        do_resize=True, size={"shortest_edge": 32}, size_divisor=32, align_corners=align_corners
    )
    sizes = [(40, 60), (80, 50)]
    canvas = processor([noise(*size) for size in sizes], return_tensors="pt")["pixel_values"].shape[-2:]
    logits = torch.randn(2, 4, canvas[0] // 4, canvas[1] // 4)
    maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=sizes)
    for index, (size, inner) in enumerate(zip(sizes, [(32, 48), (51, 32)], strict=True)):
        upsampled = F.interpolate(logits[index : index + 1], size=canvas, mode="bilinear", align_corners=align_corners)
        expected = F.interpolate(
            upsampled[..., : inner[0], : inner[1]], size=size, mode="bilinear", align_corners=align_corners
        )
        assert torch.equal(maps[index], expected[0].argmax(0))


@pytest.mark.parametrize("cls", [MsctrImageProcessor, MsctrImageProcessorPil])
@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 64}, {"shortest_edge": 64, "longest_edge": 100}, {"height": 40, "width": 50},
        {"max_height": 64, "max_width": 80},
    ],
    ids=str,
)  # fmt: skip
def test_label_maps_have_the_size_of_the_image_for_every_way_to_resize(cls, size):
    processor = cls(do_resize=True, size=size)
    for width, height in ((97, 33), (33, 97), (101, 67), (301, 299)):
        pixel_values = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        assert processor.resized_size(height, width) == tuple(pixel_values.shape[-2:])
        outputs = SimpleNamespace(logits=torch.zeros(1, 2, *pixel_values.shape[-2:]))
        (labels,) = processor.post_process_semantic_segmentation(outputs, [(height, width)])
        assert labels.shape == (height, width)
    with pytest.raises(ValueError, match="`size` must have `shortest_edge`"):
        cls(do_resize=True, size={"longest_edge": 64}).resized_size(9, 9)


def test_saved_settings_load_unchanged_in_both_backends(tmp_path):
    settings = {"size_divisor": 32, "align_corners": True, "image_mean": [0.1, 0.2, 0.3], "padding_mode": "reflect"}
    MsctrImageProcessor(**settings).save_pretrained(tmp_path)
    for cls in (MsctrImageProcessor, MsctrImageProcessorPil):
        loaded = cls.from_pretrained(tmp_path)
        assert all(getattr(loaded, name) == value for name, value in settings.items() if name != "image_mean")
        assert list(loaded.image_mean) == settings["image_mean"]


def test_the_image_segmentation_pipeline_returns_masks_of_the_size_of_the_image(tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path)
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MsctrImageProcessor
    segments = pipeline("image-segmentation", model=str(tmp_path))(noise(45, 70))
    assert segments
    assert all(segment["mask"].size == (70, 45) for segment in segments)
    assert all(segment["label"].startswith("class ") for segment in segments)


def test_a_wrong_number_of_target_sizes_is_refused():
    with pytest.raises(ValueError, match="`target_sizes` must have one entry per image"):
        MsctrImageProcessor().post_process_semantic_segmentation(
            SimpleNamespace(logits=torch.randn(2, 3, 4, 4)), target_sizes=[(4, 4)]
        )


@pytest.mark.parametrize(("count", "dtype"), [(1, "uint8"), (4, "uint16"), (7, "float32"), (3, "int32")])
def test_images_of_other_channels_are_normalized_by_their_own_statistics(count, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, count)).astype(dtype)
    mean, std, factor = np.linspace(0.2, 0.6, count), np.linspace(0.1, 0.3, count), 1 / 100
    processor = MsctrImageProcessor(
        num_channels=count, value_type=dtype, image_mean=mean.tolist(), image_std=std.tolist(), rescale_factor=factor,
        size_divisor=32,
    )  # fmt: skip
    expected = torch.from_numpy((pixels * factor - mean) / std).permute(2, 0, 1).float()
    for image in (pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels)):
        prepared = processor(image, return_tensors="pt")["pixel_values"]
        assert prepared.shape == (1, count, 64, 64)
        torch.testing.assert_close(prepared[0, :, :40, :50], expected)
    labels = np.full((40, 50), 3, dtype=np.uint8)
    batch = processor([pixels, pixels], segmentation_maps=[labels, labels], return_tensors="pt")
    assert batch["labels"].shape == (2, 64, 64)


def test_gray_images_that_became_rgb_become_gray_again_without_a_change():
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for backend in (MsctrImageProcessor, MsctrImageProcessorPil):
        processor = backend(num_channels=1, value_type="uint8", image_mean=[0.5], image_std=[0.25])
        expected = (torch.from_numpy(np.array(gray))[None] / 255 - 0.5) / 0.25
        for image in (gray, gray.convert("RGB"), np.array(gray)):
            torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"][0], expected)


def test_images_of_other_channels_or_types_are_refused_in_a_sentence():
    processor = MsctrImageProcessor(num_channels=4, value_type="uint16")
    with pytest.raises(ValueError, match=r"The image has 3 channel\(s\), but the network reads 4; give an array"):
        processor(Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="values of type uint8, but the network is for images of type uint16"):
        processor(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(ValueError, match="on PIL reads 1 or 3 channels, but the network reads 4; use that on torchv"):
        MsctrImageProcessorPil(num_channels=4)
