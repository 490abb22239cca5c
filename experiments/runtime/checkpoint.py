"""Checkpoints of a State, with file checksums that detect damage.

On a disk orbax writes them: a step directory appears by one rename, after its arrays and their
checksums are on disk. In a bucket each process writes its share (`uploads`), and a step is complete
once its checksums are there. So a process killed at any moment leaves the previous checkpoint or
the new one, never half of one. It records its step and config; a checkpoint under another step or
config counts as damaged.
"""

import dataclasses
import errno
import functools
import json
import logging
import pathlib
import re
import shutil
import stat
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from experiments.runtime import processes, shards, storage, uploads
from experiments.runtime.shards import DamagedCheckpointError
from experiments.runtime.workdir import MAY_CHANGE, difference, jsonable, matches, read_json
from uncertainty.types import State

logger = logging.getLogger(__name__)

ITEM = "default"  # orbax's directory for the arrays within a step directory
CHECKSUMS = "checksums.json"  # {file of the arrays, LEAVES or RUN: [bytes, crc32]}
LEAVES = "leaves.json"  # {path of a leaf: "dtype[shape]"}
RUN = "run.json"  # step, config, and how it is executed; older checkpoints do not have it


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`.

    Args:
      workdir: the run's directory.
      keep: how many of the newest checkpoints stay on disk, besides the one being written.
      read_only: never write, rename or delete anything, for evaluation during training.
      config: of the run, saved in each checkpoint. A checkpoint whose config differs in more than
        `workdir.MAY_CHANGE` counts as damaged. None compares nothing.
      execution: name -> value of what changes rounding, saved in each checkpoint.
    """

    def __init__(
        self,
        workdir: str | storage.Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        config: Mapping[str, Any] | None = None,
        execution: Mapping[str, Any] | None = None,
    ):
        self.workdir = storage.path(workdir).absolute()
        self.directory = self.workdir / "checkpoints"
        bucket = isinstance(self.directory, storage.BucketPath)
        self._uploads = uploads.Uploads(self.directory, keep, CHECKSUMS) if bucket else None
        self.keep, self.read_only = keep, read_only
        self.config, self.execution = config, execution or {}
        self._saving: int | None = None  # the step of the last save that was started
        self._leaves: dict[str, str] = {}

    def steps(self) -> list[int]:
        """The steps whose checkpoints are complete, oldest first; not the one being written."""
        if self._uploads:
            names = self._uploads.complete()
        else:
            names = [p.name for p in self.directory.iterdir()] if self.directory.is_dir() else []
        return sorted(step for step in map(step_of, names) if step is not None)

    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: State) -> None:
        """Starts to save `state` in the background; it may be donated as soon as this returns.

        A step that is already saved is not saved again.

        Raises:
          OSError: this save could not start, or the previous one failed in the background.
          RuntimeError: the checkpoints are read only, or orbax declined to save.
        """
        if self.read_only:
            raise RuntimeError(f"{self.directory} was opened read only; step {step} was not saved")
        self.wait()
        if step in self.steps():
            return
        self._saving, self._leaves = step, describe(state)
        if self._uploads:
            self._uploads.start(step, state, self._notes())
            return
        try:
            started = self._manager.save(step, args=ocp.args.StandardSave(item(state)), force=True)
        except Exception as error:
            raise self._failed(error) from error
        if not started:
            raise RuntimeError(f"orbax declined to save step {step} in {self.directory}")

    def wait(self) -> None:
        """Blocks until nothing is being written; raises OSError if the last save failed."""
        if self._uploads:
            try:
                return self._uploads.wait()
            except OSError as error:
                raise self._failed(error) from error
        if "_manager" not in self.__dict__:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, then ends orbax's threads; raises OSError if the last save failed."""
        self.wait()
        if self._uploads:
            self._uploads.close()
        if manager := self.__dict__.pop("_manager", None):
            manager.close()

    def restore(self, target: State, step: int | None = None) -> tuple[State, int] | None:
        """Restores the newest valid checkpoint, or that of `step`, onto the devices of `target`.

        A damaged checkpoint is skipped with a warning, in favour of the previous one, and (unless
        read only) moved to `workdir/damaged_checkpoints`, so that its step can be saved again.

        Args:
          target: arrays or ShapeDtypeStructs whose shardings place each leaf, whatever the number
            of devices that saved it. A leaf without a sharding goes to the first device. With
            `opt_state=()` the optimiser's state is not read.
          step: restore only this step.

        Returns:
          The state and its step, or None when nothing has been saved.

        Raises:
          ValueError: the checkpoint's leaves differ from those of `target` (the message lists
            them), or there is no checkpoint for `step`.
          DamagedCheckpointError: the checkpoint of `step`, or every checkpoint, is damaged.
        """
        self.wait()
        saved = self.steps()
        if step is not None and step not in saved:
            raise ValueError(
                f"no checkpoint for step {step} in {self.directory}; there are {saved}"
            )
        damaged = {}
        for candidate in reversed(saved) if step is None else [step]:
            if error := self._damage(candidate):
                damaged[candidate] = error
                continue
            try:
                state, error = self._read(candidate, target), None
            except DamagedCheckpointError as found:
                state, error = None, found
            if error := _of_any_process(error):
                damaged[candidate] = error
                continue
            self._set_aside(damaged, candidate)
            return state, candidate
        if damaged:
            reasons = "\n".join(f"  step {s}: {error}" for s, error in damaged.items())
            raise DamagedCheckpointError(
                f"no readable checkpoint is left in {self.directory}:\n{reasons}\n"
                "To start from step 0, move that directory away."
            )
        return None

    def executed_otherwise(self, step: int) -> list[str]:
        """Lines 'name: old -> new' for what changed rounding since the checkpoint of `step`."""
        path = self.directory / str(step) / RUN
        saved = read_json(path, IN_RUN)["execution"] if path.exists() else self.execution
        return list(difference(saved, self.execution).values())

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, created at the first save: it removes incomplete step directories."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _notes(self) -> dict[str, bytes]:
        """The files of a step beside its arrays."""
        run = dict(step=self._saving, config=self.config, execution=self.execution)
        return {LEAVES: json.dumps(self._leaves).encode(), RUN: json.dumps(jsonable(run)).encode()}

    def _write_checksums(self) -> None:
        """Runs in orbax's thread of the first process, before the step directory is renamed."""
        directory = self._unfinished(self._saving) or self.directory / str(self._saving)
        own = []
        for name, content in self._notes().items():
            own.append(directory / name)
            own[-1].write_bytes(content)
        files = [*own, *(p for p in (directory / ITEM).rglob("*") if p.is_file())]
        sums = {str(p.relative_to(directory)): checksum(p) for p in sorted(files)}
        (directory / CHECKSUMS).write_text(json.dumps(sums))

    def _unfinished(self, step: int) -> pathlib.Path | None:
        """The directory of a save in progress, `<step>.<orbax's suffix>`."""
        return next(self.directory.glob(f"{step}.*"), None)

    def _failed(self, error: Exception) -> OSError:
        step, self._saving = self._saving, None
        self.__dict__.pop("_manager", None)  # it would raise the same error again
        if not self._uploads and (half := self._unfinished(step)) is not None:
            shutil.rmtree(half, ignore_errors=True)  # it may have filled the disk
        last = self.latest_step()
        safe = "nothing was saved before it" if last is None else f"step {last} is still safe"
        reason = "its disk is full" if "No space left" in str(error) else error
        return OSError(f"could not save step {step} in {self.workdir}; {safe}: {reason}")

    def _damage(self, step: int) -> DamagedCheckpointError | None:
        """What `verify` raises, in any process of this run."""
        try:
            verify(self.directory / str(step), self.config)
        except DamagedCheckpointError as error:
            return _of_any_process(error)
        return _of_any_process(None)

    def _read(self, step: int, target: State) -> State:
        directory = self.directory / str(step)
        saved, expected = read_json(directory / LEAVES, {str: str}), describe(target)
        if isinstance(target, State) and target.opt_state == ():
            saved = {name: k for name, k in saved.items() if not name.startswith("opt_state/")}
        compare(saved, expected, directory)
        if index := shards.index_in(directory, read_json(directory / CHECKSUMS, {str: [int]})):
            return shards.read(directory, index, target)
        with storage.local_copy(directory) as local:  # of a run that was copied to a bucket
            if local != directory:
                verify(local, self.config)
            return _read_by_orbax(local / ITEM, target)

    def _set_aside(self, damaged: dict[int, DamagedCheckpointError], restored: int) -> None:
        for step, error in damaged.items():
            place = "not moved"
            if not self.read_only and jax.process_index() == 0:
                new = self.workdir / "damaged_checkpoints" / str(step)
                storage.move(self.directory / str(step), new)
                place = f"moved to {new}"
            self.__dict__.pop("_manager", None)  # it caches the list of steps
            logger.warning(
                "the checkpoint of step %d is damaged (%s); it was %s and step %d restored",
                step,
                error,
                place,
                restored,
            )


