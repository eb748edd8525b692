"""What `--losses a,b,c` stands for: every loss with the weight, head and arguments it was published with.

They are on features: what was published on maps is here on the features after them, unless a config says otherwise
(`hint` and `similarity_preserving`; `simkd` has an MLP in place of its convolutions). `crd` has 4,096 negatives, not
16,384, drawn without labels, and the teacher's side unprojected; `bingo` keeps one share of its two terms from
beginning to end.

But for this project's own: `perception_coherence` is the sum of two terms that it recommends, found in experiments of
its own, and `perception_coherence_own` is the loss in its plain form. Where a paper has its loss beside a
cross-entropy, the classes are left out: what is compared is what a loss transfers by itself, without labels. A
contender that does see labels is marked in every table.
"""

from pcjax import _checks
from pcjax.config import Contender, Loss

RECIPES: dict[str, tuple[Loss, ...]] = {
    "perception_coherence": (
        Loss("perception_coherence", arguments={"temperature": 0.1, "dissimilarity": "cosine"}),
        Loss(
            "perception_coherence",
            head="linear",
            arguments={
                "temperature": 0.1,
                "dissimilarity": "cosine",
                "frame": "teacher",
                "weighting": "neighbours",
            },
        ),
    ),
    "perception_coherence_own": (
        Loss("perception_coherence", arguments={"temperature": 0.1, "dissimilarity": "cosine"}),
    ),
    "spearman": (Loss("spearman", arguments={"temperature": 0.1, "dissimilarity": "cosine"}),),
    "rkd_distance": (Loss("rkd_distance", weight=25.0),),
    "rkd_angle": (Loss("rkd_angle", weight=50.0),),
    "rkd": (Loss("rkd_distance", weight=25.0), Loss("rkd_angle", weight=50.0)),
    "similarity_preserving": (Loss("similarity_preserving", weight=3000.0),),
    "pkt": (Loss("pkt", weight=30000.0),),
    "correlation_congruence": (Loss("correlation_congruence", arguments={"gamma": 0.4}),),
    "darkrank_hard": (Loss("darkrank_hard", arguments={"alpha": 3.0, "beta": 3.0}),),
    "darkrank_soft": (Loss("darkrank_soft", arguments={"alpha": 3.0, "beta": 3.0}),),
    "pairwise_ranking": (Loss("pairwise_ranking", arguments={"sharpness": 1.0}),),
    "cka": (Loss("cka"),),
    "info_nce": (Loss("info_nce", head="linear", arguments={"temperature": 0.07}),),
    "relational_representation": (
        Loss(
            "relational_representation",
            head="linear",
            bank=16384,
            arguments={"temperature": 0.1, "teacher_temperature": 0.02},
        ),
    ),
    "similarity_kl": (
        Loss("similarity_kl", head="mlp", bank=65536, arguments={"temperature": 0.04}),
    ),
    "crd": (
        Loss("crd", weight=0.8, head="linear", arguments={"negatives": 4096, "temperature": 0.07}),
    ),
    "bingo": (Loss("bingo", head="mlp", bank=65536, arguments={"temperature": 0.2, "own": 0.5}),),
    "hint": (Loss("hint", weight=100.0, head="linear"),),
    "embed_distill": (Loss("embed_distill", head="linear"),),
    "procrustes": (Loss("procrustes"),),
    "locality_preserving": (
        Loss("hint", weight=100.0, head="linear"),
        # On the features themselves: behind a head of its own it would be the head that shrinks.
        Loss("locality_preserving", arguments={"neighbours": 5}),
    ),
    "variational_information": (Loss("variational_information", head="variational"),),
    "orthogonal_projection": (Loss("orthogonal_projection", head="orthogonal"),),
    "attention_transfer": (Loss("attention_transfer", weight=1000.0),),
    "neuron_selectivity": (Loss("neuron_selectivity", weight=50.0),),
    "shared_classifier": (
        Loss("shared_classifier", head="linear", arguments={"temperature": 4.0}),
    ),
    "simkd": (Loss("simkd", head="mlp"),),
    "kd": (Loss("kd", arguments={"temperature": 4.0}),),
    "dist": (Loss("dist", arguments={"beta": 1.0, "gamma": 1.0, "temperature": 1.0}),),
    "dkd": (Loss("dkd", arguments={"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),),
    "cross_entropy": (Loss("cross_entropy"),),
}


def contenders(names: list[str], given: tuple[Contender, ...]) -> tuple[Contender, ...]:
    """The contenders of those names: a config's own, or the recipe."""
    own = {contender.name: contender for contender in given}
    known = {name: Contender(name, losses) for name, losses in RECIPES.items()} | own
    chosen = [name.strip() for name in names]
    _checks.require(
        any(chosen), f"got --losses without a name: expected some of {', '.join(known)}"
    )
    for name in chosen:
        _checks.require_name("loss", name, known)
    return tuple(known[name] for name in chosen)
