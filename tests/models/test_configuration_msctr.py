import re
from dataclasses import fields

import pytest
import torch
from transformers import PreTrainedConfig, TimmBackboneConfig

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation


def test_a_saved_configuration_loads_unchanged(tiny_config, tmp_path):
    config = tiny_config(contrastive_temperature=1, contrastive_cross_scale_pairs=[[0, 2]], palette=[[1, 2, 3]] * 5)
    config.save_pretrained(tmp_path)
    assert MsctrConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict() | {
        "_name_or_path": ""
    }


def test_settings_can_be_overridden_when_loading(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert MsctrConfig.from_pretrained(tmp_path, contrastive_mode="ce").contrastive_mode == "ce"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_temprature": 0.1}, "Did you mean `contrastive_temperature`"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"contrastive_mode": "all"}, "contrastive_mode"),
        ({"contrastive_temperature": 0.001}, "at least 0.01"),
        ({"decode_head": "segformer"}, "fcn"),
        ({"decode_head": "ocr", "use_auxiliary_head": False}, "auxiliary"),
        ({"decode_head": "fcn", "projection_source": "decode_head"}, "UPerNet"),
        ({"projection_stages": [2, 1]}, "finest first"),
        ({"class_weights": [1.0]}, "one entry per class"),
        ({"dropout": 1.5}, "dropout"),
        ({"contrastive_max_anchors": 0}, "at least 1"),
        ({"backbone_config": {"backbone": "resnet18"}}, "model_type"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "timm_kwargs": {"pretrained": True}}},
            r"got timm_kwargs\['pretrained'\] = True",
        ),
        (
            {"backbone_config": {"model_type": "swin", "use_pretrained_backbone": True}},
            "got use_pretrained_backbone = True: leave it out",
        ),
        (  # an object would be saved as a dictionary, which is refused
            {"backbone_config": TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=True)},
            "got use_pretrained_backbone = True: leave it out",
        ),
    ],
)
def test_wrong_settings_are_named_in_the_error(settings, message):
    with pytest.raises(Exception, match=message):
        MsctrConfig(**settings)


def test_what_could_not_be_loaded_again_is_not_saved_and_what_transformers_assigns_is(tiny_config, tmp_path):
    config = tiny_config()
    assigned = {
        "custom_pipelines": {"image-segmentation": {"impl": "mine.Mine"}}, "architectures": ["Mine"],
        "use_cache": False, "quantization_config": {"quant_method": "bitsandbytes"}, "fusion_config": {},
        "auto_map": {"AutoModel": "a.A"},
        "_own": "kept", "name_or_path": "someone/network", "output_attentions": True, "dtype": torch.float16,
        "_attn_implementation": "eager", "distributed_config": object(), "problem_type": None,
    }  # fmt: skip
    for name, value in assigned.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path / "kept")
    loaded = MsctrConfig.from_pretrained(tmp_path / "kept")
    assert (loaded._own, loaded.custom_pipelines, loaded.dtype) == ("kept", config.custom_pipelines, torch.float16)
    config.trained_on = "streets of Ulm"
    with pytest.raises(Exception, match=r"`trained_on` is not a setting of MsctrConfig; values of your own .* `_`"):
        config.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused" / "config.json").exists()
    with pytest.raises(ValueError, match="`trained_on` is not a setting"):
        MsctrForSemanticSegmentation(config)
    del config.trained_on
    config.contrastive_temprature = 0.2
    with pytest.raises(Exception, match="Did you mean `contrastive_temperature`"):
        config.save_pretrained(tmp_path / "refused")


def test_defaults_depend_on_the_decode_head():
    assert MsctrConfig(decode_head="deeplabv3").projection_stages == [1, 3, 4]
    assert MsctrConfig(decode_head="ocr").use_auxiliary_head
    assert not MsctrConfig(decode_head="fcn").use_auxiliary_head
    assert [MsctrConfig(decode_head=head).align_corners for head in ("fcn", "deeplabv3", "ocr", "upernet")] == [
        True,
        True,
        True,
        False,
    ]


def test_the_docstring_documents_every_field():
    documented = set(re.findall(r"^ {8}(\w+) \(", MsctrConfig.__doc__, flags=re.MULTILINE))
    own = {field.name for field in fields(MsctrConfig)} - {field.name for field in fields(PreTrainedConfig)}
    assert documented == own
