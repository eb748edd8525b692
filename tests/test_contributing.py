"""The recipes of CONTRIBUTING.md work as they stand there, in a package of its own."""

import json
import pathlib
import re
import tomllib

import pytest
from children import pcjax

pytestmark = pytest.mark.gate

TEXT = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
IMPORTS = """
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Write the package that the recipes describe; return code that makes it importable."""
    folder = tmp_path_factory.mktemp("package")
    recipes = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(recipes) == 4
    (folder / "mine.py").write_text("\n\n".join([IMPORTS, *recipes]))
    groups = tomllib.loads(re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1])
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = []
    for group, entries in groups["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return f"sys.path.insert(0, {str(folder)!r})"


@pytest.mark.parametrize(
    ("names", "name"), [("losses", "my_loss"), ("models", "mine"), ("sources", "mine:NAME, noise")]
)
def test_every_list_shows_it(names, name, package):
    assert name in pcjax("list", names, before=package)


def test_a_comparison_uses_all_four(package, tmp_path):
    words = ["--student.name", "mine", "--student.width", "5", "--data.source", "mine:any"]
    words += ["--teacher.training.steps", "40", "--training.steps", "8", "--training.batch", "64"]
    words += ["--losses", "perception_coherence,my_loss", "--seeds", "1", "--workdir", tmp_path]
    output = pcjax("compare", *words, before=package)
    assert re.search(r"my_loss .*\d", output)
    assert "norm" in (tmp_path / "comparison.md").read_text().splitlines()[0]
    result = json.loads((tmp_path / "runs" / "my_loss" / "0" / "result.json").read_text())
    assert result["student"]["my_metric"] > 0
    assert "mean norm" in (tmp_path / "runs" / "my_loss" / "0" / "report.html").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "my_loss" in page
    assert "norm" in page
