"""The contrastive terms as the formula says, in plain loops and float64: the oracle."""

import math

import torch


def info_nce_by_loops(anchors, anchor_labels, contrast=None, contrast_labels=None, temperature=0.1):
    """Mean over anchors of the mean over positives of -log(exp(a_ip) / (exp(a_ip) + sum_n exp(a_in)))."""
    within = contrast is None
    others, other_labels = (anchors, anchor_labels) if within else (contrast, contrast_labels)
    f = torch.nn.functional.normalize(anchors.double(), dim=1).tolist()
    g = torch.nn.functional.normalize(others.double(), dim=1).tolist()
    total = 0.0
    for i, (fi, yi) in enumerate(zip(f, anchor_labels.tolist(), strict=True)):
        logits = [sum(a * b for a, b in zip(fi, gj, strict=True)) / temperature for gj in g]
        positives = [j for j, y in enumerate(other_labels.tolist()) if y == yi and not (within and j == i)]
        negatives = [j for j, y in enumerate(other_labels.tolist()) if y != yi]
        if positives:
            terms = []
            for p in positives:
                top = max([logits[p], *(logits[n] for n in negatives)])
                denominator = sum(math.exp(logits[j] - top) for j in [p, *negatives])
                terms.append(top + math.log(denominator) - logits[p])
            total += sum(terms) / len(positives)
    return total / max(len(f), 1)
