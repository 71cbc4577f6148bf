"""Runs of several processes that learn from images without labels."""

import shutil

import pytest
import torch
from interrupted_run import finish, start, two_processes
from layouts import write_folder, write_image
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


def test_a_run_that_a_faulty_image_without_labels_ended_resumes_with_another_one_in_its_place(run_script, tmp_path):
    folder, images = write_folder(tmp_path / "data", num_train=4, num_validation=1), tmp_path / "images"
    for number in range(6):
        write_image(images / f"{number}.png", seed=number + 10)
    readable = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(b"no image")
    settings = {"unlabeled_dir": images, "unlabeled_start_step": 1, "checkpointing_steps": 1, "resume": "auto"}
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert code == 2
    assert f"`msctr prepare --unlabeled_dir {images}` checks all files. Put a readable image in" in error
    (images / "3.png").rename(tmp_path / "3.png")
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert (code, "the unlabeled set had 6 images and has 5" in error) == (2, True)
    (images / "3.png").write_bytes(readable)
    assert run_script("train.py", *flags(folder, tmp_path / "run", **settings))[0] == 0
    assert [line["step"] for line in read_log(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_stream_that_does_not_fill_a_batch_of_two_processes_is_refused_by_both(run_script, tmp_path):
    folder, copied = write_folder(tmp_path / "data", num_train=6, num_validation=3), tmp_path / "copy"
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", copied]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    settings = {"streaming": True, "unlabeled": "validation", "batch_size": 2}  # 3 images, and 4 in a step
    code, output = finish(start(*flags(copied, tmp_path / "run", **settings), launcher=two_processes()))
    assert code != 0
    assert output.count("a stream has fewer than the 4 images of one batch of all processes") == 2
    assert "Unsupported types" not in output
    assert not (tmp_path / "run").exists()
