"""The handwritten digits of scikit-learn: a large MLP's representation for a small MLP.

Purpose: see everything work, without labels for the student, on any machine.
Command: pcjax distill configs/digits.py (the same as: pcjax distill)
Expected: see the table in README.md.
Cost: two CPU cores, half a minute.
"""

from pcjax.config import Config

config = Config()
