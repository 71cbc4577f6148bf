"""The least work of a term, with which the loss is compared, is no more than the loss needs."""

import numpy as np
import pytest
import torch

from experiments.benchmark import contrast
from experiments.benchmark.contrast import least_step, loss, products_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("term", ["within", "across"])
def test_every_logit_is_computed_once_and_within_a_scale_none_below_the_diagonal_tiles(term, monkeypatch):
    monkeypatch.setattr(contrast, "tile_rows", lambda device: 8)
    tiles, real = [], contrast._multiply
    monkeypatch.setattr(contrast, "_multiply", lambda *given: (tiles.append(given[3]), real(*given))[1])
    for build in (products_step, least_step):
        build(term, 53, CPU)()
    for of_step in tiles:
        count = np.zeros((53, 53), dtype=int)
        for upper, lower in of_step:
            count[upper, lower] += 1
        if term == "within":
            assert (count[np.triu_indices(53)] == 1).all()
            assert count.max() == 1
            assert count[8:, :8].sum() == 0
        else:
            assert (count == 1).all()
    assert len(tiles) == 2


def test_the_table_has_the_share_of_both_floors(monkeypatch):
    monkeypatch.setattr(contrast, "peak_megabytes", lambda *given: 1.0)
    rows = loss([200], [5], repetitions=1, device=CPU)
    assert [row["term"] for row in rows] == ["within", "across"]
    assert all(row[f"{floor} / ours"] > 0 for row in rows for floor in ("products", "least"))
