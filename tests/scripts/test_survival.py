"""Training that is interrupted ends with the weights of training that was not."""

import ctypes
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from layouts import write_folder
from safetensors.torch import load_file
from small_run import TORCHRUN, flags

from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.training import loop
from msctr_hf.training.checkpointing import find_checkpoint
from msctr_hf.training.interruption import EXIT_INTERRUPTED
from msctr_hf.training.logs import RunLog
from msctr_hf.training.loop import TrainingLoop
from msctr_hf.training.validation import Validation

ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


def start(*argv, launcher=()):
    """A training process, and all it starts, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "scripts/train.py"), *map(str, argv)],
        env=ENVIRONMENT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def log(run):
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written


def losses(run):
    """Step -> every logged mean that does not depend on the clock."""
    timed = {"time", "images_per_second", "used_mb"}
    return {
        entry["step"]: {name: value for name, value in entry.items() if name not in timed}
        for entry in log(run)
        if "loss" in entry
    }


def wait_for_step(run, step, process=None):
    deadline = time.monotonic() + 300
    while not any(entry["step"] >= step for entry in log(run)[:-1] or log(run)):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, finish(process)[1]
        time.sleep(0.02)


def newest(run):
    steps = [int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/COMPLETE")]
    return max(steps, default=0)


def assert_same_end(run, expected):
    for name in ("last", "."):
        weights, reference = (load_file(each / name / "model.safetensors") for each in (run, expected))
        assert all(torch.equal(weights[key], reference[key]) for key in reference)
    assert losses(run) == losses(expected)
    assert json.loads((run / "results.json").read_text()) == json.loads((expected / "results.json").read_text())


OPTIONS = {
    "plain": {},
    "average, accumulation": {
        "ema": True,
        "gradient_accumulation_steps": 2,
        "optimizer": "sgd",
        "learning_rate": 0.01,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sigterm_saves_and_the_run_goes_on_to_the_same_end(run_script, folder, tmp_path, options, monkeypatch):
    settings = {
        "batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 9, "validation_steps": 4,
        "checkpointing_steps": 100, "logging_steps": 2, **options,
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, **settings))[0] == 0

    augment, drawn = TrainingAugmentation.__call__, itertools.count(1)

    def interrupting(*arguments):
        if next(drawn) == 3 * settings["batch_size"] * settings["gradient_accumulation_steps"]:  # at about step 3
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingAugmentation, "__call__", interrupting)
        code, _, error = run_script("train.py", *flags(folder, part, **settings))
    assert (code, "continue with --resume auto" in error) == (EXIT_INTERRUPTED, True)
    assert 2 <= newest(part) < 9
    assert run_script("train.py", *flags(folder, part, **{**settings, "resume": "auto"}))[0] == 0
    assert_same_end(part, whole)
    run = json.loads((part / "run.json").read_text())
    assert (run["from_step"], len(run["earlier_starts"])) == (newest_start(error), 1)


def newest_start(error):
    return int(error.split("stopped after step ")[1].split(";")[0])


def test_a_validation_that_was_interrupted_is_made_up_for(run_script, folder, tmp_path, monkeypatch):
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
    """Ends a run as a kill does: nothing catches it, but `finally` blocks."""


class Hub:
    """What a Hub has after a run: like the real one it makes no commit of what it has already."""

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


# name -> what ends, where it is looked up, before or after it is done
KILLS = {
    "before the validation": (Validation, "run", end_before),
    "during the validation": (Predictor, "__call__", end_after),
    "after the validation": (RunLog, "write_validation", end_before),
    "before the model": (loop, "save_model", end_before),
    "before the results": (loop, "save_model", end_after),
    "before the figure": (loop, "save_picture", end_before),
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
    """End at the nth call of a function that is called at step `number`."""
    function, calls = getattr(place, name), []

    def counted(*arguments, **options):
        calls.append(1)
        return (wrap(function) if len(calls) == number else function)(*arguments, **options)

    patch.setattr(place, name, counted)


@pytest.fixture
def whole(run_script, folder, tmp_path, hub):
    """A run that nothing ended, and what it has pushed."""
    assert run_script("train.py", *flags(folder, tmp_path / "whole", **VALIDATED))[0] == 0
    pushed, hub.commits = hub.commits, []
    return tmp_path / "whole", pushed


def validations(run):
    return [
        {name: value for name, value in entry.items() if name != "time"}
        for entry in log(run)
        if any(name.startswith("validation/") for name in entry)
    ]


def assert_nothing_was_lost_or_done_twice(run, expected):
    assert_same_end(run, expected)
    assert validations(run) == validations(expected)
    assert [entry["step"] for entry in validations(run)] == [2, 4, 6]
    assert (run / "predictions.png").read_bytes() == (expected / "predictions.png").read_bytes()
    assert not list(run.rglob("*partial*"))
    assert {path.name for path in run.glob("checkpoints/*")} == {path.name for path in expected.glob("checkpoints/*")}


@pytest.mark.parametrize("point", KILLS)
def test_a_kill_around_a_validation_loses_nothing_and_repeats_nothing(
    run_script, folder, tmp_path, monkeypatch, whole, hub, point
):
    expected, pushed = whole
    part = tmp_path / "part"
    place, name, wrap = KILLS[point]
    for resume in (None, "auto"):  # the validation that is made up for, or the next one, is killed too
        with monkeypatch.context() as patch:
            nth_call(patch, place, name, wrap, 1)
            with pytest.raises(Killed):
                run_script("train.py", *flags(folder, part, **VALIDATED, resume=resume))
    assert newest(part) >= 2
    assert run_script("train.py", *flags(folder, part, **VALIDATED, resume="auto"))[0] == 0
    assert_nothing_was_lost_or_done_twice(part, expected)
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
def test_sigkill_around_a_validation_loses_nothing_and_repeats_nothing(run_script, folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert finish(start(*flags(folder, whole, **VALIDATED)))[0] == 0
    # every start gets one step farther than the one before
    for place, name, after in (
        ("Validation", "run", False),
        ("Predictor", "__call__", True),
        ("RunLog", "write_validation", False),
        ("loop", "save_model", True),
        ("loop", "save_picture", False),
        ("loop", "replace_progress", False),
        ("loop", "replace_progress", True),
    ):
        process = start(
            *flags(folder, part, **VALIDATED, resume="auto"), launcher=("-c", KILL, place, name, str(after), "1")
        )
        code, output = finish(process)
        assert code == -signal.SIGKILL, output
    assert finish(start(*flags(folder, part, **VALIDATED, resume="auto")))[0] == 0
    assert_nothing_was_lost_or_done_twice(part, whole)


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


@pytest.mark.parametrize(("fail", "error"), [(cut_an_image, None), (run_out_of_memory, torch.OutOfMemoryError)])
def test_a_validation_that_fails_costs_nothing(run_script, folder, tmp_path, monkeypatch, whole, hub, fail, error):
    expected, pushed = whole
    part = tmp_path / "part"
    mend = fail(folder, monkeypatch)
    for resume in (None, "auto"):
        arguments = flags(folder, part, **VALIDATED, resume=resume)
        if error is None:
            code, _, words = run_script("train.py", *arguments)
            assert (code, "1.jpg cannot be read" in words) == (2, True), words
        else:
            with pytest.raises(error):  # no mistake of the user: its traceback is shown
                run_script("train.py", *arguments)
        assert [entry["step"] for entry in log(part)] == [1, 2]
        assert find_checkpoint(part, "auto").name == "step_2"
        assert (part / "run.json").exists()
    mend()
    assert run_script("train.py", *flags(folder, part, **VALIDATED, resume="auto"))[0] == 0
    assert_nothing_was_lost_or_done_twice(part, expected)
    assert hub.commits == pushed


def in_the_layout_of_older_versions(checkpoint):
    """All of the progress within states.pt, and no file of its own."""
    states = torch.load(checkpoint / "states.pt", weights_only=True)
    states["progress"] |= json.loads((checkpoint / "progress.json").read_text())["progress"]
    (checkpoint / "progress.json").unlink()
    torch.save(states, checkpoint / "states.pt")
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    content = (checkpoint / "states.pt").read_bytes()
    marker["files"]["states.pt"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))


def test_a_run_of_an_older_version_resumes(run_script, folder, tmp_path, whole, monkeypatch):
    expected, _ = whole
    part = tmp_path / "part"
    settings = {**VALIDATED, "checkpointing_steps": 2}
    with monkeypatch.context() as patch:
        nth_call(patch, Validation, "run", end_before, 3)  # at step 6
        with pytest.raises(Killed):
            run_script("train.py", *flags(folder, part, **settings))
    (part / "checkpoints/step_6/COMPLETE").unlink()
    in_the_layout_of_older_versions(part / "checkpoints/step_4")
    steps, validate = [], Validation.run
    monkeypatch.setattr(Validation, "run", lambda self, *rest: steps.append(1) or validate(self, *rest))
    assert run_script("train.py", *flags(folder, part, **settings, resume="auto"))[0] == 0
    assert len(steps) == 1  # that of step 4 is not repeated
    assert_same_end(part, expected)
    assert validations(part) == validations(expected)


def test_a_checkpoint_of_another_folder_stays_as_it_is(run_script, folder, tmp_path, monkeypatch):
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


def test_a_stream_goes_on_where_it_stopped(run_script, folder, tmp_path):
    copy = tmp_path / "copy"
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", copy]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    settings = {"max_steps": 7, "checkpointing_steps": 4, "validation_steps": 7, "streaming": True}
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(copy, whole, **settings))[0] == 0
    shutil.copytree(whole / "checkpoints/step_4", part / "checkpoints/step_4")
    assert run_script("train.py", *flags(copy, part, **settings, resume="auto"))[0] == 0
    weights, expected = (load_file(run / "last/model.safetensors") for run in (part, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_ten_kills_lose_nothing(folder, tmp_path):
    settings = {
        "max_steps": 40, "validation_steps": 5, "checkpointing_steps": 2, "logging_steps": 3, "num_workers": 1,
        "ema": True, "resume": "auto",
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert finish(start(*flags(folder, whole, **{**settings, "num_workers": 0})))[0] == 0
    chance, reached, killed = random.Random(5), 0, 0
    while killed < 10:
        process = start(*flags(folder, part, **settings))
        wait_for_step(part, min(reached + 1, 36), process)
        time.sleep(chance.uniform(0, 0.6))  # a step, a validation and a checkpoint take some tenths of a second
        if process.poll() is not None:
            assert finish(process)[0] == 0  # it had reached the end: once more from an older checkpoint
            for name in ("step_40", "step_38"):
                (part / "checkpoints" / name / "COMPLETE").unlink(missing_ok=True)
            reached = newest(part)
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        assert newest(part) >= reached, "a checkpoint was lost"
        reached = newest(part)
    code, output = finish(start(*flags(folder, part, **settings)))
    assert code == 0, output
    assert_same_end(part, whole)
    assert not list(part.rglob("*partial*"))


@pytest.mark.slow
def test_a_scheduler_that_signals_every_process_finds_a_checkpoint_after_the_step_under_way(folder, tmp_path):
    run = tmp_path / "run"
    settings = {"max_steps": 100_000, "validation_steps": 7, "checkpointing_steps": 100_000, "num_workers": 2}
    process = start(*flags(folder, run, **settings))
    wait_for_step(run, 5, process)
    for number in (signal.SIGSTOP, signal.SIGTERM):  # held, so that its log tells at which step the signal arrives
        os.killpg(process.pid, number)
    logged = log(run)[-1]["step"]
    os.killpg(process.pid, signal.SIGCONT)
    code, output = finish(process)
    assert code == EXIT_INTERRUPTED, output
    # a step is logged when the next has been started, and the last line may be half written
    assert logged <= newest(run) <= logged + 3


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_when_one_is_told(folder, tmp_path):
    """...and the run goes on on one process, with the batches the two had."""
    run = tmp_path / "run"
    settings = {"batch_size": 2, "max_steps": 100_000, "validation_steps": 100_000, "checkpointing_steps": 100_000}
    process = start(*flags(folder, run, **settings), launcher=TORCHRUN)
    wait_for_step(run, 3, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGTERM)  # the second process only
    code, output = finish(process)
    assert code != 0  # torchrun's own code
    stopped = newest(run)
    assert stopped >= 3, output
    assert output.count(f"stopped after step {stopped};") == 2
    settings = {**settings, "batch_size": 4, "max_steps": stopped + 2, "checkpointing_steps": 2}
    code, output = finish(start(*flags(folder, run, **settings, resume="auto")))
    assert code == 0, output
    assert "2 x 1 batches x 2 processes and are 4 x 1 batches x 1 processes" in output
    assert f"max_steps was 100000 and is {stopped + 2}" in output
    code, output = finish(start(*flags(folder, run, **{**settings, "batch_size": 3}, resume="auto")))
    assert (code, "--batch_size 4 would" in output) == (2, True)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_its_message(folder, tmp_path):
    for path in (folder / "train/images").iterdir():
        path.write_bytes(b"no picture") if path.stem == "3" else None
    settings = {"batch_size": 2, "max_steps": 100_000, "num_workers": 1, "checkpointing_steps": 100_000}
    process = start(*flags(folder, tmp_path / "run", **settings), launcher=TORCHRUN)
    code, output = finish(process)
    assert code != 0
    assert "3.jpg cannot be read" in output
    assert subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout == ""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint_whole(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # of a size that holds one checkpoint with its models, but not another
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=420m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    try:
        settings = {"max_steps": 8, "checkpointing_steps": 2, "validation_steps": 100, "checkpoints_kept": 5}
        code, output = finish(start(*flags(folder, disk / "run", **settings)))
        sentence = output.strip().splitlines()[-1]
        assert code == 2, output
        assert sentence.startswith("error: "), output
        assert "Traceback" not in output
        assert "make room" in sentence
        step = newest(disk / "run")
        assert step > 0
        assert find_checkpoint(disk / "run", "auto").name == f"step_{step}"
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)


# Training whose log tells of memory in use: what is resident without the blocks that the C library keeps for later,
# since how it cuts and joins those is not the run's doing.
MEMORY_IN_USE = """
import ctypes, psutil, sys
from msctr_hf.commands.train import main
from msctr_hf.training import meter

class MallInfo(ctypes.Structure):  # mallinfo(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = MallInfo
meter.used_megabytes = lambda device: (psutil.Process().memory_info().rss - library.mallinfo2().fordblks) / 2**20
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 what it keeps")
def test_memory_does_not_grow_after_the_fiftieth_step(tmp_path):
    run = tmp_path / "run"
    config = ["--config", ROOT / "configs/quickstart.yaml", "--output_dir", run, "--report_to", "none"]
    steps = ["--max_steps", 200, "--logging_steps", 1, "--checkpointing_steps", 50, "--validation_steps", 200]
    code, output = finish(start(*config, *steps, launcher=("-c", MEMORY_IN_USE)))
    assert code == 0, output
    used = {entry["step"]: entry["used_mb"] for entry in log(run) if "used_mb" in entry}
    # the median: what waits for Python's garbage collector comes and goes within some fifty steps
    early, late = (statistics.median(used[step] for step in range(first, first + 50)) for first in (51, 151))
    assert late - early < 0.001 * early, used
