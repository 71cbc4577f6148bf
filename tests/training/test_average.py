"""The moving average of a network."""

import torch
from torch import nn

from msctr_hf.training.average import build_average


def test_weights_and_statistics_are_averaged_with_a_decay_that_rises_to_its_limit():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = build_average(network, 0.75, torch.device("cpu"))
    expected = {name: value.double().clone() for name, value in network.state_dict().items()}
    for step in range(1, 21):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(torch.randn(value.shape, generator=generator) if value.is_floating_point() else step)
        average.update(network, step)
        decay = min(1 - step ** (-2 / 3), 0.75)  # 0 at the first step, 0.75 from the eighth on
        for name, newest in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * newest
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
