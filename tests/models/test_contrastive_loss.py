import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from golden_numbers import read, relative_error, uniform
from reference import info_nce_by_loops
from stage_maps import block_labels, maps
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from msctr_hf import MultiScaleContrastiveLoss, info_nce_loss, sample_anchors
from msctr_hf.models.projection_head import ProjectionHead

OPTIONS = {"anchor_selection": "hard", "positives": "any"}

with_and_without_options = pytest.mark.parametrize("settings", [{}, OPTIONS], ids=["default", "options"])


def build(**settings):
    defaults = {"num_labels": 5, "stages": (1, 2, 4), "scale_weights": (1.0, 0.7, 0.4)}
    pairs = {"pairs": ((0, 2), (0, 1)), "pair_weights": (1.0, 1.0)}
    return MultiScaleContrastiveLoss(**{**defaults, **pairs, **settings})


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


@with_and_without_options
def test_the_loss_does_not_synchronize_with_the_device_except_for_class_counts(settings):
    features, labels = maps(), block_labels()
    head = ProjectionHead([8, 8, 8], 6).train()
    hidden = head.hidden(features)
    with _OperatorNames() as called:
        loss, _ = build(**settings)(hidden, labels, head.row_projections, logits=torch.randn(2, 5, 8, 12))
        loss.backward()
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "item"}
    assert "sort" in called.names  # proves that the operators of the sampler were recorded
    assert not waits & set(called.names)


def hard(**settings):
    return build(anchor_selection="hard", **settings)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize(
    ("sampling", "dtype", "memory_format"),
    [
        ("budget", torch.float64, torch.contiguous_format),
        ("rarest", torch.float64, torch.channels_last),
        ("budget", torch.bfloat16, torch.channels_last),
    ],
    ids=["budget", "rarest channels_last", "budget bf16 channels_last"],
)
def test_hard_anchors_equal_plain_loops_over_the_same_anchors(sampling, dtype, memory_format, positives, temperature):
    labels = block_labels()
    labels[:, :9] = 255
    start = [map_.detach().to(dtype) for map_ in maps()]
    features = [map_.to(memory_format=memory_format, copy=True).requires_grad_() for map_ in start]
    logits = torch.randn(2, 5, 16, 24).to(dtype, memory_format=memory_format)
    limits = {"max_anchors": 30, "sampling": sampling, "min_anchors_per_class": 1}
    settings = {"positives": positives, "temperature": temperature}
    loss, _ = hard(**settings, **limits)(features, labels, generator=torch.Generator().manual_seed(4), logits=logits)
    loss.backward()
    resized = F.interpolate(logits.double(), (64, 96), mode="bilinear")
    generator, predicted = torch.Generator().manual_seed(4), resized.argmax(1)
    copies = [map_.double().requires_grad_() for map_ in start]
    sets = []
    for map_ in copies:
        stride = 64 // map_.shape[2]
        wrong = (predicted != labels)[:, ::stride, ::stride]
        sets.append(sample_anchors(map_, labels, 5, misclassified=wrong, generator=generator, **limits))
    assert all(len(each.labels) > 8 for each in sets)
    expected = sum(
        weight * info_nce_by_loops(each.features, each.labels, **settings)
        for weight, each in zip((1.0, 0.7, 0.4), sets, strict=True)
    )
    for coarse in (2, 1):
        expected = expected + info_nce_by_loops(*sets[0][:2], *sets[coarse][:2], **settings)
    # From maps in bf16 the loss is computed in float32, and its gradients are rounded to 8 bits once.
    of_loss, of_gradients, small = (1e-9, 1e-8, 1e-10) if dtype == torch.float64 else (1e-5, 2**-8, 1e-5)
    torch.testing.assert_close(loss.double(), expected, rtol=of_loss, atol=1e-12)
    for map_, grad in zip(features, torch.autograd.grad(expected, copies), strict=True):
        torch.testing.assert_close(map_.grad.double(), grad, rtol=of_gradients, atol=small * grad.norm().item())


