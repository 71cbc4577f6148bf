import pytest
import torch

from msctr_hf.models.feature_pyramid import SimpleFeaturePyramid


@pytest.mark.parametrize("num_maps", [1, 4])
def test_levels_have_strides_from_a_quarter_to_twice_the_stride_of_the_input(num_maps):
    pyramid = SimpleFeaturePyramid([16] * num_maps)
    maps = pyramid([torch.randn(2, 16, 5, 8)] * num_maps)
    assert [tuple(level.shape[1:]) for level in maps] == [(4, 20, 32), (8, 10, 16), (16, 5, 8), (16, 3, 4)]
    assert [level.shape[1] for level in maps] == pyramid.channels


def test_each_of_four_maps_becomes_one_level():
    maps = [torch.randn(1, 16, 4, 4, requires_grad=True) for _ in range(4)]
    for index, level in enumerate(SimpleFeaturePyramid([16] * 4)(maps)):
        gradients = torch.autograd.grad(level.sum(), maps, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [position == index for position in range(4)]


def test_a_number_of_maps_other_than_one_or_four_is_refused():
    with pytest.raises(ValueError, match="must return 4 maps, or only the last, got 12"):
        SimpleFeaturePyramid([16] * 12)
