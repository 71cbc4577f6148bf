"""Flags that are generated from dataclasses of settings: help, defaults, booleans, aliases, messages."""

import argparse
import dataclasses
import os

import accelerate
import pytest
from accelerate import PartialState

from msctr_hf import MsctrConfig
from msctr_hf.commands.command_line import CommandLine, one_sentence, written_to_output_dir
from msctr_hf.commands.train import command_line
from msctr_hf.data.settings import DataSettings
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.settings import EmbedderSettings, FindSettings
from msctr_hf.hub.settings import HubSettings
from msctr_hf.settings import as_mapping
from msctr_hf.training.interruption import Interrupted
from msctr_hf.training.settings import ModelSettings, TrainingSettings

GROUPS = (ModelSettings, DataSettings, TrainingSettings, HubSettings)


def actions():
    """Map every setting to its argparse action: `--NAME`, not the `--no_NAME` that transformers adds after it."""
    return {action.dest: action for action in reversed(command_line()._actions)}


def test_help_of_training_is_complete_and_shows_true_defaults():
    help_text = " ".join(command_line().format_help().split())
    settings = [each for group in GROUPS for each in dataclasses.fields(group)]
    described = [each for each in dataclasses.fields(MsctrConfig) if "help" in each.metadata]
    assert len(described) >= 28
    for each in [*settings, *described]:
        action = actions().get(each.name)
        if each.name in ("backbone_config", "palette", "semantic_loss_ignore_index") and each in described:
            continue
        text = action.help.replace("%%", "%")
        assert text.split(" (default")[0].rstrip(".")[:60] in help_text
        assert text[0].isupper() or text.startswith(("cpu", "timm", "train", "USER"))
        default = each.default if each.default is not dataclasses.MISSING else each.default_factory()
        if default not in (None, []):
            assert f"(default: {default})" in help_text, each.name
    for title in ("network", "data set and augmentation", "training", "Hub", "network and objective (MsctrConfig)"):
        assert any(group.title == title for group in command_line()._action_groups), title


def test_help_shows_all_flags_about_images_without_labels_together():
    groups = {group.title: [action.dest for action in group._group_actions] for group in command_line()._action_groups}
    about = [name for name in actions() if "unlabeled" in name or "pseudo" in name]
    assert {"unlabeled_dir", "unlabeled_start_step", "pseudo_label_threshold"} < set(about)
    assert groups["images without labels"] == sorted(about, key=groups["images without labels"].index)
    assert not any(set(about) & set(names) for title, names in groups.items() if title != "images without labels")
    after = command_line().format_help().split("\nimages without labels:\n")[1]
    assert all(f"--{name} " in after for name in about)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ema"], True), (["--ema", "true"], True), (["--ema", "false"], False), ([], False),
    ],
)  # fmt: skip
def test_boolean_flags_work_with_and_without_a_value(words, expected):
    assert command_line().parse(words)[2].ema is expected


@pytest.mark.parametrize(
    ("words", "expected"), [(["--hub_images"], True), (["--hub_images", "false"], False), ([], None)]
)
def test_boolean_flags_whose_default_is_none_need_no_value_either(words, expected):
    assert command_line().parse(words)[3].hub_images is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--contrastive_detach_coarse"], {"contrastive_detach_coarse": True}),
        (["--contrastive_detach_coarse", "false"], {"contrastive_detach_coarse": False}),
        (["--align_corners", "--seed", "3"], {"align_corners": True}),
        ([], {}),
    ],
)
def test_boolean_flags_of_the_network_need_no_value_and_only_given_ones_are_returned(words, expected):
    assert command_line().parse(words)[-1] == expected


LISTS = {
    "class_weights": [0.5, 1, 2], "decode_stages": [1, 2], "projection_stages": [2, 3],
    "contrastive_scale_weights": [1, 0.5], "contrastive_cross_scale_weights": [1, 0.5],
    "contrastive_cross_scale_pairs": [[0, 3], [0, 2]],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), LISTS.items())
def test_lists_of_the_network_are_given_entry_by_entry_or_as_a_list(tmp_path, name, value):
    (tmp_path / "recipe.yaml").write_text(f"{name}: {value}\n")
    for words in ([*map(str, value)], [str(value)]):
        assert command_line().parse([f"--{name}", *words, "--seed", "3"])[-1] == {name: value}
        assert command_line().parse(["--seed", "3", f"--{name}", *words])[-1] == {name: value}
    assert command_line().parse(["--config", str(tmp_path / "recipe.yaml")])[-1] == {name: value}


