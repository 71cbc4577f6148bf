import pytest
import torch

from msctr_hf import sample_anchors


def blocks(batch, rows, columns, classes, size=4):
    return torch.randint(0, classes, (batch, rows, columns)).repeat_interleave(size, 1).repeat_interleave(size, 2)


def coordinates(batch, height, width):
    """Make a map whose features are the image, row and column of every pixel."""
    axes = torch.meshgrid(*(torch.arange(side).float() for side in (batch, height, width)), indexing="ij")
    return torch.stack(axes, dim=1)


def test_every_pair_of_image_and_class_gives_as_many_pixels_as_the_rarest_pair():
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[0, :2] = 1  # 16 pixels
    labels[1, 0, :7] = 2  # 7 pixels: the rarest
    labels[1, 1, :4] = 3  # 4 pixels: too few
    anchors = sample_anchors(torch.randn(2, 3, 8, 8), labels, 4)
    counts = anchors.labels.bincount(minlength=4).tolist()
    assert counts == [14, 7, 7, 0]
    assert anchors.class_sizes == {0: 14, 1: 7, 2: 7}


def test_samples_are_distinct_pixels_of_their_class_and_image():
    labels = blocks(3, 4, 5, 4)
    features = coordinates(*labels.shape)
    anchors = sample_anchors(features, labels, 4)
    image, row, column = anchors.features.long().unbind(1)
    assert torch.equal(labels[image, row, column], anchors.labels)
    assert len(anchors.features.unique(dim=0)) == len(anchors.features)
    assert torch.equal(anchors.labels, anchors.labels.sort().values)
    pairs = image * 4 + anchors.labels
    drawn = pairs.bincount()
    assert len(drawn[drawn > 0].unique()) == 1


def test_the_last_class_is_sampled_and_values_outside_the_classes_never_are():
    labels = torch.full((1, 6, 6), 3)
    labels[:, :2] = 255
    labels[:, 2] = -1
    anchors = sample_anchors(torch.randn(1, 2, 6, 6), labels, 4)
    assert anchors.labels.tolist() == [3] * 18


