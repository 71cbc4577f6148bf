"""The folder that is written for examples/ holds weights in half precision, and no code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from experiments.example_network import main, write_network
from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.synthetic import draw_scene


@pytest.fixture
def run(tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path / "run")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_weights_are_stored_in_float16_and_loaded_in_float32(run, tmp_path):
    main([str(run), str(tmp_path / "examples")])
    folder = tmp_path / "examples/street_scenes"
    stored = load_file(folder / "model.safetensors")
    # the integers are the numbers of batches that BatchNorm layers have seen
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    written, original = (AutoModelForSemanticSegmentation.from_pretrained(path) for path in (folder, run))
    assert written.dtype == torch.float32
    for name, value in original.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], value, rtol=2**-10, atol=2**-24)
    assert AutoImageProcessor.from_pretrained(folder).size_divisor == 32


def test_the_folder_holds_no_code(run, tmp_path):
    assert list(run.glob("*.py"))
    write_network(run, tmp_path / "network")
    files = {path.name for path in (tmp_path / "network").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "network" / name).read_text())


def test_values_beyond_the_range_of_float16_are_refused(tiny_config, tmp_path):
    model = MsctrForSemanticSegmentation(tiny_config())
    model.backbone._backbone.bn1.running_var.fill_(70_000.0)
    model.save_pretrained(tmp_path / "run")
    MsctrImageProcessor().save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="bn1.running_var holds values beyond the range of float16"):
        write_network(tmp_path / "run", tmp_path / "network")
    assert not (tmp_path / "network").exists()


def test_images_are_scenes_of_the_test_split(run, tmp_path):
    main([str(run), str(tmp_path / "examples")])
    paths = sorted((tmp_path / "examples/images").iterdir())
    assert [path.name for path in paths] == ["scene_0.png", "scene_1.png"]
    for path, number in zip(paths, (16, 32), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(draw_scene((2, number))[0]))
