"""Every command and snippet of README and docs/ is run, or a comment says why not; all flags are parsed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT, SMALL_RESNET
from local_hub import LocalHub
from pages import DOCS, blocks, commands
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import msctr_cli
from msctr_hf.data.loading import get_dataset_spec

BLOCKS = [block for page in DOCS for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
SCRIPT_MODULES = {
    path.name: re.search(r'run\("(.+)"\)', path.read_text()) for path in (ROOT / "scripts").glob("[!_]*.py")
}

SMALL_NETWORK = f"{SMALL_RESNET} --hidden_size 8 --auxiliary_hidden_size 8"
# replaces settings that take long on real data by small ones, and placeholders by names
SMALLER = {
    "--config quickstart": "--config quickstart --max_steps 2 --num_workers 0 --report_to none "
    f"--backbone {SMALL_NETWORK}",
    "resnet50.tv_in1k": f"{SMALL_NETWORK} --backbone_weights none",
    "--crop_size 512 512": "--crop_size 32 32 --num_workers 0 --report_to none",
    "--num_train_epochs 50": "--max_steps 2",
    "hf auth login": "true",
    "USER/": "someone/",
}
# variables that a snippet expects from the program around it
PREAMBLES = {
    "ContrastiveAdapter": "import torch\npixel_values = torch.randn(2, 3, 64, 64)\n"
    "labels = torch.arange(4).repeat_interleave(16)[None, :, None].expand(2, 64, 64)\n",
    "total = cross_entropy": "import torch\ncross_entropy = torch.tensor(1.0)\n"
    "projections = [torch.randn(2, 8, side, side, requires_grad=True) for side in (64, 32, 16, 8)]\n"
    "labels = torch.arange(4).repeat_interleave(32)[None, :, None].expand(2, 128, 128)\n",
}


def test_blocks_have_a_language_and_no_command_hides_in_an_indented_block():
    assert [block.place for block in BLOCKS if not block.language] == []
    for page in DOCS:
        indented = re.findall(r"\n\n    (?:msctr|python|accelerate|pip) .*", page.read_text())
        assert indented == [], page.name


def program(words):
    """Return the module and the arguments of a command of this project, or `None` for another program."""
    words = [word for word in words if "=" not in word or word.startswith("-")]  # drops environment variables
    for place, word in enumerate(words):
        if word == "msctr" or (word == "-m" and words[place + 1] == "msctr_hf"):
            arguments = words[place + (1 if word == "msctr" else 2) :]
            return msctr_cli.module_of(arguments[0]), arguments[1:]
        if word.startswith("scripts/"):
            return SCRIPT_MODULES[Path(word).name][1], words[place + 1 :]
    return None


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_accept_the_flags_that_the_pages_show(block, monkeypatch):
    import importlib

    from msctr_hf.commands.command_line import CommandLine

    monkeypatch.chdir(ROOT)
    parsed = []
    monkeypatch.setattr(CommandLine, "run", lambda self, argv, function: parsed.append(self.parse(argv)))
    for words in filter(None, map(program, commands(block.code))):
        module, arguments = words
        arguments = ["quickstart" if word == "FILE" else word for word in arguments]
        if module.startswith("experiments."):
            unknown = importlib.import_module(module).parser().parse_known_args(arguments)[1]
            assert "sweep" in module or unknown == []
        else:
            before = len(parsed)
            importlib.import_module(module).main(arguments)
            assert len(parsed) == before + 1, module


def prepare(folder):
    """Provide what the pages assume: the files of the clone, and a model of the Hub."""
    for name in ("examples", "scripts", "configs", "msctr_hf"):
        (folder / name).symlink_to(ROOT / name)
    small = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=19, **small)).save_pretrained(folder / "nvidia/mit-b0")


def own_images(folder, images="images", masks="masks"):
    """Write the images and masks that a reader has."""
    random = np.random.default_rng(0)
    for name in (images, masks):
        (folder / name).mkdir(parents=True)
    for index in range(20):
        pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / images / f"image {index}.jpg")
        mask = random.integers(0, 3, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(mask).save(folder / masks / f"image {index}.png")


def run(block, folder, environment):
    """Run a block as a reader does, in `folder`."""
    code = block.code
    if block.language == "python":
        code = next((text for sign, text in PREAMBLES.items() if sign in code), "") + code
        words = [sys.executable, "-c", code]
    else:
        for costly, cheap in SMALLER.items():
            code = code.replace(costly, cheap)
        words = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def environment(tmp_path_factory, tmp_path):
    """Return variables, among them a path where the command `msctr` is forked, and a local Hub."""
    programs, installed = tmp_path_factory.mktemp("programs"), Path(sys.executable).parent
    paths = {
        "PATH": os.pathsep.join([str(programs), str(installed), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    hub = LocalHub()
    environment = os.environ | hub.environment(tmp_path / "home") | paths
    forked.write_executable(programs / "msctr", environment, installed / "msctr")
    yield environment, hub
    hub.close()


RUNNABLE = {page: [b for b in blocks(page) if b.language in ("bash", "python") and not b.reason] for page in DOCS}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, found in RUNNABLE.items() if found], ids=lambda page: page.name)
def test_blocks_of_a_page_run_one_after_another(page, tmp_path, environment):
    environment, hub = environment
    prepare(tmp_path)
    if page.name in ("README.md", "data.md"):
        own_images(tmp_path / "my_data")
    if page.name == "README.md":
        description = next(block.code for block in blocks(page) if block.language == "yaml")
        (tmp_path / "my_data/dataset.yaml").write_text(description)
    for block in RUNNABLE[page]:
        assert "Traceback" not in run(block, tmp_path, environment)
    if page.name == "README.md":
        assert len(list((tmp_path / "predictions").glob("*.png"))) >= 4
        assert len(list((tmp_path / "predictions").glob("image *_overlay.png"))) == 20
    if page.name == "data.md":
        assert hub.repositories["someone/mine"]["private"]
        assert len(list((tmp_path / "predictions").glob("*_overlay.png"))) == 20


DESCRIPTIONS = [block for block in BLOCKS if block.language == "yaml" and "classes:" in block.code]


@pytest.mark.parametrize("block", DESCRIPTIONS, ids=lambda block: block.place)
def test_descriptions_of_data_sets_are_valid(block, tmp_path):
    (tmp_path / "dataset.yaml").write_text(block.code)
    assert set(get_dataset_spec("folder", tmp_path).source.layouts[0]) >= {"train", "validation"}


def test_blocks_that_are_not_run_say_why():
    reasons = [block.reason for block in BLOCKS if block.reason is not None]
    assert all(len(reason.split()) >= 2 for reason in reasons)
    for block in BLOCKS:
        assert block.reason is None or block.language in ("bash", "python"), block.place