def _of_any_process(
    error: DamagedCheckpointError | None,
) -> DamagedCheckpointError | None:
    """The error of the first process of this run that has one, so that all read the same step."""
    own = None if error is None else str(error)
    texts = processes.exchange(f"damage/{processes.next_call()}", own)
    return next((DamagedCheckpointError(text) for text in texts if text is not None), None)


def _read_by_orbax(path: pathlib.Path, target: State) -> State:
    leaves = jax.tree.map(placed, target)
    if isinstance(target, State) and target.opt_state == ():
        return _read_without_optimiser(path, leaves)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(path, item(leaves))
    return jax.tree.map(
        lambda part, saved: part.replace(**saved) if isinstance(part, State) else saved,
        target,
        saved,
        is_leaf=lambda part: isinstance(part, State),
    )


def _read_without_optimiser(path: pathlib.Path, target: State) -> State:
    """Restores a State without its optimiser's state; `target` has `opt_state=()`."""
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    item = {name: value for name, value in fields.items() if jax.tree.leaves(value)}
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.PyTreeCheckpointer() as checkpointer:
        restore = ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True)
        return target.replace(**checkpointer.restore(path, args=restore))


LATER = {"slow"}  # fields of a State that older checkpoints lack, even as None


def item(tree: Any) -> Any:
    """The tree as it is written: each State as a dict, without fields of LATER that are None."""

    def of(part: Any) -> Any:
        if not isinstance(part, State):
            return part
        fields = {name: getattr(part, name) for name in part.__dataclass_fields__}
        return {k: v for k, v in fields.items() if k not in LATER or v is not None}

    return jax.tree.map(of, tree, is_leaf=lambda part: isinstance(part, State))


