import json
import math

import pytest
import torch
from accelerate import Accelerator

from msctr_hf.errors import UsageError
from msctr_hf.training.logs import RunLog, RunningMeans
from msctr_hf.training.validation import ValidationResult


def test_means_exclude_values_that_are_missing_or_not_finite():
    means, accelerator = RunningMeans(), Accelerator(cpu=True)
    means.update({"loss": torch.tensor(1.0)}, {"anchors": 4.0, "cosine": torch.tensor(0.5), "never": math.nan})
    means.update({"loss": torch.tensor(2.0)}, {"anchors": 6.0, "cosine": math.nan, "never": math.nan})
    means.update({"loss": torch.tensor(math.nan)}, {"anchors": 5.0, "cosine": torch.tensor(math.inf), "never": 0.0})
    assert means.report(accelerator) == {"loss": 1.5, "anchors": 5.0, "cosine": 0.5, "never": 0.0}
    assert means.report(accelerator) == {}


def test_means_continue_from_a_saved_state(tmp_path):
    accelerator, whole, first, second = Accelerator(cpu=True), RunningMeans(), RunningMeans(), RunningMeans()
    batches = [({"loss": torch.tensor(float(n))}, {"anchors": float(n * n)}) for n in range(5)]
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:2]:
        first.update(*batch)
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for batch in batches[2:]:
        second.update(*batch)
    assert second.report(accelerator) == whole.report(accelerator)


def test_the_log_drops_what_an_interrupted_run_wrote_after_its_checkpoint(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    RunLog(Accelerator(cpu=True), tmp_path, {}, step=4).write({"loss": 2.0}, 5)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]


def test_the_log_drops_a_validation_that_is_not_in_the_checkpoint(tmp_path):
    entries = [(2, "loss"), (2, "validation/mean_iou"), (4, "loss"), (4, "validation/mean_iou")]
    log = tmp_path / "log.jsonl"
    for validated_step, kept in ((2, entries[:3]), (4, entries)):
        log.write_text("".join(json.dumps({"step": step, name: 1.0}) + "\n" for step, name in entries))
        RunLog(Accelerator(cpu=True), tmp_path, {}, step=4, validated_step=validated_step)
        left = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(entry["step"], list(entry)[1]) for entry in left] == kept


@pytest.mark.parametrize(
    ("metric", "said", "logged"),
    [
        ("mean_iou", "step 4: validation mIoU 50.00 %\n", None),
        ("mean_accuracy", "step 4: validation mIoU 50.00 %, mean_accuracy 60.00 %\n", None),
        ("vehicles", "step 4: validation mIoU 50.00 %, vehicles 25.00 %\n", 0.25),
        ("nowhere", "step 4: validation mIoU 50.00 %, nowhere absent\n", None),
    ],
)
def test_the_score_that_decides_which_model_is_the_best_is_logged_and_printed(tmp_path, capsys, metric, said, logged):
    scores = {"mean_iou": 0.5, "mean_accuracy": 0.6, "overall_accuracy": 0.7}
    result = ValidationResult(
        {**scores, "groups": {"vehicles": {"mean_iou": 0.25}, "nowhere": {"mean_iou": None}}}, None
    )
    RunLog(Accelerator(cpu=True), tmp_path, {}, step=0).write_validation(result, 4, metric)
    assert capsys.readouterr().out == said
    entry = json.loads((tmp_path / "log.jsonl").read_text())
    assert {name: entry[f"validation/{name}"] for name in scores} == scores
    assert entry.get(f"validation/{metric}") == scores.get(metric, logged)


def test_a_full_disk_is_reported_and_other_errors_of_trackers_are_raised(tmp_path):
    class Tracker:
        name = "other"

        def log_images(self, *_, **__):
            raise self.error

    accelerator, tracker = Accelerator(cpu=True), Tracker()
    log = RunLog(accelerator, tmp_path, {}, step=0)
    accelerator.trackers = [tracker]
    tracker.error = OSError(28, "No space left on device")
    with pytest.raises(UsageError, match=r"No space left on device\); check free space"):
        log.show("predictions", None, 1)
    tracker.error = ConnectionError("refused")
    with pytest.raises(ConnectionError):
        log.show("predictions", None, 1)


def test_images_reach_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from PIL import Image

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    log = RunLog(accelerator, tmp_path, {"a": 1}, step=0)
    log.show("validation/predictions", Image.new("RGB", (8, 6), (255, 0, 0)), 3)
    log.write({"loss": 1.5, "images": ["a"]}, 3)
    accelerator.end_training()
    events = event_accumulator.EventAccumulator(str(next(tmp_path.rglob("events.*")).parent))
    events.Reload()
    (image,) = events.Images("validation/predictions")
    assert (image.step, image.width, image.height) == (3, 8, 6)
    assert [event.value for event in events.Scalars("loss")] == [1.5]
