"""What led to an error is looked through once, also where it stands behind itself; what is refused, and what is not."""

import json

import pytest

from pcjax._checks import RequestError, behind, interruption
from pcjax.config import Config
from pcjax.run import check_folder
from pcjax.training.parallel import join_processes


def chain(*errors, back_to=None):
    for error, cause in zip(errors, (*errors[1:], back_to), strict=True):
        error.__cause__ = cause
    return errors


@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_each_error_is_told_once(place):
    errors = ValueError("a"), OSError("b"), SystemError("c")
    chain(*errors, back_to=None if place is None else errors[place])
    assert [*behind(errors[0])] == [*errors]
    assert interruption(errors[0]) is None


def test_a_signal_is_found_behind_errors():
    stopped = KeyboardInterrupt()
    assert interruption(chain(SystemError("in C"), ValueError("x"), stopped)[0]) is stopped


@pytest.mark.parametrize(
    "address",
    ["", "foo", "foo:", ":1", "a b:1", "foo:x", "foo:0", "foo:65536", "http://foo:1", "foo:\u0661"],
)
def test_an_address_that_is_none_is_refused(address, monkeypatch):
    for name, value in (("COORDINATOR", address), ("PROCESSES", "2"), ("PROCESS", "0")):
        monkeypatch.setenv(f"PCJAX_{name}", value)
    with pytest.raises(
        RequestError, match=r"got PCJAX_COORDINATOR='.*': expected the first one's HOST:PORT"
    ):
        join_processes()


def test_a_refusal_within_a_stored_config_ends_the_command(command, tmp_path):
    stored = {"job": "distill", "config": json.loads(Config().to_json())}
    stored["config"]["teacher"]["features"] = ""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored))
    status, _, complaint = command("distill", path)
    assert status == 2
    assert (
        complaint
        == f"pcjax: {path}: got an empty teacher.features: expected a path, or leave it out\n"
    )


def test_a_config_that_was_never_whole_is_no_run(tmp_path):
    (tmp_path / "config.json.unfinished").write_text('{"job": ')
    check_folder(tmp_path, Config(), "distill")
    (tmp_path / "notes").touch()
    with pytest.raises(RequestError, match="neither empty nor a run's folder"):
        check_folder(tmp_path, Config(), "distill")
