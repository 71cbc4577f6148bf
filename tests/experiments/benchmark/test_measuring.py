import pytest
import torch

from experiments.benchmark.measuring import compare, markdown_table, median_seconds, misses_target, peak_megabytes

CPU = torch.device("cpu")


def allocate(megabytes):
    return lambda: torch.ones(megabytes, 2**18)


def test_peak_memory_is_that_of_the_step_alone():
    assert 60 < peak_megabytes(allocate, (64,), (1,), CPU) < 80


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_a_ratio_below_its_target_misses_it():
    assert misses_target({"speed-up": 2.0, "speed-up target": 2.5})
    assert not misses_target({"speed-up": 3.0, "speed-up target": 2.5})
    assert not misses_target({"speed-up": 1.0, "speed-up target": None})


@pytest.mark.parametrize("memory", [(0.0, 0.0), (30.0, 0.0), (0.0, 30.0), (30.0, 0.7)])
def test_measurements_below_the_resolution_are_printed_as_such_and_have_no_ratio(memory):
    row = compare({"dense": 0.002, "ours": 0.0}, dict(zip(("dense", "ours"), memory, strict=True)))
    assert (row["speed-up"], row["memory ratio"]) == (None, None)
    assert (row["dense MB"], row["ours MB"]) == memory  # the JSON file keeps the measured values
    cells = [cell.strip() for cell in markdown_table([row]).splitlines()[2].strip("|").split("|")]
    assert cells == ["2.00", "< 0.01", "", *("30.0" if each > 1 else "< 1" for each in memory), ""]
    assert misses_target(row | {"memory ratio target": 2.0})  # a ratio that could not be measured misses its target


def test_measurements_at_the_resolution_and_above_have_a_ratio():
    row = compare({"dense": 0.003, "ours": 0.002}, {"dense": 4.0, "ours": 1.0})
    assert (row["speed-up"], row["memory ratio"]) == pytest.approx((1.5, 4.0))


def test_a_markdown_table_has_one_line_per_row():
    lines = markdown_table([{"name": "a", "ms": 1234.5, "target": None}, {"name": "b", "ms": 1.234, "target": 2.0}])
    assert [line.replace(" ", "") for line in lines.splitlines()] == [
        "|name|ms|target|",
        "|-----:|-----:|-------:|",
        "|a|1234||",
        "|b|1.23|2.00|",
    ]
