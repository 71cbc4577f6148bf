"""`mixed_precision="auto"` follows the hardware at the first start, is written down, and is kept on resume."""

import json

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from interrupted_run import finish, start, two_processes
from layouts import write_folder
from small_run import flags

from msctr_hf.training import devices, setup

EMULATED = "this device only emulates bf16"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=4, num_validation=2)


@pytest.fixture
def on_a_machine(monkeypatch):
    def on(in_hardware):
        for module in (devices, setup):
            monkeypatch.setattr(module, "has_bf16", lambda _: in_hardware)
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        GradientState._reset_state()

    return on


def recorded(run):
    written = json.loads((run / "run.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    return written["mixed_precision"], written["settings"]["mixed_precision"], config["mixed_precision"]


@pytest.mark.parametrize(("in_hardware", "precision"), [(True, "bf16"), (False, "no"), (None, "no")])
def test_auto_is_bf16_only_in_hardware_and_a_resumed_run_keeps_it_on_another_machine(
    run_script, folder, tmp_path, on_a_machine, in_hardware, precision
):
    run, settings = tmp_path / "run", {"mixed_precision": "auto", "max_steps": 2}
    on_a_machine(in_hardware)
    code, output, error = run_script("train.py", *flags(folder, run, **settings))
    assert code == 0, error
    assert recorded(run) == (precision,) * 3
    assert (f"precision {precision}" in output, EMULATED in output) == (True, False)
    on_a_machine(not in_hardware)
    code, output, error = run_script("train.py", *flags(folder, run, **{**settings, "max_steps": 4}, resume="auto"))
    assert code == 0, error
    assert recorded(run) == (precision,) * 3
    assert EMULATED in output if precision == "bf16" else EMULATED not in output
    assert "mixed_precision was" not in output


@pytest.mark.parametrize(("asked", "in_hardware"), [("bf16", False), ("bf16", True), ("bf16", None), ("no", False)])
def test_a_run_that_asks_for_emulated_bf16_says_so(run_script, folder, tmp_path, on_a_machine, asked, in_hardware):
    on_a_machine(in_hardware)
    arguments = flags(folder, tmp_path / "run", mixed_precision=asked, max_steps=1)
    code, output, error = run_script("train.py", *arguments)
    assert code == 0, error
    assert recorded(tmp_path / "run") == (asked,) * 3
    assert (EMULATED in output) == (asked == "bf16" and in_hardware is False)


def test_no_recipe_asks_for_bf16_on_every_machine():
    paths = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate"]
    assert {yaml.safe_load(path.read_text()).get("mixed_precision") for path in paths} == {None, "auto"}


SCRIPT = """
import os, sys
from msctr_hf.commands.train import main
from msctr_hf.training import devices
devices.has_bf16 = lambda _: os.environ["RANK"] == "0"
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_processes_agree_on_the_precision_that_all_of_them_have(folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = flags(folder, tmp_path / "run", mixed_precision="auto", max_steps=1)
    code, output = finish(start(*arguments, launcher=two_processes(), script=tmp_path / "script.py"))
    assert code == 0, output
    assert recorded(tmp_path / "run") == ("no",) * 3
