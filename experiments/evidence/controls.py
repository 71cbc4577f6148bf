"""Control arms, whose training differs from that of an arm only in the loss.

python scripts/control.py placebo --config configs/quickstart.yaml    # flags of `scripts/train.py`

placebo   after the draw, the class labels of the anchors of every stage are shuffled among them: "labels help" is the
          difference of an arm from its placebo
same      cross entropy that draws a random number where the contrast would draw anchors: the spread of its difference
          from plain cross entropy is what chance alone does
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from msctr_hf.errors import UsageError
from msctr_hf.models import stage_anchors
from msctr_hf.models.anchor_sampling import Anchors
from msctr_hf.models.modeling_msctr import MsctrForSemanticSegmentation


@contextmanager
def placebo() -> Iterator[None]:
    """Shuffle the classes of the anchors of every stage, with a generator of its own for each."""
    draw_anchors = stage_anchors.draw_anchors

    def draw_and_shuffle(*arguments: Any, **keywords: Any) -> Anchors:
        return _shuffled(draw_anchors(*arguments, **keywords))

    with patch.object(stage_anchors, "draw_anchors", draw_and_shuffle):
        yield


def _shuffled(anchors: Anchors) -> Anchors:
    """Move the rows, which are sorted by label, to other labels: every class keeps its number of anchors."""
    device = anchors.features.device
    own = torch.Generator().manual_seed(_checksum_of_random_state(device))
    rows = torch.randperm(len(anchors.features), generator=own).to(device)
    return anchors._replace(features=anchors.features[rows])


def _checksum_of_random_state(device: torch.device) -> int:
    """Compute a seed from the state of torch's generator, which stays as it is.

    A run that is resumed restores that state, and so repeats the shuffles of the uninterrupted run.
    """
    state = torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return zlib.crc32(state.numpy().tobytes())


@contextmanager
def same() -> Iterator[None]:
    """Draw a random number at the end of every loss of training, where the contrast would draw anchors."""
    loss = MsctrForSemanticSegmentation._loss

    def loss_and_draw(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = loss(self, *arguments, **keywords)
        if self.training:
            torch.rand((), device=result[0].device)
        return result

    with patch.object(MsctrForSemanticSegmentation, "_loss", loss_and_draw):
        yield


CONTROLS: dict[str, Callable[[], AbstractContextManager[None]]] = {"placebo": placebo, "same": same}


def main(argv: Sequence[str]) -> None:
    """Run `msctr train` with the control that the first argument names."""
    from msctr_hf.commands.command_line import one_sentence
    from msctr_hf.commands.train import main as train

    name, *flags = argv or [""]
    with one_sentence():
        if name not in CONTROLS:
            raise UsageError(f"The first argument must be one of {', '.join(CONTROLS)}, got {name!r}.")
    with CONTROLS[name]():
        train(flags)
