"""The state of a training, saved and restored; everything that touches Orbax.

    DIR/12/            a checkpoint: the state, the position in the data, and a manifest
    DIR/scores.json    the validation scores, by step
    DIR/corrupt-9/     a checkpoint that could not be restored

The manifest names the data, teacher and config of the checkpoint, with a digest of every array. Of
several processes only the first one writes and reads; it broadcasts the restored state.
"""

import contextlib
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.multihost import broadcast, broadcast_json
from pcjax.run import Clock
from pcjax.training.embedding import FrozenModel

FORMAT = 5
SCORES = "scores.json"
VERSIONED = ("pcjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# A folder without its mark is not a checkpoint.
COMMITTED = ocp.path.atomicity.CommitFileTemporaryPath
ITEMS = ("state", "data", "manifest")


class UnsavedError(Exception):
    """The last checkpoint could not be written."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by their paths, "student/embed.kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {"/".join(_key(key).replace("/", ".") for key in path): x for path, x in leaves}
    if len(named) != len(leaves):
        raise TypeError(f"Two leaves of {sorted(named)} share a name.")
    return named


def _key(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


class Checkpoints:
    """The latest checkpoints of a training, and the best one.

    Args:
      folder: where they are; created where it does not exist.
      identity: JSON values by name that a checkpoint must have been made with.
      keep: how many of the latest to keep.
      say: prints a line.
      clock: counts the run's seconds; a restored checkpoint adds its own.
      read_only: whether nothing may be changed; a corrupt checkpoint is then an error.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        say: Callable[[str], Any] = print,
        clock: Clock | None = None,
        read_only: bool = False,
    ):
        self.folder, self._identity, self._keep, self._say = folder.resolve(), identity, keep, say
        self._clock, self._read_only = clock or Clock(), read_only
        self._active = jax.process_index() == 0
        if self._active:
            self.scores: dict[int, float | None] = self._read_scores()
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first_process"
        )
        # Orbax's own read_only would warn of itself; nothing is written without a save.
        options: dict[str, Any] = {
            "create": False,
            "temporary_path_class": COMMITTED,
            "multiprocessing_options": alone,
        }
        if not self._read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            policy = ocp.checkpoint_managers
            options |= {
                "cleanup_tmp_directories": True,
                "preservation_policy": policy.AnyPreservationPolicy(
                    [policy.LatestN(self._keep), _KeepBest(self)]
                ),
                # Where a folder cannot be created, its waiting threads would wait for minutes.
                "async_options": ocp.AsyncOptions(create_directories_asynchronously=False),
            }
        manager_options = ocp.CheckpointManagerOptions(**options)
        return ocp.CheckpointManager(self.folder, item_names=ITEMS, options=manager_options)

    def _read_scores(self) -> dict[int, float | None]:
        path = self.folder / SCORES
        if not path.is_file():
            return {}
        scores = _io.read_signed(path, "delete it; the latest checkpoint then counts as the best")
        return {int(step): score for step, score in scores.items()}

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, on the first process."""
        return sorted(self._manager.all_steps())

    def best_of(self, steps: Sequence[int]) -> int | None:
        """Return the step with the highest score; the latest, if none has a score."""
        scored = [step for step in steps if self.scores.get(step) is not None]
        if not scored:
            return max(steps, default=None)
        return max(scored, key=lambda step: (self.scores[step], step))

    def since_best(self) -> int:
        """Return how many checkpoints were scored after the one with the highest score."""
        own = None
        if self._active:
            best = self.best_of([*self.scores])
            own = sum(step > best for step in self.scores) if best is not None else 0
        return broadcast_json(own)

    def is_scored(self, step: int) -> bool:
        """Return whether a checkpoint was evaluated."""
        return broadcast_json(step in self.scores if self._active else None)

    def set_score(self, step: int, score: float) -> None:
        """Store the validation score of a checkpoint; one that is not finite never is the best."""
        if not self._active:
            return
        self.scores[step] = float(score) if np.isfinite(score) else None
        try:
            _io.write_signed(self.folder / SCORES, {str(k): v for k, v in self.scores.items()})
        except OSError as error:
            self._say(f"{self.folder / SCORES} cannot be written ({error.strerror})")

    def save(self, step: int, state: Any, position: Mapping[str, Any]) -> None:
        """Save in the background; `wait` reports a failure. A saved step is not saved again.

        Args:
          step: the number of steps done.
          state: a pytree of arrays.
          position: the position in the data, as JSON.
        """
        if not self._active or step in self._manager.all_steps():
            return
        arrays = {name: np.asarray(x) for name, x in named_leaves(jax.device_get(state)).items()}
        manifest = {
            **self._identity,
            "format": FORMAT,
            "step": step,
            "versions": versions(),
            "seconds": round(self._clock(), 1),
            "arrays": {
                name: [str(x.dtype), list(x.shape), _io.array_digest(x)]
                for name, x in arrays.items()
            },
            "position": _io.digest(position),
        }
        manifest["digest"] = _io.digest(manifest)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            data=ocp.args.JsonSave(dict(position)),
            manifest=ocp.args.JsonSave(manifest),
        )
        self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Wait for the save in the background; raise UnsavedError where one has failed."""
        if not self._active:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps errors of the file system in its own
            self._reopen(error)

    def try_save(self, step: int, state: Any, position: Mapping[str, Any]) -> None:
        """Wait for the previous save, then save; raise UnsavedError where either fails."""
        self.wait()
        try:
            self.save(step, state, position)
        except Exception as error:
            self._reopen(error)

    def _reopen(self, error: Exception) -> None:
        """Start anew from the files on the disk, and raise UnsavedError."""
        with contextlib.suppress(Exception):
            self._manager.close()
        with contextlib.suppress(Exception):
            self._manager = self._open()
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        raise UnsavedError(f"a checkpoint could not be saved ({reason})") from error

    def restore(
        self, state: Any, last: int | None = None, *, other_versions: bool = False
    ) -> tuple[Any, dict[str, Any], int] | None:
        """Return the latest state, the position in the data and the step; None if there is none.

        Args:
          state: a state of the same structure, shapes and dtypes.
          last: the training's last step; a finished training is restored from any version.
          other_versions: whether to resume what other versions have saved.
        """
        own = named_leaves(state)

        def read(step: int) -> tuple[Any, ...]:
            manifest = self._manifest(step)
            self._check_versions(step, manifest, refused=not other_versions and step != last)
            self._check_shapes(step, manifest, own, "choose another --workdir")
            arrays, position = self._arrays(step, manifest)
            return arrays, position, manifest["seconds"]

        restored = self._restore_sound(max, read)
        if restored is None:
            return None
        step, arrays, position, seconds = restored
        self._clock.resume(seconds)
        if self._active:  # later steps will be scored again
            self.scores = {k: score for k, score in self.scores.items() if k <= step}
        leaves = [arrays[name] for name in own]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), position, step

    def restore_model(self, like: FrozenModel, choose: str) -> FrozenModel | None:
        """Return the model of the best or last checkpoint; None if there is no checkpoint."""
        tree = {"student": like.parameters, "statistics": like.statistics}
        own = named_leaves(tree)
        pick = max if choose == "last" else self.best_of
        restored = self._restore_sound(pick, lambda step: self._read_model(step, own))
        if restored is None:
            return None
        leaves = [restored[1][name] for name in own]
        parts = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return like._replace(parameters=parts["student"], statistics=parts["statistics"])

    def _restore_sound(self, pick: Callable[[list[int]], Any], read: Callable[[int], Any]) -> Any:
        """Read the checkpoint that `pick` chooses; rename a corrupt one and choose again.

        The first process reads and broadcasts (step, arrays, position, seconds).
        """
        result = None
        while self._active and (steps := self.steps()):
            step = pick(steps)
            try:
                result = (step, *read(step))
                break
            except RequestError:
                raise
            except Exception as error:  # corrupt files make their readers raise anything
                self._quarantine(step, error)
        head = None
        if result is not None:
            step, arrays, position, seconds = result
            head = [step, position, seconds, [(n, x.dtype.str, x.shape) for n, x in arrays.items()]]
        head = broadcast_json(head)
        if head is None:
            return None
        step, position, seconds, specs = head
        arrays = result[1] if result else {n: np.zeros(shape, d) for n, d, shape in specs}
        return step, broadcast(arrays), position, seconds

    def _quarantine(self, step: int, error: Exception) -> None:
        text = str(error).strip().splitlines()
        reason = text[0][:200] if text else type(error).__name__
        if self._read_only:
            raise RequestError(
                f"Checkpoint {step} in {self.folder} is corrupt ({reason}): repeat the command "
                "that made it, which resumes from the checkpoint before."
            ) from error
        target, number = self.folder / f"corrupt-{step}", 1
        while target.exists():
            number += 1
            target = target.with_name(f"corrupt-{step}-{number}")
        (self.folder / str(step)).rename(target)
        self._manager.reload()
        previous = self.steps()
        then = f"resuming from {max(previous)}" if previous else "there is none before it"
        self._say(f"checkpoint {step} is corrupt ({reason}), renamed {target.name}; {then}")

    def _manifest(self, step: int) -> dict[str, Any]:
        """Read a manifest; refuse a checkpoint that belongs to something else."""
        items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        manifest = self._manager.restore(step, args=items)["manifest"]
        if manifest.pop("digest", None) != _io.digest(manifest) or manifest["step"] != step:
            raise ValueError("the manifest differs from its saved digest")
        for name, own in {"format": FORMAT, **self._identity}.items():
            stored = manifest.get(name)
            if stored != own:
                raise RequestError(
                    f"Checkpoint {step} in {self.folder} was made with {name} {stored!r}, but this "
                    f"run has {own!r}: choose another --workdir, or make them equal."
                )
        return manifest

    def _arrays(
        self, step: int, manifest: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read all arrays and the position in the data; compare their digests."""
        zeros = {name: np.zeros(shape, d) for name, (d, shape, _) in manifest["arrays"].items()}
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(zeros), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        arrays = {name: np.asarray(restored["state"][name]) for name in zeros}
        for name, array in arrays.items():
            if _io.array_digest(array) != manifest["arrays"][name][2]:
                raise ValueError(f"{name} differs from its saved digest")
        if _io.digest(restored["data"]) != manifest["position"]:
            raise ValueError("the position in the data differs from its saved digest")
        return arrays, restored["data"]

    def _read_model(self, step: int, own: Mapping[str, Any]) -> tuple[Any, ...]:
        manifest = self._manifest(step)
        roots = ("student", "statistics")
        parts = {n: x for n, x in manifest["arrays"].items() if n.partition("/")[0] in roots}
        self._check_shapes(step, {"arrays": parts}, own, "config.json was changed since")
        arrays, position = self._arrays(step, manifest)
        return {name: arrays[name] for name in own}, position, manifest["seconds"]

    def _check_versions(self, step: int, manifest: Mapping[str, Any], *, refused: bool) -> None:
        stored, own = manifest.get("versions", {}), versions()
        names = [name for name in own if stored.get(name) != own[name]]
        if not names:
            return
        before, now = (", ".join(f"{n} {of.get(n)}" for n in names) for of in (stored, own))
        text = f"Checkpoint {step} in {self.folder} was made with {before}, but this run has {now}"
        if refused:
            raise RequestError(
                f"{text}: install what made it, or resume with --other-versions; the last digits "
                "may then differ."
            )
        self._say(f"{text}; the last digits of what follows may differ")

    def _check_shapes(
        self, step: int, manifest: Mapping[str, Any], own: Mapping[str, Any], remedy: str
    ) -> None:
        stored = {n: (d, tuple(shape)) for n, (d, shape, _) in manifest["arrays"].items()}
        expected = {n: (str(x.dtype), tuple(np.shape(x))) for n, x in own.items()}
        for name in sorted(stored.keys() | expected.keys()):
            if stored.get(name) != expected.get(name):
                raise RequestError(
                    f"Checkpoint {step} in {self.folder} has {stored.get(name, 'nothing')} for "
                    f"{name}, expected {expected.get(name, 'nothing')}: {remedy}."
                )

    def close(self) -> None:
        """Wait for the save in the background, and end Orbax's threads."""
        if self._active:
            with contextlib.suppress(Exception):
                self._manager.close()


class _KeepBest:
    """The preservation policy that keeps the best checkpoint by its score."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> list[bool]:
        """Return whether to keep each of the checkpoints."""
        best = self._checkpoints.best_of([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


def load_trained(
    folder: pathlib.Path, identity: Mapping[str, Any], like: FrozenModel, choose: str
) -> FrozenModel:
    """Read the trained model of a finished run.

    Args:
      folder: its checkpoints.
      identity: JSON values by name that they must have been made with.
      like: a model of the same architecture.
      choose: "best" or "last".
    """
    exists = folder.is_dir()
    if not broadcast_json(exists):
        raise RequestError(f"There are no checkpoints in {folder}; repeat the run's command.")
    with contextlib.closing(Checkpoints(folder, identity, read_only=True)) as checkpoints:
        model = checkpoints.restore_model(like, choose)
    if model is None:
        raise RequestError(f"There is no checkpoint in {folder}; repeat the run's command.")
    return model
