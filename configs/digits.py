"""The handwritten digits that come with the installation: a large MLP's representation for a small MLP, without labels.

Purpose: to see everything work, on any machine, in a minute or two.
Command: pcjax distill configs/digits.py (or, the same: pcjax distill)
Expected: see the table in docs/training.md.
Cost: two CPU cores, less than two minutes.
"""

from pcjax.config import Config

config = Config()
