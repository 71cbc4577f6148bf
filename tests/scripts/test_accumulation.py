"""With gradient accumulation, all steps see the same number of images, also where an epoch ends within a step."""

import copy
import itertools
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from interrupted_run import assert_same_end, finish, newest, start, two_processes
from layouts import write_folder
from safetensors.torch import load_file
from small_run import flags
from torch import nn

from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.models.modeling_msctr import MsctrForSemanticSegmentation
from msctr_hf.training import setup
from msctr_hf.training.network import build_network, freeze
from msctr_hf.training.run_folder import read_log

ACCUMULATED = 4  # batches of 2 images: a step sees 8 of the 10 images that the 5 batches of an epoch have
SETTINGS = {
    "batch_size": 2, "gradient_accumulation_steps": ACCUMULATED, "max_steps": 4, "validation_steps": 4,
    "checkpointing_steps": 100, "checkpoints_kept": 9, "contrastive_mode": "ce", "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Write a data set of five batches of 2 images, and one image that is left over."""
    return write_folder(tmp_path / "data", num_train=11, num_validation=1)


@pytest.fixture
def seen(monkeypatch):
    """Record the pixel values and labels of every batch that is trained on."""
    batches, forward = [], MsctrForSemanticSegmentation.forward

    def recording(self, pixel_values, *arguments, **keywords):
        if self.training:
            batches.append((pixel_values.clone(), keywords["labels"].clone()))
        return forward(self, pixel_values, *arguments, **keywords)

    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", recording)
    return batches


def drain(seen):
    """Return all images that were trained on since the last call."""
    images = torch.cat([pixel_values for pixel_values, _ in seen])
    seen.clear()
    return images


@pytest.fixture
def float64(monkeypatch):
    """Train in float64 with frozen BatchNorm; return a list to which every initial network is added."""
    initial, augment = [], TrainingAugmentation.__call__

    def with_fixed_norms(*arguments):
        model = build_network(*arguments).double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                freeze(module)
        initial.append(copy.deepcopy(model))
        return model

    def in_float64(self, *sample):
        pixel_values, labels = augment(self, *sample)
        return pixel_values.double(), labels

    monkeypatch.setattr(setup, "build_network", with_fixed_norms)
    monkeypatch.setattr(TrainingAugmentation, "__call__", in_float64)
    torch.set_default_dtype(torch.float64)
    yield initial
    torch.set_default_dtype(torch.float32)


def test_weights_are_those_of_a_plain_loop_over_consecutive_batches(run_script, folder, tmp_path, seen, float64):
    settings = {
        **SETTINGS, "optimizer": "sgd", "learning_rate": 0.05, "schedule": "exponential", "exponential_gamma": 0.5,
        "warmup_steps": 0, "weight_decay": 0.01, "no_decay": "bias",
    }  # fmt: skip
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert code == 0, error
    batches, (network,) = list(seen), float64
    assert len(batches) == 4 * ACCUMULATED

    named = list(network.named_parameters())
    groups = [
        {"params": [each for name, each in named if "bias" in name], "weight_decay": 0.0},
        {"params": [each for name, each in named if "bias" not in name], "weight_decay": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    network.train()
    losses = []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * [1, 1, 0.5, 0.25][step]  # 0, 0.8, 1.6 and 2.4 epochs have been seen before
        optimizer.zero_grad()
        for pixel_values, labels in batches[step * ACCUMULATED :][:ACCUMULATED]:
            loss = network(pixel_values=pixel_values, labels=labels).loss
            (loss / ACCUMULATED).backward()
            losses.append(loss.item())
        optimizer.step()
    weights = load_file(tmp_path / "run/last/model.safetensors")
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-9, atol=1e-12)

    logged = [entry for entry in read_log(tmp_path / "run") if "loss" in entry]
    means = torch.tensor(losses).view(4, ACCUMULATED).mean(1).tolist()
    assert [entry["loss"] for entry in logged] == pytest.approx(means, rel=1e-6)
    assert [entry["learning_rate"] for entry in logged] == [0.05, 0.05, 0.025, 0.0125]
    assert "4 steps, 3.2 epochs" in out


def test_a_run_that_is_killed_between_two_epochs_of_a_step_resumes_to_the_same_end(
    run_script, folder, tmp_path, monkeypatch, seen
):
    whole, part = tmp_path / "whole", tmp_path / "part"
    # contrast and dropout draw random numbers in every batch
    settings = {**SETTINGS, "contrastive_mode": "ms_cs", "dropout": 0.1, "ema": True, "checkpointing_steps": 1}
    assert run_script("train.py", *flags(folder, whole, **settings))[0] == 0
    of_whole = drain(seen)
    assert len(of_whole) == 4 * 8

    class Killed(BaseException):
        pass

    step = torch.optim.AdamW.step
    taken = itertools.count(1)

    def counting(self, *arguments):
        next(taken)
        return step(self, *arguments)

    forward = MsctrForSemanticSegmentation.forward

    def killed_in_the_second_epoch(self, *arguments, **keywords):
        if self.training and len(seen) == 6:  # the second step has trained on 1 batch of each epoch
            raise Killed
        return forward(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counting)
        patch.setattr(MsctrForSemanticSegmentation, "forward", killed_in_the_second_epoch)
        with pytest.raises(Killed):
            run_script("train.py", *flags(folder, part, **settings))
    assert (next(taken), newest(part)) == (2, 1)
    assert torch.equal(drain(seen), of_whole[:12])
    assert run_script("train.py", *flags(folder, part, **settings, resume="auto"))[0] == 0
    assert torch.equal(drain(seen), of_whole[8:])
    assert_same_end(part, whole)


@pytest.mark.slow
def test_a_stream_is_accumulated_over_the_end_of_an_epoch_and_resumes_there(run_script, folder, tmp_path, seen):
    copied, whole = tmp_path / "copy", tmp_path / "whole"
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", copied]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    settings = {**SETTINGS, "streaming": True, "checkpointing_steps": 1}
    assert run_script("train.py", *flags(copied, whole, **settings))[0] == 0
    of_whole = drain(seen)
    assert len(of_whole) == 4 * 8
    for saved_step in (1, 2):
        part = tmp_path / f"from_{saved_step}"
        shutil.copytree(whole / f"checkpoints/step_{saved_step}", part / f"checkpoints/step_{saved_step}")
        assert run_script("train.py", *flags(copied, part, **settings, resume="auto"))[0] == 0
        assert torch.equal(drain(seen), of_whole[8 * saved_step :])
        weights, expected = (load_file(run / "last/model.safetensors") for run in (part, whole))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def split(batch_size, accumulated, **changes):
    return {**SETTINGS, "batch_size": batch_size, "gradient_accumulation_steps": accumulated, **changes}


@pytest.mark.slow
def test_a_run_continues_at_the_same_image_where_the_new_batches_end_at_others(run_script, folder, tmp_path, seen):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, **split(2, 4, max_steps=3, checkpointing_steps=2)))[0] == 0
    of_whole = drain(seen)
    assert len(of_whole) == 3 * 8
    shutil.copytree(
        whole / "checkpoints/step_2", part / "checkpoints/step_2"
    )  # 6 images of the second epoch were seen
    code, out, error = run_script("train.py", *flags(folder, part, **split(4, 2, max_steps=3), resume="auto"))
    assert code == 0, error
    assert "the order of the data stays the same" in out
    assert torch.equal(drain(seen), of_whole[16:])


