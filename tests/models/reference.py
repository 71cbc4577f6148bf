"""The oracle of the contrastive terms: the formula in plain loops and float64."""

import torch


def info_nce_by_loops(anchors, anchor_labels, contrast=None, contrast_labels=None, temperature=0.1, self_offset=None):
    """Compute the mean over anchors of the mean over positives of -log(exp(a_ip) / (exp(a_ip) + sum_n exp(a_in))).

    The result is a float64 scalar that autograd differentiates.
    """
    if contrast is None:
        contrast, contrast_labels, self_offset = anchors, anchor_labels, 0
    f, g = (torch.nn.functional.normalize(side.double(), dim=1) for side in (anchors, contrast))
    total = (f.sum() + g.sum()) * 0.0
    for i, label in enumerate(anchor_labels.tolist()):
        logits = [(f[i] * g[j]).sum() / temperature for j in range(len(g))]
        own = None if self_offset is None else self_offset + i
        positives = [j for j, other in enumerate(contrast_labels.tolist()) if other == label and j != own]
        negatives = [logits[j] for j, other in enumerate(contrast_labels.tolist()) if other != label]
        of_anchor = [torch.logsumexp(torch.stack([logits[p], *negatives]), 0) - logits[p] for p in positives]
        if of_anchor:
            total = total + torch.stack(of_anchor).mean()
    return total / max(len(f), 1)
