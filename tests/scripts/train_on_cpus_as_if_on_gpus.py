"""Run `msctr train` with what Accelerate offers for GPUs only (FSDP2, DeepSpeed) on CPU processes, over gloo."""

import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from msctr_hf.commands.train import main


def gloo(self, *arguments, **options):
    self.device = torch.device("cpu")
    return "gloo", DistributedType.MULTI_XPU  # treated as GPUs are, but without their libraries


PartialState._prepare_backend = gloo
main(sys.argv[1:])
