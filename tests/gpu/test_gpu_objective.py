"""The contrastive objective on a device: values and gradients of float64 on the host, and memory linear in N."""

import pytest
import torch
from gpu_parts import difference, part, tf32
from reference import info_nce_by_loops

from experiments.benchmark.contrast import blob_labels, loss_step
from experiments.benchmark.measuring import peak_megabytes
from experiments.benchmark.reference import dense_info_nce_loss
from msctr_hf import MultiScaleContrastiveLoss, info_nce_loss, sample_anchors
from msctr_hf.models.anchor_sampling import resize_labels
from msctr_hf.models.pseudo_anchors import PseudoLabeled
from msctr_hf.models.transfers import mark_complete

# Largest difference from float64 relative to the largest entry, for the value and for the gradients. A logit is a sum
# of 256 products over t = 0.1: float32 rounds it by some 1e-6. TensorFloat-32 keeps 11 bits of the factors, which is
# 5e-4 for a product, and, as signs vary, as much for a logit.
BOUNDS = {"float64": (1e-10, 1e-9), "float32": (1e-5, 1e-4), "tf32": (2e-3, 2e-2)}


@pytest.fixture
def precision(request):
    """Name of a precision: float64, float32, or tf32, which only matrix products of a GPU have."""
    with tf32(products=request.param == "tf32", convolutions=False):
        yield request.param


def with_gradients(function, sides, **settings):
    sides = [side.clone().requires_grad_() if side.is_floating_point() else side for side in sides]
    value = function(*sides, **settings)
    features = [side for side in sides if side.is_floating_point()]
    return [value.detach(), *torch.autograd.grad(value, features)]


def assert_close(actual, expected, precision, figures, name=""):
    """Compare a value and its gradients with those of float64 on the host."""
    value, *grads = (difference(*pair) for pair in zip(actual, expected, strict=True))
    figures[f"{name}value"], figures[f"{name}gradients"] = value, max(grads)
    of_value, of_gradients = BOUNDS[precision]
    assert value <= of_value
    assert max(grads) <= of_gradients


def random_set(size, classes, generator):
    labels = torch.randint(0, classes, (size,), generator=generator)
    return torch.randn(size, 256, generator=generator, dtype=torch.float64), labels


def on(device, sides, precision):
    dtype = torch.float64 if precision == "float64" else torch.float32
    return [side.to(device, dtype) if side.is_floating_point() else side.to(device) for side in sides]


@pytest.mark.parametrize("precision", BOUNDS, indirect=True)
@part(30)
def test_terms_with_several_tiles_equal_float64_on_the_host(device, figures, precision):
    sizes = (300, 500) if device == "cpu" else (6000, 5000)
    generator = torch.Generator().manual_seed(0)
    sides = [side for size in sizes for side in random_set(size, 19, generator)]
    for name, used in (("within ", sides[:2]), ("across ", sides)):
        expected = with_gradients(dense_info_nce_loss, used)
        actual = with_gradients(info_nce_loss, on(device, used, precision))
        assert actual[0].device.type == device
        assert_close(actual, expected, precision, figures, name)


@pytest.mark.parametrize("precision", ["float64", "float32"], indirect=True)
@part(30)
def test_terms_at_any_temperature_equal_plain_loops_on_the_host(device, figures, precision):
    generator = torch.Generator().manual_seed(0)
    contrast, contrast_labels = random_set(24, 4, generator)
    anchors, labels = contrast[7:15], contrast_labels[7:15]
    for temperature in (0.5, 0.1, 0.01):
        for name, sides, settings in (
            ("within", [contrast, contrast_labels], {}),
            ("own", [anchors, labels, contrast, contrast_labels], {"self_offset": 7}),
        ):
            settings = {**settings, "temperature": temperature}
            expected = with_gradients(info_nce_by_loops, sides, **settings)
            actual = with_gradients(info_nce_loss, on(device, sides, precision), **settings)
            # a logit is rounded by a share of itself, and exponentials by that times the logit of at most 1 / t
            scale = max(1.0, 0.1 / temperature)
            differences = [difference(*pair) / scale for pair in zip(actual, expected, strict=True)]
            figures[f"{name} at {temperature}"] = differences
            assert differences[0] <= BOUNDS[precision][0]
            assert max(differences[1:]) <= BOUNDS[precision][1]


@part(30)
def test_labels_are_resized_as_on_the_host(device, figures):
    labels = torch.randint(0, 19, (2, 97, 131))
    for size in [(97, 131), (49, 66), (25, 33), (13, 17), (7, 9), (200, 300)]:
        expected = resize_labels(labels, torch.empty(2, 1, *size))
        assert torch.equal(resize_labels(labels.to(device), torch.empty(2, 1, *size, device=device)).cpu(), expected)
    figures["sizes"] = 6