def test_hard_anchors_are_counted_and_have_as_many_rows_as_random_ones():
    features, labels, logits = maps(), block_labels(), torch.randn(2, 5, 8, 12)
    facts = hard().contrast(features, labels, logits=logits).facts
    plain = build().contrast(features, labels).facts
    shares = {name: value for name, value in facts.items() if name.endswith("/hard_share")}
    assert {name: value for name, value in facts.items() if name not in shares} == plain
    assert list(shares) == [f"contrastive/stage_{stage}/hard_share" for stage in (1, 2, 4)]
    assert all(0.4 < share <= 1 for share in shares.values())
    perfect = 9.0 * F.one_hot(labels, 5).movedim(3, 1)
    assert hard().contrast(features, labels, logits=perfect).facts["contrastive/stage_1/hard_share"] == 0
    nothing = hard().contrast(features, torch.full_like(labels, 255), logits=logits).facts
    assert math.isnan(nothing["contrastive/stage_1/hard_share"])


def test_logits_get_no_gradient_and_random_anchors_do_not_read_them():
    features, labels = maps(), block_labels()
    logits = torch.randn(2, 5, 8, 12, requires_grad=True)
    seeded = {"generator": torch.Generator().manual_seed(1)}
    expected = build()(features, labels, **seeded)[0]
    for not_read in (logits, "anything"):
        seeded["generator"].manual_seed(1)
        assert torch.equal(build()(features, labels, logits=not_read, **seeded)[0], expected)
    loss, _ = hard()(features, labels, logits=logits, **seeded)
    loss.backward()
    assert logits.grad is None


@with_and_without_options
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_with_channels_last_give_the_same_loss_and_gradients(settings, dtype):
    labels = block_labels()
    start = [map_.detach().to(dtype) for map_ in maps()]
    logits = torch.randn(2, 5, 16, 24).to(dtype)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = [map_.to(memory_format=memory_format, copy=True).requires_grad_() for map_ in start]
        loss, _ = build(**settings)(
            features,
            labels,
            generator=torch.Generator().manual_seed(1),
            logits=logits.to(memory_format=memory_format),
        )
        loss.backward()
        results.append((loss, [map_.grad for map_ in features]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positives": "some"}, "`positives` must be 'each' or 'any', got 'some'"),
        ({"anchor_selection": "easy"}, "`anchor_selection` must be 'random' or 'hard', got 'easy'"),
        ({"scale_weights": (1.0,)}, r"`scale_weights` must have one entry per stage \[1, 2, 4\], got \[1.0\]"),
        ({"pair_weights": (1.0,)}, "`pair_weights` must have one entry per pair"),
        ({"pairs": ((0, 3), (0, 1))}, "`pairs` must pair two different positions below 3"),
        ({"pairs": ((0, 0), (0, 1))}, "`pairs` must pair two different"),
        ({"stages": (1, 1, 2)}, "`stages` must list stages, each once"),
        ({"stages": ()}, "`stages` must list stages"),
        ({"num_labels": 1}, "give the background a class"),
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"temperature": -0.1}, "`temperature` must be positive"),
        ({"temperature": float("nan")}, "`temperature` must be positive"),
        ({"cross_scale_temperature": -1.0}, "`cross_scale_temperature` must be positive"),
        ({"sampling": "all"}, "`sampling` must be 'rarest' or 'budget', got 'all'"),
        ({"min_anchors_per_class": 0}, "`min_anchors_per_class` must be at least 1"),
        ({"max_anchors_per_class": 0}, "`max_anchors_per_class` must be at least 1"),
        ({"max_anchors": 0}, "`max_anchors` must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_named_in_the_error(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_labels", 2.5, "must be an integer, got 2.5"),
        ("num_labels", "5", "must be an integer, got '5'"),
        ("stages", 4, "must be a list of entries, got 4"),
        ("scale_weights", 1.0, "must be a list of entries, got 1.0"),
        ("pairs", (0, 1), "must be a list of pairs of positions, got 0"),
        ("pair_weights", 0.5, "must be a list of entries, got 0.5"),
        ("max_anchors", 10.5, "must be an integer, got 10.5"),
    ],
)
def test_a_setting_of_another_type_is_named_in_the_error(name, value, message):
    with pytest.raises(TypeError, match=f"`{name}` {message}"):
        MultiScaleContrastiveLoss(**{"num_labels": 5, name: value})


