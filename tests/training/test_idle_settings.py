import pytest

from msctr_hf import MsctrConfig
from msctr_hf.data.settings import DataSettings
from msctr_hf.settings import defaults
from msctr_hf.training.idle_settings import idle_settings
from msctr_hf.training.settings import ModelSettings, TrainingSettings

DEFAULTS = {
    **defaults(ModelSettings, DataSettings, TrainingSettings),
    **MsctrConfig(num_labels=3).to_dict(),
}


@pytest.mark.parametrize(("changes", "idle", "used"), [
    ({}, "ema_decay adam_betas exponential_gamma tile_overlap image_column unlabeled_mix unlabeled_loss_weight "
     "pseudo_label_threshold contrastive_pseudo_labels contrastive_pseudo_share",
     "ema momentum poly_power backbone contrastive_detach_coarse auxiliary_stage seed color_jitter"),
    ({"ema": True}, "", "ema_decay"),
    ({"optimizer": "adamw"}, "momentum", "adam_betas"),
    ({"schedule": "exponential"}, "poly_power", "exponential_gamma"),
    ({"schedule": "constant"}, "poly_power exponential_gamma", ""),
    ({"tile_size": [64, 64]}, "", "tile_overlap"),
    ({"dataset_name": "someone/streets"}, "", "image_column label_column"),
    ({"model_name_or_path": "nvidia/mit-b0"}, "backbone backbone_weights", "model_name_or_path"),
    ({"freeze_backbone": True}, "backbone_learning_rate_factor", "backbone"),
    ({"use_auxiliary_head": False}, "auxiliary_loss_weight auxiliary_stage auxiliary_hidden_size", ""),
    ({"contrastive_mode": "ms"}, "contrastive_detach_coarse", "contrastive_temperature projection_dim"),
    ({"contrastive_mode": "ce"}, "contrastive_temperature projection_dim", "contrastive_mode contrastive_adapter"),
    ({"unlabeled_dir": "others"}, "contrastive_pseudo_share", "unlabeled_mix pseudo_label_threshold"),
    ({"unlabeled": "test", "contrastive_pseudo_labels": True}, "", "contrastive_pseudo_share unlabeled"),
    ({"num_channels": 4}, "color_jitter", "flip_probability"),
    ({"num_channels": 3, "value_type": "float32"}, "color_jitter", ""),
    ({"num_channels": 3, "value_type": "uint16"}, "", "color_jitter"),
    ({"num_channels": 3}, "", "color_jitter"),
    ({"unlabeled": "test", "unlabeled_batch_size": 1}, "unlabeled_mix", "unlabeled_strength"),
    ({"unlabeled": "test", "pseudo_label_threshold": 0}, "pseudo_label_class_share", "pseudo_label_threshold"),
])  # fmt: skip
def test_a_setting_is_idle_where_another_one_switches_off_what_it_is_about(changes, idle, used):
    found = idle_settings({**DEFAULTS, **changes})
    assert set(idle.split()) <= found
    assert set(used.split()) & found == set()
    assert found <= DEFAULTS.keys()


def test_what_is_not_known_switches_nothing_off():
    assert idle_settings({}) == set()
    known = {"pseudo_label_threshold", "ema_decay", "tile_overlap", "backbone", "contrastive_temperature"}
    assert idle_settings({name: DEFAULTS[name] for name in known}) == set()