@pytest.mark.parametrize("sampling", ["rarest", "budget"])
@part(30)
def test_sampled_pixels_have_their_class_are_distinct_and_get_the_gradient(device, figures, sampling):
    size = (64, 128) if device == "cpu" else (512, 1024)
    labels = blob_labels(3, size, torch.device(device))
    labels[:, :5] = 255
    height, width = size[0] // 4, size[1] // 4
    number = torch.arange(3 * height * width, device=device).float().view(3, 1, height, width)  # exact up to 2^24
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.cat([number, -number], 1).contiguous(memory_format=layout).requires_grad_()
        draws = []
        for _ in range(2):
            generator = torch.Generator(device=device).manual_seed(5)
            draws.append(sample_anchors(features, labels, 19, sampling=sampling, generator=generator))
        anchors, again = draws
        assert torch.equal(anchors.features, again.features)  # one seed draws the same pixels
        pixels = anchors.features[:, 0].detach().long()
        assert len(pixels.unique()) == len(pixels) == sum(anchors.class_sizes.values()) > 0
        assert torch.equal(resize_labels(labels, features).flatten()[pixels], anchors.labels)
        assert anchors.labels.cpu().tolist() == [k for k, n in anchors.class_sizes.items() for _ in range(n)]
        (grad,) = torch.autograd.grad((anchors.features * 2).sum(), [features])
        expected = torch.zeros(number.numel(), device=device)
        expected[pixels] = 2
        assert torch.equal(grad[:, 0].flatten(), expected)
    figures["anchors"] = len(pixels)


@pytest.mark.parametrize("precision", BOUNDS, indirect=True)
@part(30)
def test_the_whole_objective_equals_float64_on_the_host(device, figures, precision):
    size = (64, 128) if device == "cpu" else (256, 512)
    objective = MultiScaleContrastiveLoss(  # all pixels are anchors, so that nothing depends on random numbers
        19, (1, 2, 3, 4), (1.0, 0.7, 0.4, 0.1), ((0, 3), (0, 2)), (1.0, 0.5),
        sampling="budget", min_anchors_per_class=1, max_anchors_per_class=10**6, max_anchors=10**6,
    )  # fmt: skip
    labels = blob_labels(2, size, torch.device("cpu"))
    maps = [torch.randn(2, 32, size[0] // s, size[1] // s, dtype=torch.float64) for s in (8, 16, 32, 64)]
    function = lambda *maps, labels: objective(maps, labels)[0]  # noqa: E731
    expected = with_gradients(function, maps, labels=labels)
    actual = with_gradients(function, on(device, maps, precision), labels=labels.to(device))
    assert_close(actual, expected, precision, figures)


@pytest.mark.parametrize("unlabeled", [False, True])
@part(30)
def test_the_host_does_not_wait_for_work_that_is_queued_after_complete_labels(device, figures, unlabeled):
    objective = MultiScaleContrastiveLoss(19)
    labels = blob_labels(2, (64, 128), torch.device(device))
    maps = [torch.randn(2, 32, 64 // stride, 128 // stride, device=device) for stride in (4, 8, 16, 32)]
    pseudo = PseudoLabeled(maps, labels.flip(0), torch.ones(labels.shape, device=device)) if unlabeled else None
    losses = []

    def loss():
        generator = torch.Generator(device=device).manual_seed(5)
        objective.pseudo_draws.load_state_dict({"seed": 5, "drawn": 0})
        return objective(maps, labels, generator=generator, pseudo=pseudo)[0]

    for marks, changes in ((False, False), (True, False), (True, True)):
        losses += [loss()]  # compiles and allocates what it needs
        for read in (labels, *(pseudo[1:] if unlabeled else ())) if marks else ():
            mark_complete(read)
        if changes:
            labels += 0  # whoever changes labels in place afterwards gets the counts of the changed ones
        if device == "cuda":
            torch.cuda._sleep(400_000_000)  # clock cycles: a fifth of a second
            end = torch.cuda.Event()
            end.record()
        losses += [loss()]
        if device == "cuda":
            figures[f"waits, marked {marks}, changed {changes}"] = waits = end.query()
            assert waits == (not marks or changes)
            torch.cuda.synchronize()
    assert len({loss.item() for loss in losses}) == 1


@part(60)
def test_memory_is_linear_in_the_number_of_anchors(device, figures):
    sizes = (100, 200) if device == "cpu" else (5_000, 10_000, 20_000, 40_000)
    device = torch.device(device)
    for term in ("within", "across"):
        memory = {
            size: peak_megabytes(loss_step, ("ours", term, size, 19, device), ("ours", term, 200, 5, device), device)
            for size in (sizes if device.type == "cuda" else ())  # on a CPU tests/models count bytes of tensors
        }
        figures[f"{term} MB"] = memory
        # twice the rows take twice the memory; the rest is that tiles of whole classes vary in size
        assert all(memory[2 * size] <= 2.3 * memory[size] for size in memory if 2 * size in memory)
        loss_step("ours", term, sizes[-1], 19, device)()
