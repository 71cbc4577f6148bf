import pytest
import torch
from golden_numbers import read, relative_error, uniform
from torch.utils._python_dispatch import TorchDispatchMode

from msctr_hf import MultiScaleContrastiveLoss, info_nce_loss, sample_anchors
from msctr_hf.models.projection_head import ProjectionHead

SIZES = [(16, 24), (8, 12), (4, 6)]


def build(**settings):
    defaults = {"num_labels": 5, "stages": (1, 2, 4), "scale_weights": (1.0, 0.7, 0.4)}
    pairs = {"pairs": ((0, 2), (0, 1)), "pair_weights": (1.0, 1.0)}
    return MultiScaleContrastiveLoss(**{**defaults, **pairs, **settings})


def maps(channels=8, dtype=torch.float32):
    return [torch.randn(2, channels, *size, dtype=dtype, requires_grad=True) for size in SIZES]


def block_labels():
    return torch.randint(0, 5, (2, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)


def test_loss_terms_and_gradients_equal_those_recorded_from_the_released_code():
    facts, recorded = read("losses")
    facts = facts["C"]
    features = [uniform(f"C.features{s}", shape).float().requires_grad_() for s, shape in enumerate(facts["shapes"])]
    loss_function = MultiScaleContrastiveLoss(
        19, (1, 2, 3, 4), facts["weights"], ((0, 3), (0, 2)), (1.0, 1.0), facts["temperature"], ignore_index=19
    )
    loss, terms = loss_function(features, recorded["C.labels"].long())
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-4)
    names = [f"contrastive/stage_{s}" for s in (1, 2, 3, 4)] + [
        "contrastive/stage_1_to_stage_4",
        "contrastive/stage_1_to_stage_3",
    ]
    assert list(terms) == names
    assert [terms[name].item() for name in names] == pytest.approx(facts["ms"] + facts["cs"], rel=1e-4)
    for stage, map_ in enumerate(features):
        assert relative_error(map_.grad[:, ::4], recorded[f"C.grad{stage}"]) < 1e-4


def test_the_loss_is_the_weighted_sum_of_terms_over_the_same_anchors():
    features, labels = maps(dtype=torch.float64), block_labels()
    loss_function = build(pair_weights=(0.5, 2.0), cross_scale_temperature=0.2, temperature=0.07)
    loss, _ = loss_function(features, labels, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    sets = [sample_anchors(map_, labels, 5, generator=generator) for map_ in features]
    expected = sum(
        weight * info_nce_loss(s.features, s.labels, temperature=0.07)
        for weight, s in zip((1.0, 0.7, 0.4), sets, strict=True)
    )
    for (fine, coarse), weight in (((0, 2), 0.5), ((0, 1), 2.0)):
        expected = expected + weight * info_nce_loss(
            sets[fine].features, sets[fine].labels, sets[coarse].features, sets[coarse].labels, temperature=0.2
        )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_projecting_sampled_rows_equals_sampling_the_projected_maps():
    head = ProjectionHead([8, 8, 8], 6).train()
    features, labels = maps(), block_labels()
    loss_function = build()
    hidden = head.hidden(features)
    sampled, _ = loss_function(hidden, labels, head.row_projections, torch.Generator().manual_seed(2))
    whole, _ = loss_function(head.project(hidden), labels, None, torch.Generator().manual_seed(2))
    torch.testing.assert_close(sampled, whole)
    gradients = [
        torch.autograd.grad(loss, [*head.parameters(), *features], retain_graph=True) for loss in (sampled, whole)
    ]
    for of_rows, of_maps in zip(*gradients, strict=True):
        torch.testing.assert_close(of_rows, of_maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        torch.full((2, 64, 96), 255),
        torch.zeros(2, 64, 96, dtype=torch.int64),
        torch.randint(0, 5, (2, 64, 96)),
        torch.randint(0, 5, (2, 61, 83)),
    ],
    ids=["all ignored", "one class", "speckles", "not a multiple of the stride"],
)
def test_degenerate_batches_give_a_finite_loss_and_finite_gradients_of_every_map(labels):
    features = maps()
    head = ProjectionHead([8, 8, 8], 6).train()
    loss, terms = build()(head.hidden(features), labels, head.row_projections)
    loss.backward()
    assert loss.isfinite()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*features, *head.parameters()])


