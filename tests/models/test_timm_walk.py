"""Train, save and load the smallest network of every module of timm, or see it refused in one sentence.

The whole walk takes half an hour: `pytest -m long tests/models/test_timm_walk.py`. With MSCTR_TIMM_WALK=FILE it writes
a line for every module to FILE, and leaves out modules that have one, so that it can be interrupted.
"""

import json
import os
import re
from pathlib import Path

import pytest
import timm
import torch

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation
from msctr_hf.errors import UsageError
from msctr_hf.training.timm_networks import timm_backbone_config

RECORD = os.environ.get("MSCTR_TIMM_WALK")
SIZE_WORDS = (
    *("test", "atto", "femto", "pico", "nano", "zepto", "xxt", "xxs", "xt", "xs", "micro", "tiny", "_ti", "_t", "_n"),
    *("small", "_s", "mini", "_b0", "_m0", "18", "050", "10"),
)
MAX_PARAMETERS = 300e6
SAMPLE = {  # the smallest networks that show every way in which networks of timm differ
    "test_resnet": None,
    "test_convnext": None,
    "test_efficientnet": None,
    "test_mambaout": None,
    "test_vit": None,
    "test_nfnet": None,
    "dla46x_c": None,
    "efficientvit_m0": None,
    "tresnet_m": None,
    "coat_lite_tiny": "only one size in timm, 224 x 224 pixels",
}


def smallest(module):
    """Find a small network without building all: of four names that look small, that with the fewest parameters."""

    def looks_small(name):
        word = next((place for place, word in enumerate(SIZE_WORDS) if word in name), len(SIZE_WORDS))
        return word, [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)], name

    counts = {}
    for name in sorted(timm.list_models(module=module), key=looks_small)[:4]:
        with torch.device("meta"):
            network = timm.create_model(name)
        counts[name] = sum(parameter.numel() for parameter in network.parameters())
    name = min(counts, key=counts.get)
    return name if counts[name] <= MAX_PARAMETERS else None


def train_save_and_load(name, folder):
    backbone = timm_backbone_config(name)
    stages = list(range(1, len(backbone["out_indices"]) + 1))
    config = MsctrConfig(
        backbone_config=backbone,
        decode_head="fcn",
        decode_stages=stages,
        projection_stages=stages,
        use_auxiliary_head=False,
        contrastive_mode="ms",
        contrastive_scale_weights=[1.0] * len(stages),
        hidden_size=8,
        projection_dim=8,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = MsctrForSemanticSegmentation(config).train()
    labels = torch.randint(0, 3, (2, 6, 10)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = model(pixel_values=torch.randn(2, 3, 96, 160), labels=labels).loss
    loss.backward()
    optimizer.step()
    model.eval().save_pretrained(folder)
    loaded = MsctrForSemanticSegmentation.from_pretrained(folder).eval()
    expected, actual = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert list(actual) == list(expected)
    assert [key for key in expected if not torch.allclose(actual[key], expected[key], 0, 0, equal_nan=True)] == []
    pixel_values = torch.randn(1, 3, 107, 130)  # images of any size
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=0, equal_nan=True
        )
    return bool(torch.isfinite(loss))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_networks_of_timm_train_save_and_load_or_are_refused_in_one_sentence(tmp_path, name):
    if SAMPLE[name] is not None:
        with pytest.raises(UsageError, match=SAMPLE[name]):
            timm_backbone_config(name)
    else:
        assert train_save_and_load(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("module", timm.list_modules())
def test_the_smallest_network_of_every_module_of_timm_trains_or_is_refused(tmp_path, module):
    record = Path(RECORD) if RECORD else tmp_path / "walk.jsonl"
    known = [json.loads(line)["module"] for line in record.read_text().splitlines()] if record.exists() else []
    if module in known:
        pytest.skip("in the record")
    name, result = smallest(module), "too large"
    if name is not None:
        try:
            result = "trains" if train_save_and_load(name, tmp_path / "model") else "trains, with a loss of NaN"
        except UsageError as refusal:
            result = str(refusal)
            assert name in result
            assert "\n" not in result
    with record.open("a") as file:
        file.write(json.dumps({"module": module, "name": name, "result": result}) + "\n")
