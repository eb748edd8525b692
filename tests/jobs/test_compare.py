"""Comparisons and tunings: fair, resumable, and readable."""

import json

import numpy as np
import pytest
from small import QUICK

from pcjax.config import Contender, Loss, Ramp, read_config, recipe
from pcjax.jobs import compare, tune
from pcjax.losses.registry import LOSSES, RECIPES

PAIR = ["--losses", "pkt,cross_entropy"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, run_command):
    folder = tmp_path_factory.mktemp("comparison") / "all"
    assert run_command("compare", *QUICK, *PAIR, "--seeds", "2", "--workdir", folder) == 0
    return folder


def results(folder):
    return json.loads((folder / "comparison.json").read_text())


@pytest.mark.gate
def test_a_comparison_writes_what_it_promises(comparison):
    losses = results(comparison)["losses"]
    labelled = {name: loss["labelled"] for name, loss in losses.items()}
    assert labelled == {"pkt": False, "cross_entropy": True}
    best, other = losses.values()
    assert best["summary"]["knn_accuracy"]["mean"] >= other["summary"]["knn_accuracy"]["mean"]
    assert "knn_accuracy" not in best["paired"]
    assert other["paired"]["knn_accuracy"]["n"] == 2
    for loss in (best, other):
        values = [run["metrics"]["coherence.spearman"] for run in loss["runs"].values()]
        assert loss["summary"]["coherence.spearman"]["mean"] == pytest.approx(np.mean(values))
        assert loss["temporary_bytes"] > 0
    table = (comparison / "comparison.md").read_text().splitlines()
    names = [f"{n} (labels)" if loss["labelled"] else n for n, loss in losses.items()]
    titles = [line.split("|")[1].strip() for line in table[2:]]
    assert titles == [*names, "untrained", "teacher"]
    page = (comparison / "report.html").read_text()
    assert 'href="runs/pkt/0/report.html"' in page
    assert (comparison / "runs" / "pkt" / "0" / "report.html").is_file()


@pytest.mark.gate
def test_contenders_start_alike(comparison):
    runs = [
        json.loads((comparison / "runs" / name / "0" / "result.json").read_text())
        for name in ("pkt", "cross_entropy")
    ]
    assert runs[0]["teacher"] == runs[1]["teacher"]
    assert runs[0]["student"] != runs[1]["student"]
    coherence = [run["untrained"]["coherence"] for run in runs]
    assert coherence[0] == coherence[1]


@pytest.mark.gate
def test_a_run_of_a_comparison_is_what_distill_makes_of_its_config(comparison, command, tmp_path):
    own = comparison / "runs" / "pkt" / "1"
    assert command("distill", own / "config.json", "--workdir", tmp_path / "alone")[0] == 0
    one, other = (json.loads((p / "result.json").read_text()) for p in (own, tmp_path / "alone"))
    assert one["student"] == other["student"]


@pytest.mark.gate
def test_finished_runs_are_kept_and_missing_ones_are_added(comparison, command, monkeypatch):
    before = results(comparison)
    (comparison / "runs" / "pkt" / "1" / "outcome.json").unlink()
    monkeypatch.chdir(comparison.parent)  # the folder by another name, and one more loss
    words = ["--losses", "pkt,cka", "--seeds", "2", "--workdir", comparison.name]
    status, output, complaint = command("compare", *QUICK, *words)
    assert status == 0, complaint
    assert "run 6 of 6: cka, seed 1" in output
    assert "pkt, seed 1" in output
    assert "pkt, seed 0" not in output
    assert "cross_entropy, seed" not in output
    losses = results(comparison)["losses"]
    for name, loss in before["losses"].items():
        for seed, run in loss["runs"].items():
            assert run["metrics"] == losses[name]["runs"][seed]["metrics"]
    assert losses.keys() == {"pkt", "cross_entropy", "cka"}
    assert [run["status"] for run in losses["cka"]["runs"].values()] == ["done", "done"]
    before = (comparison / "report.html").stat().st_mtime_ns
    assert command("report", comparison)[0] == 0
    assert (comparison / "report.html").stat().st_mtime_ns > before


@pytest.mark.gate
def test_a_contender_that_cannot_be_trained_is_not_in_the_way(command, tmp_path, monkeypatch):
    train = compare.train_contender

    def fail(subrun, rivals):
        if subrun.config.losses[0].name == "cka":
            raise MemoryError
        train(subrun, rivals)

    monkeypatch.setattr(compare, "train_contender", fail)
    words = ["compare", *QUICK, "--seeds", "1", "--workdir", tmp_path / "all", "--losses"]
    assert command(*words, "cka,pkt")[0] == 1
    status, _, complaint = command(*words, "pkt")
    assert status == 0, complaint
    assert results(tmp_path / "all")["losses"].keys() == {"pkt"}


