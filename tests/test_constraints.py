"""constraints.txt pins all that the gate installs and builds with, by hashes, and does not say where it lies."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11.7", "3.12.1", "3.13.0")


def pins() -> list[tuple[Requirement, list[str]]]:
    """Every pinned requirement with its hashes; a line of any other form is an error."""
    found = []
    for line in TEXT.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r" +--hash=", line.strip())
        found.append((Requirement(requirement), hashes))
    return found


def asked(python: str) -> list[Requirement]:
    """What pyproject.toml asks for in that Python: to run, to test, to develop and to build."""
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *PROJECT["build-system"]["requires"],
        *PROJECT["dependency-groups"]["build"],
    ]
    lines += [line for extra in ("test", "dev", "report") for line in extras[extra]]
    needed = [Requirement(line) for line in lines if not line.startswith("pcjax")]
    return [one for one in needed if one.marker is None or one.marker.evaluate(environment(python))]


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": "linux",
    }


def test_every_line_is_one_version_with_hashes():
    for requirement, hashes in pins():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), (
            f"{requirement} is not one version"
        )
        assert not requirement.url, requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_no_address():
    assert not re.search(r"://|http|\.org|\.com|pypi|index|find-links|trusted|file:|@", TEXT)


@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_is_asked_for_is_pinned_once(python):
    here = [
        one for one, _ in pins() if one.marker is None or one.marker.evaluate(environment(python))
    ]
    versions = {canonicalize_name(one.name): str(one.specifier)[2:] for one in here}
    assert len(versions) == len(here)
    for one in asked(python):
        version = versions.get(canonicalize_name(one.name))
        assert version is not None, (
            f"{one} is not pinned: make constraints.txt anew, as CONTRIBUTING.md says"
        )
        assert one.specifier.contains(version, prereleases=True), f"{one}, but {version} is pinned"


def test_machines_without_an_accelerator_get_nothing_for_one():
    assert not [
        str(one) for one, _ in pins() if re.search(r"cuda|nvidia|rocm|tpu|triton", one.name)
    ]
