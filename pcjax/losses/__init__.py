"""Losses as pure functions: student and teacher features in, one number out.

    loss = pcjax.losses.perception_coherence(student, teacher)    # (n, ds), (n, dt), any ds and dt

Every loss has the signature `name(student, teacher, *, ..., where=None, axis_name=None,
reduce_fn=jnp.mean)`; `reduce_fn=None` returns the per-example values. `pcjax list losses` prints
the published weight, head and arguments of each; `LOSSES` holds them by name.

    order             perception_coherence, rank_list, spearman, darkrank_hard, darkrank_soft,
                      pairwise_ranking
    relations         rkd_distance, rkd_angle, similarity_preserving, pkt,
                      correlation_congruence, cka
    contrast          info_nce, relational_representation, similarity_kl, crd, bingo
    features          hint, variational_information, embed_distill, orthogonal_projection,
                      procrustes, locality_preserving
    maps              attention_transfer, neuron_selectivity, proto2proto
    class scores      kd, dkd, dist, shared_classifier, simkd, cross_entropy
    your own          Batch, loss
    memories          Queue, empty_queue, enqueue, valid, CRDMemory, crd_memory, crd_update
"""

from pcjax.losses.perception import perception_coherence  # isort: split

from pcjax.losses._batch import Batch
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
from pcjax.losses.ordering import (
    darkrank_hard,
    darkrank_soft,
    pairwise_ranking,
    rank_list,
    spearman,
)
from pcjax.losses.prototypes import proto2proto
from pcjax.losses.registry import LOSSES, loss
from pcjax.losses.relational import (
    cka,
    correlation_congruence,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

__all__ = [  # noqa: RUF022, in a reader's order
    "perception_coherence",
    "rank_list",
    "spearman",
    "darkrank_hard",
    "darkrank_soft",
    "pairwise_ranking",
    "rkd_distance",
    "rkd_angle",
    "similarity_preserving",
    "pkt",
    "correlation_congruence",
    "cka",
    "info_nce",
    "relational_representation",
    "similarity_kl",
    "crd",
    "bingo",
    "hint",
    "variational_information",
    "embed_distill",
    "orthogonal_projection",
    "procrustes",
    "locality_preserving",
    "attention_transfer",
    "neuron_selectivity",
    "proto2proto",
    "kd",
    "dkd",
    "dist",
    "shared_classifier",
    "simkd",
    "cross_entropy",
    "LOSSES",
    "Batch",
    "loss",
    "Queue",
    "empty_queue",
    "enqueue",
    "valid",
    "CRDMemory",
    "crd_memory",
    "crd_update",
]