@pytest.mark.gate
def test_a_comparison_of_something_else_is_refused(comparison, command):
    before = {path: path.read_bytes() for path in comparison.glob("*.*")}
    words = [*QUICK, *PAIR, "--training.steps", "9", "--workdir", comparison]
    status, _, complaint = command("compare", *words)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "training.steps=8, but 9 is requested" in complaint
    assert {path: path.read_bytes() for path in comparison.glob("*.*")} == before
    status, _, complaint = command("evaluate", comparison)
    assert status == 2
    assert "with many models; name one run inside it" in complaint


@pytest.mark.gate
def test_a_diverged_run_is_reported_and_the_others_continue(comparison, command, tmp_path):
    config = tmp_path / "wild.py"
    config.write_text(
        "from pcjax.config import *\n"
        "wild = Contender('wild', (Loss('hint', weight=1e38, head='linear'),))\n"
        "tame = Contender('tame', (Loss('hint', head='linear'),))\n"
        "config = Config(comparison=Comparison(contenders=(wild, tame), seeds=1))\n"
    )
    words = [*QUICK, "--teacher.run", comparison / "teacher", "--training.bad-steps", 3]
    words += ["--training.optimiser", "sgd", "--training.learning-rate", "1e-3"]
    status, output, complaint = command("compare", config, *words, "--workdir", tmp_path / "wild")
    assert status == 0, complaint
    losses = results(tmp_path / "wild")["losses"]
    assert [*losses] == ["tame", "wild"]
    assert losses["wild"]["runs"]["0"]["status"] == "diverged"
    assert losses["tame"]["runs"]["0"]["status"] == "done"
    assert "diverged" in output
    page = (tmp_path / "wild" / "report.html").read_text()
    assert "Not drawn, as no run is finished: wild." in page
    words += ["--trials", 1, "--workdir", tmp_path / "tuning"]
    status, output, complaint = command("tune", config, *words)
    assert status == 0, complaint
    assert "All trials of wild diverged" in output
    tuned = read_config(tmp_path / "tuning" / "tuned.json").comparison.contenders
    assert [contender.name for contender in tuned] == ["tame"]


MIXED = Contender(
    "mixed",
    (Loss(arguments={"temperature": Ramp(0.4, 0.1)}), Loss("kd", arguments={"temperature": 4.0})),
    1e-3,
)
EVERY = [MIXED, *(Contender(name, recipe(name), 1e-3) for name in RECIPES)]


@pytest.mark.parametrize("contender", EVERY, ids=lambda contender: contender.name)
def test_tuning_tries_the_given_setting_first_and_then_others(contender):
    tried = tune.settings(contender, 5)
    assert tried[0] == contender
    assert tried == tune.settings(contender, 5)
    assert len({one.learning_rate for one in tried}) == 5
    for one in tried:
        assert 1e-3 / 8.1 <= one.learning_rate <= 8.1e-3
        for before, after in zip(contender.losses, one.losses, strict=True):
            assert (before.name, before.head, before.bank) == (after.name, after.head, after.bank)
            assert {*before.arguments} <= {*after.arguments} <= {*before.arguments, *tune.SCALES}
            given = LOSSES[before.name].number_defaults | before.arguments
            pairs = [(given[name], value) for name, value in after.arguments.items()]
            for value, other in [(before.weight, after.weight), *pairs]:
                if isinstance(value, float):
                    assert 1 / 8.1 <= other / value <= 8.1
                else:
                    assert type(value) is type(other)


def test_a_default_scale_is_tuned_too():
    first, *others = tune.settings(Contender("mine", (Loss("kd"),), 0.01), 4)
    assert first.losses[0].arguments == {}
    assert len({one.losses[0].arguments["temperature"] for one in others}) == 3
    default = LOSSES["kd"].number_defaults["temperature"]
    assert tune.describe(first) == f"learning rate 0.01, temperature {default:.3g}"


def test_a_ramp_is_scaled_as_a_whole():
    tried = [one.losses[0].arguments["temperature"] for one in tune.settings(MIXED, 5)]
    assert all(ramp.start / ramp.end == pytest.approx(4) for ramp in tried)
    assert "temperature 0.4 to 0.1" in tune.describe(MIXED)


@pytest.mark.gate
def test_tuning_writes_a_comparison(comparison, command, tmp_path):
    words = ["--teacher.run", comparison / "teacher", "--losses", "pkt,kd", "--trials", "2"]
    words = [*QUICK, *words, "--workdir", tmp_path / "tuning"]
    status, output, complaint = command("tune", *words)
    assert status == 0, complaint
    assert "run 2 of 4: pkt, learning rate 0.00" in output
    tuned = read_config(tmp_path / "tuning" / "tuned.json")
    contenders = tuned.comparison.contenders
    assert [contender.name for contender in contenders] == ["pkt", "kd"]
    tried = [read_config(path) for path in (tmp_path / "tuning/trials/pkt").glob("*/config.json")]
    assert contenders[0].learning_rate in {one.training.learning_rate for one in tried}
    assert len({one.training.learning_rate for one in tried}) == 2
    again = command("tune", *words)[1]
    assert "run 1 of" not in again
