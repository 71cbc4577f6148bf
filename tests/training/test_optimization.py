import pytest
import timm
import torch
from torch import nn
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from msctr_hf.training.duration import Duration
from msctr_hf.training.optimization import build_optimizer, build_schedule, parameter_groups, schedule_factor
from msctr_hf.training.settings import TrainingSettings


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4))
        self.decode_head = nn.Conv2d(4, 2, 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("schedule", ["poly", "exponential", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_learning_rate_is_never_negative_or_complex_even_after_the_last_step(schedule, warmup_steps):
    arguments = TrainingSettings(schedule=schedule, warmup_steps=warmup_steps)
    factors = [schedule_factor(step, arguments, Duration(20, 20, 4)) for step in range(30)]
    assert all(isinstance(factor, float) and 0 <= factor <= 1 for factor in factors)


def test_the_poly_schedule_uses_the_absolute_step_after_the_warm_up():
    arguments, duration = TrainingSettings(poly_power=0.9, warmup_steps=10), Duration(100, 100, 4)
    assert [schedule_factor(step, arguments, duration) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule_factor(10, arguments, duration) == pytest.approx(0.9**0.9)
    assert schedule_factor(50, arguments, duration) == pytest.approx(0.5**0.9)
    assert schedule_factor(100, arguments, duration) == 0


def test_the_exponential_schedule_decays_once_per_epoch():
    arguments = TrainingSettings(schedule="exponential", exponential_gamma=0.98)
    factors = [schedule_factor(step, arguments, Duration(40, 40, 10)) for step in (0, 9, 10, 25)]
    assert factors == [1, 1, 0.98, 0.98**2]


def test_the_exponential_schedule_decays_at_the_first_step_after_an_epoch_of_accumulated_batches():
    arguments = TrainingSettings(schedule="exponential", exponential_gamma=0.5, gradient_accumulation_steps=4)
    expected, batches = [], 0
    for _ in range(12):
        expected.append(0.5 ** len([end for end in range(5, 100, 5) if end <= batches]))  # epochs of 5 batches
        batches += 4
    assert expected[:5] == [1, 1, 0.5, 0.25, 0.125]
    duration = Duration(12, 12, batches_per_epoch=5)
    assert [schedule_factor(step, arguments, duration) for step in range(12)] == expected


def test_every_parameter_is_in_one_group_with_its_learning_rate_and_weight_decay():
    model = Network()
    arguments = TrainingSettings(
        learning_rate=1.0,
        backbone_learning_rate_factor=0.1,
        weight_decay=0.5,
        no_decay=["norm", "relative_position_bias_table"],
    )
    settings = {
        p: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, arguments)
        for p in group["params"]
    }
    assert set(settings) == set(model.parameters())
    assert settings[model.backbone[0].weight] == (0.1, 0.5)
    assert settings[model.backbone[1].weight] == settings[model.backbone[2].bias] == (0.1, 0.0)
    assert settings[model.decode_head.weight] == (1.0, 0.5)
    assert settings[model.relative_position_bias_table] == (1.0, 0.0)


class NormedLinear(nn.Linear):
    """Linear layer whose weights are normalized; they decay."""


@pytest.mark.parametrize(
    ("norm", "count"),
    [
        (nn.BatchNorm2d(4), 2), (nn.SyncBatchNorm(4), 2), (nn.InstanceNorm2d(4, affine=True), 2),
        (nn.LayerNorm([4, 3, 3]), 2), (nn.LayerNorm(4, bias=False), 1), (nn.GroupNorm(2, 4), 2), (nn.RMSNorm(4), 1),
        (timm.layers.EvoNorm2dB0(4), 3), (timm.layers.EvoNorm2dS0(4, group_size=2), 3),
        (timm.layers.EvoNorm2dS2a(4, group_size=2), 2), (timm.layers.FilterResponseNormTlu2d(4), 3),
        (timm.layers.grn.GlobalResponseNorm(4), 2), (timm.layers.RmsNorm2d(4), 1), (timm.layers.SimpleNorm(4), 1),
        (timm.layers.LayerNorm2d(4), 2), (timm.layers.BatchNormAct2d(4), 2), (ConvNextV2GRN(4), 2),
        (LlamaRMSNorm(4), 1), (VitDetLayerNorm(4), 2),
        (nn.Conv2d(4, 4, 1), 0), (NormedLinear(4, 4, bias=False), 0), (timm.layers.LayerScale(4), 0),
        (timm.layers.ConvNormAct(3, 4), 2),
        (timm.layers.NormMlpClassifierHead(4, 2), 2), (timm.layers.ScaledStdConv2d(4, 4, 1), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_norm_exempts_the_parameters_of_every_kind_of_norm_from_weight_decay(norm, count):
    model = Network()
    model.backbone.append(norm)
    groups = parameter_groups(model, TrainingSettings(weight_decay=0.5, no_decay=["norm"]))
    exempt = {each for group in groups if group["weight_decay"] == 0 for each in group["params"]}
    assert len(exempt & set(norm.parameters())) == count


def test_frozen_parameters_are_in_no_group():
    model = Network()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, TrainingSettings())
    assert {p for group in groups for p in group["params"]} == {
        *model.decode_head.parameters(),
        model.relative_position_bias_table,
    }


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizer_and_schedule_work_together(kind):
    name = kind.__name__.lower()
    arguments = TrainingSettings(optimizer=name, learning_rate=0.1, poly_power=1.0)
    optimizer = build_optimizer(Network(), arguments)
    assert type(optimizer) is kind
    schedule = build_schedule(optimizer, arguments, Duration(4, 4, 1))
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
