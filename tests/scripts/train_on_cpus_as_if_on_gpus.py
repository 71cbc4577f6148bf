"""Run `msctr train` on CPU processes over gloo with FSDP2 or DeepSpeed, which Accelerate offers for GPUs only."""

import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from msctr_hf.commands.train import main


def gloo(self, *arguments, **options):
    self.device = torch.device("cpu")
    return "gloo", DistributedType.MULTI_XPU  # treated like GPUs, but needs none of their libraries


PartialState._prepare_backend = gloo
main(sys.argv[1:])
