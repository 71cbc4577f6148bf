import pytest
import torch
from golden_numbers import read, relative_error, uniform
from reference import info_nce_by_loops

from msctr_hf import info_nce_loss
from msctr_hf.models import info_nce


def random_set(rows, classes, channels=6, dtype=torch.float64):
    return torch.randn(rows, channels, dtype=dtype), torch.randint(0, classes, (rows,))


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
def test_within_scale_equals_plain_loops(temperature):
    anchors, labels = random_set(40, 5)
    expected = info_nce_by_loops(anchors, labels, temperature=temperature)
    assert info_nce_loss(anchors, labels, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
def test_cross_scale_equals_plain_loops_with_classes_missing_on_either_side(temperature):
    anchors, labels = random_set(30, 6)
    contrast, contrast_labels = random_set(25, 6)
    labels[labels == 2] = 3
    contrast_labels[contrast_labels == 4] = 9
    expected = info_nce_by_loops(anchors, labels, contrast, contrast_labels, temperature)
    value = info_nce_loss(anchors, labels, contrast, contrast_labels, temperature=temperature)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_many_tiles_equal_one_tile(monkeypatch):
    anchors, labels = random_set(70, 7)
    whole = anchors.clone().requires_grad_()
    tiled = anchors.clone().requires_grad_()
    info_nce_loss(whole, labels).backward()
    monkeypatch.setattr(info_nce, "TILE_ROWS", 8)
    info_nce_loss(tiled, labels).backward()
    torch.testing.assert_close(tiled.grad, whole.grad, rtol=1e-12, atol=1e-15)


def test_recorded_within_scale_loss_and_gradient():
    facts, recorded = read("losses")
    facts = facts["A"]
    features = uniform("A.features", facts["features"]).requires_grad_()
    rows = features.transpose(1, 2).flatten(0, 1)
    labels = torch.tensor(facts["labels"]).repeat_interleave(features.shape[2])
    loss = info_nce_loss(rows, labels, temperature=facts["temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-10)
    assert relative_error(features.grad, recorded["A.grad"]) < 1e-10


def test_recorded_cross_scale_loss_and_gradients():
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


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_gradients_of_both_sides_pass_gradcheck(temperature):
    anchors, labels = random_set(9, 3, channels=4)
    contrast, contrast_labels = random_set(7, 4, channels=4)
    anchors.requires_grad_()
    contrast.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: info_nce_loss(a, labels, temperature=temperature), anchors)
    assert torch.autograd.gradcheck(
        lambda a, c: info_nce_loss(a, labels, c, contrast_labels, temperature=temperature), (anchors, contrast)
    )


def test_order_of_rows_does_not_matter():
    anchors, labels = random_set(50, 4)
    order = torch.randperm(50)
    torch.testing.assert_close(info_nce_loss(anchors[order], labels[order]), info_nce_loss(anchors, labels))


def test_length_of_features_does_not_matter():
    anchors, labels = random_set(20, 3)
    scaled = anchors * torch.rand(20, 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(info_nce_loss(scaled, labels), info_nce_loss(anchors, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_temperature_and_low_precision_stay_finite_and_close(dtype):
    anchors, labels = random_set(60, 4)
    anchors = anchors.to(dtype).requires_grad_()
    loss = info_nce_loss(anchors, labels, temperature=0.01)
    loss.backward()
    expected = info_nce_by_loops(anchors.detach(), labels, temperature=0.01)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert anchors.grad.isfinite().all()


def test_low_temperature_does_not_underflow():
    # the positive at cosine -0.8, one negative at -0.5: a constant shift by 1 / temperature gives 0 here
    anchors = torch.tensor([[1.0, 0.0], [-0.8, 0.6], [-0.5, -(0.75**0.5)]])
    labels = torch.tensor([0, 0, 1])
    expected = info_nce_by_loops(anchors, labels, temperature=0.01)
    assert expected > 10
    assert info_nce_loss(anchors, labels, temperature=0.01).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [[3] * 8, list(range(8))], ids=["one class only", "no positives"])
def test_nothing_to_tell_apart_gives_zero_loss_and_zero_gradient(labels):
    anchors = torch.randn(8, 4, requires_grad=True)
    loss = info_nce_loss(anchors, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert anchors.grad.abs().max() == 0


@pytest.mark.parametrize(("rows", "contrast_rows"), [(0, None), (0, 5), (5, 0)])
def test_empty_sides_give_zero_with_a_gradient_path(rows, contrast_rows):
    anchors = torch.randn(rows, 4, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.int64)
    sides = [anchors]
    if contrast_rows is None:
        loss = info_nce_loss(anchors, labels)
    else:
        contrast = torch.randn(contrast_rows, 4, requires_grad=True)
        sides.append(contrast)
        loss = info_nce_loss(anchors, labels, contrast, torch.zeros(contrast_rows, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert all(side.grad is not None and side.grad.isfinite().all() for side in sides)


def test_is_float32_inside_autocast():
    anchors, labels = random_set(40, 4, dtype=torch.float32)
    outside = info_nce_loss(anchors, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce_loss(anchors, labels)
    assert torch.equal(inside, outside)


def test_memory_kept_for_the_backward_is_linear_in_the_anchors():
    kept = []

    def measure(tensor):
        kept.append(tensor.numel())
        return tensor

    anchors, labels = random_set(3000, 5, channels=8, dtype=torch.float32)
    anchors.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        info_nce_loss(anchors, labels)
    assert sum(kept) <= 10 * anchors.numel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(2)}, "labels"),
        ({"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(3), "temperature": 0}, "temperature"),
        ({"anchors": torch.zeros(3, 4), "anchor_labels": torch.zeros(3), "contrast": torch.zeros(3, 4)}, "both"),
    ],
)
def test_misuse_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        info_nce_loss(**arguments)
