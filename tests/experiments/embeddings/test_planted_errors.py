import numpy as np
import pytest
from PIL import Image

from experiments.embeddings import planted_errors
from experiments.embeddings.planted_errors import KINDS, PlantedError, found_by, measure, plant_errors
from experiments.embeddings.planted_errors_command import usual_regions, weighted_by_area, write_planted
from msctr_hf.data.loading import load_segmentation_dataset
from msctr_hf.evaluation.label_regions import Region

IGNORED = 255


@pytest.fixture
def labels():
    """Images of class 0 with an object of 20 x 20 pixels beside class 2, one too small, and ignored pixels."""
    images = {}
    for number in range(120):
        image = np.zeros((60, 80), np.uint8)
        image[:, 50:] = 2
        image[20:40, 30:50] = 1  # touches 20 pixels of class 2, and 60 of class 0
        image[5:15, 5:15] = 3
        image[50:, :10] = IGNORED
        images[f"image {number}"] = image
    return images


def test_errors_are_a_share_of_all_large_objects_in_equal_parts_and_follow_the_seed(labels):
    wrong, errors = plant_errors(labels, 4, seed=0)
    assert len(errors) == round(0.05 * 3 * len(labels))  # objects of the classes 0, 1 and 2
    assert [sum(error.kind == kind for error in errors) for kind in KINDS] == [6, 6, 6]
    assert set(wrong) == {error.image_id for error in errors}
    again, _ = plant_errors(labels, 4, seed=0)
    other, _ = plant_errors(labels, 4, seed=1)
    assert all(np.array_equal(again[name], wrong[name]) for name in wrong)
    assert set(other) != set(wrong)


def test_errors_name_exactly_the_changed_pixels_and_no_ignored_one(labels):
    wrong, errors = plant_errors(labels, 4, seed=2)
    for image_id, after in wrong.items():
        changed = np.zeros(after.shape, int)
        for error in errors:
            if error.image_id == image_id:
                changed += error.changed
        assert np.array_equal(changed, (after != labels[image_id]).astype(int))
        assert (after[labels[image_id] == IGNORED] == IGNORED).all()


def test_every_kind_changes_what_it_says(labels, monkeypatch):
    monkeypatch.setattr(planted_errors, "MIN_AREA", 400)
    only = {name: np.where(image == 1, 1, IGNORED).astype(np.uint8) for name, image in labels.items()}
    for image in only.values():
        image[19:41, 29:51] = np.where(image[19:41, 29:51] == 1, 1, 0)
        image[20:25, 50] = 2
    monkeypatch.setattr(planted_errors, "SHARE", 1.0)
    wrong, errors = plant_errors(only, 4, seed=0)
    thing = only["image 0"] == 1
    directions = set()
    for error in errors:
        after = wrong[error.image_id]
        if error.kind == "shifted":
            bare = thing & error.changed
            assert (after[bare] == 0).all() and (after[error.changed & ~bare] == 1).all()
            rows, columns = np.nonzero(thing & ~error.changed)
            directions.add((rows.min() - 20, 39 - rows.max(), columns.min() - 30, 49 - columns.max()))
            continue
        assert np.array_equal(error.changed, thing)
        assert (after[thing] == 0).all() if error.kind == "erased" else len(np.unique(after[thing])) == 1
    assert {kind for each in directions for kind in each} == {0, 10}
    assert {wrong[error.image_id][30, 40] for error in errors if error.kind == "swapped"} == {0, 2, 3}


def test_a_region_shows_an_error_of_which_it_covers_half_with_at_most_three_times_its_area():
    changed = np.zeros((20, 20), bool)
    changed[5:9, 5:10] = True  # 20 pixels
    errors = [PlantedError("a", "swapped", changed), PlantedError("b", "swapped", changed)]

    def region(image_id, top, left, height, width):
        return Region(0, image_id, 0, 1, 1.0, top, left, np.ones((height, width), bool))

    regions = [
        region("a", 5, 5, 1, 9),  # covers 5 of 20
        region("a", 0, 0, 13, 5),  # beside it
        region("a", 3, 4, 7, 9),  # covers all, with 63 pixels
        region("c", 5, 5, 4, 5),
        region("a", 3, 4, 6, 10),  # 60 pixels
        region("a", 5, 5, 4, 5),  # it was shown before
        region("b", 5, 5, 2, 5),  # half
    ]
    found = found_by(regions, errors)
    assert found == [None, None, None, None, 0, None, 1]
    assert measure(found, 5) == {"precision_at_50": 2 / 50, "recall": 1 / 5}


def test_the_written_data_set_has_the_errors_and_is_otherwise_the_given_one(labels, tmp_path):
    for folder in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "camvid" / folder / kind).mkdir(parents=True)
    for name, image in labels.items():
        image[image == IGNORED] = 11  # as in the files of CamVid
        Image.fromarray(image).save(tmp_path / f"camvid/train/labels/{name}.png")
        Image.new("RGB", image.shape[::-1]).save(tmp_path / f"camvid/train/images/{name}.png")
    errors = write_planted(tmp_path / "camvid", tmp_path / "planted", 0)
    again = write_planted(tmp_path / "camvid", tmp_path / "planted", 0)  # what is there is kept
    assert [error.image_id for error in again] == [error.image_id for error in errors]
    changed = {error.image_id for error in errors}
    for row in load_segmentation_dataset("camvid", "train", str(tmp_path / "planted")):
        difference = np.asarray(row["label"]) != np.where(labels[row["image_id"]] == 11, 255, labels[row["image_id"]])
        named = sum((error.changed for error in errors if error.image_id == row["image_id"]), np.zeros((60, 80), bool))
        assert np.array_equal(difference, named)
        assert (tmp_path / f"planted/train/labels/{row['image_id']}.png").is_symlink() == (
            row["image_id"] not in changed
        )


def test_the_usual_rule_ranks_regions_by_one_minus_the_mean_probability_of_their_label():
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    probabilities = np.zeros((10, 10, 3))
    probabilities[..., 0], probabilities[..., 1] = 0.9 - 0.8 * (np.arange(10) >= 5), 0.1 + 0.8 * (np.arange(10) >= 5)
    probabilities[2:8, 6:9] = [0.3, 0.2, 0.5]  # 6 x 3 cells of class 1 that seem to be of class 2

    class Tile:
        pixel_rows = pixel_columns = 4 * np.arange(10) + 2
        extent = (40, 40)

    class FakeEmbedder:
        def tiles(self, image):
            return [Tile]

        class predictor:
            @staticmethod
            def probabilities_at(image, rows, columns):
                return probabilities

    (region,) = usual_regions(FakeEmbedder(), 7, {"image": None, "label": labels, "image_id": "a"})
    assert (region.place, region.label, region.suggestion) == (7, 1, 2)
    assert region.box == (8, 24, 32, 36)
    assert region.score == pytest.approx(0.8)


def test_a_large_region_of_the_usual_rule_outranks_a_small_one_by_the_factor_of_the_area():
    small, large, low = (
        Region(0, "a", 0, 1, score, 0, 0, np.ones((20, width), bool))
        for score, width in ((0.9, 10), (0.5, 30), (0.4, 30))  # 200 and 600 pixels: factors 1 and 2
    )
    assert weighted_by_area([small, large, low]) == [large, small, low]
