"""Transform of the user's own, `module:function`, as a part of the augmentation."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, first_line
from .labels import IGNORE_INDEX

Transform = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class UserTransform:
    """Function of the user that changes an image and its labels, whose result is checked.

    Worker processes import the function themselves, since not every function can be sent to them.

    Args:
        name (`str`): Module and function, `"module:function"`.
        num_classes (`int`): Number of classes, to check the labels.
    """

    name: str
    num_classes: int

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transform a sample.

        Args:
            image (`np.ndarray` of shape `(H, W, C)`): RGB image, uint8; with `num_channels`, float32 for files of
                another type.
            labels (`np.ndarray` of shape `(H, W)`, uint8): Train ids, 255 where ignored.
            generator (`np.random.Generator`): Source of the seed of `random`, `numpy.random` and `torch`.

        Returns:
            `tuple`: image and labels, with the same shapes and types.

        Raises:
            UsageError: If the function cannot be imported, or its result is something else.
        """
        wanted = (image.shape, image.dtype), (labels.shape, labels.dtype)
        with _seeded(int(generator.integers(1 << 32))):
            result = import_transform(self.name)(image, labels)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise self._refused(f"must return an image and labels, got {_described(result)}")
        for what, value, (shape, dtype) in zip(("an image", "labels"), result, wanted, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
                raise self._refused(f"must return {what} of shape {shape} and type {dtype}, got {_described(value)}")
        unknown = np.flatnonzero(np.bincount(result[1].ravel(), minlength=256)[self.num_classes : IGNORE_INDEX])
        if len(unknown):
            raise self._refused(
                f"must return labels that are classes, 0 to {self.num_classes - 1}, or {IGNORE_INDEX} where ignored, "
                f"got {(unknown + self.num_classes)[:8].tolist()}"
            )
        return result[0], result[1]

    def _refused(self, reason: str) -> UsageError:
        return UsageError(f"`augmentation`: {self.name} {reason}.")


@cache
def import_transform(name: str) -> Transform:
    """Import a function by its name `"module:function"`, also from the current folder.

    Raises:
        UsageError: If there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    if not function_name or not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise UsageError(f"`augmentation` must be 'module:function', got {name!r}.")
    if (folder := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # which `python -m` does, but not the command `msctr`
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"`augmentation`: {module_name} cannot be imported: {first_line(error)}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        kind = "has no function" if function is None else f"has a {type(function).__name__} instead of a function"
        raise UsageError(f"`augmentation`: {module_name} {kind} {function_name!r}.")
    return function


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python, numpy and torch for a block, and restore their states afterwards.

    Without workers the function runs in the process of the training, which must draw the same anchors with any number
    of workers.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a value of type {type(value).__name__}"
