import torch

from experiments.benchmark.measuring import markdown_table, median_seconds, misses_target, peak_megabytes

CPU = torch.device("cpu")


def allocate(megabytes):
    return lambda: torch.ones(megabytes, 2**18)


def test_peak_is_that_of_the_step_alone():
    assert 60 < peak_megabytes(allocate, (64,), (1,), CPU) < 80


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_ratio_below_its_target_is_a_miss():
    assert misses_target({"speed-up": 2.0, "speed-up target": 2.5})
    assert not misses_target({"speed-up": 3.0, "speed-up target": 2.5})
    assert not misses_target({"speed-up": 1.0, "speed-up target": None})


def test_table_has_a_line_per_row():
    lines = markdown_table([{"name": "a", "ms": 1234.5, "target": None}, {"name": "b", "ms": 1.234, "target": 2.0}])
    assert [line.replace(" ", "") for line in lines.splitlines()] == [
        "|name|ms|target|",
        "|-----:|-----:|-------:|",
        "|a|1234||",
        "|b|1.23|2.00|",
    ]
