"""The word `msctr` and what follows it, in processes of their own."""

import importlib
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
def test_a_word_that_is_not_a_command_ends_with_2(capsys, words, sentence):
    with pytest.raises(SystemExit) as stop:
        msctr_cli.main(words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", msctr_cli.COMMANDS)
def test_every_command_has_a_help_of_its_own(capsys, name):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"msctr_hf.commands.{name}").main(["--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert f"msctr {name}" in help_text
    assert "(default: None)" not in help_text


def test_the_package_runs_as_a_module_in_a_clone():
    run = python("-m", "msctr_hf", "trian", cwd=ROOT)
    assert (run.returncode, "Did you mean 'train'?" in run.stderr) == (2, True)


HEAVY = ("datasets", "pandas", "evaluate", "matplotlib", "sklearn", "gradio", "onnx", "timm")


def test_importing_the_package_registers_the_network_and_loads_nothing_else():
    code = f"""
import sys, msctr_hf
print(sorted({set(HEAVY)!r} & {{*sys.modules}}))
from transformers import AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY
assert msctr_hf.MsctrConfig in AutoModelForSemanticSegmentation._model_mapping
assert "msctr-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()
assert all(hasattr(msctr_hf, name) for name in msctr_hf.__all__)
"""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == "[]"
