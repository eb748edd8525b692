"""pcjax transfers the representation of a large teacher to a lightweight student."""

from pcjax import dissimilarity, losses, metrics, ranking

__version__ = "0.1.0"

__all__ = ["__version__", "dissimilarity", "losses", "metrics", "ranking"]