def test_a_list_of_the_network_may_be_short_or_a_word(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("projection_stages: [2]\ncontrastive_cross_scale_pairs: [[0, 1]]\nclass_weights: auto\n")
    given = {"projection_stages": [2], "contrastive_cross_scale_pairs": [[0, 1]], "class_weights": "auto"}
    words = ["--projection_stages", "2", "--contrastive_cross_scale_pairs", "[[0, 1]]", "--class_weights", "auto"]
    for arguments in (words, ["--config", str(recipe)]):
        assert command_line().parse(arguments)[-1] == given
    recipe.write_text("contrastive_cross_scale_pairs: []\n")
    assert command_line().parse(["--config", str(recipe)])[-1] == {"contrastive_cross_scale_pairs": []}
    assert command_line().parse(["--class_weights", "null"])[-1] == {"class_weights": None}


def test_a_list_that_the_shell_has_split_is_refused_with_what_to_write(capsys):
    with pytest.raises(SystemExit):
        command_line().parse(["--class_weights", "[1,", "2,", "3]"])
    error = capsys.readouterr().err
    assert (
        "argument --class_weights: '[1,' cannot be read; write a list as 1 2 3, or in quotes as '[1, 2, 3]'" in error
    )


def test_flags_override_the_recipe_which_overrides_defaults(tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_steps: 7\nseed: 1\nper_device_train_batch_size: 5\nema: true\n")
    _, _, training, *_ = command_line().parse(["--config", str(tmp_path / "recipe.yaml"), "--seed", "2"])
    assert (training.max_steps, training.seed, training.batch_size, training.ema) == (7, 2, 5, True)
    assert training.momentum == TrainingSettings().momentum


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("per_device_train_batch_size", "batch_size"),
        ("dataloader_num_workers", "num_workers"),
        ("hub_private_repo", "hub_private"),
        ("torch_compile", "compile"),
    ],
)
def test_flags_of_transformers_with_the_same_meaning_are_accepted(word, ours):
    value = "true" if ours in ("hub_private", "compile") else "3"
    groups = command_line().parse([f"--{word}", value])[:4]
    assert as_mapping(*groups)[ours] == (value == "true" or 3)


@pytest.mark.parametrize(
    ("word", "ours"),
    [("eval_steps", "validation_steps"), ("save_steps", "checkpointing_steps"), ("resume_from_checkpoint", "resume")],
)
def test_flags_of_transformers_with_another_meaning_are_refused_and_ours_are_suggested(capsys, tmp_path, word, ours):
    with pytest.raises(SystemExit):
        command_line().parse([f"--{word}", "3"])
    assert f"Use --{ours} instead." in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(f"{word}: 3")
    with pytest.raises(SystemExit):
        command_line().parse(["--config", str(tmp_path / "recipe.yaml")])
    assert f"unknown key `{word}`. Use `{ours}` instead." in capsys.readouterr().err


@pytest.mark.parametrize("key", ["hub_pictures", "hub-pictures", "hub_images", "hub-images"])
def test_former_names_of_settings_are_accepted_with_dashes_and_underscores(tmp_path, key):
    (tmp_path / "recipe.yaml").write_text(f"{key}: true\n")
    for words in ([f"--{key}"], [f"--{key}", "true"], ["--config", str(tmp_path / "recipe.yaml")]):
        assert command_line().parse(words)[3].hub_images is True


@pytest.mark.parametrize("key", ["max_steps", "max-steps"])
def test_a_flag_for_epochs_replaces_the_steps_of_a_recipe_with_dashes_and_underscores(tmp_path, key):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{key}: 7\n")
    training = command_line().parse(["--config", str(recipe), "--num-train-epochs", "3"])[2]
    assert (training.max_steps, training.num_train_epochs) == (None, 3)
    recipe.write_text(f"{key}: 7\nnum_train_epochs: 3\n")
    with pytest.raises(UsageError, match="sets both `max_steps` and `num_train_epochs`"):
        command_line().parse(["--config", str(recipe)])


SEARCH = ["--model", "network", "--image", "street.jpg"]


