"""The teacher labels the weak views of images; neighbors of a batch are mixed as loops over pixels mix them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.unlabeled import draw_box
from msctr_hf.evaluation.image_preparation import Colors
from msctr_hf.evaluation.inference import classes_and_confidence
from msctr_hf.training.mean_teacher import (
    MeanTeacher,
    TaughtImages,
    draw_pseudo_labels,
    mix_neighbors,
    neighbors,
    pasted_pixels,
)

NUM_CLASSES, SIZE = 5, (24, 32)


def batch_of(num_images, seed=0):
    random = np.random.default_rng(seed)
    is_valid = torch.ones(num_images, *SIZE, dtype=torch.bool)
    is_valid[:, :, -5:] = False
    return {
        "weak_pixel_values": torch.from_numpy(random.normal(size=(num_images, 3, *SIZE)).astype(np.float32)),
        "strong_pixel_values": torch.from_numpy(random.normal(size=(num_images, 3, *SIZE)).astype(np.float32)),
        "is_valid": is_valid,
        "mix_box": torch.tensor([draw_box(SIZE, random) for _ in range(num_images)]),
        "mix_priority": torch.from_numpy(random.random((num_images, NUM_CLASSES)).astype(np.float32)),
        "image_id": torch.zeros(num_images, 96, dtype=torch.uint8),
    }


def labels_of(num_images, seed=0):
    labels = np.random.default_rng(seed).integers(0, NUM_CLASSES, (num_images, *SIZE))
    labels[labels == 1] = 2  # a class that no image has
    labels[:, :, -5:] = 255
    labels[0] = np.where(labels[0] == 255, 255, 3)  # an image of one class
    return torch.from_numpy(labels)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [1, 0]), (5, [1, 0, 3, 2, 4])])
def test_neighbors_are_partners(count, expected):
    assert neighbors(count, torch.device("cpu")).tolist() == expected


def test_boxes_are_pasted():
    batch = batch_of(4)
    pasted = pasted_pixels("cutmix", batch, labels_of(4))
    for image, (top, left, bottom, right) in enumerate(batch["mix_box"].tolist()):
        expected = [[top <= y < bottom and left <= x < right for x in range(SIZE[1])] for y in range(SIZE[0])]
        assert pasted[image].tolist() == expected


@pytest.mark.parametrize("num_images", [2, 5])
def test_half_of_the_classes_of_the_partner_are_pasted(num_images):
    batch, labels = batch_of(num_images), labels_of(num_images)
    pasted = pasted_pixels("classmix", batch, labels)
    sizes = set()
    for image, partner in enumerate(neighbors(num_images, torch.device("cpu")).tolist()):
        theirs = labels[partner].numpy()
        present = sorted(set(theirs.ravel().tolist()) - {255}, key=lambda label: -batch["mix_priority"][image, label])
        chosen = present[: len(present) // 2]
        sizes.add(len(chosen))
        assert np.array_equal(pasted[image].numpy(), np.isin(theirs, chosen))
    assert {0, 2} <= sizes


def test_pixels_labels_and_confidence_are_mixed_together():
    batch, labels = batch_of(3), labels_of(3)
    confidence = torch.rand(3, *SIZE)
    before = TaughtImages(batch["strong_pixel_values"], labels, confidence)
    pasted = torch.rand(3, *SIZE) < 0.5
    after = mix_neighbors(before, pasted)
    for image, partner in enumerate((1, 0, 2)):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                source = partner if pasted[image, y, x] else image
                assert torch.equal(after[0][image, :, y, x], before[0][source, :, y, x])
                assert after[1][image, y, x] == before[1][source, y, x]
                assert after[2][image, y, x] == before[2][source, y, x]


@pytest.mark.parametrize("align_corners", [False, True])
def test_confidence_is_the_largest_probability_of_the_upsampled_logits(align_corners):
    logits = torch.randn(2, NUM_CLASSES, 6, 9)
    classes, confidence = classes_and_confidence(logits, (43, 70), align_corners)
    large = F.interpolate(logits.double(), (43, 70), mode="bilinear", align_corners=align_corners)
    expected, where = large.softmax(1).max(1)
    torch.testing.assert_close(confidence.double(), expected, rtol=1e-5, atol=1e-6)
    assert (classes != where).float().mean() < 0.001


@pytest.fixture
def teacher(tiny_config):
    def build(mix, batches):
        network = MsctrForSemanticSegmentation(tiny_config(num_labels=NUM_CLASSES)).eval()
        return MeanTeacher(Accelerator(cpu=True), network, (batch for batch in batches), mix)

    return build


def test_the_teacher_labels_weak_views_without_a_gradient_and_ignores_padding(teacher):
    batch = batch_of(2)
    one = teacher("none", [batch])
    before = {name: buffer.clone() for name, buffer in one.network.named_buffers()}
    found, image_ids = one.next_batch()
    with torch.no_grad():
        logits = one.network(pixel_values=batch["weak_pixel_values"]).logits
    confidence, classes = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False).softmax(1).max(1)
    valid = batch["is_valid"]
    assert torch.equal(found.unlabeled_pixel_values, batch["strong_pixel_values"])
    assert (found.pseudo_labels[valid] != classes[valid]).float().mean() < 0.01
    torch.testing.assert_close(found.pseudo_confidence[valid], confidence[valid], rtol=1e-4, atol=1e-5)
    assert (found.pseudo_labels[~valid] == 255).all()
    assert not found.pseudo_confidence[~valid].any()
    assert not any(tensor.requires_grad for tensor in found.arguments().values())
    assert image_ids is batch["image_id"]
    assert all(torch.equal(before[name], buffer) for name, buffer in one.network.named_buffers())


@pytest.mark.parametrize("mix", ["cutmix", "classmix"])
def test_a_batch_that_is_split_after_pairs_is_mixed_as_the_whole(teacher, mix):
    batch = batch_of(4)
    halves = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    torch.manual_seed(0)
    whole, _ = teacher(mix, [batch]).next_batch()
    torch.manual_seed(0)
    split = teacher(mix, halves)
    parts = [split.next_batch()[0] for _ in range(2)]
    for kind in range(2):
        assert torch.equal(whole[kind], torch.cat([part[kind] for part in parts]))


def test_the_figure_has_a_row_for_each_of_the_first_images():
    spec = get_dataset_spec("synthetic_scenes")
    colors = Colors((0, 1, 2), (0.5,) * 3, (0.2,) * 3)
    images = [TaughtImages(batch_of(n)["strong_pixel_values"], labels_of(n), torch.rand(n, *SIZE)) for n in (2, 6)]
    few, many = (draw_pseudo_labels(each, 0.5, spec, colors) for each in images)
    assert few.width == many.width
    assert few.height < many.height


def test_the_figure_shows_the_confident_labels_by_the_thresholds_of_the_pixels_if_there_are_such():
    spec = get_dataset_spec("synthetic_scenes")
    colors = Colors((0, 1, 2), (0.5,) * 3, (0.2,) * 3)
    images = TaughtImages(batch_of(2)["strong_pixel_values"], labels_of(2), torch.rand(2, *SIZE))
    common, other = (draw_pseudo_labels(images, threshold, spec, colors).tobytes() for threshold in (0.4, 0.8))
    with_own = images._replace(pseudo_thresholds=torch.full((2, *SIZE), 0.4))
    assert draw_pseudo_labels(with_own, 0.8, spec, colors).tobytes() == common != other