@pytest.mark.parametrize("labels", [torch.full((2, 64, 96), 255), torch.zeros(2, 64, 96, dtype=torch.int64)])
def test_the_loss_is_exactly_zero_if_there_is_nothing_to_contrast(labels):
    loss, terms = build()(maps(), labels)
    assert loss.item() == 0
    assert all(term.item() == 0 for term in terms.values())


def test_a_stage_without_anchors_sets_only_its_own_terms_to_zero():
    labels = torch.full((2, 64, 96), 255)
    labels[:, :8, :8] = 0  # 2x2 pixels on the finest map, none on the others
    labels[:, 8:16, :16] = 1
    _, terms = build(min_anchors_per_class=4)(maps(), labels)
    assert terms["contrastive/stage_1"] > 0
    for name in ("stage_2", "stage_4", "stage_1_to_stage_4", "stage_1_to_stage_2"):
        assert terms[f"contrastive/{name}"] == 0


def test_a_class_that_is_the_ignore_index_is_not_sampled():
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    labels[:, :32] = 1
    _, terms = build(ignore_index=1)(maps(), labels)
    assert all(term == 0 for term in terms.values())  # a single class is left


def test_detach_coarse_stops_the_gradient_at_the_contrast_side():
    features, labels = maps(), block_labels()
    settings = {"scale_weights": (0.0, 0.0, 0.0), "pairs": ((0, 2),), "pair_weights": (1.0,)}
    loss, _ = build(detach_coarse=True, **settings)(features, labels)
    loss.backward()
    assert features[0].grad.abs().max() > 0
    assert features[2].grad.abs().max() == 0


def test_diagnostics_count_anchors_classes_and_stages_without_anchors():
    labels = torch.full((2, 64, 96), 255)
    labels[:, :8, :8] = 0  # 2x2 pixels on the finest map, none on the others
    labels[:, 8:16, :16] = 1
    diagnostics = build(min_anchors_per_class=4).contrast(maps(), labels).diagnostics
    assert diagnostics["contrastive/skipped_stages"] == pytest.approx(2 / 3)
    assert diagnostics["contrastive/stage_1/anchors"] == 2 * 2 * 4
    assert diagnostics["contrastive/stage_1/classes"] == 2
    assert diagnostics["contrastive/stage_2/anchors"] == 0
    for kind in ("positive", "negative"):
        assert -1 <= diagnostics[f"contrastive/stage_1/{kind}_cosine"] <= 1
        for name in ("stage_2", "stage_1_to_stage_4"):
            assert diagnostics[f"contrastive/{name}/{kind}_cosine"].isnan()


class _OperatorNames(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_loss_does_not_synchronize_with_the_device_except_for_class_counts():
    features, labels = maps(), block_labels()
    head = ProjectionHead([8, 8, 8], 6).train()
    hidden = head.hidden(features)
    with _OperatorNames() as called:
        loss, _ = build()(hidden, labels, head.row_projections)
        loss.backward()
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "item"}
    assert "sort" in called.names  # proves that the operators of the sampler were recorded
    assert not waits & set(called.names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_weights": (1.0,)}, "scale_weights"),
        ({"pair_weights": (1.0,)}, "pair"),
        ({"pairs": ((0, 3), (0, 1))}, "positions"),
        ({"pairs": ((0, 0), (0, 1))}, "different"),
    ],
)
def test_settings_that_do_not_fit_are_named_in_the_error(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("mode", "stages", "pairs"),
    [
        ("ms", [1, 2, 3, 4], []),
        ("ms_cs", [1, 2, 3, 4], [(0, 3), (0, 2)]),
        ("ms_cs", [1, 3, 4], [(0, 2), (0, 1)]),
        ("ms_cs", [1, 4], [(0, 1)]),
        ("ms_cs", [2], []),
    ],
)
def test_default_pairs_and_weights_are_the_published_ones(tiny_config, mode, stages, pairs):
    loss_function = MultiScaleContrastiveLoss.from_config(tiny_config(contrastive_mode=mode, projection_stages=stages))
    assert [tuple(pair) for pair in loss_function.pairs] == pairs
    assert list(loss_function.scale_weights) == [1, 0.7, 0.4, 0.1][: len(stages)]
