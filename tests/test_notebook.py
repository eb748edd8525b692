"""The quickstart is what a newcomer sees first: it is committed with its outputs, and they are those of a fresh run."""

import ast
import json
import pathlib
import re
import time

import pytest

PATH = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"
BOOK = json.loads(PATH.read_text())
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def python(cell):
    """The cell's code, IPython's magics replaced by nothing."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE)


def words(book):
    """All that is text in the notebook: not the pictures, whose letters mean nothing."""
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
    for text in words(BOOK):
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


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_the_student_comes_to_see_as_the_teacher_does(monkeypatch):
    monkeypatch.delenv(
        "XLA_FLAGS", raising=False
    )  # as everyone runs it, with the compiler's optimisations
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    book = nbformat.read(PATH, as_version=4)
    numbers = "[[float(degree.value) for degree in found] for found in (before, after)]"
    book.cells.append(nbformat.v4.new_code_cell(numbers))
    start = time.perf_counter()
    nbclient.NotebookClient(book, timeout=180, kernel_name="python3").execute()
    assert time.perf_counter() - start < 180
    before, after = json.loads(book.cells[-1].outputs[0]["data"]["text/plain"])
    assert all(last > first + 0.1 for first, last in zip(before, after, strict=True))
    spearman = 1
    assert before[spearman] < 0.4
    assert after[spearman] > 0.65