@pytest.mark.parametrize(
    "words",
    [
        "--pixel 1 2 --pixel 3 4 --input a/ --input b/ c*.png",
        "--pixel=1 2 --pixel 3 --pixel=4 --input=a/ --input b/ --threshold 0.5 --input=c*.png",
    ],
)
def test_lists_that_are_given_by_several_flags_are_joined_and_replace_those_of_a_recipe(tmp_path, words):
    (tmp_path / "recipe.yaml").write_text("pixel: [7, 8]\ninput: [d/]\noutput_dir: there\n")
    command = CommandLine([FindSettings, EmbedderSettings], "", "find")
    found = command.parse([*SEARCH, *words.split(), "--config", str(tmp_path / "recipe.yaml")])[0]
    assert (found.pixel, found.input, found.output_dir) == ([1, 2, 3, 4], ["a/", "b/", "c*.png"], "there")


def test_of_flags_with_one_value_the_last_one_counts_and_a_value_may_contain_dashes_and_spaces():
    words = ["--input", "--a b.png", "--input=-c.png", "--pixel", "1", "2", "--top", "3", "--top", "4"]
    command = CommandLine([FindSettings, EmbedderSettings], "", "find")
    assert command.parse([*SEARCH, *words[:2], *words[3:]])[0].input == ["--a b.png"]
    found = command.parse([*SEARCH, *words[2:]])[0]
    assert (found.input, found.top) == (["-c.png"], 4)


def test_of_lists_with_a_default_the_last_one_counts():
    words = ["--report_to", "wandb", "--crop_size", "8", "8", "--report_to", "none", "--crop_size", "16", "24"]
    data, training = command_line().parse(words)[1:3]
    assert (training.report_to, data.crop_size) == (["none"], [16, 24])


@pytest.mark.parametrize("flag", ["--box", "--window_size", "--window_stride"])
def test_a_list_of_fixed_length_that_is_given_twice_is_refused(flag, capsys):
    command = CommandLine([FindSettings, EmbedderSettings], "", "find")
    with pytest.raises(SystemExit) as stopped:
        command.parse([*SEARCH, "--input", "a/", flag, "8", "8", f"{flag}=9", "9"])
    assert stopped.value.code == 2
    assert f"argument {flag}: given more than once" in capsys.readouterr().err.splitlines()[-1]


def test_a_date_in_a_recipe_is_read_as_text(tmp_path):
    (tmp_path / "recipe.yaml").write_text("output_dir: 2026-01-31\n")
    assert command_line().parse(["--config", str(tmp_path / "recipe.yaml")])[2].output_dir == "2026-01-31"


def test_a_value_of_an_unsupported_yaml_type_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("output_dir: !!set {a}\n")
    with pytest.raises(SystemExit):
        command_line().parse(["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err.splitlines()
    assert error[-1].endswith("argument --output_dir: expected a number, a string, true, false or a list, got a set.")


def test_messages_name_arguments_as_flags():
    line = CommandLine([TrainingSettings], None, "train", flag_names={"path": "output_dir"})
    reworded = line.with_flag_names(
        "Use `resume='auto'`,\n`ema=True` or `max_steps` with `path`; not `hf auth login`."
    )
    assert reworded == "Use --resume auto, --ema true or --max_steps with --output_dir; not `hf auth login`."


@pytest.mark.parametrize(("error", "code"), [(UsageError("`a` is wrong."), 2), (Interrupted("stopped"), 75)])
def test_wrong_input_and_interruptions_have_exit_codes_of_their_own(capsys, error, code):
    with pytest.raises(SystemExit) as stop, one_sentence():
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err.strip().endswith(str(error))


@pytest.mark.parametrize("backend", ["gloo", None])
def test_one_of_several_cpu_processes_exits_without_shutting_python_down(monkeypatch, backend):
    state, ended = PartialState(cpu=True), []
    monkeypatch.setattr(accelerate.state, "is_initialized", lambda: True)
    monkeypatch.setattr(state, "backend", backend)
    monkeypatch.setattr(os, "_exit", ended.append)
    CommandLine([], None, "nothing").run([], lambda: None)
    assert ended == ([0] if backend == "gloo" else [])


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="zip"), one_sentence():
        raise ValueError("zip() argument 2 is shorter than argument 1")


def test_only_errors_of_files_below_output_dir_are_attributed_to_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="`output_dir`"), written_to_output_dir(tmp_path / "file/sub"):
        (tmp_path / "file/sub").mkdir()
    with pytest.raises(UsageError, match="No space left"), written_to_output_dir(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), written_to_output_dir(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()


def test_a_value_of_the_wrong_type_is_refused_by_argparse(capsys):
    with pytest.raises(SystemExit):
        command_line().parse(["--max_steps", "many"])
    assert "invalid int value" in capsys.readouterr().err
    assert isinstance(command_line(), argparse.ArgumentParser)
