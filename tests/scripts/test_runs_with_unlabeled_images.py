"""Runs of several processes that learn from images without labels."""

import shutil

import pytest
import torch
from interrupted_run import finish, start, two_processes
from layouts import write_folder
from safetensors.torch import load_file
from small_run import flags

from msctr_hf.training.run_folder import read_log

SETTINGS = {
    "train_images": 4, "unlabeled": "rest", "pseudo_label_threshold": 0.3, "ema_decay": 0.9, "batch_size": 2,
    "max_steps": 3, "validation_steps": 3, "checkpointing_steps": 1, "checkpoints_kept": 9, "logging_steps": 1,
}  # fmt: skip


@pytest.mark.slow
def test_the_teachers_of_two_processes_resume_with_the_statistics_that_each_had(tmp_path):
    folder = write_folder(tmp_path / "data", num_train=12, num_validation=1)

    def train(run, **changes):
        code, output = finish(start(*flags(folder, run, **SETTINGS, **changes), launcher=two_processes()))
        assert code == 0, output
        logged = {line["step"]: line["pseudo_cross_entropy"] for line in read_log(run) if "loss" in line}
        return load_file(run / "last/model.safetensors"), logged

    expected, losses = train(tmp_path / "whole")
    assert all(losses.values())  # all pixels are confident
    shutil.copytree(tmp_path / "whole/checkpoints/step_1", tmp_path / "part/checkpoints/step_1")
    weights, continued = train(tmp_path / "part", resume="auto")
    assert continued == {step: losses[step] for step in (2, 3)}
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
