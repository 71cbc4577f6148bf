"""Progress is shown as a bar in a terminal, and written as lines to files and pipes."""

import io
import sys

import pytest
from conftest import ROOT
from layouts import write_folder
from small_run import flags

from msctr_hf import progress as module
from msctr_hf.progress import progress, say


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_long_loop_writes_a_line_every_30_seconds_and_one_at_the_end(capsys, clock):
    with progress(total=480, title="training", unit="step", keep=True) as bar:
        for _ in range(480):
            clock[0] += 0.5
            bar.update()
        bar.set_postfix(loss="0.1234")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 240 // 30
    assert lines[0] == "training: 60/480 steps, 00:30 elapsed, 03:30 left"
    assert lines[-1] == "training: 480/480 steps, 04:00 elapsed"


def test_a_resumed_loop_counts_from_where_it_was_but_measures_its_own_speed(capsys, clock):
    with progress(total=400, start=300, title="training", unit="step", keep=True) as bar:
        clock[0] += 40
        bar.update(50)
        bar.set_postfix(loss="0.5")
        bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "training: 350/400 steps, 00:40 elapsed, 00:40 left",
        "training: 360/400 steps, 00:40 elapsed, 00:26 left, loss=0.5",
    ]


@pytest.mark.parametrize(("seconds", "lines"), [(0.1, 0), (20, 2)])
def test_a_short_loop_within_another_writes_nothing(capsys, clock, seconds, lines):
    for _ in progress([1, 2, 3], title="scoring", unit="image"):
        clock[0] += seconds
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_entries_come_in_order_with_and_without_a_length(capsys):
    assert list(progress([3, 1, 2], title="predicting", unit="image", keep=True)) == [3, 1, 2]
    assert list(progress((letter for letter in "ab"), title="reading", unit="letter", keep=True)) == ["a", "b"]
    assert list(progress([], title="reading", unit="letter")) == []
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("predicting: 3/3 images, ")
    assert second.startswith("reading: 2 letters, ")


@pytest.mark.parametrize("variable", [None, "TQDM_DISABLE"])
def test_other_processes_and_users_who_turn_progress_off_see_nothing(capsys, monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    assert list(progress([1, 2], title="training", unit="step", shown=variable is not None, keep=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_lines_above_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress(total=2, title="training", unit="step", keep=True) as bar:
        bar.update()
        say("step 1: validation mIoU 50.00 %")
        bar.update()
    shown = terminal.getvalue()
    assert "\rtraining: 100%" in shown
    # the bar is erased before the message, which gets a line of its own
    assert "\rstep 1: validation mIoU 50.00 %\n\rtraining: " in shown


def test_no_other_module_draws_a_bar():
    users = [path.name for path in (ROOT / "msctr_hf").rglob("*.py") if "tqdm" in path.read_text()]
    assert users == ["progress.py"]  # so that all of them follow the same rule


def test_the_log_of_a_run_has_whole_lines_and_no_messages_of_libraries(run_script, tmp_path):
    folder = write_folder(tmp_path / "data", num_train=6, num_validation=3)
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", max_steps=4))
    assert code == 0, error
    (line,) = error.splitlines()
    assert line.startswith("training: 4/4 steps, 00:")
    assert "\r" not in out + error
    assert "step 2: validation mIoU " in out
