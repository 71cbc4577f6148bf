"""Incomplete and corrupt checkpoints are skipped, and complete ones restore all states."""

import contextlib
import json
import os
import pickle

import pytest
import torch
from accelerate import Accelerator

from msctr_hf.errors import UsageError
from msctr_hf.training import checkpointing, run_folder
from msctr_hf.training.checkpointing import (
    Progress,
    States,
    find_checkpoint,
    find_fault,
    load_progress,
    replace_progress,
    save_checkpoint,
)

SETTINGS = {"seed": 0}


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    progress = Progress(step=3)
    accelerator.progress, accelerator.network = progress, model
    accelerator.states = States(shared={"progress": progress}, own={})
    yield accelerator
    accelerator.free_memory()


class Foreign:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["states.pt", "states_0.pt", "optimizer.bin", "random_states_0.pkl"])
def test_loading_a_checkpoint_of_unknown_origin_runs_no_code(accelerator, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    optimizer = accelerator.prepare(torch.optim.SGD(accelerator.network.parameters()))
    save_checkpoint(accelerator, tmp_path, 3, accelerator.states, SETTINGS, keep=2)
    assert optimizer is not None
    checkpoint = tmp_path / "checkpoints/step_3"
    assert (checkpoint / name).exists()
    torch.save({"progress": Foreign()}, checkpoint / name)
    with contextlib.suppress(pickle.UnpicklingError):
        accelerator.load_state(str(checkpoint))
        accelerator.states.load(checkpoint, accelerator, own=True)
    assert not (tmp_path / "ran").exists()


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("was_fp16", [True, False])
def test_a_run_in_fp16_resumes_from_a_checkpoint_of_any_precision(accelerator, tmp_path, was_fp16):
    optimizer = accelerator.prepare(torch.optim.SGD(accelerator.network.parameters(), lr=0.1))

    def use(scale):  # Accelerate creates a scaler for GPUs only
        accelerator.scaler = optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    if was_fp16:
        use(8.0)
    weight = accelerator.network.weight.detach().clone()
    save_checkpoint(accelerator, tmp_path, 3, accelerator.states, SETTINGS, keep=2)
    use(4.0)
    scaler = accelerator.scaler
    with torch.no_grad():
        accelerator.network.weight.zero_()
    notes = checkpointing.load_state(accelerator, tmp_path / "checkpoints/step_3")
    assert torch.equal(accelerator.network.weight, weight)
    assert accelerator.scaler is optimizer.scaler is scaler
    assert scaler.get_scale() == (8.0 if was_fp16 else 4.0)
    assert [note.endswith("the scale starts anew") for note in notes] == ([] if was_fp16 else [True])


def test_saved_states_are_restored(accelerator, tmp_path):
    accelerator.progress.best_results = {"mean_iou": 0.5, "per_category_iou": {"a": None}}
    weight = accelerator.network.weight.detach().clone()
    save_checkpoint(accelerator, tmp_path, 3, accelerator.states, SETTINGS, keep=2)
    accelerator.progress.step = 9
    accelerator.progress.best_results = {}
    with torch.no_grad():
        accelerator.network.weight.zero_()
    checkpoint = find_checkpoint(tmp_path, "auto")
    accelerator.load_state(str(checkpoint))
    accelerator.states.load(checkpoint, accelerator, own=True)
    assert accelerator.progress.step == 3
    assert accelerator.progress.best_results == {"mean_iou": 0.5, "per_category_iou": {"a": None}}
    assert torch.equal(accelerator.network.weight, weight)


def test_the_newest_checkpoints_are_kept_and_leftovers_are_removed(accelerator, tmp_path):
    for step in (2, 10, 9):  # 9: the run was resumed from an older checkpoint
        save_checkpoint(accelerator, tmp_path, step, accelerator.states, SETTINGS, keep=2)
    assert names(tmp_path) == ["step_2", "step_9"]
    (tmp_path / "checkpoints/.step_11.partial").mkdir()
    (tmp_path / "checkpoints/step_10").mkdir()  # a checkpoint that was never completed has no marker
    save_checkpoint(accelerator, tmp_path, 12, accelerator.states, SETTINGS, keep=2)
    assert names(tmp_path) == ["step_12", "step_9"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("model.safetensors", cut_short, "model.safetensors has changed since it was written"),
        ("model.safetensors", flip_a_bit, "model.safetensors has changed since it was written"),
        ("states.pt", lambda path: path.unlink(), "states.pt is missing"),
        ("COMPLETE", lambda path: path.write_text(""), "COMPLETE cannot be read"),
        ("COMPLETE", lambda path: path.write_text("[1]"), "COMPLETE cannot be read"),
        ("COMPLETE", lambda path: path.unlink(), "is not a complete checkpoint"),
    ],
)
def test_a_corrupt_checkpoint_is_skipped(accelerator, tmp_path, name, damage, sentence):
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step, accelerator.states, SETTINGS, keep=2)
    folder = tmp_path / "checkpoints"
    assert find_checkpoint(tmp_path, "auto") == folder / "step_2"
    damage(folder / "step_2" / name)
    assert sentence in find_fault(folder / "step_2")
    if name == "COMPLETE" and not (folder / "step_2/COMPLETE").exists():
        assert find_checkpoint(tmp_path, "auto") == folder / "step_1"  # a kill leaves such a folder: no warning
    else:
        with pytest.warns(UserWarning, match="resuming from step_1 instead"):
            assert find_checkpoint(tmp_path, "auto") == folder / "step_1"
    with pytest.raises(ValueError, match=sentence):
        find_checkpoint(tmp_path, str(folder / "step_2"))
    cut_short(folder / "step_1/model.safetensors")
    if (folder / "step_2/COMPLETE").exists():
        with pytest.raises(ValueError, match="no older one exists"):
            find_checkpoint(tmp_path, "auto")


