"""Run `msctr train` in float64 with frozen BatchNorm, so that results can be compared to the last digits."""

import sys

import torch
from torch import nn

from msctr_hf.commands.train import main
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.unlabeled import UnlabeledAugmentation
from msctr_hf.training import setup
from msctr_hf.training.network import build_network, freeze

augment, show = TrainingAugmentation.__call__, UnlabeledAugmentation.tensors


def in_float64(self, *sample):
    pixel_values, labels = augment(self, *sample)
    return pixel_values.double(), labels


def views_in_float64(self, *sample):
    return {name: each.double() if "pixel_values" in name else each for name, each in show(self, *sample).items()}


def with_fixed_norms(*arguments):
    model = build_network(*arguments).double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            freeze(module)
    return model


TrainingAugmentation.__call__, UnlabeledAugmentation.tensors = in_float64, views_in_float64
setup.build_network = with_fixed_norms
torch.set_default_dtype(torch.float64)
main(sys.argv[1:])
