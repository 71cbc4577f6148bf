"""The command `msctr`: its commands, their help, misspelled flags, and what importing costs."""

import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import msctr_cli


def python(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd)


def test_help_lists_the_commands_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, msctr_cli; msctr_cli.main(['--help']); print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    *help_text, loaded = run.stdout.strip().splitlines()
    assert loaded == "[]"
    assert all(any(line.strip().startswith(f"{name} ") for line in help_text) for name in msctr_cli.COMMANDS)


@pytest.mark.parametrize(("words", "sentence"), [(["trian"], "Did you mean 'train'?"), ([], "usage: msctr COMMAND")])
def test_an_unknown_or_missing_command_exits_with_2(capsys, words, sentence):
    with pytest.raises(SystemExit) as stop:
        msctr_cli.main(words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", msctr_cli.COMMANDS)
def test_every_command_has_a_help_of_its_own(capsys, name):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(msctr_cli.module_of(name)).main(["--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert f"msctr {name}" in help_text
    assert "(default: None)" not in help_text


MISSPELLED = [  # module, words before the flag, misspelled flag, intended flag
    ("msctr_hf.commands.train", [], "lerning_rate", "learning_rate"),
    ("msctr_hf.commands.evaluate", [], "modl", "model"),
    ("msctr_hf.commands.predict", [], "modl", "model"),
    ("msctr_hf.commands.import", [], "outputdir", "output_dir"),
    ("msctr_hf.commands.prepare", [], "datadir", "data_dir"),
    ("msctr_hf.commands.export", [], "modl", "model"),
    ("msctr_hf.commands.push", [], "hub_modl_id", "hub_model_id"),
    ("msctr_hf.commands.convert", [], "checkpont", "checkpoint"),
    ("msctr_hf.commands.embeddings", [], "modl", "model"),
    ("msctr_hf.commands.index", [], "modl", "model"),
    ("msctr_hf.commands.check_labels", [], "modl", "model"),
    ("msctr_hf.commands.find", [], "modl", "model"),
    ("msctr_hf.commands.demo", [], "modl", "model"),
    ("experiments.sweep_command", [], "paralel", "parallel"),
    ("experiments.sweep_command", [], "lerning_rate", "learning_rate"),
    ("experiments.model_zoo", [], "outptu", "output"),
    ("experiments.benchmark.command", ["step"], "confg", "config"),
]


@pytest.mark.parametrize("words", [[], ["--resume", "auto"], ["--resume=auto", "--output_dir", "runs/mine"]])
def test_training_without_any_setting_asks_for_a_recipe_or_a_data_set(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("msctr_hf.commands.train").main(words)
    assert stopped.value.code == 2
    assert "nothing to train: give a recipe, such as --config quickstart" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "words", "written", "meant"), MISSPELLED)
def test_a_misspelled_flag_gets_one_line_of_usage_and_one_sentence(capsys, module, words, written, meant):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main([*words, f"--{written}", "3"])
    assert stop.value.code == 2
    usage, sentence = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert len(usage) < 120
    assert sentence.endswith(f"error: unknown argument --{written}. Did you mean --{meant}?")


def test_every_command_is_in_the_list_of_misspelled_flags():
    assert {msctr_cli.module_of(name) for name in msctr_cli.COMMANDS} <= {module for module, *_ in MISSPELLED}


def test_help_of_push_lists_what_push_takes_and_nothing_else(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("msctr_hf.commands.push").main(["--help"])
    flags = set(re.findall(r"--\w+", capsys.readouterr().out.partition("options:")[2]))
    taken = {"--model", "--hub_model_id", "--hub_private", "--hub_private_repo", "--hub_license", "--hub_images"}
    assert {flag for flag in flags if flag in taken or "_" in flag} == taken
    assert "--push_to_hub" not in flags


def test_the_package_runs_as_a_module_in_a_clone():
    run = python("-m", "msctr_hf", "trian", cwd=ROOT)
    assert (run.returncode, "Did you mean 'train'?" in run.stderr) == (2, True)


HEAVY = ("datasets", "pandas", "evaluate", "matplotlib", "sklearn", "gradio", "onnx", "timm")


def test_importing_the_package_registers_the_network_and_loads_no_heavy_library():
    code = f"""
import sys
from transformers import AutoModelForSemanticSegmentation, Pipeline, PreTrainedModel, SegformerImageProcessor
of_transformers = {{*sys.modules}}  # torch._dynamo imports whatever torch 2.11 traces
import msctr_hf
print(sorted({set(HEAVY)!r} & ({{*sys.modules}} - of_transformers)))
from transformers.pipelines import PIPELINE_REGISTRY
assert msctr_hf.MsctrConfig in AutoModelForSemanticSegmentation._model_mapping
assert "msctr-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()
assert all(hasattr(msctr_hf, name) for name in msctr_hf.__all__)
"""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == "[]"
