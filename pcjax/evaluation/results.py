"""result.json of a run that has ended, taken for what a job writes only where it looks like it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data import SEVERITIES
from pcjax.evaluation.measures import DEGREES
from pcjax.run import RESULT, are_numbers, is_number, stored_object

MODELS = ("teacher", "untrained", "student")
GROUPS = ("coherence", "retrieval", "unseen", "throughput", "other", "corruptions")
SIZES = ("parameters", "flops", "bytes")  # of a teacher that is only features, unknown
COUNTED = (*SIZES, "examples", "classes", "examples_per_second")
TEXTS = ("device",)


def result_of(folder: pathlib.Path) -> dict[str, Any]:
    """What came of a run that has ended: of every model it judged, and beside that of the run."""
    stored, remedy = folder / RESULT, "delete it, and give the run's command again"
    missing = f"no {RESULT} in {folder}: give its own command again, which goes on to the end"
    _checks.require(stored.is_file(), missing)
    found = stored_object(stored, remedy)
    wrong = [
        wrong for name in MODELS if (wrong := _wrong((name,), found.get(name, {}))) is not None
    ]
    wrong += [name for name in ("seconds", "steps") if not is_number(found.get(name, 0))]
    versions = found.get("versions", {})
    sound = isinstance(versions, dict) and all(
        isinstance(version, str) for version in versions.values()
    )
    wrong += [] if sound else ["versions"]
    for where in wrong[:1]:
        raise RequestError(f"{stored} is damaged ({where}): {remedy}")
    return found


def _wrong(path: tuple[str, ...], value: Any) -> str | None:
    """The first place in the numbers of a model where something else stands than a job would write, if there is one."""
    *_, parent, name = ("", *path)
    if name in DEGREES and parent == "coherence":
        sound = are_numbers(value, finite=False) and value.keys() >= {"value", "low", "high"}
    elif len(path) == 1 or name in GROUPS or parent == "other":
        if isinstance(value, Mapping):
            known = name != "unseen" or value.keys() >= {"examples", "classes"}
            found = (
                wrong
                for part, one in value.items()
                if (wrong := _wrong((*path, part), one)) is not None
            )
            return next(found, None) if known else ".".join(path)
        sound = value is None and name == "retrieval"
    elif parent == "corruptions" and isinstance(value, Mapping):
        sound = are_numbers(value, finite=False) and value.keys() >= set(map(str, SEVERITIES))
    elif name in TEXTS:
        sound = isinstance(value, str)
    elif name in COUNTED:
        sound = is_number(value) or (value is None and name in SIZES)
    else:
        sound = value is None or is_number(value, finite=False)
    return None if sound else ".".join(path)
