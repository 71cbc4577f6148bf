"""A validation that is killed, is interrupted or fails costs no training step, and is logged and pushed once."""

import hashlib
import json
import os
import signal

import pytest
import torch
from conftest import run_in_this_process
from interrupted_run import assert_same_end, finish, log, newest, start
from layouts import write_folder
from small_run import flags

from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.training import loop
from msctr_hf.training.checkpointing import find_checkpoint
from msctr_hf.training.interruption import EXIT_INTERRUPTED
from msctr_hf.training.logs import RunLog
from msctr_hf.training.loop import TrainingLoop
from msctr_hf.training.validation import Validation


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


def test_an_interrupted_validation_is_done_when_the_run_resumes(run_script, folder, tmp_path, monkeypatch):
    settings = {"max_steps": 6, "validation_steps": 3, "checkpointing_steps": 100}
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, **settings))[0] == 0
    validate = Validation.run

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "run", interrupted)
        assert run_script("train.py", *flags(folder, part, **settings))[0] == EXIT_INTERRUPTED
    assert newest(part) == 3
    assert not (part / "results.json").exists()
    assert run_script("train.py", *flags(folder, part, **settings, resume="auto"))[0] == 0
    assert_same_end(part, whole)


class Killed(BaseException):
    """End a run almost as a kill does: nothing catches it, but `finally` blocks run."""


class Hub:
    """Collect the commits of a run; like the real Hub it makes no commit of files that it already has."""

    def __init__(self):
        self.commits = []

    def push(self, folder):
        commit = ((folder / "model.safetensors").read_bytes(), json.loads((folder / "results.json").read_text()))
        if commit not in self.commits[-1:]:
            self.commits.append(commit)


def end_before(function):
    def ended(*arguments, **options):
        raise Killed

    return ended


def end_after(function):
    def ended(*arguments, **options):
        function(*arguments, **options)
        raise Killed

    return ended


# name -> (object, name of its function, whether the run ends before or after the call of the function)
KILLS = {
    "before the validation": (Validation, "run", end_before),
    "during the validation": (Predictor, "__call__", end_after),
    "after the validation": (RunLog, "write_validation", end_before),
    "before the model": (loop, "save_model", end_before),
    "before the results": (loop, "save_model", end_after),
    "before the figure": (loop, "save_image", end_before),
    "before the progress": (loop, "replace_progress", end_before),
    "before the push": (loop, "replace_progress", end_after),
    "after the push": (TrainingLoop, "push", end_after),
}
VALIDATED = {"max_steps": 6, "validation_steps": 2, "checkpointing_steps": 3, "logging_steps": 1}


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(TrainingLoop, "push", lambda self: hub.push(self.output_dir))
    return hub


