"""Training objectives on logits of points; UNLABELLED points never count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.core.frame import UNLABELLED


def cross_entropy_and_lovasz(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Sum cross-entropy and Lovász-softmax, the supervised loss of WaffleIron; 0 if no point has a label.

    logits_NC: float. labels_N: int64, UNLABELLED where there is none.
    """
    labelled = labels_N != UNLABELLED
    logits, labels = logits_NC[labelled], labels_N[labelled]
    if len(labels) == 0:
        return logits_NC.sum() * 0.0
    return F.cross_entropy(logits, labels) + lovasz_softmax(logits.softmax(dim=1), labels)


def lovasz_softmax(probabilities_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Mean over the classes present of the Lovász extension of the Jaccard loss.

    Berman, Triki, Blaschko: "The Lovász-Softmax loss", CVPR 2018, equations 8 and 11: with the errors of class c,
    m_i = 1 − p_i for its points and p_i for all others, sorted descending, the loss is Σ m_i · (J_i − J_{i−1}), where
    J_i is the Jaccard loss of getting the i largest errors wrong.
    """
    losses = []
    for class_id in labels_N.unique():
        of_class = (labels_N == class_id).to(probabilities_NC.dtype)
        errors, order = (of_class - probabilities_NC[:, class_id]).abs().sort(descending=True)
        sorted_of_class = of_class[order]
        total = sorted_of_class.sum()
        missed = sorted_of_class.cumsum(0)
        intruding = (1 - sorted_of_class).cumsum(0)
        jaccard_loss = 1 - (total - missed) / (total + intruding)
        losses.append(errors @ jaccard_loss.diff(prepend=jaccard_loss.new_zeros(1)))
    return torch.stack(losses).mean()
