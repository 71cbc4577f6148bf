"""The cost of a step is a ratio of medians within one process, on the same batches."""

import pytest
from layouts import write_folder
from small_run import flags

from experiments.evidence import step_cost
from experiments.evidence.step_cost import REPETITIONS, WARM_UP, measure_step_cost


def test_two_arms_take_the_same_batches_in_turn_and_nothing_is_written(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", num_train=6, num_validation=1)
    taken = []

    class Recorded(step_cost._Step):
        def seconds(self, batch):
            taken.append((self.setup.network.config.contrastive_mode, batch["pixel_values"].double().sum().item()))
            assert super().seconds(batch) > 0
            return {"ms_cs": 3.0, "ce": 2.0}[taken[-1][0]]

    monkeypatch.setattr(step_cost, "_Step", Recorded)
    common = flags(folder, tmp_path / "run", mixed_precision="no")
    cost = measure_step_cost(
        [*common, "--contrastive_mode", "ms_cs"], [*common, "--contrastive_mode", "ce"], threads=1
    )
    assert cost == (3, 2, pytest.approx(1.5))
    assert len(taken) == 2 * (WARM_UP + REPETITIONS)
    for first, second in zip(taken[::2], taken[1::2], strict=True):
        assert {first[0], second[0]} == {"ms_cs", "ce"}
        assert first[1] == second[1]
    assert [mode for mode, _ in taken[:4]] in (["ce", "ms_cs", "ms_cs", "ce"], ["ms_cs", "ce", "ce", "ms_cs"])
    assert not (tmp_path / "run").exists()