def nth_call(patch, place, name, wrap, number):
    """End the run at the nth call of a function."""
    function, calls = getattr(place, name), []

    def counted(*arguments, **options):
        calls.append(1)
        return (wrap(function) if len(calls) == number else function)(*arguments, **options)

    patch.setattr(place, name, counted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train without interruption, and return the folder of the run and its commits."""
    root, hub = tmp_path_factory.mktemp("uninterrupted"), Hub()
    folder = write_folder(root / "data", num_train=6, num_validation=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "push", lambda self: hub.push(self.output_dir))
        assert run_in_this_process("train.py", *flags(folder, root / "whole", **VALIDATED)) == 0
    return root / "whole", hub.commits


def validations(run):
    return [
        {name: value for name, value in entry.items() if name != "time"}
        for entry in log(run)
        if any(name.startswith("validation/") for name in entry)
    ]


def assert_nothing_was_lost_or_repeated(run, expected):
    assert_same_end(run, expected)
    assert validations(run) == validations(expected)
    assert [entry["step"] for entry in validations(run)] == [2, 4, 6]
    assert (run / "predictions.png").read_bytes() == (expected / "predictions.png").read_bytes()
    assert not list(run.rglob("*partial*"))
    assert {path.name for path in run.glob("checkpoints/*")} == {path.name for path in expected.glob("checkpoints/*")}


@pytest.mark.parametrize("point", KILLS)
def test_a_kill_around_a_validation_neither_loses_nor_repeats_anything(
    run_script, folder, tmp_path, monkeypatch, whole, hub, point
):
    expected, pushed = whole
    part = tmp_path / "part"
    place, name, wrap = KILLS[point]
    for resume in (None, "auto"):  # the second start is killed too, in the repeated or in the next validation
        with monkeypatch.context() as patch:
            nth_call(patch, place, name, wrap, 1)
            with pytest.raises(Killed):
                run_script("train.py", *flags(folder, part, **VALIDATED, resume=resume))
    assert newest(part) >= 2
    assert run_script("train.py", *flags(folder, part, **VALIDATED, resume="auto"))[0] == 0
    assert_nothing_was_lost_or_repeated(part, expected)
    assert hub.commits == pushed


KILL = """
import os, signal, sys
from msctr_hf.commands.train import main
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.training import loop
from msctr_hf.training.logs import RunLog
from msctr_hf.training.validation import Validation

place, name, after, number = sys.argv[1:5]
place = {"loop": loop, "RunLog": RunLog, "Validation": Validation, "Predictor": Predictor}[place]
function, calls = getattr(place, name), []

def killed(*arguments, **options):
    calls.append(1)
    if len(calls) < int(number):
        return function(*arguments, **options)
    if after == "True":
        function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(place, name, killed)
main(sys.argv[6:])
"""


@pytest.mark.slow
def test_sigkill_around_a_validation_neither_loses_nor_repeats_anything(run_script, folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert finish(start(*flags(folder, whole, **VALIDATED)))[0] == 0
    # every start gets a little further than the one before
    for place, name, after in (
        ("Validation", "run", False),
        ("Predictor", "__call__", True),
        ("RunLog", "write_validation", False),
        ("loop", "save_model", True),
        ("loop", "save_image", False),
        ("loop", "replace_progress", False),
        ("loop", "replace_progress", True),
    ):
        process = start(
            *flags(folder, part, **VALIDATED, resume="auto"), launcher=("-c", KILL, place, name, str(after), "1")
        )
        code, output = finish(process)
        assert code == -signal.SIGKILL, output
    assert finish(start(*flags(folder, part, **VALIDATED, resume="auto")))[0] == 0
    assert_nothing_was_lost_or_repeated(part, whole)


def cut_an_image(folder, monkeypatch):
    path = folder / "val/images/1.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


def run_out_of_memory(folder, monkeypatch):
    predict = Predictor.__call__

    def predict_nothing(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Predictor, "__call__", predict_nothing)
    return lambda: monkeypatch.setattr(Predictor, "__call__", predict)


@pytest.mark.parametrize(
    ("fail", "reason"),
    [(cut_an_image, "1.jpg cannot be read"), (run_out_of_memory, "does not fit into the memory of the device (CUDA")],
    ids=["a broken image", "out of memory"],
)
def test_a_validation_that_fails_costs_no_training_step(
    run_script, folder, tmp_path, monkeypatch, whole, hub, fail, reason
):
    expected, pushed = whole
    part = tmp_path / "part"
    repair = fail(folder, monkeypatch)
    for resume in (None, "auto"):
        arguments = flags(folder, part, **VALIDATED, resume=resume)
        code, _, words = run_script("train.py", *arguments)
        assert (code, reason in words) == (2, True), words
        assert [entry["step"] for entry in log(part)] == [1, 2]
        assert find_checkpoint(part, "auto").name == "step_2"
        assert (part / "run.json").exists()
    repair()
    assert run_script("train.py", *flags(folder, part, **VALIDATED, resume="auto"))[0] == 0
    assert_nothing_was_lost_or_repeated(part, expected)
    assert hub.commits == pushed


def convert_to_the_layout_of_older_versions(checkpoint):
    """Move all of the progress from progress.json, which older versions did not write, to states.pt."""
    states = torch.load(checkpoint / "states.pt", weights_only=True)
    states["progress"] |= json.loads((checkpoint / "progress.json").read_text())["progress"]
    (checkpoint / "progress.json").unlink()
    torch.save(states, checkpoint / "states.pt")
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    content = (checkpoint / "states.pt").read_bytes()
    marker["files"]["states.pt"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))


def test_a_run_of_an_older_version_can_be_resumed(run_script, folder, tmp_path, whole, monkeypatch):
    expected, _ = whole
    part = tmp_path / "part"
    settings = {**VALIDATED, "checkpointing_steps": 2}
    with monkeypatch.context() as patch:
        nth_call(patch, Validation, "run", end_before, 3)  # at step 6
        with pytest.raises(Killed):
            run_script("train.py", *flags(folder, part, **settings))
    (part / "checkpoints/step_6/COMPLETE").unlink()
    convert_to_the_layout_of_older_versions(part / "checkpoints/step_4")
    steps, validate = [], Validation.run
    monkeypatch.setattr(Validation, "run", lambda self, *rest: steps.append(1) or validate(self, *rest))
    assert run_script("train.py", *flags(folder, part, **settings, resume="auto"))[0] == 0
    assert len(steps) == 1  # the validation of step 4 is not repeated
    assert_same_end(part, expected)
    assert validations(part) == validations(expected)


def test_resuming_from_a_checkpoint_of_another_folder_does_not_change_it(run_script, folder, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "run", end_before(None))
        with pytest.raises(Killed):
            run_script("train.py", *flags(folder, first, **VALIDATED))
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    resume = {"resume": first / "checkpoints/step_2", "max_steps": 2}
    assert run_script("train.py", *flags(folder, second, **{**VALIDATED, **resume}))[0] == 0
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert [entry["step"] for entry in validations(second)] == [2]
    assert find_checkpoint(second, "auto").name == "step_2"