def describe(state: Any) -> dict[str, str]:
    """Maps the path of each leaf, 'params/dense/kernel', to its type, 'float32[8,40,50]'."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in shards.named_leaves(state).items()
    }


def compare(saved: dict[str, str], expected: dict[str, str], directory: storage.Path) -> None:
    """Raises ValueError with the leaves that differ (at most 20)."""
    lines = [
        f"  {path}: saved {saved.get(path, 'nothing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted(saved | expected)
        if saved.get(path) != expected.get(path)
    ]
    if lines:
        more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError("\n".join([f"{directory} holds another model:", *lines[:20], *more]))


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Orbax's arguments to restore a leaf: its shape, type and sharding."""
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def checksum(path: pathlib.Path) -> list[int]:
    """Size in bytes and CRC-32 of a file."""
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def of_training(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that training depends on: all but what runs after it."""
    return {name: value for name, value in config.items() if name != "stages"}


def step_of(name: str) -> int | None:
    """The step of a directory with this name, or None."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]*", name) else None


IN_RUN = {"step": int, "config": (dict, None), "execution": {str: object}}


def verify(directory: storage.Path, config: Mapping[str, Any] | None = None) -> None:
    """Checks that a step directory is complete and unchanged, and of this step and config.

    In a bucket the bytes of arrays are checked as they are read.

    Args:
      directory: its name is the step.
      config: the expected config; None skips this check.

    Raises:
      DamagedCheckpointError: it is damaged; the message names the first wrong file.
    """
    try:
        sums = read_json(directory / CHECKSUMS, {str: [int]})
        if LEAVES not in sums or any(len(written) != 2 for written in sums.values()):
            raise DamagedCheckpointError(f"{CHECKSUMS} is incomplete")
        if isinstance(directory, storage.BucketPath):
            uploads.check_files(directory, sums)
        else:
            _check_files(directory, sums)
        read_json(directory / LEAVES, {str: str})
        run = read_json(directory / RUN, IN_RUN) if RUN in sums else {}
    except DamagedCheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: circular links
        if isinstance(directory, storage.BucketPath) and getattr(error, "errno", 0) == errno.EIO:
            raise  # the server cannot be reached, which says nothing of what is there
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error
    if run and run["step"] != step_of(directory.name):
        raise DamagedCheckpointError(f"it belongs to step {run['step']}")
    if run and config is not None and run["config"] is not None:
        changed = difference(run["config"], config)
        lines = [line for name, line in changed.items() if not matches(name, MAY_CHANGE)]
        if lines:
            raise DamagedCheckpointError(f"it belongs to another config: {'; '.join(lines)}")


def _check_files(directory: pathlib.Path, sums: Mapping[str, Sequence[int]]) -> None:
    for name, written in sums.items():
        found = checksum(_below(directory, name))
        if found[0] != written[0]:
            raise DamagedCheckpointError(f"{name} has {found[0]} of {written[0]} bytes")
        if found != list(written):
            raise DamagedCheckpointError(f"{name} has the wrong checksum")


def _below(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The regular file of this name below a directory, reached without symbolic links."""
    path = directory / name
    if path.resolve() != directory.resolve() / name or ".." in pathlib.PurePath(name).parts:
        raise DamagedCheckpointError(f"{CHECKSUMS} names {name!r}, which is not below it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedCheckpointError(f"{CHECKSUMS} names {name!r}, which is not a regular file")
    return path


def check_step(state: State, step: int) -> None:
    """Checks that a state's step is that of its checkpoint, for checkpoints without RUN.

    Raises:
      DamagedCheckpointError: the steps differ.
    """
    stored = int(np.asarray(state.step.addressable_data(0)))
    if stored != step:
        raise DamagedCheckpointError(
            f"the checkpoint named {step} belongs to step {stored}; move it away, or rename it"
        )
