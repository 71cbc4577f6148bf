"""Numbers of pixels of the classes, and weights by median frequency, against plain loops."""

import statistics

import numpy as np
import pytest
import torch
import yaml
from layouts import write_folder, write_labels

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.class_balance import median_frequency_weights, pixels_of_classes
from msctr_hf.errors import UsageError


def test_pixels_are_those_of_the_label_files_with_any_number_of_workers(tmp_path):
    root = write_folder(tmp_path, 3, 1, (4, 4))
    labels = [
        np.array(rows, dtype=np.uint8).repeat(4, 0) for rows in ([[0, 1, 2, 2]], [[1, 1, 1, 1]], [[255, 0, 0, 0]])
    ]
    for path, content in zip(sorted((root / "train/labels").glob("*.png")), labels, strict=True):
        write_labels(path, content)
    (root / "train/images/2.jpg").write_bytes(b"images are not read")
    description = root / "dataset.yaml"
    description.write_text(yaml.safe_dump({**yaml.safe_load(description.read_text()), "ignored": [255]}))
    dataset = load_segmentation_dataset("folder", "train", root)
    state = torch.get_rng_state()
    for num_workers in (0, 2):
        counted = pixels_of_classes(dataset, 3, num_workers=num_workers, show_progress=False)
        assert counted.tolist() == [[4, 4, 8], [0, 16, 0], [12, 0, 0]]
    assert torch.equal(torch.get_rng_state(), state)


def test_broken_labels_are_named_by_workers_too(tmp_path):
    root = write_folder(tmp_path, 3, 1, (4, 4))
    next((root / "train/labels").glob("*.png")).write_bytes(b"not a PNG")
    dataset = load_segmentation_dataset("folder", "train", root)
    for num_workers in (0, 1):
        with pytest.raises(UsageError, match=r"labels/\d\.png"):
            pixels_of_classes(dataset, 3, num_workers=num_workers, show_progress=False)


def weights_by_loops(pixels):
    frequencies = {}
    for label in range(len(pixels[0])):
        own = around = 0
        for image in pixels:
            if image[label]:
                own += image[label]
                around += sum(image)
        if own:
            frequencies[label] = own / around
    median = statistics.median(frequencies.values())
    return [min(50, median / frequencies[label]) if label in frequencies else 1 for label in range(len(pixels[0]))]


@pytest.mark.parametrize("num_classes", [2, 5, 8])
def test_weights_are_median_frequencies_over_frequencies(num_classes):
    random = np.random.default_rng(num_classes)
    pixels = random.integers(0, 1000, (12, num_classes)) * (random.random((12, num_classes)) < 0.6)
    pixels[:, -1] = 0  # does not occur
    assert median_frequency_weights(pixels) == pytest.approx(weights_by_loops(pixels.tolist()), rel=1e-3)


def test_a_class_of_a_few_pixels_has_weight_50_and_one_without_pixels_has_weight_1():
    weights = median_frequency_weights(np.array([[10**6, 10**6, 3, 0], [10**6, 0, 0, 0]]))
    assert weights[2:] == [50.0, 1.0]
    assert median_frequency_weights(np.zeros((2, 3), dtype=np.int64)) == [1.0, 1.0, 1.0]


def test_classes_of_one_frequency_have_weight_1():
    assert median_frequency_weights(np.full((4, 6), 7)) == [1.0] * 6
