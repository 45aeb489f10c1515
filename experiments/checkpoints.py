"""Checkpoints of a whole run: views, optimizer states and the mass that they hold.

Written by orbax while training goes on; a checkpoint that is not complete does not count. Each is
one array for every leaf of the stacked states, named by its path, and a few words about them.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from elastic_jax.resize import resize
from elastic_jax.workers import WorkerState


class Checkpoints:
    """The checkpoints in a folder, one for each number of steps done."""

    def __init__(self, folder: Path, keep: int = 2):
        """Opens the folder, and removes what an interrupted save has left.

        Args:
            folder: where they are; made if it is not there. All processes share it.
            keep: how many of the latest remain.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Returns the steps done at the latest checkpoint; None where there is none."""
        return self.manager.latest_step()

    def save(self, step: int, states: WorkerState, about: dict[str, Any]) -> None:
        """Copies the states from the devices, and writes them while this returns.

        Args:
            step: steps done.
            states: stacked [p, ...].
            about: plain values to be read back.
        """
        args = ocp.args.Composite(
            states=ocp.args.StandardSave(_named(states)), about=ocp.args.JsonSave(about)
        )
        self.manager.save(step, args=args, force=True)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what was said about a checkpoint."""
        got = self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        return got["about"]

    def restore(self, step: int, like: WorkerState, workers: int, sharding: Any) -> WorkerState:
        """Reads states, and moves them where they were of another number of workers.

        Args:
            step: of the checkpoint.
            like: `jax.ShapeDtypeStruct`s of the states wanted, stacked [p′, ...].
            workers: p, as they were saved.
            sharding: of the states, one for all or a tree of them.

        Returns:
            The states on their devices: those saved, bit by bit, where p′ = p; else see `resize`.

        Raises:
            ValueError: if they are of another shape, or cannot be moved.
        """

        def on_devices(function, tree):
            return jax.tree.map(
                lambda one, part: jax.tree.map(lambda x: function(x, one), part), sharding, tree
            )

        wanted = jax.tree.leaves(like)[0].shape[0]
        if wanted == workers:
            return self._read(
                step,
                on_devices(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like),
            )
        # each host reads all of them, into its main memory
        target = jax.tree.map(lambda x: np.zeros((workers, *x.shape[1:]), x.dtype), like)
        moved = resize(self._read(step, target), wanted)
        return on_devices(place, moved)

    def _read(self, step: int, target: WorkerState) -> WorkerState:
        args = ocp.args.Composite(states=ocp.args.StandardRestore(_named(target)))
        got = self.manager.restore(step, args=args)["states"]
        return jax.tree.unflatten(
            jax.tree.structure(target), [got[name] for name in _named(target)]
        )

    def close(self) -> None:
        """Waits till all is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def _named(states: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(states)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def place(array: np.ndarray, sharding: Any) -> jax.Array:
    """Puts an array that every process has onto the devices of all."""
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.ascontiguousarray(array[index])
    )


def lock(folder: Path, patience: float = 30.0) -> Any:
    """Takes a folder for this process, until it ends in whatever way.

    Args:
        folder: that is there.
        patience: seconds to wait for another process that is just ending.

    Returns:
        The open file that holds the lock.

    Raises:
        ValueError: if another process keeps it.
    """
    file = (folder / ".lock").open("w")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                raise ValueError(
                    f"--out {folder}: another process trains there; wait for its end, or name "
                    "another folder"
                ) from None
            time.sleep(0.1)


class Metrics:
    """`metrics.jsonl`: one line a logged step; lines after the restored checkpoint are cut off."""

    def __init__(self, path: Path, done: int):
        """Keeps the lines of the steps that are done.

        Args:
            path: of the file.
            done: steps done; the first is step 0.
        """
        kept = []
        if path.exists():
            whole, _, _ = path.read_text().rpartition("\n")  # a kill may leave half a line
            kept = [line for line in whole.splitlines() if json.loads(line)["step"] < done]
        self.seconds = json.loads(kept[-1])["seconds"] if kept else 0.0
        self.start = time.monotonic() - self.seconds
        part = path.with_name(f".part.{path.name}")
        part.write_text("".join(line + "\n" for line in kept))
        os.replace(part, path)
        self.file = path.open("a")

    def append(self, row: dict[str, Any]) -> None:
        """Adds a line, and the seconds of training so far."""
        row = {**row, "seconds": round(time.monotonic() - self.start, 3)}
        finite = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Makes sure that the lines are on the disk: a checkpoint must not be ahead of them."""
        os.fsync(self.file.fileno())
