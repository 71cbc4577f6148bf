"""Refusal of networks whose weights or logits are not finite: argmax would take NaN for the most probable class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import UsageError

_TENSORS_NAMED = 3


class NotFiniteError(UsageError):
    """Mistake of a network: its weights or its logits are NaN or infinite, so that it predicts nothing."""


@contextmanager
def naming_the_image(name: object) -> Iterator[None]:
    """Put the name of an image before the message if a network has outputs for it that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{name}: {error}") from error


def find_fault_of_weights(model: nn.Module) -> str | None:
    """Describe the weights and statistics of a network that are not finite, in a sentence; return `None` if all are.

    Of a network that is split over processes, only the part of this process is checked.
    """
    state = model.state_dict()
    if _are_finite(state.values()):
        return None
    faulty = [f"{name} ({_kinds(tensor)})" for name, tensor in state.items() if not _are_finite([tensor])]
    more = f" and {len(faulty) - _TENSORS_NAMED} more" if len(faulty) > _TENSORS_NAMED else ""
    return (
        f"{len(faulty)} of {len(state)} tensors of the network are not finite: {', '.join(faulty[:_TENSORS_NAMED])}"
        f"{more}; {_remedy(next(model.parameters()).dtype, 'use a network from before training failed')}."
    )


def refuse_faulty_weights(model: nn.Module, prefix: str = "") -> None:
    """Refuse a network whose weights or statistics are not finite.

    Args:
        model (`nn.Module`): Network on any device.
        prefix (`str`): Start of the sentence, for example the name of the network.

    Raises:
        NotFiniteError: If a tensor of the network has NaN or infinite values; the message names the first of them.
    """
    if (fault := find_fault_of_weights(model)) is not None:
        raise NotFiniteError(f"{prefix}{fault}")


def finite_outputs(outputs: torch.Tensor, dtype: torch.dtype, name: str = "logits") -> torch.Tensor:
    """Return outputs of a network unchanged if all of them are finite.

    Args:
        outputs (`torch.Tensor`): Logits or features of any shape, in any precision.
        dtype (`torch.dtype`): Precision in which the network computed them, for the advice.
        name (`str`): Name of the outputs in the message.

    Raises:
        NotFiniteError: If a value is NaN or infinite.
    """
    if not _are_finite([outputs]):
        remedy = _remedy(dtype, "its weights are too large or faulty, so use another network")
        raise NotFiniteError(f"The {name} of the network are not finite ({_kinds(outputs)}); {remedy}.")
    return outputs


def _remedy(dtype: torch.dtype, otherwise: str) -> str:
    if dtype == torch.float16:
        return "float16 overflows above 65504: use `dtype='float32'`, or bfloat16"
    return otherwise


def _are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether all values are finite; the host waits once for every device, and not for every tensor."""
    of_device: dict[torch.device, list[torch.Tensor]] = {}
    for values in map(_own_part, tensors):
        if (
            values.is_floating_point() or values.is_complex()
        ) and not values.is_meta:  # an offloaded tensor has no values here
            of_device.setdefault(values.device, []).append(values.isfinite().all())
    return all(bool(torch.stack(flags).all()) for flags in of_device.values())


def _kinds(tensor: torch.Tensor) -> str:
    values = _own_part(tensor)
    counts = {"NaN": int(values.isnan().sum()), "infinite": int(values.isinf().sum())}
    found = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{found} of {values.numel()} values"


def _own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor of FSDP that this process holds; other tensors are returned whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
