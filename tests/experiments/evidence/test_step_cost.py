"""The cost of a step is the median of ratios within one process, of steps on the same batches."""

import pytest
import torch
from layouts import write_folder
from small_run import flags

from experiments.evidence import step_cost
from experiments.evidence.step_cost import measure_step_cost
from msctr_hf.commands.train import main as train
from msctr_hf.models.modeling_msctr import MsctrForSemanticSegmentation


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


def test_a_teacher_starts_from_a_trained_network_and_its_images_are_loaded_before_the_clock(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", num_train=6, num_validation=1)
    common = flags(folder, tmp_path / "run", mixed_precision="no", max_steps=2, train_images=4)
    train([*common, "--contrastive_mode", "ce"])
    trained = MsctrForSemanticSegmentation.from_pretrained(tmp_path / "run").state_dict()
    read, start, real = [], {}, step_cost.seconds_of_step

    def watched(loop, batches):
        if loop.teacher is None:
            return real(loop, batches)
        for network in (loop.network, loop.average.module) if not start else ():
            start[network] = {name: values.clone() for name, values in network.state_dict().items()}
        before = loop.unlabeled.position.images_in_epoch, loop.unlabeled.position.epoch
        seconds = real(loop, batches)
        read.append((before, (loop.unlabeled.position.images_in_epoch, loop.unlabeled.position.epoch)))
        return seconds

    monkeypatch.setattr(step_cost, "seconds_of_step", watched)
    monkeypatch.setattr(step_cost, "REPETITIONS", 2)
    common += ["--model_name_or_path", str(tmp_path / "run"), "--max_steps", "99"]
    arm = [*common, "--contrastive_mode", "ms", "--unlabeled", "rest", "--ema", "true", "--unlabeled_batch_size", "2"]
    measure_step_cost(arm, [*common, "--contrastive_mode", "ce"], threads=1)
    assert len(start) == 2
    for state in start.values():
        assert {name for name in state if name not in trained} == {name for name in state if "projection_head" in name}
        for name, values in trained.items():
            torch.testing.assert_close(state[name], values, rtol=0, atol=0)
    assert len(read) == step_cost.WARM_UP + 2
    assert all(before == after for before, after in read)  # nothing is loaded while the clock runs
    assert len({before for before, _ in read}) == len(read)  # every step has other images