@pytest.mark.parametrize("name", ["temperature", "cross_scale_temperature"])
def test_a_learnable_temperature_is_refused(name):
    with pytest.raises(TypeError, match=f"`{name}` must be a number, got a tensor: the loss does not train it"):
        build(**{name: nn.Parameter(torch.tensor(0.1))})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_scale_weights": [1.0]}, "`contrastive_scale_weights` must have one entry per stage"),
        ({"contrastive_cross_scale_weights": [1.0]}, "`contrastive_cross_scale_weights` must have one entry per pair"),
        ({"contrastive_cross_scale_pairs": [[0, 9]]}, "`contrastive_cross_scale_pairs` must pair two different"),
        ({"contrastive_max_anchors": 0}, "`contrastive_max_anchors` must be at least 1"),
        ({"contrastive_warmup_steps": -1}, "`contrastive_warmup_steps` must be at least 0, got -1"),
        ({"contrastive_temperature": float("nan")}, "`contrastive_temperature` must be at least 0.01"),
    ],
)
def test_a_configuration_names_its_own_fields_in_the_error(tiny_config, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": [*maps(8)[:2], maps(6)[2]]}, "Stages 1 and 4 .* have 8 and 6 channels"),
        ({"project": [lambda rows: rows]}, "`project` must have one function"),
        ({"project": ProjectionHead([8, 8, 8], 6)}, "`project` .* got a ProjectionHead"),
    ],
)
def test_projections_that_do_not_fit_are_named_in_the_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        build()(**{"features": maps(), "labels": block_labels(), **arguments})


def test_only_the_number_of_classes_has_no_default_and_the_others_are_those_of_the_configuration(tiny_config):
    assert str(MultiScaleContrastiveLoss(5)) == str(MultiScaleContrastiveLoss.from_config(tiny_config()))
    loss_function = MultiScaleContrastiveLoss(5, temperature=0.2)
    assert loss_function.cross_scale_temperature == 0.2
    assert loss_function.scale_weights == (1.0, 0.7, 0.4, 0.1)
    assert loss_function.pairs == ((0, 3), (0, 2))
    single = MultiScaleContrastiveLoss(5, stages=[4])
    assert single.pairs == ()
    assert single([maps()[2]], block_labels())[0] > 0
    assert MultiScaleContrastiveLoss(5, stages=range(1, 7)).scale_weights == (1.0, 0.7, 0.4, 0.1, 0.1, 0.1)


def test_the_loss_is_a_module_without_state_that_can_be_copied_and_pickled():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    keys = list(network.state_dict())
    network.contrast = build()
    assert isinstance(network.contrast, nn.Module)
    assert list(network.state_dict()) == keys
    assert list(network.contrast.parameters()) == list(network.contrast.buffers()) == []
    features, labels = maps(), block_labels()
    losses = [
        loss_function.train(mode)(features, labels, generator=torch.Generator().manual_seed(1))[0]
        for loss_function in (network.contrast, copy.deepcopy(network.contrast), pickle.loads(pickle.dumps(build())))
        for mode in (True, False)
    ]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    seen = []
    network.contrast.register_forward_hook(lambda module, arguments, output: seen.append(output))
    network.contrast(features, labels)
    network.contrast.contrast(features, labels)
    assert len(seen) == 2


def test_transforms_of_the_loss_over_stages_work_to_first_order_and_raise_one_sentence_beyond():
    loss_function, labels = build(), block_labels()
    features = [map_.detach() for map_ in maps(dtype=torch.float64)]

    def loss(finest, labels=labels):
        return loss_function([finest, *features[1:]], labels, generator=torch.Generator().manual_seed(1))[0]

    finest = features[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(finest), finest)
    assert torch.equal(torch.func.grad(loss)(features[0]), expected)
    (grad,) = torch.autograd.grad(loss(finest), finest, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        grad.square().sum().backward()
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(loss, (features[0],), (features[0],))
    with pytest.raises(NotImplementedError, match="`vmap` is replaced by a loop"):
        torch.func.vmap(loss, in_dims=(None, 0))(features[0], torch.stack([labels, labels]))


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
