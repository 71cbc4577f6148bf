import pytest
from layouts import write_folder
from small_run import flags

from msctr_hf.training.checkpointing import Progress
from msctr_hf.training.resuming import (
    LENGTH,
    compare_settings,
    count_images_of_older_version,
    length_before,
    splits_as_before,
)
from msctr_hf.training.run_folder import read_json, write_json

SETTINGS = {
    "learning_rate": 0.1, "max_steps": 10, "data_dir": "a", "num_workers": 0, "batch_size": 4,
    "gradient_accumulation_steps": 1, "num_processes": 2, "streaming": False, "dropout": None,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    write_json(tmp_path / "settings.json", SETTINGS)
    return tmp_path


def test_paths_and_workers_may_differ(checkpoint):
    assert compare_settings(checkpoint, {**SETTINGS, "data_dir": "b", "num_workers": 8}) == []


def test_another_number_of_workers_of_a_stream_is_announced(checkpoint):
    stream = {**SETTINGS, "streaming": True}
    write_json(checkpoint / "settings.json", stream)
    (note,) = compare_settings(checkpoint, {**stream, "num_workers": 8})
    assert note.startswith("num_workers was 0 and is 8 from here on: the order of a stream depends on it")


def test_a_longer_schedule_is_announced(checkpoint):
    (note,) = compare_settings(checkpoint, {**SETTINGS, "max_steps": 20})
    assert note == "max_steps was 10 and is 20 from here on."


WRITTEN_OUT = [{"unlabeled_batch_size": 4}, {"subset_seed": 5}, {"contrastive_mode": "ms_cs"}]


@pytest.mark.parametrize("before", [*WRITTEN_OUT, {}], ids=str)
@pytest.mark.parametrize("now", [*WRITTEN_OUT, {}], ids=str)
def test_a_default_that_is_written_out_is_the_same_setting(tmp_path, before, now):
    base = {**SETTINGS, "seed": 5, "unlabeled": "rest", "unlabeled_batch_size": None, "subset_seed": None}
    write_json(tmp_path / "settings.json", {**base, **before})
    assert compare_settings(tmp_path, {**base, **now}) == []
    assert splits_as_before(tmp_path, {**base, **now})


def test_defaults_are_not_those_of_a_saved_model_and_follow_a_setting_only_where_they_are_not_given(tmp_path):
    base = {**SETTINGS, "seed": 5, "unlabeled": "rest", "unlabeled_batch_size": None, "subset_seed": None}
    write_json(tmp_path / "settings.json", {**base, "model_name_or_path": "saved"})
    with pytest.raises(ValueError, match="contrastive_mode was None and is 'ms_cs'"):
        compare_settings(tmp_path, {**base, "model_name_or_path": "saved", "contrastive_mode": "ms_cs"})
    write_json(tmp_path / "settings.json", base)
    for changes, text in (
        ({"subset_seed": 6}, "other settings: subset_seed was None and is 6"),
        ({"seed": 6}, "other settings: seed was 5 and is 6. "),
        ({"unlabeled_batch_size": 3}, "a step saw 8 images without labels and would see 6"),
    ):
        with pytest.raises(ValueError, match=text):
            compare_settings(tmp_path, {**base, **changes})


def test_another_run_is_refused_with_a_list_of_all_differences(checkpoint):
    with pytest.raises(ValueError, match="contrastive_mode was None and is 'ms'; learning_rate was 0.1 and is 0.2"):
        compare_settings(checkpoint, {**SETTINGS, "learning_rate": 0.2, "contrastive_mode": "ms"})


def test_a_step_may_be_split_over_other_batches_and_processes(checkpoint):
    settings = {**SETTINGS, "num_processes": 1, "batch_size": 8}
    (note,) = compare_settings(checkpoint, settings)
    assert "4 x 1 batches x 2 processes and are 8 x 1 batches x 1 processes" in note
    assert not splits_as_before(checkpoint, settings)


def test_numbers_of_steps_stay_if_only_the_split_changes(checkpoint):
    saved = {**SETTINGS, "max_steps": None, "num_train_epochs": 5}
    assert length_before(checkpoint, saved) == {}  # of an older version
    length = {"max_steps": 100, "validation_steps": 20}
    write_json(checkpoint / "settings.json", {**saved, LENGTH: length})
    other_split = {**saved, "batch_size": 8, "num_processes": 1}
    assert length_before(checkpoint, other_split) == length
    assert length_before(checkpoint, {**other_split, "num_train_epochs": 6}) == {}
    assert compare_settings(checkpoint, saved) == []
    assert splits_as_before(checkpoint, {**saved, LENGTH: {"max_steps": 110}})


def test_a_run_of_epochs_has_as_many_steps_when_it_is_resumed_with_another_split(run_script, tmp_path):
    folder = write_folder(tmp_path / "data", num_train=10, num_validation=1)
    run = {"max_steps": None, "num_train_epochs": 4, "validation_steps": None, "checkpointing_steps": 2}
    whole = flags(folder, tmp_path / "whole", batch_size=4, checkpoints_kept=9, **run)
    code, _, error = run_script("train.py", *whole)
    assert code == 0, error
    checkpoint = tmp_path / "whole/checkpoints/step_2"
    split = {"batch_size": 2, "gradient_accumulation_steps": 2, "resume": checkpoint}  # 5 batches an epoch, not 2
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "resumed", **split, **run))
    assert code == 0, error
    lengths = [read_json(tmp_path / name / "run.json")["duration"] for name in ("whole", "resumed")]
    assert [length["max_steps"] for length in lengths] == [8, 8]  # 10 by the second split alone
    assert len({length["validation_steps"] for length in lengths}) == 1
    assert lengths[1]["num_epochs"] == pytest.approx(8 * 2 / 5)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_position_of_an_older_version_is_converted_to_images(tmp_path, accumulated):
    write_json(tmp_path / "settings.json", {**SETTINGS, "gradient_accumulation_steps": accumulated})
    progress = Progress(step=3)
    progress.load_state_dict({"step": 5, "epoch": 2, "batches_in_epoch": 3})
    notes = count_images_of_older_version(progress, tmp_path)
    assert (progress.epoch, progress.images_in_epoch) == (2, 3 * 4 * 2)
    assert len(notes) == (accumulated > 1)
    assert all("of an older version, in which the last step of an epoch could have fewer batches" in n for n in notes)
    assert count_images_of_older_version(progress, tmp_path) == []
    assert progress.images_in_epoch == 24


def test_a_step_of_another_size_is_refused_with_the_fitting_batch_size(checkpoint):
    with pytest.raises(ValueError, match=r"= 8 images and would see .* = 4; .* Use `batch_size=8`"):
        compare_settings(checkpoint, {**SETTINGS, "num_processes": 1})


def test_a_stream_cannot_be_resumed_by_other_processes(checkpoint):
    write_json(checkpoint / "settings.json", {**SETTINGS, "streaming": True})
    with pytest.raises(ValueError, match="a stream that was read by"):
        compare_settings(checkpoint, {**SETTINGS, "num_processes": 1, "batch_size": 8, "streaming": True})
