"""State, place in the data and a manifest, saved together and restored together; all that touches Orbax.

A checkpoint proves itself: the manifest holds a digest of every array, and what does not match it is put aside, said
aloud, and the checkpoint before it taken.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from pcjax import _checks
from pcjax._checks import RequestError

FORMAT = 1
ITEMS = ("state", "data", "manifest")


def named(state: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, "student/embed/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {"|".join(_key(key) for key in path).replace("/", ".").replace("|", "/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise TypeError(f"two of {[*named]} share a name")
    return named


def _key(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


def digest(array: np.ndarray) -> str:
    """A hash of an array's dtype, shape and numbers."""
    found = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _digest_json(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


class Checkpoints:
    """The checkpoints of one run: the latest few and the best one.

    Args:
      folder: where they lie; made if it is not there.
      manifest: what a checkpoint must have been made with to be restored: names to JSON values.
      keep: how many of the latest to keep.
      say: where to report what was put aside.
      about: more for the manifest, not compared.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        manifest: dict[str, Any],
        *,
        keep: int = 2,
        say: Callable[[str], Any] = print,
        about: dict[str, Any] | None = None,
    ):
        self.folder, self._manifest, self._keep, self._say = folder.resolve(), manifest, keep, say
        self._about = about or {}
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every phase of every save
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policy = ocp.checkpoint_managers
        best = policy.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,
            best_fn=lambda metrics: metrics["score"],  # without it scores are not written
            best_mode="max",
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(self._keep), best]),
        )
        return ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)

    @property
    def latest(self) -> int | None:
        """The newest step there is."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the highest score; the newest, if none has one."""
        scored = {step: score for step in self._manager.all_steps() if (score := self._score(step)) is not None}
        return max(scored, key=lambda step: (scored[step], step)) if scored else self.latest

    def chosen(self, which: Literal["best", "last"]) -> int | None:
        """The step that a trained model is taken from."""
        return self.best if which == "best" else self.latest

    def _score(self, step: int) -> float | None:
        try:
            score = (self._manager.metrics(step) or {}).get("score")
        except (OSError, ValueError):
            return None
        return float(score) if score is not None and np.isfinite(score) else None

    def save(self, step: int, state: Any, data: dict[str, Any], score: float | None = None) -> None:
        """Saves in the background; a score that is not finite never makes a checkpoint the best."""
        if step in self._manager.all_steps():
            return
        arrays = {name: np.asarray(leaf) for name, leaf in named(jax.device_get(state)).items()}
        manifest = (
            self._about
            | self._manifest
            | {
                "format": FORMAT,
                "step": step,
                "arrays": {name: [str(x.dtype), list(x.shape), digest(x)] for name, x in arrays.items()},
                "place": _digest_json(data),
            }
        )
        manifest["digest"] = _digest_json(manifest)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), data=ocp.args.JsonSave(data), manifest=ocp.args.JsonSave(manifest)
        )
        metrics = {"score": float(score)} if score is not None and np.isfinite(score) else None
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
        """The state (in the form of the one given), the place in the data and the step; None if there is nothing.

        Args:
          state: one of the same structure, shapes and dtypes.
          step: which; the newest sound one unless given.
        """
        self.wait()
        while True:
            wanted = self.latest if step is None else step
            if wanted is None:
                return None
            try:
                return *self._read(wanted, state), wanted
            except RequestError:
                raise
            except Exception as error:  # whatever a damaged file makes its readers raise
                if step is not None:
                    raise RequestError(
                        f"checkpoint {wanted} in {self.folder} cannot be read: {_line(error)}"
                    ) from error
                self._put_aside(wanted, _line(error))

    def arrays(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All arrays of a checkpoint by name, and the place in the data, both as they were saved or not at all."""
        manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        if manifest.pop("digest", None) != _digest_json(manifest):
            raise ValueError("the manifest is not what was saved")
        for name, own in (self._manifest | {"format": FORMAT, "step": step}).items():
            there = manifest.get(name)
            differs = f"checkpoint {step} in {self.folder} was made with {name} {there!r}, this run has {own!r}: "
            _checks.require(there == own, differs + "choose another --workdir, or make them equal")
        wanted = {name: np.empty(shape, dtype) for name, (dtype, shape, _) in manifest["arrays"].items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        arrays = {name: np.asarray(restored["state"][name]) for name in wanted}
        for name, array in arrays.items():
            if digest(array) != manifest["arrays"][name][2]:
                raise ValueError(f"{name} is not what was saved")
        if _digest_json(restored["data"]) != manifest["place"]:
            raise ValueError("the place in the data is not what was saved")
        return arrays, restored["data"]

    def _read(self, step: int, state: Any) -> tuple[Any, dict[str, Any]]:
        arrays, data = self.arrays(step)
        own = named(state)
        theirs = {name: (str(x.dtype), x.shape) for name, x in arrays.items()}
        ours = {name: (str(x.dtype), tuple(np.shape(x))) for name, x in own.items()}
        for name in sorted(theirs.keys() | ours.keys()):
            expected, found = ours.get(name, "nothing"), theirs.get(name, "nothing")
            differs = f"checkpoint {step} in {self.folder} has {found} for {name}, expected {expected}"
            _checks.require(expected == found, f"{differs}: choose another --workdir")
        return jax.tree.unflatten(jax.tree.structure(state), [arrays[name] for name in own]), data

    def _put_aside(self, step: int, why: str) -> None:
        name = self._manager.directory / str(step)
        aside = self.folder.parent / "unsound" / f"{step}"
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{step}-{number}")
        self._say(f"checkpoint {step} is unsound ({why}); it was moved to {aside}, and the one before it is taken")
        self._manager.close()
        aside.parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).rename(aside)
        self._manager = self._open()

    def wait(self) -> None:
        """Until what is being saved is saved; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that save."""
        self._manager.close()


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
