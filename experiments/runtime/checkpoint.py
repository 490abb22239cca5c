"""Checkpoints of a State: orbax writes them, file checksums tell a damaged one from a sound one.

A step directory appears by one rename, after its arrays and their checksums are on disk, so a
process killed at any moment leaves the previous checkpoint or the new one, never half of one. It
says itself of which step and which config it is; one in another place than its own is damaged.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from experiments.runtime.workdir import MAY_CHANGE, difference, jsonable, matches, read_json
from uncertainty.types import State

logger = logging.getLogger(__name__)

ITEM = "default"  # orbax's directory for the arrays within a step directory
CHECKSUMS = "checksums.json"  # {file below ITEM, LEAVES or RUN: [bytes, crc32]}
LEAVES = "leaves.json"  # {path of a leaf: "dtype[shape]"}
RUN = "run.json"  # step, config, and how it is executed; checkpoints of before do not have it


class DamagedCheckpointError(OSError):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`.

    Args:
        workdir: the run's directory.
        keep: how many of the newest checkpoints stay on disk; the one being written comes on top.
        read_only: never write, rename or delete anything, for evaluation beside a running training.
        config: of the run, which is saved too: a checkpoint of a config that differs in more than
            `workdir.MAY_CHANGE` is damaged. None compares nothing.
        execution: name -> value of what changes rounding, noted in each checkpoint.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int = 2,
        read_only: bool = False,
        config: Mapping[str, Any] | None = None,
        execution: Mapping[str, Any] | None = None,
    ):
        self.workdir = pathlib.Path(workdir).absolute()
        self.directory = self.workdir / "checkpoints"
        self.keep, self.read_only = keep, read_only
        self.config, self.execution = config, execution or {}
        self._saving: int | None = None  # the step of the last save that was started
        self._leaves: dict[str, str] = {}

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on disk, oldest first; not the one being written."""
        if not self.directory.is_dir():
            return []
        found = (step_of(path.name) for path in self.directory.iterdir())
        return sorted(step for step in found if step is not None)

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: State) -> None:
        """Starts to save `state` in the background; it may be donated as soon as this returns.

        A step that is saved already stays as it is.

        Raises:
            OSError: this save could not start, or the one before it failed in the background.
            RuntimeError: these checkpoints are read only, or orbax declined to save.
        """
        if self.read_only:
            raise RuntimeError(f"{self.directory} was opened read only; step {step} was not saved")
        self.wait()
        if step in self.steps():
            return
        self._saving, self._leaves = step, describe(state)
        try:
            started = self._manager.save(step, args=ocp.args.StandardSave(item(state)), force=True)
        except Exception as error:
            raise self._failed(error) from error
        if not started:
            raise RuntimeError(f"orbax declined to save step {step} in {self.directory}")

    def wait(self) -> None:
        """Blocks until nothing is being written; raises OSError if the last save failed."""
        if "_manager" not in self.__dict__:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, then ends orbax's threads; raises OSError if the last save failed."""
        self.wait()
        if manager := self.__dict__.pop("_manager", None):
            manager.close()

    def restore(self, target: State, step: int | None = None) -> tuple[State, int] | None:
        """Restores the newest sound checkpoint, or that of `step`, onto the devices of `target`.

        A damaged checkpoint is passed over with a warning, for the one before it, and (unless read
        only) moved to `workdir/damaged_checkpoints`, so that its step can be saved again.

        Args:
            target: arrays or ShapeDtypeStructs; their shardings say where each leaf goes, whatever
                number of devices saved it. A leaf without a sharding goes to the first device. The
                optimiser's state is passed over where the target has none, `opt_state=()`.
            step: this step and no other.

        Returns:
            The state and its step, or None when nothing has been saved.

        Raises:
            ValueError: the checkpoint's leaves are not those of `target` (each is named with what
                was saved and what is wanted), or there is none for `step`.
            DamagedCheckpointError: `step`, or each one there is, is damaged.
        """
        self.wait()
        saved = self.steps()
        if step is not None and step not in saved:
            raise ValueError(
                f"no checkpoint for step {step} in {self.directory}; there are {saved}"
            )
        damaged = {}
        for candidate in reversed(saved) if step is None else [step]:
            try:
                verify(self.directory / str(candidate), self.config)
            except DamagedCheckpointError as error:
                damaged[candidate] = error
                continue
            state = self._read(candidate, target)
            self._set_aside(damaged, candidate)
            return state, candidate
        if damaged:
            reasons = "\n".join(f"  step {s}: {error}" for s, error in damaged.items())
            raise DamagedCheckpointError(
                f"no readable checkpoint is left in {self.directory}:\n{reasons}\n"
                "Move that directory away to start from the beginning."
            )
        return None

    def executed_otherwise(self, step: int) -> list[str]:
        """A line 'name: old -> new' for what changes rounding since the checkpoint of `step`."""
        path = self.directory / str(step) / RUN
        saved = read_json(path, IN_RUN)["execution"] if path.exists() else self.execution
        return list(difference(saved, self.execution).values())

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made at the first save: it creates the directory and removes what a kill left half."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _write_checksums(self) -> None:
        """Runs in orbax's thread of the first process, before the step directory is renamed."""
        directory = self._unfinished(self._saving) or self.directory / str(self._saving)
        run = dict(step=self._saving, config=self.config, execution=self.execution)
        (directory / LEAVES).write_text(json.dumps(self._leaves))
        (directory / RUN).write_text(json.dumps(jsonable(run)))
        own = [directory / LEAVES, directory / RUN]
        files = [*own, *(p for p in (directory / ITEM).rglob("*") if p.is_file())]
        sums = {str(p.relative_to(directory)): checksum(p) for p in sorted(files)}
        (directory / CHECKSUMS).write_text(json.dumps(sums))

    def _unfinished(self, step: int) -> pathlib.Path | None:
        """The directory of a save in progress, `<step>.<orbax's suffix>`."""
        return next(self.directory.glob(f"{step}.*"), None)

    def _failed(self, error: Exception) -> OSError:
        step, self._saving = self._saving, None
        self.__dict__.pop("_manager", None)  # it would report the same error again
        if (half := self._unfinished(step)) is not None:
            shutil.rmtree(half, ignore_errors=True)  # it may be what fills the disk
        last = self.latest_step()
        safe = "nothing was saved before it" if last is None else f"step {last} is still safe"
        reason = "its disk is full" if "No space left" in str(error) else error
        return OSError(f"could not save step {step} in {self.workdir}; {safe}: {reason}")

    def _read(self, step: int, target: State) -> State:
        directory = self.directory / str(step)
        saved, wanted = read_json(directory / LEAVES, {str: str}), describe(target)
        leaves = jax.tree.map(placed, target)
        if isinstance(target, State) and target.opt_state == ():
            kinds = {name: k for name, k in saved.items() if not name.startswith("opt_state/")}
            compare(kinds, wanted, directory)
            return _read_without_optimiser(directory / ITEM, leaves)
        compare(saved, wanted, directory)
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.restore(directory / ITEM, item(leaves))
        return jax.tree.map(
            lambda part, saved: part.replace(**saved) if isinstance(part, State) else saved,
            target,
            saved,
            is_leaf=lambda part: isinstance(part, State),
        )

    def _set_aside(self, damaged: dict[int, DamagedCheckpointError], restored: int) -> None:
        for step, error in damaged.items():
            place = "left where it was"
            if not self.read_only and jax.process_index() == 0:
                new = self.workdir / "damaged_checkpoints" / str(step)
                shutil.rmtree(new, ignore_errors=True)
                new.parent.mkdir(exist_ok=True)
                os.replace(self.directory / str(step), new)
                place = f"moved to {new}"
            self.__dict__.pop("_manager", None)  # it remembers the steps that it found
            logger.warning(
                "the checkpoint of step %d is damaged (%s); it was %s and step %d restored",
                step,
                error,
                place,
                restored,
            )


