"""The quickstart notebook is committed with its outputs, which are those of a fresh run."""

import ast
import json
import pathlib
import re

import pytest

PATH = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"
BOOK = json.loads(PATH.read_text())
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def python(cell):
    """Return a cell's code without IPython's magics."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE)


def texts(book):
    """Yield all that is text in the notebook, and no pictures."""
    for cell in book["cells"]:
        yield source(cell)
        for output in cell.get("outputs", []):
            yield "".join(output.get("text", []))
            yield from (
                "".join(text)
                for kind, text in output.get("data", {}).items()
                if kind.startswith("text/")
            )
    yield json.dumps(book["metadata"])


def test_it_is_a_notebook_of_version_4():
    nbformat = pytest.importorskip("nbformat")
    assert BOOK["nbformat"] == 4
    nbformat.validate(BOOK)


def test_it_is_small_and_names_no_machine():
    assert PATH.stat().st_size < 700_000
    assert BOOK["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in BOOK["cells"])
    for text in texts(BOOK):
        assert not re.search(r"(?<![\w.:/~])/[\w.-]+/[\w.-]+|[A-Z]:\\|file://|~/", text), text
        assert set(re.findall(r"https?://([^/\s)]+)", text)) <= {"arxiv.org"}, text


def test_every_cell_ran_once_from_the_top_and_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    # Neither an error nor a warning: what is on stderr would greet everyone.
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}


@pytest.mark.parametrize("cell", CODE, ids=[cell["id"] for cell in CODE])
def test_a_cell_that_ends_in_an_expression_shows_it(cell):
    last = ast.parse(python(cell)).body[-1]
    assert len(cell["outputs"]) == isinstance(last, ast.Expr)
    if "plt.show()" in source(cell):
        assert cell["outputs"][0]["data"]["image/png"]


@pytest.mark.nightly
def test_it_runs_from_top_to_bottom_and_the_student_learns_the_order(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # with the compiler's optimisations
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(PATH, as_version=4)
    spearman = "[float(before.spearman.value), float(after.spearman.value)]"
    book.cells.append(nbformat.v4.new_code_cell(spearman))
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute()
    before, after = json.loads(book.cells[-1].outputs[0]["data"]["text/plain"])
    assert before < 0.4
    assert after > 0.65