@pytest.mark.parametrize(("height", "width"), [(360, 480), (97, 131)])
def test_labels_are_resized_to_the_real_size_of_the_map(height, width):
    labels = torch.randint(0, 3, (2, height, width))
    features = coordinates(2, -(-height // 4), -(-width // 4))
    anchors = sample_anchors(features, labels, 3)
    image, row, column = anchors.features.long().unbind(1)
    rows = (row * (height / features.shape[2])).floor().long()
    columns = (column * (width / features.shape[3])).floor().long()
    assert torch.equal(labels[image, rows, columns], anchors.labels)


def test_the_limits_on_the_number_of_anchors_are_not_exceeded():
    labels = blocks(2, 8, 8, 3)
    features = torch.randn(2, 2, 32, 32)
    assert max(sample_anchors(features, labels, 3, max_anchors_per_class=9).class_sizes.values()) <= 2 * 9
    assert len(sample_anchors(features, labels, 3, max_anchors=50).labels) <= 50
    assert len(sample_anchors(features, labels, 3, max_anchors=5).labels) == 0  # less than one per pair


def test_the_budget_rule_draws_all_pixels_of_a_rare_class_and_an_equal_share_of_a_frequent_one():
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[0, 0, :6] = 1
    anchors = sample_anchors(torch.randn(1, 2, 10, 10), labels, 2, sampling="budget", max_anchors=40)
    assert anchors.class_sizes == {0: 20, 1: 6}


@pytest.mark.parametrize("labels", [torch.full((2, 8, 8), 255), torch.arange(128).view(2, 8, 8)])
def test_without_a_class_of_enough_pixels_there_are_no_anchors_and_the_gradient_is_zero(labels):
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    anchors = sample_anchors(features, labels, 128)
    assert anchors.features.shape == (0, 3)
    anchors.features.sum().backward()
    assert features.grad.abs().max() == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_reaches_exactly_the_sampled_pixels(memory_format):
    labels = blocks(2, 3, 3, 3)
    features = torch.randn(2, 5, 12, 12).to(memory_format=memory_format).requires_grad_()
    anchors = sample_anchors(features, labels, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.randn_like(anchors.features)
    (anchors.features * weights).sum().backward()
    where = sample_anchors(
        coordinates(2, 12, 12), labels, 3, generator=torch.Generator().manual_seed(1)
    ).features.long()
    expected = torch.zeros_like(features)
    for (image, row, column), weight in zip(where.tolist(), weights, strict=True):
        expected[image, :, row, column] = weight
    torch.testing.assert_close(features.grad, expected)


def test_sampled_features_can_be_differentiated_twice():
    labels = blocks(1, 2, 2, 2)
    features = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)

    def sample(features):
        return sample_anchors(features, labels, 2, generator=torch.Generator().manual_seed(2)).features

    (grad,) = torch.autograd.grad(sample(features).pow(3).sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), features)
    torch.testing.assert_close(second[grad != 0], 6 * features[grad != 0])
    assert torch.equal(torch.func.grad(lambda f: sample(f).pow(3).sum())(features.detach()), grad)
    assert (grad != 0).sum() == sample(features).numel()


def test_pixels_are_drawn_uniformly_and_without_replacement():
    labels = torch.zeros(1, 5, 8, dtype=torch.int64)
    labels[0, 0, :6] = 1  # so that class 0 gives 6 of its 34 pixels
    features = coordinates(1, 5, 8)
    generator, draws = torch.Generator().manual_seed(3), 3000
    hits = torch.zeros(5, 8)
    for _ in range(draws):
        anchors = sample_anchors(features, labels, 2, generator=generator)
        rows = anchors.features[anchors.labels == 0].long()
        hits[rows[:, 1], rows[:, 2]] += 1
    hits = hits[labels[0] == 0]
    share = 6 / 34
    expected, deviation = draws * share, (draws * share * (1 - share)) ** 0.5
    assert (hits - expected).abs().max() < 5 * deviation
    assert 0.5 < ((hits - expected) / deviation).var() < 1.6  # neither clumped nor spread too evenly


def by_loops(labels, wrong, num_labels, sampling, **limits):
    """Count, in plain loops, the draws of every (image, class) pair from right and from misclassified pixels."""
    pixels = {}
    for image in range(len(labels)):
        for label in range(num_labels):
            of_pair = wrong[image][labels[image] == label].tolist()
            if len(of_pair) >= limits["min_anchors_per_class"]:
                pixels[image, label] = of_pair
    share = min(limits["max_anchors"] // len(pixels), limits["max_anchors_per_class"])
    if sampling == "rarest":
        share = min(share, *map(len, pixels.values()))
    drawn = {}
    for pair, of_pair in pixels.items():
        v, m, r = min(share, len(of_pair)), sum(of_pair), len(of_pair) - sum(of_pair)
        h = min(m, max(v // 2, v - r))
        drawn[pair] = (v - h, h)
    return drawn


@pytest.mark.parametrize("sampling", ["rarest", "budget"])
@pytest.mark.parametrize("misclassified", [0.0, 0.02, 0.3, 0.95, 1.0])
def test_half_of_the_draws_of_every_pair_are_misclassified_as_far_as_there_are_enough(sampling, misclassified):
    labels = blocks(3, 4, 5, 4)
    labels[0, 0, :7] = 4  # a rare class, so that the draws are an odd number
    features = coordinates(*labels.shape)
    wrong = torch.rand(labels.shape) < misclassified
    limits = {"min_anchors_per_class": 3, "max_anchors_per_class": 31, "max_anchors": 400}
    anchors = sample_anchors(features, labels, 5, sampling=sampling, misclassified=wrong, **limits)
    plain = sample_anchors(features, labels, 5, sampling=sampling, **limits)
    assert anchors.class_sizes == plain.class_sizes  # the number of draws is that of the rule
    image, row, column = anchors.features.long().unbind(1)
    assert torch.equal(labels[image, row, column], anchors.labels)
    assert len(anchors.features.unique(dim=0)) == len(anchors.features)
    found = {}
    for pair in zip(image.tolist(), anchors.labels.tolist(), wrong[image, row, column].tolist(), strict=True):
        found[pair] = found.get(pair, 0) + 1
    drawn = by_loops(labels, wrong, 5, sampling, **limits)
    expected = {(*pair, bool(kind)): count for pair, counts in drawn.items() for kind, count in enumerate(counts)}
    assert found == {pair: count for pair, count in expected.items() if count}


def test_both_kinds_of_pixels_are_drawn_uniformly():
    labels = torch.zeros(1, 5, 8, dtype=torch.int64)
    labels[0, 0, :6] = 1  # so that 6 of the 34 pixels of class 0 are drawn
    wrong = torch.zeros(1, 5, 8, dtype=torch.bool)
    wrong[0, 2] = True  # 8 of them
    generator = torch.Generator().manual_seed(3)
    hits, draws = torch.zeros(5, 8), 800
    for _ in range(draws):
        anchors = sample_anchors(coordinates(1, 5, 8), labels, 2, misclassified=wrong, generator=generator)
        rows = anchors.features[anchors.labels == 0].long()
        hits[rows[:, 1], rows[:, 2]] += 1
    for pixels, share in ((wrong[0], 3 / 8), (~wrong[0] & (labels[0] == 0), 3 / 26)):
        expected, deviation = draws * share, (draws * share * (1 - share)) ** 0.5
        assert (hits[pixels] - expected).abs().max() < 5 * deviation


def test_a_seeded_generator_makes_draws_reproducible():
    labels, features = blocks(2, 4, 4, 3), torch.randn(2, 3, 16, 16)
    first, second = (sample_anchors(features, labels, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.features, second.features)


def test_wrong_arguments_are_named_in_the_error():
    with pytest.raises(ValueError, match="labels"):
        sample_anchors(torch.randn(2, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="budget"):
        sample_anchors(torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64), 3, sampling="all")
