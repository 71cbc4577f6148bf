import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from msctr_hf import predict_probabilities
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.inference import (
    _source_rows,
    _source_rows_on,
    most_probable_classes,
    predict_labels,
    predict_probabilities_at,
    window_starts,
)
from msctr_hf.evaluation.settings import InferenceSettings


class Network(nn.Module):
    """A network with logits at stride 4 from 8x8 neighborhoods, so that the borders of windows matter."""

    def __init__(self, align_corners=False):
        super().__init__()
        self.config = SimpleNamespace(align_corners=align_corners)
        self.conv = nn.Conv2d(3, 4, 8, stride=4, padding=2)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.conv(pixel_values))


class PixelNetwork(nn.Module):
    """A network that looks at single pixels, so that the borders of windows do not matter."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(align_corners=False)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.conv(pixel_values))


def upsample(maps, size, align_corners=False):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
def test_probabilities_of_a_whole_image_are_the_softmax_of_interpolated_logits(align_corners):
    network, x = Network(align_corners).eval(), torch.randn(2, 3, 32, 48)
    expected = upsample(network(x).logits, (45, 70), align_corners).softmax(1)
    torch.testing.assert_close(predict_probabilities(network, x, output_size=(45, 70)), expected)


def test_scales_and_mirror_images_are_averaged_after_the_softmax():
    network, x = Network().eval(), torch.randn(1, 3, 32, 48)
    expected = torch.zeros(1, 4, 32, 48)
    for scale in (0.5, 1.0, 1.5):
        view = upsample(x, (round(32 * scale), round(48 * scale))) if scale != 1 else x
        expected += upsample(network(view).logits, (32, 48)).softmax(1) / 6
        expected += upsample(network(view.flip(-1)).logits.flip(-1), (32, 48)).softmax(1) / 6
    result = predict_probabilities(network, x, scales=(0.5, 1.0, 1.5), flip=True)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 32, 48))


def test_logits_are_averaged_where_windows_overlap():
    network, x = Network().eval(), torch.randn(2, 3, 40, 56)
    total, count = torch.zeros(2, 4, 40, 56), torch.zeros(40, 56)
    for top in (0, 10, 20, 24):
        for left in (0, 12, 24, 32):
            logits = network(x[..., top : top + 16, left : left + 24]).logits
            total[..., top : top + 16, left : left + 24] += upsample(logits, (16, 24))
            count[top : top + 16, left : left + 24] += 1
    result = predict_probabilities(network, x, crop_size=(16, 24), stride=(10, 12), batch_size=3)
    torch.testing.assert_close(result, (total / count).softmax(1))


@pytest.mark.parametrize(
    "settings",
    [
        InferenceSettings(),
        InferenceSettings(scales=(0.5, 1.0), flip=True, size_divisor=32),
        InferenceSettings(window_size=(16, 24), window_stride=(10, 12), flip=True),
    ],
)
def test_probabilities_at_some_pixels_are_those_of_the_whole_result(settings):
    network, x = Network().eval(), torch.randn(2, 3, 40, 56)
    options = {"scales": settings.scales, "flip": settings.flip, "size_divisor": settings.size_divisor}
    whole = predict_probabilities(
        network, x, output_size=(45, 70), crop_size=settings.window_size, stride=settings.window_stride, **options
    )
    rows, columns = [0, 3, 3, 17, 44], [1, 30, 69]
    found = predict_probabilities_at(network, x, settings, output_size=(45, 70), rows=rows, columns=columns)
    torch.testing.assert_close(found, whole[:, :, rows][..., columns])


@pytest.mark.parametrize("stride", [None, (5, 16), (16, 7)])
def test_windows_of_a_pixelwise_network_equal_the_whole_image(stride):
    network, x = PixelNetwork().eval(), torch.randn(1, 3, 33, 47)
    whole = predict_probabilities(network, x)
    torch.testing.assert_close(predict_probabilities(network, x, crop_size=(16, 16), stride=stride), whole)


def test_windows_equal_the_whole_image_away_from_their_borders():
    """A network of stride 4 is equivariant to shifts by 4 pixels; it sees less only at the borders of windows."""
    network, x = Network().eval(), torch.randn(1, 3, 64, 96)
    crop, stride = (32, 48), (16, 24)
    whole = predict_probabilities(network, x)
    windows = predict_probabilities(network, x, crop_size=crop, stride=stride, batch_size=3)
    near = torch.zeros(64, 96, dtype=torch.bool)
    for side, (length, window, step) in enumerate(((64, 32, 16), (96, 48, 24))):
        for start in window_starts(length, window, step):
            for border in (start, start + window):
                near.index_fill_(side, torch.arange(max(0, border - 6), min(length, border + 6)), True)
    assert (~near).sum() > 500
    torch.testing.assert_close(windows[..., ~near], whole[..., ~near])


def test_all_views_of_a_constant_network_give_its_constant_prediction():
    class Constant(PixelNetwork):
        def forward(self, pixel_values):
            size = [max(1, side // 4) for side in pixel_values.shape[-2:]]
            logits = torch.tensor([0.3, -1.0, 2.0, 0.0])[:, None, None].expand(len(pixel_values), 4, *size)
            return SimpleNamespace(logits=logits)

    expected = torch.tensor([0.3, -1.0, 2.0, 0.0]).softmax(0)[:, None, None].expand(2, 4, 50, 70)
    views = {"scales": (0.5, 0.75, 1.0, 1.75), "flip": True}
    for options in ({}, {"crop_size": (32, 24), "stride": (20, 11)}, {"size_divisor": 32}):
        result = predict_probabilities(Constant(), torch.randn(2, 3, 50, 70), **views, **options)
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("options", [{}, {"crop_size": (24, 20)}, {"size_divisor": 32}])
def test_mirrored_images_give_mirrored_results(options):
    network, x = Network().eval(), torch.randn(2, 3, 40, 52)
    result = predict_probabilities(network, x, flip=True, scales=(1.0, 0.7), **options)
    mirrored = predict_probabilities(network, x.flip(-1), flip=True, scales=(1.0, 0.7), **options)
    torch.testing.assert_close(result, mirrored.flip(-1))


def peak_of_tensors(step):
    """Return the largest number of bytes in tensors at any time, without what the allocator keeps in addition."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def test_memory_for_a_large_image_is_bounded_by_its_windows():
    """A map of all classes would take 64 MB; twice the height adds only the labels, of one byte each."""
    network, windows, width = Network(), InferenceSettings(window_size=(256, 512), batch_size=2), 2048
    peaks = []
    for height in (1024, 2048):
        x = torch.randn(1, 3, height, width)
        peaks.append(peak_of_tensors(lambda x=x: predict_labels(network, x, windows)))
    assert 2048 * width < peaks[1] < 20 * 2**20
    assert peaks[1] - peaks[0] == 1024 * width


