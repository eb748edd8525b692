"""`pcjax compare`: every loss from the same first weights, in the same order of the data, for the same number of steps.

One after the other every contender trains a student from every seed, in a run's folder of its own. What is finished is
not done again, what was stopped goes on, and seeds or contenders can be added to a comparison that has ended.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from pcjax import _checks
from pcjax.config import Comparison, Config, Contender
from pcjax.evaluation import evaluate as judge
from pcjax.evaluation import summary, tables
from pcjax.jobs.distill import (
    STUDENT,
    TEACHER,
    KnownTeacher,
    check_distilling,
    find_teacher,
    judge_teacher,
    plan_student,
)
from pcjax.jobs.prepare import STUDENT_SEED, Loaded, load, new_model, steps_of, trained
from pcjax.jobs.teach import teach
from pcjax.run import (
    CONFIG,
    RESULT,
    are_numbers,
    begin_folder,
    check_folder,
    config_of,
    is_number,
    own_place,
    stored_object,
    write_config,
    write_proven,
)
from pcjax.training.clock import Clock
from pcjax.training.disk import let_go
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen
from pcjax.training.guard import BadStepsError
from pcjax.training.loop import Plan
from pcjax.training.metrics_log import read_records
from pcjax.training.parallel import wait_for_all

RUNS, OUTCOME = "runs", "outcome.json"
MADE_WITH = ("data", "teacher")  # their digests
REMEDY = "delete it, and what came of the run is found out again"


def compare(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Trains what is not trained yet, and says how the contenders stand."""
    named = {contender.name for contender in config.comparison.contenders}

    def begun(contender: Contender) -> bool:
        return any(own_place(folder, RUNS, contender.name).glob(f"*/{OUTCOME}"))

    config = with_earlier(config, folder, "compare", begun, display)
    contenders, seeds = config.comparison.contenders, range(config.comparison.seeds)
    loaded = load(config)

    def run_of(shared: Config, contender: Contender, seed: int) -> tuple[Config, pathlib.Path]:
        return of_contender(shared, contender, seed), own_place(
            folder, RUNS, contender.name, str(seed)
        )

    def all_runs(shared: Config) -> Iterable[tuple[Config, pathlib.Path]]:
        return [run_of(shared, contender, seed) for seed in seeds for contender in contenders]

    shared = begin(config, folder, loaded, "compare", all_runs, _outcome, display)
    teacher = find_teacher(shared, folder, loaded, display)
    made_with = check_same(all_runs(shared), OUTCOME, _outcome, teacher, loaded)
    write_config(
        folder / CONFIG, config, "compare"
    )  # contenders and seeds that were added among it
    taught = judge_teacher(config, teacher, loaded)
    runs: dict[str, dict[int, dict[str, Any]]] = {contender.name: {} for contender in contenders}
    # All contenders of a seed before the next seed: of a comparison that was stopped, fewer --seeds show what is there.
    for seed in seeds:
        untrained: dict[str, Any] = {}
        for contender in contenders:
            asked, own = run_of(shared, contender, seed)
            outcome = _outcome(own)
            if outcome is None and contender.name not in named:
                continue
            if outcome is None:
                display.say(f"{contender.name}, seed {seed}")
                first = new_model(asked.student, loaded, asked.training, STUDENT_SEED)
                untrained = untrained or _judged(first, teacher, asked, loaded)
                beside = {TEACHER: taught, "untrained": untrained}
                outcome = _run(
                    asked,
                    own,
                    loaded,
                    teacher,
                    first,
                    beside,
                    made_with,
                    display,
                    measured=seed == 0,
                )
                let_go(own)
            runs[contender.name][seed] = outcome
    found = summary.summarise(
        runs, {contender.name: contender.labelled() for contender in contenders}
    )
    found |= {"versions": judge.versions(), "config": json.loads(config.to_json())}
    found |= {"teacher": summary.numbers(taught), "untrained": summary.of_untrained(runs)}
    summary.write(folder, found)
    summary.show(found, display)
    display.say(f"{summary.COMPARISON}, {summary.MARKDOWN} and the runs lie in {folder}")
    more = "with more --seeds or --losses the same command adds them"
    display.say(f"next: {tables.drawn_by(folder)}; {more}")


def begin(
    config: Config,
    folder: pathlib.Path,
    loaded: Loaded,
    job: str,
    runs: Callable[[Config], Iterable[tuple[Config, pathlib.Path]]],
    ended: Callable[[pathlib.Path], Any],
    display: Display,
) -> Config:
    """The config that all runs share, their teacher trained; what cannot be trained is refused before anything is.

    Args:
      config: what is asked for.
      folder: where.
      loaded: its data.
      job: which.
      runs: of the shared config, every run's config and folder.
      ended: reads what came of a run, and refuses what is damaged.
      display: where to say what is done.
    """
    contenders = config.comparison.contenders
    _checks.require(len(contenders) > 0, f"got nothing to {job}: give --losses a,b,c")
    stored = folder / CONFIG
    before = config_of(folder, job)[1].comparison if stored.exists() else config.comparison
    check_folder(folder, dataclasses.replace(config, comparison=before), job)
    for contender in contenders:
        check_distilling(dataclasses.replace(config, losses=contender.losses), loaded)
    alone = dataclasses.replace(config, comparison=Comparison())
    own = own_place(folder, TEACHER).resolve()
    trained_here = config.teacher.run is None and config.teacher.features is None
    taught = dataclasses.replace(config.teacher, run=str(own)) if trained_here else config.teacher
    shared = dataclasses.replace(alone, teacher=taught)
    for asked, place in runs(shared):
        check_folder(place, asked, "distill")
        ended(place)
    begin_folder(folder, config, job)
    if trained_here and not (own / RESULT).exists():
        teach(alone, own, display)
        let_go(own)
        wait_for_all("the teacher's result is written")
    return shared