def _read_without_optimiser(path: pathlib.Path, target: State) -> State:
    """The arrays of a State but for those of its optimiser, whose `opt_state` is () in `target`."""
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    item = {name: value for name, value in fields.items() if jax.tree.leaves(value)}
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.PyTreeCheckpointer() as checkpointer:
        given = ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True)
        return target.replace(**checkpointer.restore(path, args=given))


LATER = {"slow"}  # fields of a State that checkpoints of before do not know, not even as None


def item(tree: Any) -> Any:
    """What is written of a tree: of each State in it the fields, without those of LATER if None."""

    def of(part: Any) -> Any:
        if not isinstance(part, State):
            return part
        fields = {name: getattr(part, name) for name in part.__dataclass_fields__}
        return {k: v for k, v in fields.items() if k not in LATER or v is not None}

    return jax.tree.map(of, tree, is_leaf=lambda part: isinstance(part, State))


def describe(state: Any) -> dict[str, str]:
    """Path of each leaf, such as 'params/dense/kernel', to its type, such as 'float32[8,40,50]'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        )
        for path, leaf in leaves
    }


def compare(saved: dict[str, str], wanted: dict[str, str], directory: pathlib.Path) -> None:
    """Raises ValueError, naming each leaf that differs (the first 20 of them)."""
    lines = [
        f"  {path}: saved {saved.get(path, 'nothing')}, wanted {wanted.get(path, 'nothing')}"
        for path in sorted(saved | wanted)
        if saved.get(path) != wanted.get(path)
    ]
    if lines:
        more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError("\n".join([f"{directory} holds another model:", *lines[:20], *more]))


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """What orbax needs to restore a leaf: its shape, its type and where it goes."""
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
    """The config that a checkpoint of training depends on: all but what follows it."""
    return {name: value for name, value in config.items() if name != "stages"}


def step_of(name: str) -> int | None:
    """The step whose directory has this name, or None."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]*", name) else None


