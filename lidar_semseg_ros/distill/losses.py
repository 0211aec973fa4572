"""Training objectives: labels, features of a teacher, superpixels, segments, views.

Shape letters: N points, C classes, D dimensions of a feature, S superpixels or segments, V views. Every objective is a
scalar over what is valid; where nothing is, it is 0 and so is its gradient. Features of any length are compared by
direction (⟨·,·⟩ below is of unit vectors; the mean of several is not made a unit vector again). Half precision is
widened to float32; inside `torch.autocast` products would be narrowed again, so call these outside of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.core.frame import UNLABELLED

TEMPERATURE = 0.07
"""Of all contrasts, as in SLidR and Seal."""


def cross_entropy_and_lovasz(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Sum cross-entropy and Lovász-softmax, the supervised loss of WaffleIron; 0 if no point has a label.

    logits_NC: float. labels_N: int64, UNLABELLED where there is none.
    """
    return weighted_cross_entropy_and_lovasz(logits_NC, labels_N, torch.ones_like(labels_N, dtype=torch.float32))


def weighted_cross_entropy_and_lovasz(logits_NC: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """Sum cross-entropy, Σ w_n · −log p_n(y_n) / Σ w_n, and Lovász-softmax; a point of weight 2 counts as two of them.

    weights_N: the confidence of each label. UNLABELLED points, and those whose weight is not above 0, do not count.
    """
    counted = (labels_N != UNLABELLED) & (weights_N > 0)
    logits, labels = _wide(logits_NC[counted]), labels_N[counted]
    if len(labels) == 0:
        return logits.sum()
    weights = weights_N[counted].to(logits.dtype)
    cross_entropy = weights @ F.cross_entropy(logits, labels, reduction="none") / weights.sum()
    return cross_entropy + lovasz_softmax(logits.softmax(dim=1), labels, weights)


def lovasz_softmax(probabilities_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Mean over the classes present of the Lovász extension of the Jaccard loss.

    Berman, Triki, Blaschko: "The Lovász-Softmax loss", CVPR 2018, equations 8 and 11: with the errors of class c,
    m_i = 1 − p_i for its points and p_i for all others, sorted descending, the loss is Σ m_i · (J_i − J_{i−1}), where
    J_i is the Jaccard loss of getting the i largest errors wrong. weights_N, all positive, is how often a point counts
    in J_i; 1 by default.
    """
    if weights_N is None:
        weights_N = torch.ones_like(probabilities_NC[:, 0])
    losses = []
    for class_id in labels_N.unique():
        of_class = (labels_N == class_id).to(probabilities_NC.dtype)
        errors, order = (of_class - probabilities_NC[:, class_id]).abs().sort(descending=True)
        own = (weights_N * of_class)[order]
        missed = own.cumsum(0)
        intruding = (weights_N[order] - own).cumsum(0)
        jaccard_loss = 1 - (missed[-1] - missed) / (missed[-1] + intruding)
        losses.append(errors @ jaccard_loss.diff(prepend=jaccard_loss.new_zeros(1)))
    return torch.stack(losses).mean()


def feature_distillation(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean over the points of ‖f − g‖₂ = √(2 − 2⟨f, g⟩), f of the student and g of the teacher.

    Puy et al.: "Three pillars improving vision foundation model distillation for lidar" (ScaLR), CVPR 2024. Points at
    which the teacher is not finite do not count.
    """
    taught = teacher_ND.isfinite().all(dim=1)
    student, teacher = _directions(student_ND[taught]), _directions(teacher_ND[taught])
    return _mean(torch.linalg.vector_norm(student - teacher, dim=1))


def superpixel_contrast(
    points_ND: Tensor, pixels_ND: Tensor, superpixel_N: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Contrast superpixels, −(1/S) Σ_s log[ exp(k_s·q_s/τ) / Σ_s' exp(k_s·q_s'/τ) ].

    k_s and q_s are the means of the points' and of their pixels' directions in superpixel s. Sautier et al.:
    "Image-to-lidar self-supervised distillation for autonomous driving data" (SLidR), CVPR 2022; L_vfm of Seal.
    superpixel_N: −1 for a point in none; unique over the batch. Points whose pixel is not finite do not count.
    """
    valid = (superpixel_N >= 0) & pixels_ND.isfinite().all(dim=1)
    _, of_point = superpixel_N[valid].unique(return_inverse=True)
    return _info_nce(_means(points_ND[valid], of_point), _means(pixels_ND[valid], of_point), temperature)


def temporal_contrast(
    points_ND: Tensor,
    segment_N: Tensor,
    later_points_MD: Tensor,
    later_segment_M: Tensor,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Contrast segments over time, −(1/S) Σ_i log[ exp(⟨f_i^t, f_i^{t+n}⟩/τ) / Σ_j exp(⟨f_i^t, f_j^{t+n}⟩/τ) ].

    f_i is the mean of the directions in segment i, for the S segments that both sweeps see: L_tmp of Seal, Liu et al.:
    "Segment any point cloud sequences by distilling vision foundation models", NeurIPS 2023. segment: −1 for a point
    in none; unique over the batch.
    """
    seen = (segment_N >= 0) & torch.isin(segment_N, later_segment_M)
    seen_later = (later_segment_M >= 0) & torch.isin(later_segment_M, segment_N)
    _, of_point = segment_N[seen].unique(return_inverse=True)
    _, of_later_point = later_segment_M[seen_later].unique(return_inverse=True)
    later = _means(later_points_MD[seen_later], of_later_point)
    return _info_nce(_means(points_ND[seen], of_point), later, temperature)


def point_to_segment(points_ND: Tensor, segment_N: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Pull points to the mean of their segment, −mean_{i,a} log[ exp(⟨f_{i,a}, f̄_i⟩/τ) / Σ_j exp(⟨f_{i,a}, f̄_j⟩/τ) ].

    f_{i,a} is point a of segment i and f̄_i the mean of its points: L_p2s of Seal. segment_N: −1 for a point in none.
    """
    valid = segment_N >= 0
    _, of_point = segment_N[valid].unique(return_inverse=True)
    points = _directions(points_ND[valid])
    logits_NS = points @ _means(points, of_point).T / temperature
    return _mean(F.cross_entropy(logits_NS, of_point, reduction="none"))


def view_contrast(points_ND: Tensor, views_VND: Tensor, seen_VN: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Contrast each point with its mean over the views that see it, −mean_p log[ exp(s_pp/τ) / Σ_p' exp(s_pp'/τ) ].

    s_pp' = ⟨φ3D(p), Σ_v m_v(p') φ2D(π_v(p')) / Σ_v m_v(p')⟩, m the visibility seen_VN (bool). This is our reading of
    xModel-KD, whose details are not public. Points that no view sees do not count. It needs memory for N² numbers.
    """
    views = _directions(views_VND.masked_fill(~seen_VN[..., None], 0.0))
    times_seen_N = seen_VN.sum(dim=0)
    valid = times_seen_N > 0
    mean_of_views = views.sum(dim=0)[valid] / times_seen_N[valid, None]
    return _info_nce(_directions(points_ND[valid]), mean_of_views, temperature)


def knowledge_distillation(student_logits_NC: Tensor, teacher_logits_NC: Tensor, temperature: float) -> Tensor:
    """Mean over the points of T² · KL(softmax(teacher/T) ‖ softmax(student/T)).

    Hinton, Vinyals, Dean: "Distilling the knowledge in a neural network", 2015, section 2; T² keeps the size of the
    gradient. Points at which the teacher is not finite do not count.
    """
    taught = teacher_logits_NC.isfinite().all(dim=1)
    student = (_wide(student_logits_NC[taught]) / temperature).log_softmax(dim=1)
    teacher = (_wide(teacher_logits_NC[taught]) / temperature).log_softmax(dim=1)
    return temperature**2 * _mean((teacher.exp() * (teacher - student)).sum(dim=1))


def _info_nce(anchors_SD: Tensor, targets_SD: Tensor, temperature: float) -> Tensor:
    """Mean of −log softmax over the targets at each anchor's own, which stands in the same row."""
    logits_SS = anchors_SD @ targets_SD.T / temperature
    own = torch.arange(len(logits_SS), device=logits_SS.device)
    return _mean(F.cross_entropy(logits_SS, own, reduction="none"))


def _means(features_ND: Tensor, group_N: Tensor) -> Tensor:
    """Mean direction of each group: (S, D); groups are numbered from 0 and none is empty."""
    directions = _directions(features_ND)
    size_S = group_N.bincount()
    sums = directions.new_zeros(len(size_S), directions.shape[1]).index_add(0, group_N, directions)
    return sums / size_S[:, None]


def _directions(features: Tensor) -> Tensor:
    """Divide by the length along the last axis; 0 stays 0, without the endless gradient that division by ε has."""
    features = _wide(features)
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / torch.where(length > 0, length, 1.0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean(losses_N: Tensor) -> Tensor:
    """Mean; 0, with a gradient of 0, of nothing."""
    return losses_N.sum() / max(len(losses_N), 1)
