"""Thresholds by class for the labels of a teacher: classes that it is less sure of get a lower one.

Source: class-balanced self-training (https://arxiv.org/abs/1810.07911), whose thresholds keep the same share of every
class.

K = classes, U = images.
"""

from __future__ import annotations

import torch

from ..data.labels import IGNORE_INDEX
from ..models.process_group import sum_over_processes

BINS = 1024  # of the confidence from 0 to 1; a power of two, so that the edges are exact
DECAY = 0.99  # weight of the batches before in every batch: about the last 100 count


class ClassThresholds:
    """Thresholds by class, from the confidence that a teacher had in newer batches.

    The threshold of a class is the largest that keeps a share of the pixels that the teacher gives to it, but never
    more than that of all classes: a class of which enough pixels reach the common one keeps it. Confidences are
    counted by class in 1,024 bins, and every batch makes the counts before it weigh 0.99 times as much. Counts are
    those of all processes, so the thresholds are the same in all of them. A class that was never found has the common
    threshold.

    In the paper the labels are chosen anew before every round of training, from all images; here they change with
    every batch, so a moving average of the counts takes their place. The paper has no common threshold.

    Args:
        num_classes (`int`): Number of classes.
        share (`float`): Smallest share of the pixels of every class that is kept, above 0 and below 1.
        largest (`float`): Threshold of all classes.
        device (`torch.device`): Where the counts are kept.
    """

    def __init__(self, num_classes: int, share: float, largest: float, device: torch.device):
        self.share, self.largest = share, largest
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which devices of Apple do not have
        self.counts = torch.zeros((num_classes, BINS), dtype=dtype, device=device)

    def update(self, classes: torch.Tensor, confidence: torch.Tensor, is_valid: torch.Tensor) -> None:
        """Count the pixels of a batch; all processes must call this, and the host does not wait for it.

        Args:
            classes (`torch.Tensor` of shape `(U, H, W)`, int64): Classes according to the teacher.
            confidence (`torch.Tensor` of shape `(U, H, W)`): Probabilities of these classes; pixels where one is not
                finite are not counted.
            is_valid (`torch.Tensor` of shape `(U, H, W)`, bool): Whether a pixel is not padding.
        """
        is_counted = is_valid & confidence.isfinite()
        bins = (confidence.nan_to_num(0.0) * BINS).long().clamp(0, BINS - 1)
        counts = torch.zeros(self.counts.numel(), dtype=torch.int64, device=self.counts.device)
        counts.scatter_add_(0, (classes * BINS + bins).flatten(), is_counted.flatten().long())
        self.counts.mul_(DECAY).add_(sum_over_processes(counts).view_as(self.counts))

    def by_class(self) -> torch.Tensor:
        """Return the threshold of every class, (K,) float32, rounded down to the edge of a bin."""
        at_least = self.counts.flip(1).cumsum(1).flip(1)  # (K, BINS): pixels in this bin or above
        total = at_least[:, :1]
        bin_of_edge = (at_least >= self.share * total).sum(1) - 1  # the last that keeps the share; all before it do
        edges = torch.where(total[:, 0] > 0, bin_of_edge / BINS, self.largest)
        return edges.float().clamp(max=self.largest)

    def of_pixels(self, pseudo_labels: torch.Tensor) -> torch.Tensor:
        """Return the threshold of the class of every pixel, float32, of the shape of the labels.

        Args:
            pseudo_labels (`torch.Tensor` of shape `(U, H, W)`, int64): Classes, 255 where there is padding, which gets
                any threshold.
        """
        return self.by_class()[pseudo_labels.where(pseudo_labels != IGNORE_INDEX, 0)]

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Return the lowest threshold and the mean over the classes, for the log."""
        thresholds = self.by_class()
        return {"pseudo_labels/lowest_threshold": thresholds.min(), "pseudo_labels/mean_threshold": thresholds.mean()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the counts for a checkpoint."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the counts of a checkpoint."""
        self.counts.copy_(state["counts"])
