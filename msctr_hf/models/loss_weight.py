# Copyright 2026 the authors of msctr_hf
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Weights of losses that move during training: a linear warm-up, then a constant weight or a decay to 0."""

from __future__ import annotations

import math
from typing import Any

import torch


class LossWeight:
    """Factor of the weight of a loss, which is 1 unless a training loop sets another step.

    In step t of T, both counted from 0, it is

        min(1, (t + 1) / warmup_steps) * s(u),    u = (t - warmup_steps) / (T - warmup_steps), from 0 to 1,

    where s(u) is 1 (constant), 1 - u (linear) or (1 + cos(pi u)) / 2 (cosine); without warm-up the first factor is 1.

    The factor is no parameter and no buffer: it belongs to a run, and not to the weights of a network.

    Args:
        warmup_steps (`int`): Steps of linear warm-up.
        schedule (`str`): `"constant"`, `"linear"` or `"cosine"`.
    """

    name = "loss"  # the factor is logged as NAME/weight_factor

    def __init__(self, warmup_steps: int = 0, schedule: str = "constant"):
        self.warmup_steps, self.schedule = warmup_steps, schedule
        # The device is given, since `from_pretrained` builds networks on the device "meta". A tensor without
        # dimensions can be multiplied with one on any device, without waiting for it.
        self.factor = torch.ones((), dtype=torch.float64, device="cpu")
        self._is_set = False

    @property
    def moves(self) -> bool:
        """Whether the factor depends on the step."""
        return self.warmup_steps > 0 or self.schedule != "constant"

    def set_step(self, step: int, max_steps: int) -> None:
        """Set the factor of a step, from 0 to `max_steps - 1`; must be called before the forward pass.

        Args:
            step (`int`): Number of steps that were taken before.
            max_steps (`int`): Number of steps of the run.
        """
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        part = min(max((step - self.warmup_steps) / max(1, max_steps - self.warmup_steps), 0.0), 1.0)
        decayed = {"constant": 1.0, "linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}[self.schedule]
        self.factor = torch.tensor(warm * decayed, dtype=torch.float64, device="cpu")
        self._is_set = True

    def facts(self) -> dict[str, float]:
        """Return the factor, for the log, if it moves."""
        return {f"{self.name}/weight_factor": self.factor.item()} if self.moves else {}

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """Multiply a loss by the factor.

        Raises:
            ValueError: If the factor moves and no step was set.
        """
        if self.moves and not self._is_set:
            raise ValueError(self._request_for_a_step())
        return loss * self.factor.to(loss.dtype)

    def _request_for_a_step(self) -> str:
        return (
            f"`warmup_steps={self.warmup_steps}` and `schedule={self.schedule!r}` move the weight of the loss, but "
            "the training loop sets no step: call `set_step(step, max_steps)` before every forward pass."
        )


class ContrastiveWeight(LossWeight):
    """Factor of `contrastive_loss_weight`, as the configuration moves it."""

    name = "contrastive"

    @classmethod
    def from_config(cls, config: Any) -> ContrastiveWeight:
        """Build the weight from the settings of an `MsctrConfig`."""
        return cls(config.contrastive_warmup_steps, config.contrastive_schedule)

    def _request_for_a_step(self) -> str:
        return (
            f"`contrastive_warmup_steps={self.warmup_steps}` and `contrastive_schedule={self.schedule!r}` move "
            "the weight of the contrast, but the training loop sets no step: give the Trainer of transformers "
            "`callbacks=[msctr_hf.ContrastiveWeightCallback()]`, or call "
            "`network.contrastive_weight.set_step(step, max_steps)` before every forward pass."
        )


class UnlabeledWeight(LossWeight):
    """Factor of `unlabeled_loss_weight`, which a training loop moves.

    Args:
        warmup_steps, schedule: As in `LossWeight`; steps are counted from the first with unlabeled images.
    """

    name = "unlabeled"
