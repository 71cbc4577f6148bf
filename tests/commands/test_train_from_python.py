"""`msctr_hf.train` does what the command `msctr train` does: the same checks, files and weights."""

import json
import threading

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from conftest import SMALL_RESNET
from layouts import write_folder
from safetensors.torch import load_file
from small_run import flags
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

import msctr_hf
from msctr_hf.commands.keywords import Keywords
from msctr_hf.data.settings import DataSettings
from msctr_hf.errors import UsageError
from msctr_hf.training.loop import TrainingLoop
from msctr_hf.training.settings import TrainingSettings

SMALL = {
    "dataset": "folder", "backbone": SMALL_RESNET, "crop_size": (32, 32),
    "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8,
    "class_weights": [1, 1, 1], "batch_size": 2, "max_steps": 4, "validation_steps": 2, "checkpointing_steps": 2,
    "logging_steps": 1, "num_workers": 0, "report_to": "none",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()


def test_the_function_and_the_command_train_the_same_network(run_script, folder, tmp_path):
    by_command, by_function = tmp_path / "by_command", tmp_path / "by_function"
    assert run_script("train.py", *flags(folder, by_command))[0] == 0
    AcceleratorState._reset_state()
    GradientState._reset_state()
    results = msctr_hf.train("quickstart", data_dir=folder, output_dir=by_function, **SMALL)
    assert results == json.loads((by_command / "results.json").read_text())
    assert results == json.loads((by_function / "results.json").read_text())
    for name in ("last", "."):
        weights, expected = (load_file(run / name / "model.safetensors") for run in (by_function, by_command))
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (by_function, by_command)]
    assert {**configs[0], "output_dir": ""} == {**configs[1], "output_dir": ""}
    command = json.loads((by_function / "run.json").read_text())["command"]
    assert command.startswith(f"msctr train --config quickstart --data_dir {folder} --output_dir {by_function}")
    assert "--crop_size 32 32" in command


def test_one_process_can_train_several_times_and_outside_the_main_thread(folder, tmp_path):
    results = {}

    def train(name, **settings):
        output_dir = tmp_path / name
        results[name] = msctr_hf.train("quickstart", **SMALL | settings, data_dir=folder, output_dir=output_dir)

    train("first", mixed_precision="bf16", max_steps=1)
    settings = {"gradient_accumulation_steps": 2, "max_steps": 1}
    second = threading.Thread(target=train, args=("second",), kwargs=settings)
    second.start()
    second.join()
    assert [results[name]["step"] for name in ("first", "second")] == [1, 1]
    precisions = [json.loads((tmp_path / n / "run.json").read_text())["mixed_precision"] for n in ("first", "second")]
    assert precisions == ["bf16", "no"]


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_tf32_lasts_as_long_as_the_run_that_asks_for_it(folder, tmp_path, monkeypatch, before, dry_run):
    products, run, during = torch.backends.cuda.matmul, TrainingLoop.run, []
    monkeypatch.setattr(TrainingLoop, "run", lambda loop: during.append(products.allow_tf32) or run(loop))
    settings = SMALL | {"max_steps": 1, "tf32": True, "dry_run": dry_run}
    of_session, products.allow_tf32 = products.allow_tf32, before
    try:
        msctr_hf.train("quickstart", **settings, data_dir=folder, output_dir=tmp_path / "run")
        assert (during, products.allow_tf32) == ([True], before)
    finally:
        products.allow_tf32 = of_session


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_transformers_are_hidden_during_a_run_and_restored_afterwards(folder, tmp_path, capsys, shown):
    (enable_progress_bar if shown else disable_progress_bar)()
    msctr_hf.train("quickstart", **SMALL | {"max_steps": 1}, data_dir=folder, output_dir=tmp_path / "run")
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("training: ")] == []
    assert is_progress_bar_enabled() == shown


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_stepz": 3}, "unknown setting `max_stepz`. Did you mean `max_steps`?"),
        ({"eval_steps": 3}, "unknown setting `eval_steps`. Use `validation_steps` instead."),
        ({"help": True}, "unknown setting `help`. See `msctr train --help` for all settings."),
        ({"crop_size": {32}}, "`crop_size`: expected a number, a string, true, false or a list, got a set."),
        ({"max_steps": "many"}, "`max_steps`: invalid int value: 'many'"),
        ({"optimizer": "lion"}, "`optimizer`: invalid choice: 'lion'"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0."),
        ({"max_steps": 1, "num_train_epochs": 1}, "`max_steps` and `num_train_epochs` both say how long to train"),
        ({"config": "quickstartz"}, "Did you mean quickstart?"),
        ({"data_dir": "/no/where", "dataset": "cityscapes"}, "/no/where"),
        ({"push_to_hub": True}, "`push_to_hub` needs `hub_model_id='USER/NAME'`."),
    ],
)
def test_a_mistake_of_the_user_raises_a_usage_error_and_does_not_exit(tmp_path, settings, sentence):
    with pytest.raises(UsageError) as raised:
        msctr_hf.train(**{"output_dir": tmp_path / "run", **settings})
    assert sentence in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_none_replaces_the_value_of_a_recipe_by_the_default(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mixed_precision: bf16\nmax_steps: 3\nseed: 1\n")
    keywords = Keywords([TrainingSettings], None, "train")
    given = {"mixed_precision": None, "num_train_epochs": 2}
    (training,), _ = keywords.parse_keywords(tmp_path / "recipe.yaml", given)
    assert (training.mixed_precision, training.max_steps, training.num_train_epochs, training.seed) == (
        None,
        None,
        2,
        1,
    )


def test_none_replaces_the_value_of_a_recipe_under_all_names_of_a_setting(tmp_path):
    (tmp_path / "recipe.yaml").write_text("per_device_train_batch_size: 16\n")
    for name in ("batch_size", "per_device_train_batch_size"):
        (training,), _ = Keywords([TrainingSettings], None, "train").parse_keywords(
            tmp_path / "recipe.yaml", {name: None}
        )
        assert training.batch_size == TrainingSettings().batch_size


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_values_of_numpy_and_torch_are_accepted(array):
    keywords = Keywords([TrainingSettings, DataSettings], None, "train", with_network_settings=True)
    given = {"max_steps": array(3), "ema": array(True), "crop_size": array([32, 64]), "class_weights": array([1, 2])}
    (training, data, network), _ = keywords.parse_keywords(None, {**given, "adam_betas": [array(0.5), 0.75]})
    assert (training.max_steps, training.ema, training.adam_betas) == (3, True, [0.5, 0.75])
    assert (data.crop_size, network["class_weights"]) == ([32, 64], [1, 2])