def test_a_run_without_checkpoints_starts_from_the_beginning(tmp_path):
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path, "auto") is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_failed_write_leaves_the_previous_checkpoint_and_nothing_else(accelerator, tmp_path, monkeypatch, error):
    save_checkpoint(accelerator, tmp_path, 1, accelerator.states, SETTINGS, keep=1)

    def fail(*args):
        raise error

    monkeypatch.setattr(checkpointing, "_complete", fail)
    with pytest.raises(UsageError, match="step 2 in .* could not be written .* from step 1 with `resume='auto'`"):
        save_checkpoint(accelerator, tmp_path, 2, accelerator.states, SETTINGS, keep=1)
    assert names(tmp_path) == ["step_1"]
    assert find_fault(tmp_path / "checkpoints/step_1") is None


def test_the_marker_is_written_last_and_lists_all_files(accelerator, tmp_path, monkeypatch):
    seen = []

    def replace_file(path, text):
        seen.append(sorted(p.name for p in path.parent.iterdir()))
        path.write_text(text)

    monkeypatch.setattr(checkpointing, "replace_file", replace_file)
    save_checkpoint(accelerator, tmp_path, 1, accelerator.states, SETTINGS, keep=1)
    marker = json.loads((tmp_path / "checkpoints/step_1/COMPLETE").read_text())
    assert seen == [sorted(marker["files"])]
    assert {"model.safetensors", "settings.json", "random_states_0.pkl", "states.pt", "states_0.pt"} <= set(
        marker["files"]
    )


def save(accelerator, folder, step, **options):
    save_checkpoint(accelerator, folder, step, accelerator.states, SETTINGS, **{"keep": 2, **options})
    return folder / f"checkpoints/step_{step}"


def progress_of(accelerator, checkpoint):
    """Read the progress as a resumed run does."""
    accelerator.states.load(checkpoint, accelerator, own=True)
    load_progress(checkpoint, accelerator.progress)
    return accelerator.progress


