"""A run with images without labels: what it needs, what it writes, and how it continues."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from layouts import write_folder, write_image
from safetensors.torch import load_file

import msctr_hf
from msctr_hf.errors import UsageError
from msctr_hf.models.modeling_msctr import MsctrForSemanticSegmentation
from msctr_hf.training.checkpointing import States
from msctr_hf.training.mean_teacher import MeanTeacher, TeacherStatistics
from msctr_hf.training.training_data import UnlabeledPosition
from msctr_hf.training.validation import ValidationResult

SMALL = {
    "dataset": "folder", "crop_size": (32, 32), "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8,
    "class_weights": [1, 1, 1], "batch_size": 2, "max_steps": 5, "validation_steps": 5, "checkpointing_steps": 2,
    "logging_steps": 1, "num_workers": 0, "report_to": "none", "seed": 3, "train_images": 5, "unlabeled": "rest",
    "unlabeled_start_step": 1, "unlabeled_ramp_steps": 2, "pseudo_label_threshold": 0.34, "ema_decay": 0.9,
    "unlabeled_mix": "classmix", "backbone": "test_resnet", "checkpoints_kept": 9, "contrastive_pseudo_labels": True,
    "contrastive_pseudo_threshold": 0.34, "contrastive_min_anchors_per_class": 1,
}  # fmt: skip
WITHOUT = {
    "unlabeled": None, "unlabeled_start_step": None, "unlabeled_ramp_steps": None, "pseudo_label_threshold": None,
    "unlabeled_mix": None, "contrastive_pseudo_labels": None, "contrastive_pseudo_threshold": None,
}  # fmt: skip


def train(data, run, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    return msctr_hf.train("quickstart", **SMALL | changes, data_dir=data, output_dir=run)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("data"), num_train=11, num_validation=2)
    for number in range(2):  # `write_folder` draws the images of both splits alike
        write_image(folder / f"val/images/{number}.jpg", (40, 56), seed=50 + number)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabeled") / "run"
    train(data, folder)
    return folder


def steps(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "images_per_second" in line]


def weights(run):
    return load_file(run / "last/model.safetensors")


def test_run_json_and_the_card_say_how_many_images_had_labels(run):
    assert json.loads((run / "run.json").read_text())["labeled_images"] == {"labeled": 5, "unlabeled": 6}
    card = (run / "README.md").read_text()
    assert "| training images | 5 with labels, 6 without |" in card
    assert "| unlabeled | rest |" in card


def test_a_run_that_ends_before_images_without_labels_join_says_so(data, tmp_path, capsys):
    train(data, tmp_path / "run", max_steps=2, unlabeled_start_step=2)
    assert json.loads((tmp_path / "run/run.json").read_text())["labeled_images"] == {"labeled": 5, "unlabeled": 0}
    assert "| training images | 5 with labels, 0 without |" in (tmp_path / "run/README.md").read_text()
    assert "images without labels are not trained on: unlabeled_start_step 2 is not below" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "unlabeled"), [(2, 0), (1, 6)])
def test_a_run_that_early_stopping_ends_before_images_without_labels_join_says_so(
    data, tmp_path, capsys, monkeypatch, first, unlabeled
):
    monkeypatch.setattr(ValidationResult, "score", lambda self, metric: 0.25)
    changes = {"validation_steps": 1, "early_stopping_patience": 1, "unlabeled_start_step": first}
    train(data, tmp_path / "run", **changes)
    assert len(steps(tmp_path / "run")) == 2
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["labeled_images"] == {"labeled": 5, "unlabeled": unlabeled}
    assert ("images without labels were not trained on" in capsys.readouterr().out) == (unlabeled == 0)
    assert "| training images | 5 with labels, 0 without |" in (tmp_path / "run/README.md").read_text()  # best: step 1


def test_a_run_that_skipped_steps_end_before_images_without_labels_join_says_so(data, tmp_path, capsys, monkeypatch):
    forward = MsctrForSemanticSegmentation.forward
    monkeypatch.setattr(
        MsctrForSemanticSegmentation,
        "forward",
        lambda self, pixel_values, *rest, **others: forward(self, pixel_values * torch.nan, *rest, **others),
    )
    with pytest.raises(UsageError, match="2 steps in a row were skipped"):
        train(data, tmp_path / "run", max_skipped_steps=2, unlabeled_start_step=4)
    assert json.loads((tmp_path / "run/run.json").read_text())["labeled_images"] == {"labeled": 5, "unlabeled": 0}
    assert "images without labels were not trained on" in capsys.readouterr().out


def test_the_log_has_the_ramp_and_the_share_of_confident_pixels_from_the_first_such_step_on(run):
    logged = steps(run)
    assert [line.get("unlabeled/weight_factor") for line in logged] == [None, 0.5, 1.0, 1.0, 1.0]
    shares = [line.get("pseudo_cross_entropy/confident_pixels") for line in logged]
    assert shares[0] is None
    assert all(0 <= share <= 1 for share in shares[1:])
    assert any(share > 0 for share in shares[1:])
    assert all(line["pseudo_cross_entropy"] >= 0 for line in logged[1:])
    assert any(line["contrastive/stage_1/pseudo_anchors"] > 0 for line in logged[1:])


def test_a_step_that_is_not_finite_spoils_no_labels_of_later_steps_however_often_the_log_is_written(
    data, tmp_path, monkeypatch
):
    forward, calls = MsctrForSemanticSegmentation.forward, []

    def spoiled(self, pixel_values, labels=None, **others):
        calls.append(labels is not None and self.training)
        if calls[-1] and sum(calls) == 2:
            pixel_values = torch.full_like(pixel_values, torch.nan)
        return forward(self, pixel_values, labels, **others)

    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", spoiled)
    shares = []
    for every in (1, 5):  # after every step, so that the host waits for each, and at the end
        calls.clear()
        changes = {"logging_steps": every, "checkpointing_steps": 5, "pseudo_label_class_share": 0.5}
        train(data, tmp_path / f"{every}", **changes)
        shares.append(steps(tmp_path / f"{every}")[-1]["pseudo_cross_entropy/confident_pixels"])
    assert shares[0] > 0
    seldom, often = (weights(tmp_path / each) for each in ("5", "1"))
    assert seldom.keys() == often.keys()
    assert all(torch.equal(seldom[name], often[name]) for name in often)


def test_a_figure_shows_the_pseudo_labels(run):
    assert (run / "pseudo_labels.png").exists()


@pytest.mark.parametrize(
    ("step", "changes"),
    [(2, {}), (4, {}), (2, {"unlabeled_batch_size": 2, "subset_seed": 3, "contrastive_temperature": 0.1})],
    ids=["early", "late", "defaults written out"],
)
def test_a_resumed_run_ends_with_the_same_weights(data, run, tmp_path, step, changes):
    resumed = tmp_path / "resumed"
    shutil.copytree(run / f"checkpoints/step_{step}", resumed / f"checkpoints/step_{step}")
    train(data, resumed, resume="auto", **changes)
    expected = weights(run)
    assert all(torch.equal(weights(resumed)[name], value) for name, value in expected.items())
    of_process = [torch.load(each / "checkpoints/step_5/states_0.pt", weights_only=True) for each in (resumed, run)]
    assert of_process[0]["pseudo_draws"] == of_process[1]["pseudo_draws"]
    assert of_process[1]["pseudo_draws"]["drawn"] >= 4
    names = ("loss", "pseudo_cross_entropy", "grad_norm")
    assert [[line[name] for name in names] for line in steps(resumed)] == [
        [line[name] for name in names] for line in steps(run)[step:]
    ]


def test_thresholds_by_class_are_logged_and_a_resumed_run_keeps_them(data, tmp_path):
    whole, resumed, settings = tmp_path / "whole", tmp_path / "resumed", {"pseudo_label_class_share": 0.7}
    train(data, whole, **settings, pseudo_label_threshold=0.9)
    lowest = [line.get("pseudo_labels/lowest_threshold") for line in steps(whole)]
    assert lowest[0] is None
    assert all(threshold < 0.9 for threshold in lowest[1:])
    shares = [line["pseudo_cross_entropy/confident_pixels"] for line in steps(whole)[1:]]
    assert all(0.5 < share < 1 for share in shares)  # no class has 70 % of its pixels above 0.9
    shutil.copytree(whole / "checkpoints/step_2", resumed / "checkpoints/step_2")
    train(data, resumed, **settings, pseudo_label_threshold=0.9, resume="auto")
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    of_run = [torch.load(each / "checkpoints/step_5/states.pt", weights_only=True) for each in (resumed, whole)]
    assert torch.equal(*(each["class_thresholds"]["counts"] for each in of_run))
    assert of_run[1]["class_thresholds"]["counts"].any()


def test_a_figure_that_was_being_written_when_a_run_was_killed_is_removed_by_the_next_start(data, run, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(run / "checkpoints/step_5", resumed / "checkpoints/step_5")
    (resumed / ".partial_pseudo_labels.png").write_bytes(b"half")
    train(data, resumed, resume="auto")  # it repeats the last validation, but no step, so it has no figure to write
    assert not list(resumed.rglob("*partial*"))


def test_every_process_keeps_the_statistics_of_its_own_teacher(run, tmp_path):
    own = torch.load(run / "checkpoints/step_2/states_0.pt")["teacher_statistics"]
    assert any(name.endswith("running_var") for name in own)
    average = torch.nn.BatchNorm1d(2).eval()
    states = States({"average": average}, {"teacher_statistics": TeacherStatistics(average)})
    processes = [SimpleNamespace(process_index=index, is_main_process=index == 0) for index in range(2)]
    for process in processes:
        average.running_mean.fill_(process.process_index)
        states.save(tmp_path, process)
    for process in processes:
        states.load(tmp_path, process, own=True)
        assert average.running_mean.tolist() == [process.process_index] * 2


def test_the_labels_of_the_rest_change_nothing(data, run, tmp_path):
    blind = tmp_path / "blind"
    shutil.copytree(data, blind)
    drawn = json.loads((run / "run.json").read_text())["drawn_images"]["image_ids"]
    for path in (blind / "train/labels").iterdir():
        if path.stem not in drawn:
            path.write_bytes(b"no labels")
    train(blind, tmp_path / "run")
    assert all(torch.equal(weights(tmp_path / "run")[name], value) for name, value in weights(run).items())


def test_the_student_gets_strong_views_with_labels_of_the_average_in_evaluation_mode(data, tmp_path, monkeypatch):
    calls, predict, forward = [], MeanTeacher._predict, MsctrForSemanticSegmentation.forward

    def recording(self, pixel_values):
        assert not any(module.training for module in self.network.modules())
        return predict(self, pixel_values)

    def seeing(self, pixel_values, labels=None, **others):
        if self.training:
            calls.append({name: tuple(value.shape) for name, value in others.items()})
        return forward(self, pixel_values, labels, **others)

    monkeypatch.setattr(MeanTeacher, "_predict", recording)
    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", seeing)
    train(data, tmp_path / "run", unlabeled_batch_size=3, max_steps=3, validation_steps=1)
    taught = {
        "unlabeled_pixel_values": (3, 3, 32, 32), "pseudo_labels": (3, 32, 32), "pseudo_confidence": (3, 32, 32),
    }  # fmt: skip
    assert calls == [{}, taught, taught]


@pytest.mark.parametrize(("strength", "are_changed"), [(1.0, True), (0.0, False)])
def test_strong_views_have_other_colors_also_where_labeled_images_keep_theirs(
    data, tmp_path, monkeypatch, strength, are_changed
):
    weak, strong = [], []
    predict, forward = MeanTeacher._predict, MsctrForSemanticSegmentation.forward

    def recording(self, pixel_values):
        weak.append(pixel_values.mean(dim=(0, 2, 3)))
        return predict(self, pixel_values)

    def seeing(self, pixel_values, labels=None, **others):
        if others:
            strong.append(others["unlabeled_pixel_values"].mean(dim=(0, 2, 3)))
        return forward(self, pixel_values, labels, **others)

    monkeypatch.setattr(MeanTeacher, "_predict", recording)
    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", seeing)
    few = {
        "unlabeled_batch_size": 1,
        "crop_size": (40, 48),
        "unlabeled_start_step": 0,
        "max_steps": 4,
        "validation_steps": 4,
    }
    train(data, tmp_path / "run", color_jitter=False, unlabeled_strength=strength, **few)
    change = (torch.stack(weak) - torch.stack(strong)).abs().max()  # of the mean color of a crop; blur keeps it
    assert (change > 0.2) == are_changed
    assert are_changed or change < 0.05


def test_labeled_images_are_those_of_a_run_without_others(data, tmp_path, monkeypatch):
    seen, forward = {}, MsctrForSemanticSegmentation.forward

    def seeing(self, pixel_values, labels=None, **others):
        if self.training:
            seen.setdefault(bool(others), []).append(pixel_values.clone())
        return forward(self, pixel_values, labels, **others)

    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", seeing)
    train(data, tmp_path / "both", unlabeled_start_step=0, max_steps=3)
    train(data, tmp_path / "labeled", max_steps=3, **WITHOUT)
    assert all(torch.equal(*pair) for pair in zip(seen[True], seen[False], strict=True))


def test_images_of_a_folder_are_trained_on_with_accumulation(data, tmp_path):
    for number in range(4):
        write_image(tmp_path / f"more/{number}/image.png", (40, 56), seed=100 + number)
    settings = {**WITHOUT, "unlabeled_dir": str(tmp_path / "more"), "gradient_accumulation_steps": 2, "max_steps": 2}
    train(data, tmp_path / "run", **settings, ema=True)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["labeled_images"] == {"labeled": 5, "unlabeled": 4}
    assert str(tmp_path) not in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize(("start", "expected"), [(4, 2), (5, 0)])
def test_a_dry_run_tries_the_teacher_if_the_run_has_steps_with_it(data, tmp_path, monkeypatch, start, expected):
    calls, predict = [], MeanTeacher._predict
    monkeypatch.setattr(MeanTeacher, "_predict", lambda *arguments: calls.append(1) or predict(*arguments))
    train(data, tmp_path / "run", dry_run=True, unlabeled_start_step=start)
    assert len(calls) == expected


def test_a_run_without_neighbors_says_that_nothing_is_mixed(data, tmp_path, capsys):
    train(data, tmp_path / "run", unlabeled_batch_size=1, crop_size=(64, 64), max_steps=2)
    assert "unlabeled_mix classmix mixes nothing: a batch has one image" in capsys.readouterr().out


def test_positions_are_kept():
    position = UnlabeledPosition(3, 14)
    other = UnlabeledPosition()
    other.load_state_dict(position.state_dict())
    assert other == position


WRONG = [
    (
        {"unlabeled_dir": "DATA/train/images", "unlabeled": None},
        "5 of 11 images without labels are training images too, such as 1.jpg",
    ),
    ({"unlabeled": "train"}, "5 of 11 images without labels are training images too"),
    ({"unlabeled_dir": "EMPTY", "unlabeled": None}, "`unlabeled_dir`: .* has no images"),
    ({"unlabeled": None}, "`unlabeled_mix=classmix` is about images without labels, and there are none"),
    ({**WITHOUT, "unlabeled_batch_size": 2}, "`unlabeled_batch_size=2` is about images without labels"),
    ({**WITHOUT, "pseudo_label_threshold": 0.5}, "`pseudo_label_threshold=0.5` is about images without labels"),
    ({**WITHOUT, "pseudo_label_class_share": 0.5}, "`pseudo_label_class_share=0.5` is about images without labels"),
    ({"pseudo_label_class_share": 1.0}, r"`pseudo_label_class_share` must be in \(0, 1\), got 1.0"),
    (
        {"contrastive_pseudo_labels": None},
        "`contrastive_pseudo_threshold=0.34` is about the contrast of .*; add `contrastive_pseudo_labels=True`",
    ),
    ({"contrastive_mode": "ce"}, "`contrastive_pseudo_labels=True` is about .*; add `contrastive_mode='ms_cs'`"),
    ({"pseudo_label_threshold": 1.5}, "`pseudo_label_threshold` must be a probability in"),
    ({"unlabeled_batch_size": 7}, "6 images without labels do not fill one batch of 7"),
    ({"unlabeled": "test"}, "has the splits"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_wrong_setting_is_reported_in_one_sentence(data, tmp_path, changes, sentence):
    (tmp_path / "EMPTY").mkdir()
    places = {"DATA/train/images": data / "train/images", "EMPTY": tmp_path / "EMPTY"}
    if "unlabeled_dir" in changes:
        changes = {**changes, "unlabeled_dir": str(places[changes["unlabeled_dir"]])}
    with pytest.raises(UsageError, match=sentence) as error:
        train(data, tmp_path / "run", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_single_image_without_labels_is_refused_where_a_layer_needs_two(data, tmp_path):
    with pytest.raises(UsageError, match="a single value per channel; use `unlabeled_batch_size` 2 or more"):
        train(data, tmp_path / "run", unlabeled_batch_size=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unlabeled_batch_size": 3}, "a step saw 2 images without labels and would see 3"),
        ({"unlabeled_mix": "cutmix"}, "unlabeled_mix was 'classmix' and is 'cutmix'"),
        (WITHOUT, "unlabeled was 'rest' and is None"),
    ],
)
def test_a_run_is_not_resumed_with_other_images(data, run, tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        train(data, tmp_path / "resumed", resume=run / "checkpoints/step_2", **changes)


def test_validation_images_without_labels_are_mentioned(data, tmp_path, capsys):
    train(data, tmp_path / "run", unlabeled="validation", max_steps=2)
    assert "2 of 2 validation images are trained on without labels" in capsys.readouterr().out
