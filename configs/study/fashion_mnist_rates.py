"""The learning rate of each loss on Fashion-MNIST, chosen on validation images.

Purpose: give every loss of ../compare_fashion_mnist.py the rate that serves it best, and the sum
of perception coherence and the rank list its weight.
Command: pcjax tune configs/study/fashion_mnist_rates.py --trials 1
Expected: the k-NN accuracy of each loss at four or five rates; docs/study.md has them.
Cost: two CPU cores, half an hour.
"""

import dataclasses
import pathlib
import runpy

from pcjax.config import Comparison, Contender

images = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "compare_fashion_mnist.py"))
LOSSES = {name: images["LOSSES"][name] for name in images["NAMES"]}
# Those whose best of four rates is the largest get a fifth.
pairs = [(name, rate) for rate in (0.01, 0.003, 0.03, 0.001) for name in LOSSES]
pairs += [(name, 0.1) for name in LOSSES if images["RATES"].get(name) == 0.03]
contenders = (
    *(Contender(f"{name}_{rate}", LOSSES[name], rate) for name, rate in pairs),
    *(Contender(*each, 0.03) for each in images["with_rank_list"](0.3, 1.0, 3.0, 10.0).items()),
)
config = dataclasses.replace(images["config"], comparison=Comparison(contenders, trials=1))
