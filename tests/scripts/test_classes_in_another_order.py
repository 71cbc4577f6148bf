"""Networks are scored, and submissions written, by the names of their classes and not by their positions."""

import json

import numpy as np
import pytest
import torch
from layouts import write_folder, write_image
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.specs import DATASETS

NAMES = ["sky", "road", "car"]


def save_network(folder, tiny_config, names, order=None):
    """Save a network whose classes are `names`, or the same network with its classes in another order."""
    torch.manual_seed(1)
    network = MsctrForSemanticSegmentation(tiny_config(num_labels=len(names)))
    network.config.id2label = dict(enumerate(names))
    if order is not None:
        network.config.id2label = {place: names[label] for place, label in enumerate(order)}
        with torch.no_grad():
            for values in (network.decode_head.classifier.weight, network.decode_head.classifier.bias):
                values.copy_(values[list(order)].clone())
    network.save_pretrained(folder)
    MsctrImageProcessor(size_divisor=32).save_pretrained(folder)
    return folder


def evaluate(run_script, model, folder, output_dir, *arguments):
    code, out, error = run_script(
        "evaluate.py", "--model", model, "--dataset", "folder", "--data_dir", folder, "--num_workers", 0, "--device",
        "cpu", "--output_dir", output_dir, *arguments,
    )  # fmt: skip
    assert code == 0, error
    return json.loads((output_dir / "results.json").read_text()), error


def test_a_network_with_the_same_classes_in_another_order_scores_the_same(run_script, tiny_config, tmp_path):
    folder = write_folder(tmp_path / "data", num_validation=3)
    network = save_network(tmp_path / "a", tiny_config, NAMES)
    permuted = save_network(tmp_path / "b", tiny_config, ["Sky", "_road", "car"], order=(2, 0, 1))
    expected, error = evaluate(run_script, network, folder, tmp_path / "scores/a", "--boundary_iou")
    assert "class" not in error
    results, error = evaluate(run_script, permuted, folder, tmp_path / "scores/b", "--boundary_iou")
    for name in ("mean_iou", "per_category_iou", "per_category_accuracy", "per_category_boundary_iou"):
        assert results[name] == expected[name]
    assert "the network has the classes of the data set folder in another order, so they were matched by name" in error
    assert results["class_order"] in error
    assert "class_order" not in expected
    by_position, _ = evaluate(run_script, permuted, folder, tmp_path / "scores/c", "--class_order", "position")
    assert by_position["mean_iou"] != expected["mean_iou"]

    # the same score by hand, from the files that predict writes with the classes of the network
    assert run_script("predict.py", "--model", permuted, "--input", folder / "val/images", "--device", "cpu",
                      "--output_dir", tmp_path / "maps")[0] == 0  # fmt: skip
    both, either = np.zeros(3), np.zeros(3)
    for path in (folder / "val/labels").iterdir():
        labels = np.asarray(Image.open(path))
        prediction = np.array([2, 0, 1])[np.asarray(Image.open(tmp_path / "maps" / path.name))]
        for label in range(3):
            both[label] += np.sum((labels == label) & (prediction == label))
            either[label] += np.sum((labels == label) | (prediction == label))
    assert results["mean_iou"] == pytest.approx(np.mean(both / either), abs=1e-12)


def test_a_network_for_other_classes_is_refused(run_script, tiny_config, tmp_path):
    folder = write_folder(tmp_path / "data")
    network = save_network(tmp_path / "network", tiny_config, ["sky", "street", "car"])
    code, _, error = run_script(
        "evaluate.py", "--model", network, "--dataset", "folder", "--data_dir", folder, "--device", "cpu",
        "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert (code, "only the network has 'street' and only the data set has 'road'" in error) == (2, True)
    assert "--class_order position" in error
    assert not (tmp_path / "scores").exists()


def test_a_submission_has_the_raw_values_of_the_named_classes(run_script, tiny_config, tmp_path):
    spec = DATASETS["cityscapes"]
    order = np.random.default_rng(0).permutation(19).tolist()
    network = save_network(tmp_path / "a", tiny_config, spec.classes)
    permuted = save_network(tmp_path / "b", tiny_config, spec.classes, order=order)
    other = save_network(tmp_path / "c", tiny_config, [*spec.classes[:-1], "tricycle"])
    write_image(tmp_path / "images/a_leftImg8bit.png", (64, 96))
    common = ["--input", tmp_path / "images", "--device", "cpu", "--submission_for", "cityscapes", "--output_dir"]
    assert run_script("predict.py", "--model", network, *common, tmp_path / "of_a")[0] == 0
    code, _, error = run_script("predict.py", "--model", permuted, *common, tmp_path / "of_b")
    values = [np.asarray(Image.open(tmp_path / name / "a_pred_labelIds.png")) for name in ("of_a", "of_b")]
    assert np.count_nonzero(values[0] != values[1]) == 0
    assert (code, "of the data set cityscapes in another order" in error) == (0, True)
    assert len(np.unique(values[0])) > 1

    code, _, error = run_script("predict.py", "--model", other, *common, tmp_path / "of_c")
    assert (code, "only the network has 'tricycle'" in error) == (2, True)
    assert not (tmp_path / "of_c").exists()
    arguments = ["--model", other, *common, tmp_path / "of_c", "--class_order", "position"]
    assert run_script("predict.py", *arguments)[0] == 0


def test_a_network_whose_names_do_not_belong_to_its_classes_has_none(run_script, tiny_config, tmp_path):
    folder = write_folder(tmp_path / "data")
    network = save_network(tmp_path / "network", tiny_config, NAMES)
    path = network / "config.json"
    names = {"1": "sky", "2": "road", "3": "car"}  # counted from 1
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": names}))
    results, error = evaluate(run_script, network, folder, tmp_path / "scores")
    assert results["class_order"].startswith("warning: classes have no names")
    code, _, error = run_script("predict.py", "--model", network, "--input", folder / "val/images", "--device", "cpu",
                                "--output_dir", tmp_path / "maps")  # fmt: skip
    assert code == 0, error
