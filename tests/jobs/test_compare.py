"""Comparisons: fair, resumable, and their arithmetic."""

import json

import numpy as np
import pytest
from scipy import stats
from test_commands import SMALL

from pcjax.config import Config, Contender, Loss, Ramp, Teacher, read
from pcjax.evaluation import summary
from pcjax.jobs import compare, recipes, tune
from pcjax.loss_registry import TERMS
from pcjax.training import disk

LOSSES = ["--losses", "pkt,cross_entropy"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    from pcjax import cli

    folder = tmp_path_factory.mktemp("comparison") / "all"
    cli.main(["compare", *SMALL, *LOSSES, "--seeds", "2", "--workdir", str(folder)])
    return folder


def results(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_a_comparison_says_what_it_promises(comparison):
    found = results(comparison)
    assert found["losses"].keys() == {"pkt", "cross_entropy"}
    assert {name: loss["labelled"] for name, loss in found["losses"].items()} == {
        "pkt": False,
        "cross_entropy": True,
    }
    best, other = found["losses"].values()
    assert best["summary"]["knn_accuracy"]["mean"] >= other["summary"]["knn_accuracy"]["mean"]
    assert "knn_accuracy" not in best["paired"]
    assert other["paired"]["knn_accuracy"]["n"] == 2
    for loss in (best, other):
        values = [run["metrics"]["spearman"] for run in loss["runs"].values()]
        assert loss["summary"]["spearman"]["mean"] == pytest.approx(np.mean(values))
        assert loss["temporary_bytes"] > 0
    table = (comparison / "comparison.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        *(
            f"{name} (labels)" if loss["labelled"] else name
            for name, loss in found["losses"].items()
        ),
        "untrained",
        "teacher",
    ]


def test_no_run_that_has_ended_stays_held(command, tmp_path, monkeypatch):
    held, hold = [], disk.hold

    def watched(folder):
        hold(folder)
        held.append(len(disk._held))

    monkeypatch.setattr(disk, "hold", watched)
    for job, count in (("compare", "--seeds"), ("tune", "--trials")):
        assert (
            command(job, *SMALL, "--losses", "pkt,cka", count, 2, "--workdir", tmp_path / job)[0]
            == 0
        )
        assert len(held) == 6  # its own, the teacher's, and four runs'
        assert max(held) == 2
        held.clear()


def test_contenders_begin_alike_and_see_the_same(comparison):
    runs = [
        json.loads((comparison / "runs" / name / "0" / "result.json").read_text())
        for name in ("pkt", "cross_entropy")
    ]
    assert runs[0]["untrained"] == runs[1]["untrained"]
    assert runs[0]["teacher"] == runs[1]["teacher"]
    assert runs[0]["student"] != runs[1]["student"]


def test_a_run_of_a_comparison_is_what_distill_makes_of_its_config(comparison, command, tmp_path):
    own = comparison / "runs" / "pkt" / "1"
    assert command("distill", own / "config.json", "--workdir", tmp_path / "alone")[0] == 0
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert alone["student"] == json.loads((own / "result.json").read_text())["student"]


def test_what_is_done_is_kept_and_what_is_missing_is_added(comparison, command, monkeypatch):
    before, files = results(comparison), sorted(path.name for path in comparison.iterdir())
    assert files == ["comparison.json", "comparison.md", "config.json", "runs", "teacher"]
    removed = comparison / "runs" / "pkt" / "1" / "outcome.json"
    removed.unlink()
    assert command("compare", *SMALL, *LOSSES, "--seeds", "2", "--workdir", comparison)[0] == 0
    for name, loss in results(comparison)["losses"].items():
        for seed, run in loss["runs"].items():
            assert run["metrics"] == before["losses"][name]["runs"][seed]["metrics"]
    # The folder by another name, and a loss more.
    monkeypatch.chdir(comparison.parent)
    asked = ["compare", *SMALL, "--losses", "cka", "--seeds", "2", "--workdir", comparison.name]
    status, said, complaint = command(*asked)
    assert status == 0, complaint
    assert "cka, seed 1" in said
    assert "pkt, seed" not in said
    found = results(comparison)["losses"]
    assert found.keys() == {"pkt", "cross_entropy", "cka"}
    assert [run["status"] for run in found["cka"]["runs"].values()] == ["done", "done"]


def test_what_could_not_be_trained_is_not_in_the_way_of_others(command, tmp_path, monkeypatch):
    trained = compare._run

    def fails(asked, *rest, **given):
        if asked.losses[0].name == "cka":
            raise MemoryError
        return trained(asked, *rest, **given)

    monkeypatch.setattr(compare, "_run", fails)
    asked = ["compare", *SMALL, "--seeds", "1", "--workdir", tmp_path / "all", "--losses"]
    with pytest.raises(MemoryError):
        command(*asked, "cka,pkt")
    status, said, complaint = command(*asked, "pkt")
    assert status == 0, complaint
    assert "cka is left out: it is not named, and has no results yet" in said
    assert results(tmp_path / "all")["losses"].keys() == {"pkt"}


def test_a_comparison_of_something_else_is_refused_and_nothing_changed(
    comparison, command, tmp_path
):
    def everything():
        return {path: path.read_bytes() for path in comparison.glob("*.*")}

    before = everything()
    other = tmp_path / "other.py"
    other.write_text(
        "from pcjax.config import *\n"
        "config = Config(comparison=Comparison(contenders=(Contender('pkt', (Loss('pkt', weight=7.0),)),)))\n"
    )
    for given, message in (
        ([*LOSSES, "--training.steps", "9"], "training.steps 8, asked for now is 9"),
        ([other], "losses"),
    ):
        place = (
            ["compare", *given[:1], *SMALL, *given[1:]]
            if given == [other]
            else ["compare", *SMALL, *given]
        )
        status, _, complaint = command(*place, "--seeds", "2", "--workdir", comparison)
        assert (status, complaint.count("\n")) == (2, 1)
        assert message in complaint
        assert everything() == before
    status, _, complaint = command("evaluate", comparison)
    assert status == 2
    assert "has many runs: name one" in complaint


@pytest.mark.parametrize("given_up_after", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_diverges_is_said_to_and_the_others_go_on(
    given_up_after, comparison, command, tmp_path
):
    config = tmp_path / "wild.py"
    config.write_text(
        "from pcjax.config import *\n"
        "wild = Contender('wild', (Loss('hint', weight=1e38, head='linear'),))\n"
        "tame = Contender('tame', (Loss('hint', head='linear'),))\n"
        "config = Config(comparison=Comparison(contenders=(wild, tame), seeds=1))\n"
    )
    asked = [
        *SMALL,
        "--teacher.run",
        comparison / "teacher",
        "--training.optimiser",
        "sgd",
        "--training.learning-rate",
        "1e-3",
    ]
    asked += ["--workdir", tmp_path / "wild", "--training.bad-steps", given_up_after]
    status, said, complaint = command("compare", config, *asked)
    assert status == 0, complaint
    found = results(tmp_path / "wild")["losses"]
    assert found["wild"]["runs"]["0"]["status"] == "diverged"
    assert found["tame"]["runs"]["0"]["status"] == "done"
    assert [*found] == ["tame", "wild"]
    assert "wild (1 of 1 diverged)" in said
    if given_up_after == 100:  # the slow one
        assert command("report", tmp_path / "wild")[0] == 0
        text = (tmp_path / "wild" / "report.html").read_text()
        assert "Density of tame&#x27;s ranks against the teacher" in text
        assert "Without a finished run, and so not drawn: wild." in text
        # Trained to its end, and known to have diverged whatever became of its metrics.
        own = tmp_path / "wild" / "runs" / "wild" / "0"
        for name in ("metrics.jsonl", "outcome.json"):
            (own / name).unlink()
        assert command("compare", config, *asked)[0] == 0
        assert json.loads((own / "outcome.json").read_text())["status"] == "diverged"
        # What only diverges is no setting to go on with.
        asked[asked.index("--workdir") + 1] = tmp_path / "tuning"
        status, said, complaint = command("tune", config, *asked, "--trials", 1)
        assert status == 0, complaint
        assert "all tries of wild diverged: lower training.learning_rate" in said
        assert [
            one.name for one in read(tmp_path / "tuning" / "tuned.json").comparison.contenders
        ] == ["tame"]


RUNS = {
    "a": {
        seed: {"status": "done", "metrics": {"knn_accuracy": x}}
        for seed, x in enumerate([0.90, 0.92, 0.97])
    },
    "b": {
        seed: {"status": "done", "metrics": {"knn_accuracy": x}}
        for seed, x in enumerate([0.89, 0.90, 0.93])
    },
    "c": {
        0: {"status": "diverged", "metrics": {}},
        1: {"status": "done", "metrics": {"knn_accuracy": 0.5}},
    },
    "d": {0: {"status": "diverged", "metrics": {}}},
}


def test_means_and_differences_are_scipys():
    found = summary.summarise(RUNS, dict.fromkeys(RUNS, False))
    assert [*found["losses"]] == ["a", "b", "c", "d"]
    a, b = ([run["metrics"]["knn_accuracy"] for run in RUNS[name].values()] for name in "ab")
    expected = stats.ttest_1samp(b, 0).confidence_interval(0.95)
    got = found["losses"]["b"]["summary"]["knn_accuracy"]
    assert (got["low"], got["high"], got["n"]) == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        3,
    )
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    got = found["losses"]["b"]["paired"]["knn_accuracy"]
    assert (got["to"], got["low"], got["high"]) == (
        "a",
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )
    # One seed in common: the difference of that one, and nothing to say how sure it is.
    got = found["losses"]["c"]["paired"]["knn_accuracy"]
    assert got == {"to": "a", "mean": pytest.approx(0.5 - 0.92), "low": None, "high": None, "n": 1}
    assert found["losses"]["d"]["summary"] == found["losses"]["d"]["paired"] == {}


def test_a_contender_that_diverged_once_is_not_the_best():
    lucky = {
        0: {"status": "done", "metrics": {"knn_accuracy": 0.99}},
        1: {"status": "diverged", "metrics": {}},
    }
    found = summary.summarise(
        {"lucky": lucky, "a": RUNS["a"], "b": RUNS["b"]}, dict.fromkeys(("lucky", "a", "b"), False)
    )
    assert [*found["losses"]] == ["a", "b", "lucky"]
    assert found["losses"]["b"]["paired"]["knn_accuracy"]["to"] == "a"


def test_all_may_have_diverged():
    found = summary.summarise({"d": RUNS["d"]}, {"d": True}) | {"teacher": {}, "untrained": {}}
    assert found["primary"] is None
    assert summary.table(found)[1][0] == ["d (labels) (1 of 1 diverged)", "", "", ""]


def test_numbers_are_those_of_a_result():
    found = {
        "knn_accuracy": 0.5,
        "linear_probe_accuracy": None,
        "parameters": 7,
        "coherence": {"spearman": {"value": 0.3, "low": 0.2, "high": 0.4}},
        "retrieval": {"recall_at_1": 0.25},
        "unseen": {
            "coherence": {"spearman": {"value": 0.1}},
            "retrieval": {"recall_at_1": 0.75},
            "knn_accuracy": 0.6,
        },
    }
    found["unseen"] |= {"examples": 40, "classes": 3}
    expected = {"knn_accuracy": 0.5, "spearman": 0.3, "recall_at_1": 0.25}
    expected |= {"unseen_spearman": 0.1, "unseen_recall_at_1": 0.75, "unseen_knn_accuracy": 0.6}
    assert summary.numbers(found) == expected


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_can_be_distilled_and_stored(name):
    config = Config(losses=recipes.RECIPES[name], teacher=Teacher(live=True))
    assert Config.from_json(config.to_json()) == config


MIXED = Contender(
    "mixed",
    (Loss(arguments={"temperature": Ramp(0.4, 0.1)}), Loss("kd", arguments={"temperature": 4.0})),
)


@pytest.mark.parametrize(
    "contender", [MIXED, *recipes.contenders([*recipes.RECIPES], ())], ids=lambda c: c.name
)
def test_tuning_tries_what_is_given_first_and_then_others(contender):
    tried = tune.settings(contender, 9)
    assert tried[0] == contender
    assert tried == tune.settings(contender, 9)
    assert (
        len({Config(losses=one.losses, teacher=Teacher(live=True)).digest() for one in tried}) == 9
    )
    for one in tried:
        for before, after in zip(contender.losses, one.losses, strict=True):
            assert (before.name, before.head, before.bank) == (after.name, after.head, after.bank)
            assert {*before.arguments} <= {*after.arguments} <= {*before.arguments, *tune.SCALES}
            given = TERMS[before.name].numbers | before.arguments
            pairs = [
                (before.weight, after.weight),
                *((given[name], x) for name, x in after.arguments.items()),
            ]
            for value, other in pairs:
                if isinstance(value, float):
                    assert 1 / 8.1 <= other / value <= 8.1
                else:
                    assert type(value) is type(other)


def test_a_scale_that_is_not_given_is_tried_too():
    first, *others = tune.settings(Contender("mine", (Loss("kd"),)), 4)
    assert first.losses[0].arguments == {}
    assert len({one.losses[0].arguments["temperature"] for one in others}) == 3
    assert tune.describe(first) == f"temperature {TERMS['kd'].numbers['temperature']:.3g}"


def test_a_ramp_is_scaled_as_a_whole():
    tried = [one.losses[0].arguments["temperature"] for one in tune.settings(MIXED, 5)]
    assert all(ramp.start / ramp.end == pytest.approx(4) for ramp in tried)
    assert "temperature 0.4 to 0.1" in tune.describe(MIXED)


@pytest.mark.slow
def test_tuning_writes_a_comparison(comparison, command, tmp_path):
    asked = [*SMALL, "--teacher.run", comparison / "teacher", "--losses", "pkt,kd", "--trials", "2"]
    status, said, complaint = command("tune", *asked, "--workdir", tmp_path / "tuning")
    assert status == 0, complaint
    assert "pkt, try 2 of 2: weight" in said
    scores = {}
    for path in (tmp_path / "tuning" / "trials").rglob("trial.json"):
        scores[path.parent.parent.name, int(path.parent.name)] = json.loads(path.read_text())[
            "score"
        ]
    assert scores.keys() == {(name, number) for name in ("pkt", "kd") for number in (0, 1)}
    chosen = read(tmp_path / "tuning" / "tuned.json").comparison.contenders
    for contender in chosen:
        given = recipes.contenders([contender.name], ())[0]
        best = max((0, 1), key=lambda number: scores[contender.name, number])
        assert contender == tune.settings(given, 2)[best]


@pytest.mark.parametrize("job", ["compare", "tune"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "give --losses a,b,c"),
        (["--losses", ""], "got --losses without a name: expected some of perception_coherence"),
        (["--losses", "pkt,nope"], "unknown loss 'nope': expected one of"),
        (["--losses", "pkt,pkt"], "got two contenders named pkt"),
        (["--losses"], "--losses: expected one argument"),
        (["--losses", "pkt", "--seeds", "0"], "got comparison.seeds 0"),
        (["--losses", "pkt", "--trials", "many"], "argument --trials: invalid int value"),
        (
            [
                "--losses",
                "pkt,dkd",
                "--data.source",
                "arrays:{tmp}/plain.npy",
                "--teacher.run",
                "x",
                "--training.batch",
                "8",
            ],
            "x (teacher.run): expected the --workdir of an earlier",
        ),
        (
            [
                "--losses",
                "pkt,cross_entropy",
                "--data.source",
                "arrays:{tmp}/plain.npy",
                "--training.batch",
                "8",
            ],
            "no labels",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(job, asked, message, command, tmp_path):
    np.save(
        tmp_path / "plain.npy", np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    )
    given = [word.replace("{tmp}", str(tmp_path)) for word in asked]
    status, _, complaint = command(job, *given, "--workdir", tmp_path / "none")
    assert (status, complaint.count("\n")) == (2, 1)
    assert message in complaint
    assert not (tmp_path / "none").exists()
