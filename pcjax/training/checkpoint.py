"""State, place in the data and a manifest, saved together and restored together; all that touches Orbax.

A checkpoint proves itself: the manifest holds a digest of every array, of the place in the data, of the score and of
itself; what does not match it is put aside, said aloud, and the checkpoint before it taken.

Of several processes, whose states are the same, the first one alone writes, removes and puts aside, so that a disk that
fails is its affair and no other waits for it in the middle of a save; what to read, and what became of the last save,
is what the first one says.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pcjax import _checks, _fields
from pcjax._checks import RequestError
from pcjax.training.arrays import digest, named, names_in
from pcjax.training.clock import Clock
from pcjax.training.disk import line, of_the_machine, replace, seen_soon, unreadable
from pcjax.training.parallel import wait_for_all

FORMAT = 4
ITEMS = ("state", "data", "manifest")
COMMITTED = ocp.path.atomicity.CommitFileTemporaryPath  # what lacks its mark is no checkpoint
FINISHED = "commit_success.txt"


class UnsavedError(Exception):
    """A checkpoint could not be written."""


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and np.isfinite(score) else None


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == str(int(name))


class Checkpoints:
    """The checkpoints of one run: the latest few and the best one.

    All processes of a job that may write make it together, and ask it together for what is latest or best, for a
    restore, and for what became of the last save.

    Args:
      folder: where they lie; made if it is not there.
      manifest: what a checkpoint must have been made with to be restored: names to JSON values.
      keep: how many of the latest to keep.
      say: where to report what was put aside, and what could not be saved.
      about: more for the manifest; of this only the "versions" are compared.
      other_versions: whether to go on with what other versions have saved, and say so; where not, it is refused.
      clock: what tells how long the run took when a checkpoint was saved; it goes on from one that is restored.
      writable: whether anything in the folder may be changed; where not, an unsound checkpoint is refused.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        manifest: dict[str, Any],
        *,
        keep: int = 2,
        say: Callable[[str], Any] = print,
        about: dict[str, Any] | None = None,
        other_versions: bool = False,
        clock: Clock | None = None,
        writable: bool = True,
    ):
        self.folder, self._manifest, self._keep, self._say = folder.resolve(), manifest, keep, say
        self._about, self._other_versions = about or {}, other_versions
        self._clock, self._writable = clock or Clock(), writable
        self._unsaved: UnsavedError | None = None
        self._scores: dict[int, float | None] = {}
        self._unjudged: set[int] = set()
        self._saving: tuple[int, set[str]] | None = None  # a step, and the arrays' names
        self._several = writable and jax.process_count() > 1  # decide together
        self._writes = writable and jax.process_index() == 0
        # Orbax reports every phase of every save, with stacks, and of one that fails every part.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self._writes or not writable:
            self._manager = self._open()
            self._look_over()
        if writable:
            wait_for_all("the checkpoints were looked over")
            if not self._writes:
                self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
        )
        shared: dict[str, Any] = {
            "temporary_path_class": COMMITTED,
            "multiprocessing_options": alone,
        }
        if not self._writable:
            for path in self._finished():
                _checks.require(
                    (why := unreadable(path)) is None, self._unsound(int(path.name), why)
                )
        if not self._writes:
            options = ocp.CheckpointManagerOptions(read_only=True, **shared)
            return ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()
        policy = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            preservation_policy=policy.AnyPreservationPolicy(
                [policy.LatestN(self._keep), _Best(self)]
            ),
            # Where a folder cannot be made, threads that wait for it would wait for many minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            **shared,
        )
        return ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)

    def _finished(self) -> list[pathlib.Path]:
        """The checkpoints that lie there, whatever they are worth."""
        there = [
            path
            for path in self.folder.glob("*")
            if _is_step(path.name) and (path / FINISHED).exists()
        ]
        return sorted(there, key=lambda path: int(path.name))

    def _clean(self) -> None:
        """Leaves what can be opened: Orbax removes what was not finished, and reads a part of all else."""
        for path in sorted(path for path in self.folder.iterdir() if path.name.isdecimal()):
            if path.is_symlink():
                self._move_aside(path, "it is a symbolic link")
            elif not _is_step(path.name):
                self._move_aside(path, "steps have no such name")
            elif not path.is_dir():
                self._move_aside(path, "it is no folder")
            elif not (path / FINISHED).exists():
                self._say(f"checkpoint {path.name} was never finished, and is removed")
        for path in self._finished():
            why = unreadable(path)
            if why is not None:
                self._move_aside(path, why)

    def _unsound(self, step: int, why: str | None) -> str:
        return (
            f"checkpoint {step} in {self.folder} is unsound ({why}): move it away, or give the command that made it "
            "again, which takes the one before"
        )

    def _look_over(self) -> None:
        """Learns every checkpoint's score, and puts aside what does not even have a sound manifest."""
        for step in sorted(self._manager.all_steps()):
            found, why = self._read_alone(step, lambda step=step: self._manifest_of(step))
            if why is not None:
                if self._writable:
                    self._put_aside(step, why)
                continue
            self._scores[step] = found["score"]
            if not found.get("judged", True):
                self._unjudged.add(step)

    def _read_alone(self, step: int, read: Callable[[], Any]) -> tuple[Any, str | None]:
        """What was read of a checkpoint, or why it is unsound.

        What cannot be read for another reason than its own is left where it is.
        """
        try:
            return read(), None
        except RequestError:
            raise
        except Exception as error:  # whatever a damaged file makes its readers raise
            if _checks.interruption(error) is not None:
                raise
            why, number = line(error), of_the_machine(error)
            if number is not None:
                raise OSError(
                    number, f"checkpoint {step} in {self.folder} cannot be read now ({why})"
                ) from error
        if not self._writable:
            _checks.require(self._is_gone(step), self._unsound(step, why))
        return None, why

    def _is_gone(self, step: int) -> bool:
        """Whether the command that makes the checkpoints removes one that is looked at, as another is newer.

        Several processes that look must look at the same one: there it is no reason to take another.
        """
        for _ in range(10 if jax.process_count() == 1 else 0):
            if not (self.folder / str(step)).exists():
                self._manager.reload()
                return True
            time.sleep(0.1)
        return False

    def _try(self, step: int, read: Callable[[], Any]) -> tuple[Any, str | None]:
        """What every process read of a checkpoint; what is unsound for the first one is put aside.

        What is so for another one alone is that one's view of the disk, and no reason to touch it.
        """
        found, why = self._read_alone(step, read)
        if self._writes and why is not None:
            self._put_aside(step, why)
        if not self._several:
            return found, why
        if self._first(why is not None):
            return None, why or "so the first process found it"

        def again() -> bool:
            nonlocal found, why
            self._manager.reload()
            found, why = self._read_alone(step, read)
            return why is None

        if why is not None and not seen_soon(again):
            raise RequestError(
                f"checkpoint {step} in {self.folder} is sound for the first process and not for this one ({why}): "
                "expected one --workdir on a disk that all processes see"
            )
        return found, why

    def _first(self, number: int) -> int:
        """What the first of the processes that decide together says."""
        return (
            int(multihost_utils.broadcast_one_to_all(np.int32(number))) if self._several else number
        )

    def _step(self, step: int | None) -> int | None:
        """The step that the first process means."""
        told = self._first(-1 if step is None else step)
        if self._several and not self._writes:
            self._manager.reload()  # it lies there by now
        return None if told < 0 else told

    @property
    def latest(self) -> int | None:
        """The newest step there is."""
        return self._step(self._manager.latest_step())

    @property
    def best(self) -> int | None:
        """The step of the highest score; the newest, if none has one."""
        return self._step(self.best_of(self._manager.all_steps()))

    def chosen(self, which: Literal["best", "last"]) -> int | None:
        """The step that a trained model is taken from."""
        return self.best if which == "best" else self.latest

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The one with the highest score of these steps; the newest, if none has one."""
        scored = {step: score for step in steps if (score := self._scores.get(step)) is not None}
        return (
            max(scored, key=lambda step: (scored[step], step))
            if scored
            else max(steps, default=None)
        )

    def chosen_arrays(
        self, which: Literal["best", "last"]
    ) -> tuple[int, dict[str, np.ndarray]] | None:
        """The step that is chosen and its arrays; what would be and is not as it was saved is put aside."""
        while (step := self.chosen(which)) is not None:
            found, why = self._try(step, lambda step=step: self.arrays(step))
            if why is None:
                return step, found[0]
        return None

    def is_unjudged(self, step: int) -> bool:
        """Whether it was saved before there was time to judge it."""
        return bool(self._first(step in self._unjudged))

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        score: float | None = None,
        *,
        judged: bool = True,
    ) -> None:
        """Saves in the background; a score that is not finite never makes a checkpoint the best.

        What cannot be written is said, and forgotten with the next save that can; what was there before stays. What is
        there already stays too; where it had not been judged, it has its score from now on.
        """
        if not self._writes:
            return
        self.wait()
        self._unsaved = None
        if step in self._manager.all_steps():
            if judged and step in self._unjudged:
                self._attempt(step, lambda: self._judge(step, _finite(score)))
            return
        arrays = {name: np.asarray(leaf) for name, leaf in named(jax.device_get(state)).items()}
        score = _finite(score)
        manifest = (
            self._about
            | self._manifest
            | {
                "format": FORMAT,
                "step": step,
                "score": score,
                "judged": judged,
                "seconds": round(self._clock(), 1),
                "arrays": {
                    name: [str(x.dtype), list(x.shape), digest(x)] for name, x in arrays.items()
                },
                "place": _fields.digest(data),
            }
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            data=ocp.args.JsonSave(data),
            manifest=ocp.args.JsonSave(_fields.proven(manifest)),
        )
        self._scores[step] = score

        def begin() -> None:
            self._manager.save(step, args=items, force=True)
            self._saving = step, set(arrays)
            (self._unjudged.discard if judged else self._unjudged.add)(step)

        self._attempt(step, begin)

    def _judge(self, step: int, score: float | None) -> None:
        """Puts another manifest in the place of the one that is there, whole or not at all."""
        manifest = self._manifest_of(step) | {"score": score, "judged": True}
        replace(
            self.folder / str(step) / "manifest" / "metadata", json.dumps(_fields.proven(manifest))
        )
        self._scores[step] = score
        self._unjudged.discard(step)

    def _attempt(self, step: int | None, write: Callable[[], Any]) -> None:
        try:
            write()
        except (
            Exception
        ) as error:  # of the file system, in whatever coat the libraries between give it
            with contextlib.suppress(
                Exception
            ):  # what is on the disk counts, not what Orbax meant to have there
                before, self._manager = self._manager, self._open()
                before.close()
                # Only now does nothing write any more, and what was left half written goes when the folder is opened.
                self._manager.close()
                self._manager = self._open()
            newest = self._manager.latest_step()
            kept = (
                "none is saved yet" if newest is None else f"the newest that is saved is {newest}"
            )
            which = "a checkpoint" if step is None else f"checkpoint {step}"
            self._unsaved = UnsavedError(f"{which} could not be saved ({line(error)}); {kept}")
            self._say(
                f"{self._unsaved}; what was learnt stays in memory, and the next save is tried"
            )

    def wait(self) -> UnsavedError | None:
        """Until what this process is saving is saved; what went wrong with the last save."""
        if self._writes:
            self._attempt(None, self._finish)
        return self._unsaved

    def _finish(self) -> None:
        """Waits, and looks whether all arrays that were saved are there: as files come and go, some may not be."""
        saving, self._saving = self._saving, None
        self._manager.wait_until_finished()
        if saving is None:
            return
        step, wanted = saving
        try:
            found = names_in(self.folder / str(step) / "state")
            _checks.require(found == wanted, "not all of its arrays are there")
        except Exception as error:  # whatever readers raise of what is not there
            if of_the_machine(error) is not None:
                self._saving = saving  # it may be sound: it is looked at again
            elif (self.folder / str(step) / FINISHED).exists():
                self._put_aside(step, line(error))
            raise

    def settled(self) -> UnsavedError | None:
        """Until what is being saved is saved; what went wrong with it, known to every process."""
        unsaved = self.wait()
        if self._first(unsaved is not None):
            return unsaved or UnsavedError("the first process could not save the last checkpoint")
        return None

    def check(self) -> None:
        """Says what went wrong with a save that has ended meanwhile."""
        if self._writes and not self._manager.is_saving_in_progress():
            self.wait()

    def restore(
        self, state: Any, last: int | None = None
    ) -> tuple[Any, dict[str, Any], int] | None:
        """The state (in the form of the one given), the place in the data and the step; None if there is nothing.

        Args:
          state: one of the same structure, shapes and dtypes.
          last: the step after which nothing follows that other versions might do otherwise.
        """
        self.wait()
        while (step := self.latest) is not None:
            found, why = self._try(step, lambda step=step: self._read(step, state, last))
            if why is None:
                there, data, seconds = found
                self._clock.go_on(seconds)
                return there, data, step
        return None

    def arrays(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All arrays of a checkpoint by name, and the place in the data, both as they were saved or not at all."""
        return self._arrays(step, self._checked(step))

    def _checked(self, step: int) -> dict[str, Any]:
        """The manifest, if it is of what this run is."""
        manifest = self._manifest_of(step)
        for name, own in ({"format": FORMAT} | self._manifest).items():
            there = manifest.get(name)
            differs = f"checkpoint {step} in {self.folder} was made with {name} {there!r}, this run has {own!r}: "
            _checks.require(there == own, differs + "choose another --workdir, or make them equal")
        return manifest

    def _manifest_of(self, step: int) -> dict[str, Any]:
        """The manifest as it was saved; nothing else is known to be so by then."""
        why = unreadable(self.folder / str(step))
        if why is not None:
            raise ValueError(why)
        manifest = self._manager.restore(
            step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore())
        )["manifest"]
        if manifest.pop("digest", None) != _fields.digest(manifest):
            raise ValueError("the manifest is not what was saved")
        if manifest["step"] != step:
            raise ValueError(f"it is that of step {manifest['step']}")
        return manifest

    def _arrays(
        self, step: int, manifest: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        wanted = {
            name: np.zeros(shape, dtype) for name, (dtype, shape, _) in manifest["arrays"].items()
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        arrays = {name: np.asarray(restored["state"][name]) for name in wanted}
        for name, array in arrays.items():
            if digest(array) != manifest["arrays"][name][2]:
                raise ValueError(f"{name} is not what was saved")
        if _fields.digest(restored["data"]) != manifest["place"]:
            raise ValueError("the place in the data is not what was saved")
        return arrays, restored["data"]

    def _read(self, step: int, state: Any, last: int | None) -> tuple[Any, dict[str, Any], float]:
        manifest, own = self._checked(step), named(state)
        differs = self._of_other_versions(step, manifest)
        remedy = "install what made it, or go on with --other-versions True: what follows may differ in last digits"
        _checks.require(
            differs is None or self._other_versions or step == last, f"{differs}: {remedy}"
        )
        theirs = {
            name: (dtype, tuple(shape)) for name, (dtype, shape, _) in manifest["arrays"].items()
        }
        self.require_same(step, own, theirs, "choose another --workdir")
        arrays, data = self._arrays(step, manifest)
        tree = jax.tree.unflatten(jax.tree.structure(state), [arrays[name] for name in own])
        if differs is not None:
            self._say(f"{differs}: what follows may differ in last digits")
        return tree, data, manifest.get("seconds", 0.0)

    def _of_other_versions(self, step: int, manifest: dict[str, Any]) -> str | None:
        """Which ones it was made with, if they are not this run's."""
        own, there = self._about.get("versions", {}), manifest.get("versions")
        there = there if isinstance(there, dict) else {}
        others = [name for name in own if there.get(name) != own[name]]
        if not others:
            return None
        before, now = (
            ", ".join(f"{name} {known.get(name)}" for name in others) for known in (there, own)
        )
        return f"checkpoint {step} in {self.folder} was made with {before}, this run has {now}"

    def require_same(
        self, step: int, own: dict[str, Any], there: dict[str, tuple[Any, ...]], remedy: str
    ) -> None:
        """Refuses the arrays of a checkpoint, (dtype, shape), that are not as one's own."""
        ours = {name: (str(x.dtype), tuple(np.shape(x))) for name, x in own.items()}
        for name in sorted(there.keys() | ours.keys()):
            expected, found = ours.get(name, "nothing"), there.get(name, "nothing")
            differs = (
                f"checkpoint {step} in {self.folder} has {found} for {name}, expected {expected}"
            )
            _checks.require(expected == found, f"{differs}: {remedy}")

    def _put_aside(self, step: int, why: str) -> None:
        self._manager.close()
        self._move_aside(self.folder / str(step), why)
        self._manager = self._open()

    def _move_aside(self, path: pathlib.Path, why: str) -> None:
        others = [int(other.name) for other in self._finished() if other != path]
        if not others:
            then = "; there is none before it"
        elif int(path.name) < max(
            others
        ):  # it may have been half removed when the process was killed
            then = "; a newer one is there"
        else:
            then = ", and the one before it is taken"
        aside, number = self.folder.parent / "unsound" / path.name, 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{path.name}-{number}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)
        self._say(f"checkpoint {path.name} is unsound ({why}); it was moved to {aside}{then}")

    def close(self) -> None:
        """Waits, and ends the threads that save."""
        self.wait()
        self._manager.close()


class _Best:
    """The preservation policy that keeps the best checkpoint, by the scores of sound manifests alone."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> list[bool]:
        """One answer for each."""
        best = self._checkpoints.best_of([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]
