"""Read the numbers recorded in `tests/golden`, and compute the weights and inputs that they belong to."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"


def uniform(name: str, shape: list[int]) -> torch.Tensor:
    """Compute numbers in [-1, 1) from a name, in float64: the same on every machine."""
    seed = zlib.crc32(name.encode()) % 100003
    x = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * 12.9898 + seed * 0.61803398875) * 43758.5453
    return torch.from_numpy((2 * (x - np.floor(x)) - 1).reshape(shape))


def fill(name: str, shape: list[int]) -> torch.Tensor:
    """Compute the value of a parameter or buffer of the recorded networks from its name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("relative_position_index"):
        return torch.zeros(shape, dtype=torch.int64)
    u = uniform(name, shape)
    if name.endswith("running_var"):
        u = 1 + 0.25 * u
    elif len(shape) >= 2:
        u = u * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        u = 1 + 0.1 * u
    else:
        u = 0.1 * u
    return u.float()


def read(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read the description and the recorded tensors of a network, or of `losses`."""
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the largest difference, relative to the largest expected magnitude."""
    return ((value - expected).abs().max() / expected.abs().max()).item()
