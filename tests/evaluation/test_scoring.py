import numpy as np
import pytest
from accelerate import Accelerator
from layouts import write_folder
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.evaluation.mean_iou import ConfusionMatrix
from msctr_hf.evaluation.scoring import (
    CONFUSIONS_LISTED,
    _small,
    group_scores,
    iou_table,
    largest_confusions,
    score_dataset,
)


class Guess:
    """A predictor that returns what a given function computes from the image."""

    class model:
        training = False
        eval = train = staticmethod(lambda *mode: None)

    def __init__(self, guess):
        self.guess = guess

    def __call__(self, images):
        for image in images:
            yield self.guess(image)


@pytest.fixture
def dataset(tmp_path):
    root = write_folder(tmp_path, num_train=5)
    for number in (1, 3):
        Image.fromarray(np.full((40, 56), number % 3, dtype=np.uint8)).save(root / f"train/labels/{number}.png")
    Image.fromarray(np.full((40, 56), 1, dtype=np.uint8)).save(root / "train/labels/4.png")
    return load_segmentation_dataset("folder", "train", root)


def score(dataset, **options):
    def all_road(image):
        return np.full((image.height, image.width), 1, dtype=np.uint8)

    return score_dataset(Guess(all_road), dataset, num_labels=3, accelerator=Accelerator(cpu=True), **options)


def test_every_image_is_scored_and_the_worst_are_kept(dataset):
    scores = score(dataset, keep_worst=2, batch_size=2)
    by_id = {scored.image_id: scored.mean_iou for scored in scores.images}
    assert by_id["1"] == by_id["4"] == 1.0
    assert by_id["3"] == 0.0
    assert [scored.image_id for scored in scores.worst] == ["3", "0"]
    image, labels, prediction = scores.worst[0].shown
    assert image.width == labels.shape[1] == prediction.shape[1]
    assert set(np.unique(labels)) == {0}
    assert set(np.unique(prediction)) == {1}
    assert scores.boundary is None
    total = ConfusionMatrix(3)
    for sample in dataset:
        total.update(np.ones((40, 56), np.uint8), np.asarray(sample["label"]))
    assert np.array_equal(scores.confusion.matrix, total.matrix)


def test_results_list_groups_and_boundary_ious_by_name(dataset):
    scores = score(dataset, with_boundaries=True)
    results = scores.results({0: "sky", 1: "road", 2: "car"}, {"ground": [1], "rest": [0, 2]})
    assert set(results["groups"]) == {"ground", "rest"}
    assert results["groups"]["ground"]["mean_iou"] == results["per_category_iou"]["road"]
    assert results["per_category_boundary_iou"]["sky"] == 0
    assert results["images"] == len(dataset)
    assert "boundary" in iou_table(results)
    assert "as one class" in iou_table(results)


def test_largest_confusions_are_those_found_by_counting_pixels():
    random = np.random.default_rng(0)
    reference, prediction = random.integers(0, 6, (2, 50, 50))
    reference[reference == 4] = 255  # ignored: 4 is only ever predicted
    confusion = ConfusionMatrix(6)
    confusion.update(prediction, reference)
    counted = []
    for label in (0, 1, 2, 3, 5):
        of_class = prediction[reference == label]
        counted += [(np.mean(of_class == other), label, other) for other in range(6) if other != label]
    listed = largest_confusions(confusion, {label: f"class {label}" for label in range(6)})
    assert len(listed) == CONFUSIONS_LISTED
    assert [each["share"] for each in listed] == pytest.approx(sorted(share for share, _, _ in counted)[:-11:-1])
    shares = {(f"class {label}", f"class {other}"): share for share, label, other in counted}
    for each in listed:
        assert each["share"] == pytest.approx(shares[each["class"], each["predicted_as"]])


def test_a_perfect_prediction_has_no_confusions():
    labels = np.arange(9, dtype=np.uint8).reshape(3, 3) % 3
    confusion = ConfusionMatrix(4)
    confusion.update(labels, labels)
    assert largest_confusions(confusion, dict(enumerate("abcd"))) == []


def test_groups_have_the_mean_iou_of_their_classes_and_the_iou_of_the_merged_class():
    random = np.random.default_rng(0)
    reference, prediction = random.integers(0, 5, (2, 40, 40))
    confusion = ConfusionMatrix(6)
    confusion.update(prediction, reference)
    scores = group_scores(confusion, {"pair": (1, 4), "with absent": (0, 5), "absent": (5,)})
    iou = confusion.scores()["per_category_iou"]
    assert scores["pair"]["mean_iou"] == pytest.approx((iou[1] + iou[4]) / 2)
    merged = [np.isin(labels, (1, 4)) for labels in (reference, prediction)]
    assert scores["pair"]["merged_iou"] == pytest.approx((merged[0] & merged[1]).sum() / (merged[0] | merged[1]).sum())
    assert scores["with absent"]["mean_iou"] == pytest.approx(iou[0])
    assert scores["absent"] == {"mean_iou": None, "merged_iou": None}


def test_the_small_copies_of_a_very_high_image_and_of_many_classes_are_bounded_and_keep_their_values():
    labels = np.arange(4000).repeat(8).reshape(4000, 8) // 10
    small, reference, prediction = _small(Image.new("RGB", (8, 4000)), np.zeros((4000, 8), np.uint8), labels)
    assert small.size == (3, 1440)
    assert reference.shape == prediction.shape == (1440, 3)
    assert prediction[-1].tolist() == [399] * 3
    assert prediction[720].tolist() == [200] * 3
