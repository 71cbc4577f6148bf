"""Predictions at the pixels of a stage equal those of the whole resized logits."""

import pytest
import torch
import torch.nn.functional as F

from msctr_hf.models import misclassified_pixels as module
from msctr_hf.models.misclassified_pixels import misclassified_pixels


def nearest(maps, size):
    return F.interpolate(maps[:, None].double(), size=size, mode="nearest")[:, 0].long()


def assert_equal_those_of_whole_maps(logits, labels, stages, align_corners):
    resized = F.interpolate(logits.double(), size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    predicted = resized.argmax(1)
    found = misclassified_pixels(logits, labels, stages, align_corners)
    for stage, wrong in zip(stages, found, strict=True):
        of_stage = nearest(labels, stage.shape[-2:])
        expected = of_stage != nearest(predicted, stage.shape[-2:])
        assert torch.equal(wrong[of_stage != 255], expected[of_stage != 255])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(16, 24), (64, 96), (7, 11), (1, 1)])
@pytest.mark.parametrize("labels_size", [(64, 96), (61, 83)])
@pytest.mark.parametrize("values_at_once", [1, 2**18], ids=["strips", "whole"])
def test_predictions_equal_those_of_the_resized_logits(monkeypatch, align_corners, size, labels_size, values_at_once):
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", values_at_once)
    labels = torch.randint(0, 6, (2, *labels_size))
    labels[:, :5] = 255
    logits = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    stages = [torch.empty(2, 3, *(-(-side // stride) for side in labels_size)) for stride in (4, 8, 16, 32)]
    assert_equal_those_of_whole_maps(logits, labels, stages, align_corners)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_precision_and_memory_format_gives_the_same_pixels(dtype, memory_format):
    labels = torch.randint(0, 6, (2, 64, 96))
    logits = torch.randn(2, 6, 16, 24).to(dtype).to(memory_format=memory_format)
    assert_equal_those_of_whole_maps(logits, labels, [torch.empty(2, 3, 16, 24), torch.empty(2, 3, 4, 6)], False)


def test_pixels_without_a_finite_prediction_are_misclassified():
    logits = torch.full((1, 3, 4, 4), float("nan"))
    (wrong,) = misclassified_pixels(logits, torch.zeros(1, 16, 16, dtype=torch.int64), [torch.empty(1, 2, 4, 4)])
    assert wrong.all()


def test_no_tensor_has_the_size_of_the_resized_logits():
    labels, logits = torch.zeros(2, 256, 256, dtype=torch.int64), torch.randn(2, 50, 64, 64)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in [result] if isinstance(each, torch.Tensor))
            return result

    with Sizes():
        misclassified_pixels(logits, labels, [torch.empty(2, 3, 64, 64), torch.empty(2, 3, 8, 8)])
    assert max(sizes) <= max(labels.numel(), logits.numel())