def check_same(
    runs: Iterable[tuple[Config, pathlib.Path]],
    name: str,
    ended: Callable[[pathlib.Path], dict[str, Any] | None],
    teacher: KnownTeacher,
    loaded: Loaded,
) -> dict[str, str]:
    """What runs that stand side by side have in common; refuses those that have ended with another teacher or data."""
    now = {"data": loaded.examples.fingerprint, "teacher": teacher.digest}
    for _, own in runs:
        found = ended(own) or now
        for what, value in now.items():
            differs = f"{own / name} came of {what} {found.get(what)!r}, this command has {value!r}"
            _checks.require(
                found.get(what) == value, f"{differs}: choose another --workdir, or bring that back"
            )
    return now


def with_earlier(
    config: Config,
    folder: pathlib.Path,
    job: str,
    begun: Callable[[Contender], bool],
    display: Display,
) -> Config:
    """The config with the contenders that the folder has results of and the command does not name.

    Those without any are left out, said aloud: what could not be trained must not be in the way of others for good.
    """
    if not (folder / CONFIG).exists():
        return config
    now = config.comparison.contenders
    named = {contender.name for contender in now}
    earlier = [
        one for one in config_of(folder, job)[1].comparison.contenders if one.name not in named
    ]
    for contender in earlier:
        if not begun(contender):
            display.say(f"{contender.name} is left out: it is not named, and has no results yet")
    comparison = dataclasses.replace(config.comparison, contenders=(*filter(begun, earlier), *now))
    return dataclasses.replace(config, comparison=comparison)


def of_contender(shared: Config, contender: Contender, seed: int) -> Config:
    """One run's config; its last checkpoint counts, as the best is chosen by what some of the losses are closer to."""
    training = dataclasses.replace(shared.training, seed=shared.training.seed + seed, choose="last")
    return dataclasses.replace(shared, losses=contender.losses, training=training)


def _outcome(own: pathlib.Path) -> dict[str, Any] | None:
    """What came of a run, if it has ended."""
    path = own / OUTCOME
    if not path.exists():
        return None
    found = stored_object(path, REMEDY)
    status, metrics = found.get("status"), found.get("metrics")
    sound = {
        "status": status in (summary.DONE, summary.DIVERGED),
        "metrics": are_numbers(metrics) and bool(metrics) == (status == summary.DONE),
        "untrained": are_numbers(found.get("untrained")),
    }
    sound |= {name: isinstance(found.get(name), str) for name in MADE_WITH}
    sound |= {
        cost: found.get(cost) is None or (is_number(found[cost]) and found[cost] > 0)
        for cost in summary.COSTS
    }
    for name, whole in sound.items():
        _checks.require(whole, f"{path} is damaged ({name}): {REMEDY}")
    return found


def _run(
    asked: Config,
    own: pathlib.Path,
    loaded: Loaded,
    teacher: KnownTeacher,
    first: Frozen,
    beside: dict[str, Any],
    made_with: dict[str, str],
    display: Display,
    measured: bool,
) -> dict[str, Any]:
    clock = Clock()
    begin_folder(own, asked, "distill")
    chosen = plan_student(asked, own, loaded, teacher, first, display, clock)
    costs = {"temporary_bytes": _temporary_bytes(chosen) if measured else None}
    steps = steps_of(asked.training, len(loaded.examples.train))
    try:
        student = trained(chosen, first, display)
        judged = _judged(student, teacher, asked, loaded)
        if judged.get("linear_probe_converged") is False:
            display.say("its linear probe did not converge: the accuracy may be a little too low")
        if not are_numbers(summary.numbers(judged)):
            raise judge.NotFiniteError("what its student is worth is not finite")
    except (judge.NotFiniteError, BadStepsError) as error:
        display.say(f"diverged: {error}")
        outcome: dict[str, Any] = {"status": summary.DIVERGED, "metrics": {}, **costs}
    else:
        results = beside | {STUDENT: judged, "seconds": round(clock(), 1)}
        results |= {"steps": steps, "versions": judge.versions()}
        write_proven(own / RESULT, results)
        outcome = {"status": summary.DONE, "metrics": summary.numbers(judged), **costs}
    outcome["seconds_per_step"] = _seconds_per_step(read_records(own).sound)
    outcome["untrained"] = summary.numbers(beside["untrained"])
    write_proven(own / OUTCOME, outcome | made_with)
    return outcome


def _judged(model: Frozen, teacher: KnownTeacher, asked: Config, loaded: Loaded) -> dict[str, Any]:
    data = loaded.examples, loaded.normalise, asked.evaluation, loaded.other
    return judge.judge_all({STUDENT: model}, teacher.features, *data)[STUDENT]


def _temporary_bytes(chosen: Plan) -> int | None:
    place = chosen.batches.get_state()
    batch = chosen.mapped.split(next(chosen.batches))
    chosen.batches.set_state(place)
    return chosen.mapped.temporary_bytes(chosen.frozen, chosen.mapped.place(chosen.state), batch)


def _seconds_per_step(lines: list[dict[str, Any]]) -> float | None:
    """The median over what was written down; the first time is left out, a step was compiled in it."""
    rates = [rate for line in lines if is_number(rate := line.get("steps_per_second")) and rate > 0]
    return 1 / statistics.median(rates[1:]) if len(rates) > 1 else None
