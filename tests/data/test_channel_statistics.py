import numpy as np
import pytest
from layouts import write_folder

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.channel_statistics import ChannelStatistics, measure_channels
from msctr_hf.errors import UsageError


def test_statistics_of_parts_are_those_of_all_pixels(monkeypatch):
    monkeypatch.setattr("msctr_hf.data.channel_statistics._PIXELS_AT_A_TIME", 100)
    random = np.random.default_rng(0)
    # a mean far from 0, from which sums of squares in float32 would be wrong
    images = [random.normal(1e6, 3, (height, 17, 4)).astype(np.float32) for height in (5, 40, 1)]
    first, *others = map(ChannelStatistics.of_image, images)
    total = sum(others, first)
    pixels = np.concatenate([image.reshape(-1, 4) for image in images]).astype(np.float64)
    np.testing.assert_allclose(total.image_mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.image_std, pixels.std(0), rtol=1e-9)
    assert total.pixels == (len(pixels),) * 4
    assert ChannelStatistics.from_dict(total.as_dict()) == total


def test_white_of_integers_without_a_sign_is_1_and_a_constant_channel_is_not_divided_by_0():
    image = np.full((3, 4, 2), 13107, np.uint16)
    image[0, :, 0] = 65535
    measured = ChannelStatistics.of_image(image)
    assert measured.image_mean == pytest.approx([(1 + 0.2 + 0.2) / 3, 0.2])
    assert measured.image_std[1] == 1.0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_images_are_measured_and_another_type_is_refused_by_name(tmp_path, num_workers):
    write_folder(tmp_path, num_train=3, num_validation=1)
    pixels = []
    for path in sorted((tmp_path / "train/images").iterdir()):
        pixels.append(np.random.default_rng(len(pixels)).integers(0, 256, (40, 56, 5), np.uint8))
        path.unlink()
        np.save(path.with_suffix(".npy"), pixels[-1])
    rows = load_segmentation_dataset("folder", "train", tmp_path, num_channels=5)
    measured = measure_channels(rows, num_workers)
    np.testing.assert_allclose(measured.image_mean, np.mean(pixels, (0, 1, 2)) / 255)
    np.save(tmp_path / "train/images/2.npy", pixels[-1].astype(np.float32))
    with pytest.raises(UsageError, match="2 has values of type float32, but 0 has uint8"):
        measure_channels(rows, num_workers)
    np.save(tmp_path / "train/images/2.npy", pixels[-1][..., 0])
    with pytest.raises(UsageError, match="2.npy has 1 channel, but `num_channels` is 5"):
        measure_channels(rows, num_workers)
