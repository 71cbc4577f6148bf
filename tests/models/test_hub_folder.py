"""A saved folder is complete: it loads, predicts and trains where the package is not installed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SWIN_TINY, TIMM_TINY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import msctr_hf
from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor

COMMIT = "0123456789" * 4
WITHOUT_THE_PACKAGE = """
import sys

name, results, again, *missing = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "msctr_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
processors = [
    AutoImageProcessor.from_pretrained(name, trust_remote_code=True, backend=backend)
    for backend in ("torchvision", "pil")
]
assert [type(each).__name__ for each in processors] == ["MsctrImageProcessor", "MsctrImageProcessorPil"], processors
image = Image.open(results + "/image.png")
prepared = [each(image, return_tensors="pt")["pixel_values"] for each in processors]
torch.testing.assert_close(*prepared)
with torch.no_grad():
    logits = model(pixel_values=prepared[0]).logits
    embeddings = model.embed(prepared[0])

segments = pipeline("image-segmentation", model=name, trust_remote_code=True)(image)
assert sum(sum(each["mask"].histogram()[1:]) for each in segments) == image.width * image.height

labels = torch.arange(5).repeat_interleave(16)[None, None, :].expand(2, 64, -1)
model.train()
output = model(pixel_values=prepared[0].expand(2, -1, -1, -1), labels=labels)
output.loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
torch.save({"logits": logits, "embeddings": embeddings, "terms": sorted(output.loss_terms)}, results + "/results.pt")

model = AutoModelForSemanticSegmentation.from_pretrained(
    name, trust_remote_code=True, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, ignore_mismatched_sizes=True
)
assert model.eval()(pixel_values=prepared[0]).logits.shape[1] == 3
model.save_pretrained(again)
processors[0].save_pretrained(again)
AutoModelForSemanticSegmentation.from_pretrained(again, trust_remote_code=True)
AutoImageProcessor.from_pretrained(again, trust_remote_code=True, backend="pil")
"""


@pytest.fixture
def saved(tmp_path, tiny_config):
    """Save a network with its image processor, and return the folder and the network."""

    def save(**options):
        model = MsctrForSemanticSegmentation(tiny_config(**options)).eval()
        folder = tmp_path / "network"
        model.save_pretrained(folder)
        MsctrImageProcessor(size_divisor=32).save_pretrained(folder)
        return folder, model

    return save


def with_dependencies(names):
    """Return packages and all that is installed with them."""
    found, wanted = set(), [*names]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, metadata.requires(name) or [])
            wanted += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def requirements_of_the_page():
    """Return the packages that the page names for loading a network without msctr_hf, with their versions."""
    command = re.search(r"It needs `pip install (.+)`", (ROOT / "docs/sharing.md").read_text())[1]
    return set(map(Requirement, shlex.split(command)))


def requirements_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(map(Requirement, project["dependencies"]))


def packages_that_are_not_needed():
    """List the packages that only msctr_hf needs."""
    names = {canonicalize_name(each.name) for each in requirements_of_the_package()}
    return sorted(names - with_dependencies(each.name for each in requirements_of_the_page()))


def test_the_page_names_packages_in_the_versions_of_the_package_and_leaves_others_out():
    assert requirements_of_the_page() < requirements_of_the_package()
    assert {"accelerate", "datasets", "evaluate"} <= set(packages_that_are_not_needed())


def run_without_the_package(name, folder, hub_cache):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "image.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_THE_PACKAGE),
            *(name, str(folder), str(folder / "again"), *packages_that_are_not_needed()),
        ],
        env=environment,
        cwd=folder,  # not the repository, from which the package could be imported
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "not supported" not in run.stderr
    return image, torch.load(folder / "results.pt")


@pytest.mark.parametrize(
    "options", [{"backbone": TIMM_TINY}, {"backbone": SWIN_TINY, "decode_head": "ocr"}], ids=["timm", "transformers"]
)
@pytest.mark.parametrize("layout", ["folder", "hub cache"])
def test_a_saved_folder_loads_predicts_and_trains_without_the_package(saved, tmp_path, options, layout):
    folder, model = saved(**options)
    name, hub_cache = str(folder), tmp_path / "hf"
    if layout == "hub cache":
        repository = hub_cache / "hub/models--someone--network"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(COMMIT)
        name = "someone/network"
    image, results = run_without_the_package(name, tmp_path, hub_cache)
    with torch.no_grad():
        pixel_values = MsctrImageProcessor(size_divisor=32)(image, return_tensors="pt")["pixel_values"]
        expected, embeddings = model(pixel_values=pixel_values).logits, model.embed(pixel_values)
    torch.testing.assert_close(results["logits"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results["embeddings"], embeddings, rtol=1e-4, atol=1e-5)
    assert {"cross_entropy", "contrastive/stage_1", "contrastive/stage_1_to_stage_4"} <= set(results["terms"])


def test_where_the_package_is_installed_its_code_is_used_and_remote_code_need_not_be_trusted(saved):
    folder, _ = saved()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(model) is MsctrForSemanticSegmentation
    assert type(AutoImageProcessor.from_pretrained(folder)) is MsctrImageProcessor


def test_code_in_the_folder_states_its_license_as_the_license_asks(saved):
    folder, _ = saved()
    appendix = (ROOT / "LICENSE").read_text().split("[name of copyright owner]")[1]
    terms = [f"# {line[3:]}".rstrip() for line in appendix.splitlines()[1:]]
    notice = ["# Copyright 2026 the authors of msctr_hf", *terms]
    assert notice[-1] == "# limitations under the License."
    code = [*folder.glob("*.py"), *(ROOT / "msctr_hf/models").glob("[!_]*.py")]
    assert len(code) > 20
    for path in code:
        assert path.read_text().splitlines()[: len(notice)] == notice, path.name


def test_the_linter_of_transformers_finds_nothing():
    linter = Path(sys.executable).with_name("mlinter")
    models = Path(msctr_hf.__file__).parent / "models"
    run = subprocess.run(
        [linter, "--no-progress", "--no-cache", "--enable-all-trf-rules", models], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
