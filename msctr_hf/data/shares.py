"""Shares of the images of a folder as splits, in an order that depends only on a seed and the names of the images."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ..errors import UsageError


def in_seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """Order names by a hash of the seed and each name.

    The order is the same on every machine, whatever the order of the files, and names that are added or removed do not
    change that of the others. Both Unicode forms of a name have the same place.
    """
    return sorted(
        names, key=lambda name: hashlib.sha256(f"{seed} {unicodedata.normalize('NFC', name)}".encode()).digest()
    )


@dataclass(frozen=True)
class Share:
    """Share of the images of a folder that makes up a split.

    Args:
        split (`str`): Split that is described.
        shares (`tuple[tuple[str, Fraction], ...]`): Splits and their shares, each at least one image, in the order in
            which they take images.
        rest (`str`, *optional*): Split that takes the images that are left.
        listed (`tuple[str | tuple[str, ...], ...]`): Text files with names, or names, of the images of other splits.
        seed (`int`): Seed of the order in which images are taken.
    """

    split: str
    shares: tuple[tuple[str, Fraction], ...]
    rest: str | None = None
    listed: tuple[str | tuple[str, ...], ...] = ()
    seed: int = 0

    @property
    def is_last(self) -> bool:
        """Whether the split takes its images after all others."""
        return self.split == (self.rest or self.shares[-1][0])

    def choose(self, names: Iterable[str]) -> set[str]:
        """Choose the images of the split among those that no list names.

        Raises:
            UsageError: If there are too few images.
        """
        waiting = in_seeded_order(names, self.seed)
        count = len(waiting)
        taken = {}
        for split, share in self.shares:
            wanted = max(1, math.floor(count * share + Fraction(1, 2)))
            taken[split], waiting = waiting[:wanted], waiting[wanted:]
        if self.rest is not None:
            taken[self.rest] = waiting
        if not all(taken.values()):
            raise UsageError(f"`splits:`: {count} images are too few to be divided into {', '.join(taken)}.")
        return set(taken[self.split])