def test_a_step_is_whole_after_a_change_of_its_batches(run_script, tmp_path, float64):
    folder = write_folder(tmp_path / "data", num_train=24, num_validation=1)
    whole, part = tmp_path / "whole", tmp_path / "part"
    same = {"max_steps": 3, "optimizer": "sgd", "learning_rate": 0.05, "scale_range": "1 1", "warmup_steps": 0}
    settings = split(4, 2, **same, checkpointing_steps=1)
    assert run_script("train.py", *flags(folder, whole, **settings))[0] == 0
    shutil.copytree(whole / "checkpoints/step_1", part / "checkpoints/step_1")  # after 2 batches of 4 images
    assert run_script("train.py", *flags(folder, part, **split(2, 4, **same), resume="auto"))[0] == 0
    weights, expected = (load_file(run / "last/model.safetensors") for run in (part, whole))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_with_its_images_of_both_epochs(
    run_script, folder, tmp_path, monkeypatch
):
    augment, drawn = TrainingAugmentation.__call__, itertools.count(1)

    def spoiling(*arguments):
        pixel_values, labels = augment(*arguments)
        return pixel_values * (float("nan") if next(drawn) == 13 else 1), labels  # in the second batch of epoch 1

    monkeypatch.setattr(TrainingAugmentation, "__call__", spoiling)
    settings = {**SETTINGS, "max_steps": 2, "checkpointing_steps": 1}
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert code == 0, error
    (skipped,) = [entry for entry in read_log(tmp_path / "run") if "skipped" in entry]
    assert (skipped["step"], len(skipped["images"])) == (2, 8)
    before, after = (load_file(tmp_path / f"run/checkpoints/step_{step}/model.safetensors") for step in (1, 2))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_setting_decides_and_not_the_environment_of_accelerate(run_script, folder, tmp_path, seen, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    settings = {**SETTINGS, "max_steps": 2, "gradient_accumulation_steps": 2}
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert code == 0, error
    assert "batch     4 = 2 images x 2 batches x 1 process(es)" in out
    assert len(drain(seen)) == 2 * 4


def test_another_number_in_the_configuration_of_deepspeed_is_refused(run_script, folder, tmp_path, monkeypatch):
    prepare = Accelerator.prepare

    def overriding(self, *arguments):  # as Accelerate does if its configuration of DeepSpeed has another number
        self.gradient_accumulation_steps = 1
        return prepare(self, *arguments)

    monkeypatch.setattr(Accelerator, "prepare", overriding)
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **SETTINGS))
    assert code == 2
    assert "--gradient_accumulation_steps is 4, but the configuration of DeepSpeed says 1" in error
    assert not (tmp_path / "run").exists()