IN_RUN = {"step": int, "config": (dict, None), "execution": {str: object}}


def verify(directory: pathlib.Path, config: Mapping[str, Any] | None = None) -> None:
    """Whether a step directory is as it was written, and in its place.

    Args:
        directory: its name is the step.
        config: of the run that it should be of; None compares none.

    Raises:
        DamagedCheckpointError: it is not; the first file at fault is named.
    """
    try:
        sums = read_json(directory / CHECKSUMS, {str: [int]})
        files = [(name, checksum(_below(directory, name)), sum_) for name, sum_ in sums.items()]
        if LEAVES not in sums or any(len(written) != 2 for written in sums.values()):
            raise DamagedCheckpointError(f"{CHECKSUMS} is incomplete")
        for name, found, written in files:
            if found[0] != written[0]:
                raise DamagedCheckpointError(f"{name} has {found[0]} of {written[0]} bytes")
            if found != written:
                raise DamagedCheckpointError(f"{name} has the wrong checksum")
        read_json(directory / LEAVES, {str: str})
        run = read_json(directory / RUN, IN_RUN) if RUN in sums else {}
    except DamagedCheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # the last, where links go in circles
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error
    if run and run["step"] != step_of(directory.name):
        raise DamagedCheckpointError(f"it is that of step {run['step']}, under another name")
    if run and config is not None and run["config"] is not None:
        changed = difference(run["config"], config)
        lines = [line for name, line in changed.items() if not matches(name, MAY_CHANGE)]
        if lines:
            raise DamagedCheckpointError(f"it is of another config: {'; '.join(lines)}")


def _below(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The regular file of that name below a directory, reached without a symbolic link."""
    path = directory / name
    if path.resolve() != directory.resolve() / name or ".." in pathlib.PurePath(name).parts:
        raise DamagedCheckpointError(f"{CHECKSUMS} names {name!r}, which is not below it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedCheckpointError(f"{CHECKSUMS} names {name!r}, which is no regular file")
    return path


def check_step(state: State, step: int) -> None:
    """That a state of training is of the step that its checkpoint is called.

    For checkpoints that do not say it themselves.

    Raises:
        DamagedCheckpointError: it is not.
    """
    found = int(np.asarray(state.step.addressable_data(0)))
    if found != step:
        raise DamagedCheckpointError(
            f"the checkpoint of step {step} is that of step {found}, under another name; "
            "move it away, or rename it"
        )
