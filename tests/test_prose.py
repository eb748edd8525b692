"""Docstrings begin with what a function does, and one thing has one word.

The words below have a plain replacement. They are looked for in the docstrings, comments and string
literals of pcjax/, and in the text of the documentation.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("pcjax", "tests", "benchmarks", "configs", "docs")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *ROOT.glob("docs/*.md"))
FIRST_WORDS = re.compile(r"(What|Whether|Of|The same|That)\b")
REPLACED = {
    r"(go|goes|gone|going|went) on": "resume, continue",
    r"not taken": "skipped",
    r"put aside": "renamed",
    r"unsound": "corrupt",
    r"judg(e|es|ed|ing)": "evaluate",
    r"worth": "metrics; useful",
    r"told(?! apart)": "reported, given",
    r"said": "reported, stated",
    r"(is|are|was|were) asked": "requested",
    r"(looked|looks) at": "checked, read",
    r"what (it|they|a model|models|the model|the teacher) (say|says|said)": "outputs",
    r"what (it|they) (is|are) worth": "metrics",
    r"first (weights|state|parameters)": "initial",
    r"place in the data": "position in the data",
    r"theirs": "the noun",
    r"whoever": "the noun",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(REPLACED)})\b", re.IGNORECASE)
# Names of variables that say nothing of what they hold.
VAGUE = {"asked", "found", "got", "said", "some", "there", "told"}


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def docstrings(tree):
    """Yield every docstring of a module with its line."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def texts(source):
    """Yield every comment and string literal of a module with its line."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def paragraphs(markdown):
    """Yield the lines of a document that are not code, with their numbers."""
    code = False
    for number, line in enumerate(markdown.splitlines(), 1):
        code ^= line.startswith("```")
        if not code:
            yield number, line


def replaced_words(numbered):
    for line, text in numbered:
        for match in PATTERN.finditer(" ".join(text.split())):
            remedy = next(new for old, new in REPLACED.items() if re.fullmatch(old, match[0], re.I))
            yield f"{line}: {match[0]!r}; rather: {remedy}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_docstring_begins_with_a_relative_clause(folder):
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in python_files(folder)
        for line, text in docstrings(ast.parse(path.read_text()))
        if FIRST_WORDS.match(text)
    ]
    assert not problems, "\n".join(problems)


def test_no_replaced_word_in_the_source():
    problems = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in python_files("pcjax", "configs")
        for problem in replaced_words(texts(path.read_text()))
    ]
    assert not problems, "\n".join(problems)


def test_no_replaced_word_in_the_documentation():
    problems = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in map(ROOT.joinpath, DOCUMENTS)
        for problem in replaced_words(paragraphs(path.read_text()))
    ]
    assert not problems, "\n".join(problems)


def test_no_vague_name_in_the_source():
    problems = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
        for path in python_files("pcjax")
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := getattr(node, "arg", None) or getattr(node, "id", None)) in VAGUE
        and (isinstance(node, ast.arg) or isinstance(getattr(node, "ctx", None), ast.Store))
    ]
    assert not problems, "\n".join(problems)


def test_the_patterns_find_what_they_are_for():
    assert FIRST_WORDS.match("What a checkpoint holds.")
    assert not FIRST_WORDS.match("Whatever happens, the file is whole.")
    lines = ["it goes on", "a step is not taken", "what it says", "is said", "told to stop"]
    assert all([*replaced_words([(1, line)])] for line in lines)
    assert not [*replaced_words([(1, "says, tells, told apart, took place")])]
