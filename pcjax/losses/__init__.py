"""Losses as pure functions: student and teacher features in, one number out."""

from pcjax.losses.contrastive import bingo, info_nce, relational_representation, similarity_kl
from pcjax.losses.feature import (
    embed_distill,
    hint,
    locality_preserving,
    orthogonal_projection,
    procrustes,
    variational_information,
)
from pcjax.losses.logits import cross_entropy, dist, dkd, kd, shared_classifier, simkd
from pcjax.losses.maps import attention_transfer, neuron_selectivity
from pcjax.losses.memory import Queue, empty_queue, enqueue, valid
from pcjax.losses.noise_contrastive import CRDMemory, crd, crd_memory, crd_update
from pcjax.losses.ordering import darkrank_hard, darkrank_soft, pairwise_ranking, spearman
from pcjax.losses.perception import perception_coherence
from pcjax.losses.prototypes import proto2proto
from pcjax.losses.relational import (
    cka,
    correlation_congruence,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

__all__ = [
    "CRDMemory",
    "Queue",
    "attention_transfer",
    "bingo",
    "cka",
    "correlation_congruence",
    "crd",
    "crd_memory",
    "crd_update",
    "cross_entropy",
    "darkrank_hard",
    "darkrank_soft",
    "dist",
    "dkd",
    "embed_distill",
    "empty_queue",
    "enqueue",
    "hint",
    "info_nce",
    "kd",
    "locality_preserving",
    "neuron_selectivity",
    "orthogonal_projection",
    "pairwise_ranking",
    "perception_coherence",
    "pkt",
    "procrustes",
    "proto2proto",
    "relational_representation",
    "rkd_angle",
    "rkd_distance",
    "shared_classifier",
    "similarity_kl",
    "similarity_preserving",
    "simkd",
    "spearman",
    "valid",
    "variational_information",
]
