"""Run scripts/train.py with what Accelerate offers for GPUs only (FSDP2, DeepSpeed) on CPU processes, over gloo."""

import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def gloo(self, *arguments, **options):
    self.device = torch.device("cpu")
    return "gloo", DistributedType.MULTI_XPU  # treated as GPUs are, but without their libraries


PartialState._prepare_backend = gloo
script = Path(__file__).parents[2] / "scripts/train.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
# gloo's threads outlive FSDP2's groups and, with PyTorch 2.15, now and then abort an interpreter that is shutting down
sys.stdout.flush()
os._exit(0)
