import inspect

import pytest
import torch

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.models.decode_heads import DECODE_HEADS, DecodeHead

CHANNELS, HIDDEN_SIZE, NUM_LABELS = (6, 8, 10, 12), 16, 5


@pytest.fixture(params=DECODE_HEADS)
def head(request):
    return DECODE_HEADS[request.param](CHANNELS, HIDDEN_SIZE, NUM_LABELS, 0.5, True).eval()


@pytest.fixture
def feature_maps():
    return [torch.randn(2, channels, 32 >> level, 48 >> level) for level, channels in enumerate(CHANNELS)]


def test_all_heads_have_the_same_signature(head):
    for name in ("__init__", "forward"):
        own, common = (inspect.signature(getattr(each, name)).parameters for each in (type(head), DecodeHead))
        assert list(own) == list(common)
        assert [each.default for each in own.values()] == [each.default for each in common.values()]


def test_heads_return_logits_and_a_pyramid_if_they_declare_one(head, feature_maps):
    logits, pyramid = head(feature_maps, torch.randn(2, NUM_LABELS, 8, 12))
    assert logits.shape[:2] == (2, NUM_LABELS)
    assert (pyramid is not None) == head.gives_pyramid
    if pyramid is not None:
        assert [each.shape for each in pyramid] == [(2, HIDDEN_SIZE, *each.shape[2:]) for each in feature_maps]


@pytest.mark.parametrize(
    "head", [name for name, head in DECODE_HEADS.items() if head.concatenates_stages], indirect=True
)
def test_heads_that_concatenate_stages_also_accept_the_concatenation(head, feature_maps):
    auxiliary_logits = torch.randn(2, NUM_LABELS, 8, 12)
    resized = [
        torch.nn.functional.interpolate(each, size=(32, 48), mode="bilinear", align_corners=True)
        for each in feature_maps
    ]
    expected, _ = head(feature_maps, auxiliary_logits)
    logits, _ = head([torch.cat(resized, dim=1)], auxiliary_logits)
    torch.testing.assert_close(logits, expected)


def test_auxiliary_logits_affect_only_heads_that_declare_that_they_need_them(head, feature_maps):
    one, other = (head(feature_maps, torch.randn(2, NUM_LABELS, 8, 12))[0] for _ in range(2))
    assert torch.equal(one, other) != head.needs_auxiliary_logits


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_stages": [4]}, r"UPerNet needs at least 2 stages in `decode_stages`, got \[4\]"),
        ({"auxiliary_stage": None}, "With UPerNet the auxiliary head needs an `auxiliary_stage`"),
        (
            {"projection_source": "decode_head", "decode_stages": [3, 4]},
            "must be at most 2, the number of maps in the pyramid",
        ),
    ],
)
def test_settings_that_do_not_fit_the_head_are_refused(tiny_config, settings, message):
    config = tiny_config("upernet")
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        MsctrForSemanticSegmentation(config)
