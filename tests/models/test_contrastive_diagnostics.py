import math

import pytest
import torch

from msctr_hf.models.contrastive_diagnostics import class_sums, mean_cosines
from msctr_hf.models.info_nce import unit_rows


def random_rows(sizes):
    labels = torch.tensor(list(sizes)).repeat_interleave(torch.tensor(list(sizes.values())))
    return unit_rows(torch.randn(len(labels), 6, dtype=torch.float64), labels, sizes)


def test_mean_cosines_equal_the_means_over_all_pairs():
    a, b = random_rows({0: 4, 2: 7, 3: 1}), random_rows({0: 3, 1: 5, 3: 2})
    sums = [class_sums(rows, 4) for rows in (a, b)]

    within = a.features @ a.features.T
    same = a.labels[:, None] == a.labels[None]
    others = ~torch.eye(12, dtype=torch.bool)
    expected = [within[same & others].mean(), within[~same].mean()]
    torch.testing.assert_close(list(mean_cosines(sums[0], a.class_sizes)), expected)

    across = a.features @ b.features.T
    same = a.labels[:, None] == b.labels[None]
    cosines = mean_cosines(sums[0], a.class_sizes, sums[1], b.class_sizes)
    torch.testing.assert_close(list(cosines), [across[same].mean(), across[~same].mean()])


@pytest.mark.parametrize(("sizes", "defined"), [({}, ()), ({0: 1}, ()), ({0: 3}, (0,)), ({0: 1, 2: 1}, (1,))])
def test_without_pairs_the_mean_cosine_is_nan(sizes, defined):
    rows = random_rows(sizes) if sizes else unit_rows(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64), {})
    cosines = mean_cosines(class_sums(rows, 3), sizes)
    assert [position for position, cosine in enumerate(cosines) if not math.isnan(cosine)] == list(defined)
