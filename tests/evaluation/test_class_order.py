"""Classes of a network and of a data set are the same if their names are, in whatever order."""

import numpy as np
import pytest
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.class_order import match_classes, with_train_ids
from msctr_hf.evaluation.predictor import Predictor

NAMES = ["sky", "road", "car"]


@pytest.mark.parametrize(
    "predicted",
    [NAMES, ["Sky", "ROAD", "car "], ["s k y", "ro-ad", "c_ar"], ["sky", "road", "ca\u0301r".replace("\u0301", "")]],
)
def test_names_are_compared_without_case_underscores_hyphens_and_spaces(predicted):
    assert match_classes(predicted, NAMES, "folder") == (None, None)


def test_composed_and_decomposed_letters_are_the_same():
    assert match_classes(["Stra\u00dfe", "caf\u00e9"], ["strasse", "cafe\u0301"], "folder") == (None, None)


def test_the_names_in_another_order_are_matched_and_reported():
    train_ids, note = match_classes(["Car", "sky", "road"], NAMES, "folder")
    assert train_ids == (2, 0, 1)
    assert "in another order, so they were matched by name: class 0 is 'Car' in the network and 'sky' in" in note


@pytest.mark.parametrize(
    "names",
    [
        ["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_1", "LABEL_2", "LABEL_3"], ["class 0", "class 1", "class 2"],
        ["0", "1", "2"], ["", "", ""], [0, 1, 2], ["None", "None", "None"],
    ],
)  # fmt: skip
def test_classes_without_names_are_matched_by_position_with_a_warning(names):
    for predicted, wanted in ((names, NAMES), (NAMES, names)):
        train_ids, note = match_classes(predicted, wanted, "folder")
        assert train_ids is None
        assert note.startswith("warning: classes have no names, so they were matched by position: class 0 is ")


@pytest.mark.parametrize(
    ("predicted", "differences"),
    [
        (["sky", "road", "bus"], "only the network has 'bus' and only the data set has 'car'"),
        (["LABEL_0", "road", "car"], "only the network has 'LABEL_0' and only the data set has 'sky'"),
        (["sky", "road", "road"], "only the data set has 'car'"),
    ],
)
def test_other_names_are_refused_with_their_differences_unless_the_position_counts(predicted, differences):
    with pytest.raises(UsageError) as refused:
        match_classes(predicted, NAMES, "folder")
    assert f"other classes than the data set folder: {differences}. Use a network" in str(refused.value)
    assert "`class_order='position'`" in str(refused.value)
    train_ids, note = match_classes(predicted, NAMES, "folder", "position")
    assert train_ids is None
    assert note.startswith("classes were matched by position, not by name: class ")


def test_names_that_differ_only_in_spelling_are_compared_as_they_are_written():
    assert match_classes(["a b", "a-b"], ["a b", "a-b"], "folder") == (None, None)
    assert match_classes(["a-b", "a b"], ["a b", "a-b"], "folder").train_ids == (1, 0)
    with pytest.raises(UsageError, match="only the network has 'A B' and only the data set has 'a b'"):
        match_classes(["A B", "a-b"], ["a b", "a-b"], "folder")


@pytest.mark.parametrize("name", DATASETS)
def test_the_classes_of_every_data_set_are_those_of_a_network_that_was_trained_on_it(name):
    classes = DATASETS[name].classes
    assert match_classes(list(classes), classes, name) == (None, None)
    assert match_classes(list(classes)[::-1], classes, name).train_ids == tuple(range(len(classes)))[::-1]


def test_another_number_of_classes_is_refused_with_the_folder_of_the_user(tiny_config, tmp_path):
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config(num_labels=4)), MsctrImageProcessor())
    (tmp_path / "dataset.yaml").write_text("classes: [sky, road, car]\n")
    spec = get_dataset_spec("folder", tmp_path)
    with pytest.raises(UsageError) as refused:
        with_train_ids(predictor, spec, "runs/mine")
    assert str(refused.value) == (
        f"runs/mine predicts 4 classes, but the folder {tmp_path} has 3; use a data set with the classes that it was "
        "trained for."
    )
    with pytest.raises(UsageError, match="predicts 4 classes, but camvid has 11; use a data set"):
        with_train_ids(predictor, DATASETS["camvid"], "runs/mine")


def test_names_and_colors_of_a_predictor_are_in_the_order_of_its_train_ids(tiny_config):
    network = MsctrForSemanticSegmentation(tiny_config(num_labels=3, palette=[[0] * 3, [1] * 3, [2] * 3])).eval()
    predictor = Predictor(network, MsctrImageProcessor(), train_ids=(2, 0, 1))
    assert predictor.class_names == ["class 1", "class 2", "class 0"]
    assert predictor.palette == [[1] * 3, [2] * 3, [0] * 3]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain = next(Predictor(network, MsctrImageProcessor())([image]))
    assert np.array_equal(next(predictor([image])), np.array([2, 0, 1])[plain])
