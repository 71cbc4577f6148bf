"""The oracle of the contrastive terms: the formula in plain loops and float64."""

import math

import torch


def info_nce_by_loops(
    anchors,
    anchor_labels,
    contrast=None,
    contrast_labels=None,
    temperature=0.1,
    self_offset=None,
    positives="each",
):
    """Compute the mean over anchors of the mean over positives of -log(exp(a_ip) / (exp(a_ip) + sum_n exp(a_in))).

    With any positive, it is the mean over anchors of -log(P / (P + sum_n exp(a_in))), where P is the mean over the
    positives of exp(a_ip). The result is a float64 scalar that autograd differentiates.
    """
    if contrast is None:
        contrast, contrast_labels, self_offset = anchors, anchor_labels, 0
    f, g = (torch.nn.functional.normalize(side.double(), dim=1) for side in (anchors, contrast))
    total = (f.sum() + g.sum()) * 0.0
    for i, label in enumerate(anchor_labels.tolist()):
        logits = [(f[i] * g[j]).sum() / temperature for j in range(len(g))]
        own = None if self_offset is None else self_offset + i
        alike = [j for j, other in enumerate(contrast_labels.tolist()) if other == label and j != own]
        negatives = [logits[j] for j, other in enumerate(contrast_labels.tolist()) if other != label]
        near = [logits[p] for p in alike]
        if positives == "any" and near:
            near = [torch.logsumexp(torch.stack(near), 0) - math.log(len(near))]
        of_anchor = [torch.logsumexp(torch.stack([one, *negatives]), 0) - one for one in near]
        if of_anchor:
            total = total + torch.stack(of_anchor).mean()
    return total / max(len(f), 1)
