"""The cost of a step is the median of ratios within one process, of steps on the same batches."""

import pytest
from layouts import write_folder
from small_run import flags

from experiments.evidence import step_cost
from experiments.evidence.step_cost import measure_step_cost


def test_two_arms_take_the_same_batches_in_turn_and_no_run_is_left(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", num_train=6, num_validation=1)
    taken, real = [], step_cost.seconds_of_step

    def recorded(loop, batches):
        mode = loop.network.config.contrastive_mode
        taken.append((mode, [batch["pixel_values"].double().sum().item() for batch in batches]))
        assert real(loop, batches) > 0
        return {"ms_cs": 3.0, "ce": 2.0}[mode] + (len(taken) <= 2 * step_cost.WARM_UP)  # the warm-up must not count

    monkeypatch.setattr(step_cost, "seconds_of_step", recorded)
    assert step_cost.REPETITIONS == 15
    monkeypatch.setattr(step_cost, "REPETITIONS", 3)  # the same, but faster
    common = flags(folder, tmp_path / "run", mixed_precision="no", max_steps=99)
    cost = measure_step_cost(
        [*common, "--contrastive_mode", "ms_cs"], [*common, "--contrastive_mode", "ce"], threads=1
    )
    assert cost == (3, 2, pytest.approx(1.5))
    assert len(taken) == 2 * (step_cost.WARM_UP + 3)
    for first, second in zip(taken[::2], taken[1::2], strict=True):
        assert {first[0], second[0]} == {"ms_cs", "ce"}
        assert first[1] == second[1]
    assert [mode for mode, _ in taken[:4]] == ["ce", "ms_cs", "ms_cs", "ce"]
    assert not (tmp_path / "run").exists()