def test_windows_larger_than_the_image_are_padded_and_cut():
    network, x = PixelNetwork().eval(), torch.randn(1, 3, 20, 30)
    torch.testing.assert_close(
        predict_probabilities(network, x, crop_size=(32, 16)), predict_probabilities(network, x)
    )


def test_padding_to_a_multiple_is_cut_before_resizing():
    network, x = Network().eval(), torch.randn(1, 3, 40, 50)
    logits = upsample(network(F.pad(x, (0, 14, 0, 24))).logits, (64, 64))[..., :40, :50]
    expected = upsample(logits, (80, 100)).softmax(1)
    torch.testing.assert_close(predict_probabilities(network, x, output_size=(80, 100), size_divisor=32), expected)


def test_padding_can_mirror_the_image_at_its_border():
    network, x = Network().eval(), torch.randn(1, 3, 40, 50)
    logits = upsample(network(F.pad(x, (0, 14, 0, 24), mode="reflect")).logits, (64, 64))[..., :40, :50]
    options = {"size_divisor": 32, "padding_mode": "reflect"}
    torch.testing.assert_close(predict_probabilities(network, x, **options), logits.softmax(1))
    with pytest.raises(ValueError, match="padding_mode"):
        predict_probabilities(network, x, size_divisor=32, padding_mode="mirror")


