"""Nothing executes the contents of a file: no pickle, no eval, no arrays of objects."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest
from children import environment
from small import QUICK

import pcjax

FOLDER = pathlib.Path(pcjax.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))
LOADERS = (
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "marshal", "shelve"),
    *("joblib", "yaml", "torch"),
)
RUNNERS = ("eval", "exec", "compile", "__import__", "execfile")
# A config's .py file is code, and is run; it may name a function as a teacher. Jobs and sub-modules
# are imported by checked names.
EXCEPTIONS = {
    ("config.py", "runpy"),
    *((name, "import_module") for name in ("cli.py", "__init__.py", "teachers/functions.py")),
}

LOADED = """
import importlib, json, pkgutil, sys
import pcjax
for module in pkgutil.walk_packages(pcjax.__path__, "pcjax."):
    importlib.import_module(module.name)
found, count = [], 0
for name, module in list(sys.modules.items()):
    if name == "pcjax" or name.startswith("pcjax."):
        count += 1
        for what, value in vars(module).items():
            origin = getattr(value, "__module__", None) or ""
            named = getattr(value, "__name__", "")
            kind = (named if type(value).__name__ == "module" else origin).split(".")[0]
            if kind in LOADERS or any(value is one for one in (eval, exec, compile)):
                found.append([name, what])
print(json.dumps([count, found]))
"""


def suspicious(tree):
    """Yield what in a module reads or runs code, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            modules = [*names, node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for name in modules:
                if name.split(".")[0] in (*LOADERS, "runpy", "imp", "code"):
                    yield name.split(".")[0], node.lineno
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            plain = (
                isinstance(called, ast.Name)
                or getattr(getattr(called, "value", None), "id", "") == "builtins"
            )
            known = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if (
                (name in RUNNERS and plain)
                or name == "extractall"
                or (name == "import_module" and not known)
            ):
                yield name, node.lineno
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if (
                "allow_pickle" in given
                and getattr(given["allow_pickle"], "value", True) is not False
            ):
                yield "allow_pickle", node.lineno
            if (
                name in ("load", "read_array")
                and "allow_pickle" not in given
                and ast.unparse(called).startswith("np.")
            ):
                yield "allow_pickle left to its default", node.lineno
            if name in ("system", "popen") or getattr(given.get("shell"), "value", False):
                yield name, node.lineno


def test_no_source_loads_or_runs_what_a_file_holds():
    trees = {str(path.relative_to(FOLDER)): ast.parse(path.read_text()) for path in SOURCES}
    result = {(name, what) for name, tree in trees.items() for what, _ in suspicious(tree)}
    assert result == EXCEPTIONS


def test_the_search_finds_what_it_looks_for():
    bad = [
        "import pickle",
        "from marshal import loads",
        "import torch.serialization",
        "eval('1')",
        "np.load(p)",
    ]
    bad += [
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=x)",
        "os.system('x')",
        "builtins.exec('1')",
    ]
    bad += [
        "f(shell=True)",
        "import runpy",
        "importlib.import_module(x)",
        "archive.extractall(x)",
        "np.lib.format.read_array(f)",
    ]
    assert [line for line in bad if not list(suspicious(ast.parse(line)))] == []
    good = [
        "np.load(p, allow_pickle=False)",
        "re.compile('x')",
        "jitted.lower().compile()",
        "json.loads(x)",
    ]
    good += ["manager.load(x)", "importlib.import_module('tensorboardX')"]
    assert [line for line in good if list(suspicious(ast.parse(line)))] == []


@pytest.mark.gate
def test_no_loaded_module_holds_a_loader():
    script = f"LOADERS = {LOADERS!r}\n{LOADED}"
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    count, result = json.loads(out.splitlines()[-1])
    assert count == len([path for path in FOLDER.rglob("*.py") if path.name != "__main__.py"])
    assert result == []


# Everything that is unpickled or unmarshalled while commands run, but for Python's own modules.
USED = """
import json, sys
found = []
def look(event, arguments):
    if event in ("pickle.find_class", "marshal.loads"):
        frame = sys._getframe(1)
        if not frame.f_code.co_filename.startswith("<frozen importlib"):
            found.append([event, frame.f_code.co_filename])
sys.addaudithook(look)
import marshal, pickle
pickle.loads(pickle.dumps(json.JSONDecoder))
marshal.loads(marshal.dumps(3))
control = [event for event, _ in found]
found.clear()
from pcjax import cli
run, student, *small = sys.argv[1:]
features = ("--teacher.features", run + "/features.npz")
for job in (
    ("distill", *small, "--workdir", run),
    ("distill", *small, "--workdir", run),
    *((job, run) for job in ("evaluate", "embed", "export", "report")),
    ("distill", *small, *features, "--workdir", student),
):
    assert cli.main([*job]) == 0
print(json.dumps([control, found]))
"""


@pytest.mark.gate
def test_nothing_is_unpickled_while_commands_run(tmp_path):
    words = [sys.executable, "-c", USED, tmp_path / "run", tmp_path / "student", *QUICK]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    control, result = json.loads(done.stdout.splitlines()[-1])
    assert control == ["pickle.find_class", "marshal.loads"]
    assert result == []
