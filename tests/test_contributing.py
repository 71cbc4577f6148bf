"""The steps of CONTRIBUTING for a new decode head work exactly as written, in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT, SMALL_RESNET
from layouts import write_folder
from local_hub import LocalHub
from safetensors.torch import load_file
from small_run import flags

LOAD_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["msctr_hf"] = None  # makes every import of the package fail
import torch
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def insert(file, text, before, where=0):
    code = file.read_text()
    place = [match.start() for match in re.finditer(re.escape(before), code)][where]
    file.write_text(code[:place] + text + code[place:])


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Copy the repository and add the decode head of CONTRIBUTING."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("msctr_hf", "configs", "scripts", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", clone)
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a decode head")[1].split("\n## ")[0]
    head, table_row, test_row = (
        textwrap.dedent(block) for block in re.findall(r"```python\n(.*?) *```", section, flags=re.DOTALL)
    )
    heads, tests = clone / "msctr_hf/models/decode_heads.py", clone / "tests/models/test_modeling_msctr.py"
    insert(heads, head + "\n\n", before="DECODE_HEADS: dict")
    insert(heads, f"    {table_row}", before="}\n", where=-1)
    insert(tests, f"    {test_row}", before="}\n\n\n@pytest.fixture(params=NETWORKS)")
    return clone


def run(clone, *command, **environment):
    environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, env=environment, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(clone, tmp_path_factory):
    """Train two steps, and return the folder of the run and the files that it pushed."""
    folder = tmp_path_factory.mktemp("linear")
    data = write_folder(folder / "data", num_train=4, num_validation=1)
    hub = LocalHub()
    settings = {"decode_head": "linear", "max_steps": 2, "push_to_hub": True, "hub_model_id": "someone/linear"}
    try:
        run(clone, "scripts/train.py", *flags(data, folder / "run", **settings), **hub.environment(folder / "home"))
    finally:
        hub.close()
    return folder / "run", hub.repositories["someone/linear"]["files"]


def logits_of(folder, pixel_values):
    """Compute the logits from the last stage of a stock ResNet and the weights of the head."""
    from transformers import TimmBackbone, TimmBackboneConfig

    state = load_file(folder / "model.safetensors")
    config = TimmBackboneConfig(backbone=SMALL_RESNET, out_indices=[4], use_pretrained_backbone=False)
    backbone = TimmBackbone(config).eval()
    prefix = "backbone."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    backbone.load_state_dict(own)
    with torch.no_grad():
        (last,) = backbone(pixel_values).feature_maps
    weight, bias = (state[f"decode_head.classifier.{name}"] for name in ("weight", "bias"))
    return torch.einsum("lc,bchw->blhw", weight[:, :, 0, 0], last) + bias[:, None, None]


def test_the_new_head_trains_and_is_pushed_with_a_card_that_names_it(trained):
    folder, files = trained
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "contrastive/stage_1" in entry] == [1, 2]
    assert f"# Linear with {SMALL_RESNET}" in files["README.md"].decode()
    assert b"class LinearHead(DecodeHead):" in files["decode_heads.py"]
    assert json.loads(files["config.json"])["decode_stages"] == [4]


def test_the_new_head_loads_without_the_package(trained, tmp_path):
    torch.save(torch.randn(1, 3, 64, 96), tmp_path / "images.pt")
    files = tmp_path / "images.pt", tmp_path / "logits.pt"
    run(tmp_path, "-c", LOAD_WITHOUT_THE_PACKAGE, trained[0], *files, HF_HOME=str(tmp_path / "home"))
    expected = logits_of(trained[0], torch.load(files[0]))
    torch.testing.assert_close(torch.load(files[1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_new_head_can_be_exported(clone, trained, tmp_path, format):
    out = run(clone, "scripts/export.py", "--model", trained[0], "--output_dir", tmp_path / "out", "--format", format)
    assert "the exported network is in" in out


@pytest.mark.slow
def test_the_new_row_in_the_tests_covers_the_new_head(clone):
    out = run(clone, "-m", "pytest", "-q", "tests/models/test_modeling_msctr.py", "-k", "linear")
    assert re.search(r"\b[1-9]\d* passed", out)


def test_the_code_in_contributing_passes_the_style_checks(clone):
    for check in (["check"], ["format", "--check"]):
        run(clone, "-m", "ruff", *check, "msctr_hf/models/decode_heads.py", "tests/models/test_modeling_msctr.py")