@pytest.mark.parametrize("options", [{}, {"crop_size": (20, 24)}, {"size_divisor": 32, "flip": True}])
def test_batch_size_does_not_change_the_result(options):
    network, x = Network().eval(), torch.randn(5, 3, 32, 40)
    expected = predict_probabilities(network, x, batch_size=100, **options)
    for batch_size in (1, 2, 3):
        torch.testing.assert_close(predict_probabilities(network, x, batch_size=batch_size, **options), expected)


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [(10, 10, 5, [0]), (8, 10, 5, [0]), (20, 10, 10, [0, 10]), (25, 10, 7, [0, 7, 14, 15]), (21, 10, 10, [0, 10, 11])],
)
def test_the_last_window_is_shifted_to_end_inside_the_image(side, window, stride, expected):
    assert window_starts(side, window, stride) == expected


def test_sizes_and_scales_of_any_sequence_are_the_same_settings():
    settings = InferenceSettings([0.5, 1], False, [8, 9], np.array([4, 5]))
    assert settings == InferenceSettings((0.5, 1), False, (8, 9), (4, 5))
    assert hash(settings) == hash(InferenceSettings((0.5, 1), False, (8, 9), (4, 5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "`scales` must be a list of positive numbers"),
        ({"scales": (0,)}, "`scales` must be a list of positive numbers"),
        ({"scales": 1.0}, "`scales` must be a list of positive numbers"),
        ({"scales": (1, math.nan)}, "`scales` must be a list of positive numbers"),
        ({"stride": (4, 4)}, "`stride` needs `crop_size`."),
        ({"crop_size": (8, 8), "stride": (9, 4)}, r"`stride` must be between 1 and `crop_size`, \(8, 8\), got"),
        ({"crop_size": 8}, "`crop_size` must be a height and a width, two integers, got 8."),
        ({"crop_size": (8, 8.0)}, "`crop_size` must be a height and a width, two integers"),
        ({"crop_size": (8, 8), "stride": "44"}, "`stride` must be a height and a width, two integers"),
        ({"size_divisor": 0}, "size_divisor"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer, got 2.0."),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        predict_probabilities(Network(), torch.randn(1, 3, 32, 32), **options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(37, 50), (8, 11), (1, 1), (5, 90)])
@pytest.mark.parametrize("num_views", [1, 3])
def test_strips_give_the_classes_of_the_whole_map(align_corners, size, num_views):
    views = [torch.randn(2, 6, 8 + view, 11 + 2 * view, dtype=torch.float64) for view in range(num_views)]
    whole = sum(F.interpolate(v, size, mode="bilinear", align_corners=align_corners).softmax(1) for v in views)
    assert torch.equal(most_probable_classes(views, size, align_corners).long(), whole.argmax(1))


@pytest.mark.parametrize("settings", [{}, {"scales": (0.5, 1.5), "flip": True}, {"window_size": (32, 32)}])
def test_labels_are_the_most_probable_classes(settings):
    model = Network()
    pixel_values = torch.randn(2, 3, 45, 70)
    labels = predict_labels(model, pixel_values, InferenceSettings(**settings), output_size=(60, 81))
    options = {{"window_size": "crop_size"}.get(name, name): value for name, value in settings.items()}
    probabilities = predict_probabilities(model, pixel_values, output_size=(60, 81), **options)
    chosen = probabilities.gather(1, labels[:, None].long())[:, 0]
    assert (probabilities.amax(1) - chosen).max() < 1e-6  # equal except for ties


def test_source_rows_that_are_kept_on_a_device_equal_those_of_the_host_and_serve_outside_of_inference_mode():
    where = (4, 12, 16, 45, False)
    with torch.inference_mode():
        kept = _source_rows_on(torch.device("cpu"), torch.float32, *where)
    upper, lower, weights = _source_rows(*where)
    assert torch.equal(kept[0], upper)
    assert torch.equal(kept[1], lower)
    assert torch.equal(kept[2], weights.float())
    assert not any(each.is_inference() for each in kept)
