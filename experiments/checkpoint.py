"""Checkpoints of a State: orbax writes them, file checksums tell a damaged one from a sound one.

A step directory appears by one rename, after its arrays and their checksums are on disk, so a
process killed at any moment leaves the previous checkpoint or the new one, never half of one.
"""

import functools
import json
import logging
import os
import pathlib
import shutil
import zlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from uncertainty.types import State

logger = logging.getLogger(__name__)

ITEM = "default"  # orbax's directory for the arrays within a step directory
CHECKSUMS = "checksums.json"  # {file below ITEM or LEAVES: [bytes, crc32]}
LEAVES = "leaves.json"  # {path of a leaf: "dtype[shape]"}


class DamagedCheckpointError(OSError):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`.

    Args:
        workdir: the run's directory.
        keep: how many of the newest checkpoints stay on disk; the one being written comes on top.
        read_only: never write, rename or delete anything, for evaluation beside a running training.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int = 2,
        read_only: bool = False,
    ):
        self.workdir = pathlib.Path(workdir).absolute()
        self.directory = self.workdir / "checkpoints"
        self.keep, self.read_only = keep, read_only
        self._saving: int | None = None  # the step of the last save that was started
        self._leaves: dict[str, str] = {}

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on disk, oldest first; not the one being written."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

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
            started = self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
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
                number of devices saved it. A leaf without a sharding goes to the first device.
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
                verify(self.directory / str(candidate))
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
        (directory / LEAVES).write_text(json.dumps(self._leaves))
        files = [directory / LEAVES, *(p for p in (directory / ITEM).rglob("*") if p.is_file())]
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
        compare(json.loads((directory / LEAVES).read_text()), describe(target), directory)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(directory / ITEM, jax.tree.map(placed, target))

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
                step, error, place, restored,
            )  # fmt: skip


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


def verify(directory: pathlib.Path) -> None:
    """Raises DamagedCheckpointError, naming the first file that is not as it was written."""
    try:
        sums = json.loads((directory / CHECKSUMS).read_text())
        files = [(name, checksum(directory / name), list(sum_)) for name, sum_ in sums.items()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error
    if LEAVES not in sums:
        raise DamagedCheckpointError(f"{CHECKSUMS} is incomplete")
    for name, (size, crc), (size_written, crc_written) in files:
        if size != size_written:
            raise DamagedCheckpointError(f"{name} has {size} of {size_written} bytes")
        if crc != crc_written:
            raise DamagedCheckpointError(f"{name} has the wrong checksum")
