import pytest
import torch
from golden_numbers import read, relative_error, uniform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import info_nce_by_loops
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from msctr_hf import info_nce_loss
from msctr_hf.models import info_nce_tiles


def random_set(rows, classes, channels=6, dtype=torch.float64):
    return torch.randn(rows, channels, dtype=dtype), torch.randint(0, classes, (rows,))


def with_gradients(function, *sides, **settings):
    """Compute a value, and its gradients with respect to the features."""
    sides = [side.clone().requires_grad_() if side.is_floating_point() else side for side in sides]
    value = function(*sides, **settings)
    value.backward()
    return value.detach(), [side.grad for side in sides if side.is_floating_point()]


def assert_equal(actual, expected, rtol=1e-9):
    (value, grads), (expected_value, expected_grads) = actual, expected
    torch.testing.assert_close(value, expected_value, rtol=rtol, atol=1e-13)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=rtol * expected_grad.norm().item() + 1e-13)


def assert_equals_loops(*sides, **settings):
    assert_equal(
        with_gradients(info_nce_loss, *sides, **settings), with_gradients(info_nce_by_loops, *sides, **settings)
    )


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.01])
def test_within_scale_equals_plain_loops(temperature, positives):
    assert_equals_loops(*random_set(40, 5), temperature=temperature, positives=positives)


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.01])
def test_cross_scale_equals_plain_loops_with_classes_missing_on_either_side(temperature, positives):
    anchors, labels = random_set(30, 6)
    contrast, contrast_labels = random_set(25, 6)
    labels[labels == 2] = 3
    contrast_labels[contrast_labels == 4] = 9
    assert_equals_loops(anchors, labels, contrast, contrast_labels, temperature=temperature, positives=positives)


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.01])
def test_a_contrast_set_that_contains_the_anchors_equals_plain_loops(temperature, positives):
    contrast, contrast_labels = random_set(30, 4)
    anchors, labels = contrast[7:19].clone(), contrast_labels[7:19]
    assert_equals_loops(
        anchors, labels, contrast, contrast_labels, temperature=temperature, self_offset=7, positives=positives
    )


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_with_a_single_positive_any_positive_equals_each(temperature):
    within = [torch.randn(12, 4, dtype=torch.float64), torch.arange(6).repeat(2)]  # two rows of every class
    across = [*random_set(9, 4), torch.randn(4, 6, dtype=torch.float64), torch.arange(4)]  # one of every class
    for sides in (within, across):
        each, any_ = (
            with_gradients(info_nce_loss, *sides, temperature=temperature, positives=way) for way in ("each", "any")
        )
        assert_equal(any_, each, rtol=1e-12)


def test_a_class_in_two_clusters_has_no_loss_if_any_positive_is_enough():
    axes = torch.eye(3, dtype=torch.float64)
    anchors = axes[[0, 0, 1, 1, 2, 2]]  # two clusters of class 0, one of class 1
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    each, any_ = (info_nce_loss(anchors, labels, positives=way).item() for way in ("each", "any"))
    assert any_ < 3e-4 < 0.4 < each


