"""Maps of the stages 1, 2 and 4 of two images of 64 x 96 pixels, and their labels."""

import torch

SIZES = [(16, 24), (8, 12), (4, 6)]


def maps(channels=8, dtype=torch.float32):
    return [torch.randn(2, channels, *size, dtype=dtype, requires_grad=True) for size in SIZES]


def block_labels():
    return torch.randint(0, 5, (2, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)
