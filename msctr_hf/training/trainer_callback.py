"""Callback for the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..models.loss_weight import ContrastiveWeight


class ContrastiveWeightCallback(TrainerCallback):
    """Move the weight of the contrast of a network or of an adapted model, as warm-up and schedule say.

    ```python
    trainer = Trainer(network, arguments, train_dataset=images, callbacks=[ContrastiveWeightCallback()])
    ```

    Its state is the step of the Trainer, so a resumed training continues with the weight that it would have had.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the step of every part of the model that has a contrast, however it is wrapped."""
        model: nn.Module = kwargs["model"]
        for module in model.modules():
            weight = getattr(module, "contrastive_weight", None)
            if isinstance(weight, ContrastiveWeight):
                weight.set_step(state.global_step, state.max_steps)
