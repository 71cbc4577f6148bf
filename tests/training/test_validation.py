"""Validations during a run: the metric for the best model, and what does not fit into memory."""

import pytest
import torch
from accelerate import Accelerator

from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.training import validation
from msctr_hf.training.validation import ValidationResult, check_metric

RESULTS = {"mean_iou": 0.5, "mean_accuracy": 0.6, "groups": {"sky": {"mean_iou": 0.7, "merged_iou": 0.8}}}


@pytest.mark.parametrize(("metric", "score"), [("mean_iou", 0.5), ("mean_accuracy", 0.6), ("sky", 0.7)])
def test_the_metric_can_be_mean_iou_mean_accuracy_or_the_mean_iou_of_a_group(metric, score):
    check_metric(metric, DATASETS["cityscapes"])
    assert ValidationResult(RESULTS, None).score(metric) == score


def test_a_group_that_is_absent_scores_zero():
    assert ValidationResult({"groups": {"sky": {"mean_iou": None}}}, None).score("sky") == 0


def test_an_unknown_metric_is_refused_with_a_list_of_the_metrics_of_the_data_set():
    with pytest.raises(UsageError, match="must be one of 'mean_iou', 'mean_accuracy', 'anatomies', .*, got 'sky'"):
        check_metric("sky", DATASETS["cadis_task1"])
    with pytest.raises(UsageError, match=r"\(camvid has no groups of classes\), got 'sky'"):
        check_metric("sky", DATASETS["camvid"])


def test_images_that_do_not_fit_into_memory_are_reported_with_a_remedy(monkeypatch):
    def score(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.72 GiB. " + 30 * "Of the memory, more. ")

    monkeypatch.setattr(validation, "score_dataset", score)
    run = validation.Validation(Accelerator(cpu=True), [], DATASETS["camvid"], None, 0).run
    monkeypatch.setattr(validation, "Predictor", lambda model, image_processor: None)
    with pytest.raises(UsageError, match="Tried to allocate 5.72 GiB.*set `tile_size`") as error:
        run(torch.nn.Linear(1, 1), lambda: False)
    assert len(str(error.value)) < 600