def test_the_result_of_a_validation_is_added_to_the_checkpoint_of_its_step(accelerator, tmp_path):
    checkpoint = save(accelerator, tmp_path, 3)
    assert progress_of(accelerator, checkpoint).validated_step == 0
    listed = (checkpoint / "COMPLETE").read_bytes()
    replace_progress(checkpoint, Progress(step=3, validated_step=3, best_results={"mean_iou": 0.1 + 0.2, "a": None}))
    assert find_fault(checkpoint) is None
    assert (checkpoint / "COMPLETE").read_bytes() == listed
    progress = progress_of(accelerator, checkpoint)
    assert (progress.validated_step, progress.best_results) == (3, {"mean_iou": 0.1 + 0.2, "a": None})


def test_a_validation_does_not_change_the_position_in_the_data(accelerator, tmp_path):
    accelerator.progress.images_in_epoch = 6
    checkpoint = save(accelerator, tmp_path, 3)
    replace_progress(checkpoint, Progress(step=3, images_in_epoch=12, validated_step=3))
    progress = progress_of(accelerator, checkpoint)
    assert (progress.images_in_epoch, progress.validated_step) == (6, 3)


def test_a_checkpoint_of_an_older_version_has_its_validation_in_its_states(accelerator, tmp_path):
    accelerator.progress.validated_step = 3
    checkpoint = save(accelerator, tmp_path, 3)
    accelerator.progress.validated_step = 0
    assert progress_of(accelerator, checkpoint).validated_step == 3


def test_a_checkpoint_stays_valid_if_its_progress_cannot_be_written(accelerator, tmp_path, monkeypatch):
    checkpoint = save(accelerator, tmp_path, 3)
    before = sorted(checkpoint.iterdir())

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "sync", full)
        with pytest.raises(OSError, match="No space"):
            replace_progress(checkpoint, Progress(step=3, validated_step=3))
    assert sorted(checkpoint.iterdir()) == before
    assert find_fault(checkpoint) is None
    assert progress_of(accelerator, checkpoint).validated_step == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda path: path.write_text(path.read_text().replace('"validated_step": 2', '"validated_step": 7')),
            "has changed since it was written",
        ),
        (cut_short, "cannot be read"),
        (lambda path: path.write_text("{}"), "cannot be read"),
    ],
)
def test_a_checkpoint_whose_progress_file_is_corrupt_is_skipped(accelerator, tmp_path, damage, sentence):
    checkpoints = [save(accelerator, tmp_path, step) for step in (1, 2)]
    replace_progress(checkpoints[1], Progress(step=2, validated_step=2))
    damage(checkpoints[1] / "progress.json")
    assert f"progress.json {sentence}" in find_fault(checkpoints[1])
    with pytest.warns(UserWarning, match="resuming from step_1 instead"):
        assert find_checkpoint(tmp_path, "auto") == checkpoints[0]


def test_checkpoints_of_validations_do_not_displace_those_that_the_user_asked_for(accelerator, tmp_path):
    kept = {}
    for step in range(2, 22, 2):
        save(accelerator, tmp_path, step, temporary=step % 6 != 0)
        kept[step] = {int(name.removeprefix("step_")) for name in names(tmp_path)}
    assert kept == {
        2: {2}, 4: {4}, 6: {6}, 8: {6, 8}, 10: {6, 10}, 12: {6, 12}, 14: {6, 12, 14}, 16: {6, 12, 16}, 18: {12, 18},
        20: {12, 18, 20},
    }  # fmt: skip


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_of_a_checkpoint_have_the_permissions_of_the_umask(accelerator, tmp_path, umask):
    before = os.umask(umask)
    try:
        checkpoint = save(accelerator, tmp_path, 3)
    finally:
        os.umask(before)
    permissions = {path.name: path.stat().st_mode & 0o777 for path in checkpoint.iterdir()}
    assert "model.safetensors" in permissions
    assert set(permissions.values()) == {0o666 & ~umask}