@given(
    labels=st.lists(st.integers(0, 5), max_size=14),
    contrast_labels=st.none() | st.lists(st.integers(0, 5), max_size=14),
    tile_rows=st.sampled_from([1, 2, 3, 5, 256]),
    kept_tiles=st.sampled_from([0, 1, 4]),
    temperature=st.floats(0.01, 2),
    positives=st.sampled_from(["each", "any"]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_classes_tiles_and_temperature_equal_plain_loops(
    monkeypatch, labels, contrast_labels, tile_rows, kept_tiles, temperature, positives, spread, seed
):
    monkeypatch.setattr(info_nce_tiles, "CPU_TILE_ROWS", tile_rows)
    monkeypatch.setattr(info_nce_tiles, "KEPT_TILES", kept_tiles)
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for side in (labels, contrast_labels):
        if side is not None:  # around a common direction: from all equal to widely spread
            features = 1 + spread * torch.randn(len(side), 4, dtype=torch.float64, generator=generator)
            sides += [features, torch.tensor(side, dtype=torch.int64)]
    assert_equals_loops(*sides, temperature=temperature, positives=positives)


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize(("tile_rows", "kept_tiles"), [(8, 4), (8, 0), (23, 4), (300, 4)])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_the_size_of_tiles_does_not_change_loss_and_gradients(
    monkeypatch, tile_rows, kept_tiles, temperature, positives
):
    sides = [*random_set(170, 7), *random_set(90, 8)]
    settings = {"temperature": temperature, "positives": positives}
    within, across = (with_gradients(info_nce_loss, *x, **settings) for x in (sides[:2], sides))
    monkeypatch.setattr(info_nce_tiles, "CPU_TILE_ROWS", tile_rows)
    monkeypatch.setattr(info_nce_tiles, "KEPT_TILES", kept_tiles)
    assert_equal(with_gradients(info_nce_loss, *sides[:2], **settings), within, rtol=1e-12)
    assert_equal(with_gradients(info_nce_loss, *sides, **settings), across, rtol=1e-12)


def test_losses_of_parts_of_the_anchors_add_up_to_the_loss_of_all():
    anchors, labels = random_set(37, 4)
    whole = info_nce_loss(anchors, labels)
    parts = [
        len(range(*part))
        * info_nce_loss(anchors[slice(*part)], labels[slice(*part)], anchors, labels, self_offset=part[0])
        for part in ((0, 11), (11, 12), (12, 37))
    ]
    torch.testing.assert_close(sum(parts) / 37, whole, rtol=1e-12, atol=0)


def test_within_scale_loss_and_gradient_equal_those_recorded_from_the_released_code():
    facts, recorded = read("losses")
    facts = facts["A"]
    features = uniform("A.features", facts["features"]).requires_grad_()
    rows = features.transpose(1, 2).flatten(0, 1)
    labels = torch.tensor(facts["labels"]).repeat_interleave(features.shape[2])
    loss = info_nce_loss(rows, labels, temperature=facts["temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-10)
    assert relative_error(features.grad, recorded["A.grad"]) < 1e-10


def test_cross_scale_loss_and_gradients_equal_those_recorded_from_the_released_code():
    facts, recorded = read("losses")
    facts = facts["B"]
    fine = uniform("B.features1", facts["features1"]).requires_grad_()
    coarse = uniform("B.features2", facts["features2"]).requires_grad_()
    loss = info_nce_loss(
        fine.transpose(1, 2).flatten(0, 1),
        torch.tensor(facts["labels1"]).repeat_interleave(fine.shape[2]),
        coarse.transpose(1, 2).flatten(0, 1),
        torch.tensor(facts["labels2"]).repeat_interleave(coarse.shape[2]),
        temperature=facts["temperature"],
    )
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-10)
    assert relative_error(fine.grad, recorded["B.grad1"]) < 1e-10
    assert relative_error(coarse.grad, recorded["B.grad2"]) < 1e-10


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_gradients_of_both_sides_pass_gradcheck(temperature, positives):
    settings = {"temperature": temperature, "positives": positives}
    anchors, labels = random_set(9, 3, channels=4)
    contrast, contrast_labels = random_set(7, 4, channels=4)
    anchors.requires_grad_()
    contrast.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: info_nce_loss(a, labels, **settings), anchors)
    assert torch.autograd.gradcheck(
        lambda a, c: info_nce_loss(a, labels, c, contrast_labels, **settings), (anchors, contrast)
    )


def test_the_order_of_rows_does_not_change_the_loss():
    sides = [*random_set(50, 4), *random_set(40, 4)]
    order, contrast_order = torch.randperm(50), torch.randperm(40)
    permuted = [sides[0][order], sides[1][order], sides[2][contrast_order], sides[3][contrast_order]]
    for actual, target in ((permuted[:2], sides[:2]), (permuted, sides)):
        value, grads = with_gradients(info_nce_loss, *target)
        grads = [grad[o] for grad, o in zip(grads, (order, contrast_order), strict=False)]
        assert_equal(with_gradients(info_nce_loss, *actual), (value, grads), rtol=1e-11)


def test_the_length_of_features_does_not_change_the_loss():
    anchors, labels = random_set(20, 3)
    scaled = anchors * torch.rand(20, 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(info_nce_loss(scaled, labels), info_nce_loss(anchors, labels))


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_temperature_and_low_precision_stay_finite_and_close(dtype, positives):
    anchors, labels = random_set(60, 4)
    anchors = anchors.to(dtype).requires_grad_()
    loss = info_nce_loss(anchors, labels, temperature=0.01, positives=positives)
    loss.backward()
    expected = info_nce_by_loops(anchors.detach(), labels, temperature=0.01, positives=positives)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert anchors.grad.isfinite().all()


@pytest.mark.parametrize("positives", ["each", "any"])
def test_a_low_temperature_does_not_underflow(positives):
    # The cosine is -0.8 with the positive and -0.5 with the negative: with the shift by 1 / temperature that suits
    # cosines near 1, both exponentials would underflow.
    anchors = torch.tensor([[1.0, 0.0], [-0.8, 0.6], [-0.5, -(0.75**0.5)]])
    labels = torch.tensor([0, 0, 1])
    expected = info_nce_by_loops(anchors, labels, temperature=0.01, positives=positives)
    assert expected > 10
    loss = info_nce_loss(anchors, labels, temperature=0.01, positives=positives)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("labels", [[3] * 8, list(range(8))], ids=["one class only", "no positives"])
def test_loss_and_gradient_are_zero_without_positives_or_negatives(labels, temperature, positives):
    anchors = torch.randn(8, 4, requires_grad=True)
    loss = info_nce_loss(anchors, torch.tensor(labels), temperature=temperature, positives=positives)
    loss.backward()
    assert loss.item() == 0
    assert anchors.grad.abs().max() == 0


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize(("rows", "contrast_rows"), [(0, None), (0, 5), (5, 0)])
def test_empty_sets_give_a_loss_of_zero_with_a_gradient_path(rows, contrast_rows, positives):
    anchors = torch.randn(rows, 4, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.int64)
    sides = [anchors]
    if contrast_rows is None:
        loss = info_nce_loss(anchors, labels, positives=positives)
    else:
        contrast = torch.randn(contrast_rows, 4, requires_grad=True)
        sides.append(contrast)
        contrast_labels = torch.zeros(contrast_rows, dtype=torch.int64)
        loss = info_nce_loss(anchors, labels, contrast, contrast_labels, positives=positives)
    loss.backward()
    assert loss.item() == 0
    assert all(side.grad is not None and side.grad.isfinite().all() for side in sides)


def test_the_loss_is_computed_in_float32_inside_autocast():
    anchors, labels = random_set(40, 4, dtype=torch.float32)
    outside = info_nce_loss(anchors, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce_loss(anchors, labels)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("positives", ["each", "any"])
def test_memory_kept_for_the_backward_pass_is_linear_in_the_number_of_anchors(positives):
    kept = []

    def measure(tensor):
        kept.append(tensor.numel())
        return tensor

    anchors, labels = random_set(3000, 5, channels=8, dtype=torch.float32)
    anchors.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        info_nce_loss(anchors, labels, positives=positives)
    assert sum(kept) <= 10 * anchors.numel()


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.values = max(self.values, each.numel())
        return result


@pytest.mark.parametrize("positives", ["each", "any"])
@pytest.mark.parametrize("temperature", [0.1, 0.01], ids=["tiles", "strips"])
def test_no_tensor_grows_with_the_square_of_the_number_of_anchors(temperature, positives):
    largest = []
    for rows in (3000, 6000):
        anchors, labels = random_set(rows, 19, channels=8, dtype=torch.float32)
        with _LargestTensor() as seen:
            with_gradients(info_nce_loss, anchors, labels, temperature=temperature, positives=positives)
        largest.append(seen.values)
    assert largest[1] <= 2.2 * largest[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("first", [2**24, 2**53, -(2**24) - 7, 2**62])
def test_classes_that_a_float_cannot_represent_are_told_apart(dtype, temperature, first):
    sides = [*random_set(40, 5, dtype=dtype), *random_set(30, 6, dtype=dtype)]
    large = [side if side.is_floating_point() else first + side for side in sides]
    for count in (2, 4):
        expected = info_nce_loss(*sides[:count], temperature=temperature)
        assert info_nce_loss(*large[:count], temperature=temperature).item() == expected.item()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.bool])
def test_labels_may_be_of_any_integer_type(dtype):
    anchors, labels = random_set(30, 2)
    assert info_nce_loss(anchors, labels.to(dtype)).item() == info_nce_loss(anchors, labels).item()


def gradients(anchors, labels, contrast=None, contrast_labels=None, **settings):
    sides = [anchors] if contrast is None else [anchors, contrast]
    loss = info_nce_loss(anchors, labels, contrast, contrast_labels, temperature=0.1)
    return torch.autograd.grad(loss, sides, **settings)


@pytest.mark.parametrize("count", [2, 4], ids=["within", "across"])
def test_a_second_derivative_raises_instead_of_being_zero(count):
    sides = [*random_set(12, 3), *random_set(9, 3)][:count]
    for features in sides[::2]:
        features.requires_grad_()
    plain = gradients(*sides)
    for position, grad in enumerate(gradients(*sides, create_graph=True)):
        assert torch.equal(grad, plain[position])
        with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
            torch.autograd.grad(grad.square().sum(), sides[2 * position], retain_graph=True, allow_unused=True)
        with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
            (sides[0].sum() + grad.square().sum()).backward(retain_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        torch.autograd.functional.hessian(lambda anchors: info_nce_loss(anchors, *sides[1:]), sides[0])


def test_a_weight_of_the_loss_cannot_hide_a_second_derivative():
    anchors, labels = random_set(12, 3)
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(weight * info_nce_loss(anchors.requires_grad_(), labels), anchors, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        torch.autograd.grad(grad.sum(), weight)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_first_derivatives_of_torch_func_equal_those_of_autograd(temperature):
    anchors, labels, contrast, contrast_labels = *random_set(12, 3), *random_set(9, 3)
    _, (expected, expected_contrast) = with_gradients(
        info_nce_loss, anchors, labels, contrast, contrast_labels, temperature=temperature
    )

    def loss(anchors, contrast, labels=labels):
        return info_nce_loss(anchors, labels, contrast, contrast_labels, temperature=temperature)

    for transform in (torch.func.grad, torch.func.jacrev):
        assert torch.equal(transform(loss)(anchors, contrast), expected)
        assert torch.equal(transform(loss, argnums=1)(anchors, contrast), expected_contrast)
        assert torch.equal(transform(loss)(anchors, contrast, labels), expected)  # labels are an input too
    _, (expected,) = with_gradients(info_nce_loss, anchors, labels, temperature=temperature)
    actual = torch.func.grad(lambda anchors: info_nce_loss(anchors, labels, temperature=temperature))(anchors)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("where", ["features", "labels", "both"])
@pytest.mark.parametrize("count", [2, 4], ids=["within", "across"])
def test_vmap_raises_one_sentence(where, count):
    sides = [*random_set(12, 3), *random_set(9, 3)][:count]
    batched = [where == "both" or side.is_floating_point() == (where == "features") for side in sides]
    inputs = [torch.stack([side, side]) if batch else side for side, batch in zip(sides, batched, strict=True)]
    with pytest.raises(NotImplementedError, match="`vmap` is replaced by a loop"):
        torch.func.vmap(info_nce_loss, in_dims=tuple(0 if batch else None for batch in batched))(*inputs)


@pytest.mark.parametrize("count", [2, 4], ids=["within", "across"])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_forward_mode_and_hessians_raise_one_sentence(count, temperature):
    sides = [*random_set(12, 3), *random_set(9, 3)][:count]

    def loss(anchors):
        return info_nce_loss(anchors, *sides[1:], temperature=temperature)

    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(loss, (sides[0],), (torch.ones_like(sides[0]),))
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jacfwd(loss)(sides[0])
    with pytest.raises(NotImplementedError, match="hessian"):
        torch.func.hessian(loss)(sides[0])
    with pytest.raises(NotImplementedError, match="hessian"):
        torch.func.jacrev(torch.func.grad(loss))(sides[0])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        loss(torch.autograd.forward_ad.make_dual(sides[0], torch.ones_like(sides[0])))


def test_checkpointing_and_compilation_keep_loss_and_gradient():
    anchors, labels = random_set(40, 4)
    expected = with_gradients(info_nce_loss, anchors, labels)
    for reentrant in (True, False):
        assert_equal(
            with_gradients(
                lambda a, y, reentrant=reentrant: torch.utils.checkpoint.checkpoint(
                    info_nce_loss, a, y, use_reentrant=reentrant
                ),
                anchors,
                labels,
            ),
            expected,
            rtol=0,
        )
    compiled = torch.compile(lambda a, y: 2 * info_nce_loss(a * 1, y) / 2, backend="aot_eager")
    assert_equal(with_gradients(compiled, anchors, labels), expected)


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        info_nce_loss(*random_set(4, 2), temperature=temperature)


@pytest.mark.parametrize("temperature", [nn.Parameter(torch.tensor(0.1)), torch.tensor(0.1), "0.1", True, None])
def test_a_temperature_that_is_not_a_number_is_refused(temperature):
    with pytest.raises(TypeError, match="`temperature` must be a number"):
        info_nce_loss(*random_set(4, 2), temperature=temperature)


@pytest.mark.parametrize("name", ["anchor_labels", "contrast_labels"])
def test_labels_that_are_not_integers_are_refused(name):
    sides = dict(zip(("anchors", "anchor_labels", "contrast", "contrast_labels"), random_set(4, 2) * 2, strict=True))
    with pytest.raises(TypeError, match=f"`{name}` must be integers, .*got torch.float32"):
        info_nce_loss(**{**sides, name: sides[name].float()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(2, dtype=torch.int64)}, "labels"),
        (
            {"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(3, dtype=torch.int64), "temperature": 0},
            "temperature",
        ),
        (
            {
                "anchors": torch.zeros(3, 4),
                "anchor_labels": torch.zeros(3, dtype=torch.int64),
                "contrast": torch.zeros(3, 4),
            },
            "together",
        ),
        (
            {"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(3, dtype=torch.int64), "self_offset": 0},
            "contrast",
        ),
        (
            {
                "anchors": torch.zeros(3, 4),
                "anchor_labels": torch.zeros(3, dtype=torch.int64),
                "contrast": torch.zeros(4, 4),
                "contrast_labels": torch.zeros(4, dtype=torch.int64),
                "self_offset": 2,
            },
            "rows 2 to 5",
        ),
    ],
)
def test_wrong_arguments_are_named_in_the_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        info_nce_loss(**arguments)


def test_an_unknown_use_of_positives_is_named_in_the_error():
    with pytest.raises(ValueError, match="`positives` must be 'each' or 'any', got 'some'"):
        info_nce_loss(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64), positives="some")


@pytest.mark.parametrize("labels", [[0, 0, 1], None])
def test_labels_that_are_not_a_tensor_are_named_in_the_error(labels):
    with pytest.raises(TypeError, match="`anchor_labels` must be a tensor of integers, the classes, got"):
        info_nce_loss(torch.randn(3, 4), labels)
