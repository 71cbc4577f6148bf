"""Whatever acts on a module of the projection head acts in training, where only sampled pixels are projected."""

import pytest
import torch
from torch import nn

from msctr_hf import MsctrForSemanticSegmentation, MultiScaleContrastiveLoss
from msctr_hf.models.projection_head import ProjectionHead, StageProjection


@pytest.fixture
def head():
    return ProjectionHead([6, 8], 4).train()


@pytest.fixture
def maps():
    return [torch.randn(2, 6, 16, 16), torch.randn(2, 8, 8, 8)]


LABELS = torch.arange(4).repeat_interleave(4)[None, :, None].expand(2, 16, 16)


def contrast(head, maps):
    loss_function = MultiScaleContrastiveLoss(4, (1, 2), (1.0, 0.7), ((0, 1),), (1.0,))
    generator = torch.Generator().manual_seed(3)
    return loss_function(head.hidden(maps), LABELS, head.row_projections, generator)[0]


@pytest.mark.parametrize("decode_head", ["fcn", "deeplabv3", "ocr", "upernet"])
def test_a_hook_on_any_module_runs_in_a_training_step(tiny_config, tiny_batch, decode_head):
    """Lists of modules have no forward; a wrapper of timm or transformers may call a part of its module directly."""
    model = MsctrForSemanticSegmentation(tiny_config(decode_head)).train()
    parts = ("decode_head", "auxiliary_head", "projection_head", "contrastive_loss")
    expected = {
        name
        for name, module in model.named_modules()
        if name.startswith(parts) and not isinstance(module, nn.ModuleList)
    }
    called = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(**tiny_batch).loss.backward()
    assert sorted(expected - called) == []


@pytest.mark.parametrize("name", ["", "stages.1", "stages.1.hidden", "stages.1.output"])
def test_a_hook_that_changes_an_output_changes_the_loss_as_it_changes_whole_projections(head, maps, name):
    module = head.get_submodule(name)

    def shift(module, arguments, output):
        if isinstance(output, tuple):
            return tuple(shift(module, arguments, map_) for map_ in output)
        return output + torch.linspace(-1, 1, output.shape[1]).view(-1, 1, 1)

    plain = contrast(head, maps)
    module.register_forward_hook(shift)
    changed = contrast(head, maps)
    whole = MultiScaleContrastiveLoss(4, (1, 2), (1.0, 0.7), ((0, 1),), (1.0,))(
        head(maps), LABELS, generator=torch.Generator().manual_seed(3)
    )[0]
    assert (changed - plain).abs() > 1e-3
    torch.testing.assert_close(changed, whole)


@pytest.mark.parametrize("name", ["", "stages.0", "stages.0.output"])
def test_backward_hooks_and_replaced_forwards_act_in_training(head, maps, name):
    module, seen = head.get_submodule(name), []
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    contrast(head, maps).backward()
    assert seen == ["backward"]
    forward = module.forward
    module.forward = lambda *arguments: seen.append("forward") or forward(*arguments)
    contrast(head, maps)
    assert seen[-1] == "forward"


def test_a_wrapped_stage_is_called_as_a_whole(head, maps):
    class Wrapper(nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, features):
            return 0 * self.stage(features) + 1

    head.stages[0], head.stages[1] = Wrapper(head.stages[0]), Wrapper(head.stages[1])
    equal = MultiScaleContrastiveLoss(4, (1, 2), (1.0, 0.7), ((0, 1),), (1.0,))(
        [torch.ones(2, 4, 16, 16), torch.ones(2, 4, 8, 8)], LABELS, generator=torch.Generator().manual_seed(3)
    )[0]
    torch.testing.assert_close(contrast(head, maps), equal)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_parametrizations_of_the_last_convolution_act_and_learn(head, maps, name):
    for stage in head.stages:
        getattr(nn.utils.parametrizations, name)(stage.output)
    originals = [p for name, p in head.named_parameters() if "output.parametrizations" in name]
    contrast(head, maps).backward()
    assert originals
    assert all(p.grad.abs().max() > 0 for p in originals)


def test_projected_pixels_equal_the_projected_map_even_if_there_are_none():
    stage = StageProjection(6, 4).double().eval()
    features = torch.randn(2, 6, 5, 3, dtype=torch.float64)
    rows = stage.hidden(features).permute(0, 2, 3, 1).reshape(-1, 6)
    expected = stage(features).permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(stage.project_rows(rows), expected, rtol=1e-12, atol=1e-12)
    assert stage.project_rows(rows[:0]).shape == (0, 4)
