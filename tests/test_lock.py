"""requirements.lock pins all that the gate installs and builds with, and names no registry."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins():
    """Yield every pinned requirement with its hashes."""
    for line in TEXT.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r" +--hash=", line.strip())
        yield Requirement(requirement), hashes


def requested():
    """Return what pyproject.toml asks for, to run, test, develop and build."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *PROJECT["build-system"]["requires"], *groups["build"]]
    lines += [
        line for extra in ("tensorboard", "text", "onnx", "test", "dev") for line in extras[extra]
    ]
    return [Requirement(line) for line in lines if not line.startswith("pcjax")]


def test_every_line_is_one_version_with_hashes():
    for requirement, hashes in pins():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert not requirement.url, requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


def test_no_address():
    assert not re.search(r"://|\.org|\.com|pypi|index|find-links|trusted|file:|@", TEXT)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned_once(python):
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    pinned = [
        requirement
        for requirement, _ in pins()
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]
    versions = {canonicalize_name(each.name): str(each.specifier)[2:] for each in pinned}
    assert len(versions) == len(pinned)
    for requirement in requested():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not pinned: run .ci/lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}, {version}"
        )


def test_machines_without_an_accelerator_get_nothing_for_one():
    accelerators = re.compile("cuda|nvidia|rocm|tpu|triton")
    assert not [str(pin) for pin, _ in pins() if accelerators.search(pin.name)]