def test_another_limit_of_gradients_in_the_configuration_of_deepspeed_is_refused(
    run_script, folder, tmp_path, monkeypatch
):
    plugin = DeepSpeedPlugin(gradient_clipping=1.0)
    monkeypatch.setattr(Accelerator, "deepspeed_plugin", property(lambda self: plugin))
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **SETTINGS, max_grad_norm=0.5))
    assert code == 2
    assert "--max_grad_norm is 0.5, but the configuration of DeepSpeed says gradient_clipping 1.0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_accumulate_over_the_end_of_an_epoch_and_resume_there(run_script, folder, tmp_path, streaming):
    def train(data, run, **changes):
        settings = {**SETTINGS, "contrastive_mode": "ms_cs", "contrastive_gather_anchors": True, **changes}
        settings["checkpointing_steps"] = 1
        code, output = finish(start(*flags(data, run, **settings), launcher=two_processes()))
        assert code == 0, output
        return load_file(run / "last/model.safetensors"), {
            entry["step"]: entry["loss"] for entry in read_log(run) if "loss" in entry
        }

    data = folder
    if streaming:
        data = tmp_path / "copy"
        options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", data]
        assert run_script("prepare_dataset.py", *options)[0] == 0
    changes = {"gradient_accumulation_steps": 3, "streaming": streaming}  # 2 batches of 2 x 2 images in an epoch
    whole, losses = train(data, tmp_path / "whole", **changes)
    if not streaming:
        assert json.loads((tmp_path / "whole/run.json").read_text())["duration"]["num_epochs"] == 6
    shutil.copytree(tmp_path / "whole/checkpoints/step_1", tmp_path / "part/checkpoints/step_1")
    part, continued = train(data, tmp_path / "part", **changes, resume="auto")
    for name, weights in whole.items():
        torch.testing.assert_close(part[name], weights, rtol=1e-5, atol=1e-7)
    assert continued == pytest.approx({step: loss for step, loss in losses.items() if step > 1}, rel=1e-6)
