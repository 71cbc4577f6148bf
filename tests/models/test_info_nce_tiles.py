from types import SimpleNamespace

import pytest
import torch

from msctr_hf.models import info_nce_tiles
from msctr_hf.models.info_nce_tiles import _softplus, class_groups, strips, tile_rows


@pytest.mark.parametrize("sizes", [[], [1], [3, 3, 3, 3], [100, 1, 1, 50], [7] * 40])
@pytest.mark.parametrize("target", [1, 8, 256])
def test_groups_are_consecutive_and_consist_of_whole_classes(sizes, target):
    groups = class_groups(sizes, target)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    assert [group.stop for group in groups] == [group.start for group in groups[1:]] + ([sum(sizes)] if sizes else [])
    assert all(group.stop in ends for group in groups)
    assert all(group.stop - group.start >= target for group in groups[:-1])


@pytest.mark.parametrize("length", [0, 1, 7, 256, 263, 1000])
@pytest.mark.parametrize("target", [1, 8, 256])
def test_strips_cover_a_range_once_in_parts_of_about_the_target(length, target):
    parts = list(strips(5, 5 + length, target))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(5, 5 + length))
    assert all(part.stop - part.start <= 1.5 * target for part in parts)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_softplus_is_precise_where_it_is_tiny(dtype, rtol):
    gaps = torch.cat([torch.linspace(-60, 60, 10001, dtype=dtype), torch.tensor([-torch.inf, 1e4], dtype=dtype)])
    expected = torch.where(gaps.double() > 40, gaps.double(), gaps.double().exp().log1p())
    torch.testing.assert_close(_softplus(gaps).double(), expected, rtol=rtol, atol=0)


# L2 caches as NVIDIA states them: V100 6 MB, T4 4 MB, A100 40 MB, RTX 4090 72 MB, H100 50 MB, H200 60 MB
@pytest.mark.parametrize(
    ("megabytes", "rows"), [(4, 512), (6, 512), (40, 2048), (50, 2048), (60, 2048), (72, 2048), (0, 2048)]
)
def test_a_tile_stays_in_the_cache_of_a_gpu_and_has_a_size_that_follows_from_its_figures(monkeypatch, megabytes, rows):
    figures = SimpleNamespace(L2_cache_size=megabytes * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: figures)
    info_nce_tiles._cache_bytes.cache_clear()
    try:
        assert tile_rows(torch.device("cuda", 0)) == rows
    finally:
        info_nce_tiles._cache_bytes.cache_clear()
    assert not megabytes or rows == 512 or rows * 2 * rows * 4 <= figures.L2_cache_size


def test_devices_without_a_known_cache_have_tiles_too():
    assert tile_rows(torch.device("cpu")) == 256
    assert tile_rows(torch.device("mps")) == 2048
