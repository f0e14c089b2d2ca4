"""Checkpoints that can be trusted to be whole, or are recognised and passed over.

Only this file knows orbax. A checkpoint holds the train state (trainable leaves, moments, step)
and a record of what it belongs to: weights, data, seed, batch size, and a digest of the arrays,
because orbax restores files with flipped bytes without complaint.

Of several processes each writes its part, and all of them restore the same checkpoint or none: they
read without orbax's barriers, at which a process that can read would wait for one that cannot.
"""

import contextlib
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from input_pipeline.write_errors import full_disk_behind
from maft_jax.config.sections import CheckpointingConfig
from maft_jax.runtime import consensus
from maft_jax.state.train_state import TrainState

logger = logging.getLogger(__name__)

TEXT_TOWER = "text_tower"
"""Of a run's identity: text_classifier.text_tower_identity."""

_NOTED_LATER = (TEXT_TOWER, "mask_start_layer", "image_size")
"""What version 0.1 did not note, and is not compared with its checkpoints."""
_IN_WORDS = {
    "pretrained": ("another image tower", "give the weights that the run began with"),
    TEXT_TOWER: (
        "another text tower beside the same image tower",
        "give the weights that the run began with",
    ),
    "synonyms": (
        "other further names of the classes",
        "restore the class list of the records and config.data.synonyms",
    ),
    "tree": (
        "another method, or other low-rank factors",
        "restore config.method with its settings in config.loss, and config.optimizer.lora_rank, "
        "lora_alpha and trainable",
    ),
    "data": ("other images, label maps or proposals", "restore the records"),
    **{
        name: ("another way to read masks", f"restore config.model.{name} (None = the tower's own)")
        for name in ("mask_pooling", "mask_rule", "class_token")
    },
}
"""Of what values alone do not tell: what it is in words, and how to restore it."""
_DIGEST = "digest"
_REMOVED = ".removed"
"""Checkpoints that need not be kept any more, in the folder of the others."""
_NEEDED = ("_CHECKPOINT_METADATA", "data/metadata", "state/_METADATA", "state/manifest.ocdbt")
"""Files without which none can be restored."""


class CheckpointError(OSError):
    """A checkpoint could not be written; says why and which one is the newest good one."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`; saving goes on in the background."""

    def __init__(self, workdir: epath.Path, config: CheckpointingConfig):
        self._directory = workdir / "checkpoints"
        self._aside = workdir / "broken_checkpoints"
        self._removed = self._directory / _REMOVED
        self._clear_removed()
        self._clear_half_removed()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config),
                best_fn=_loss,  # orbax stores metrics only if it is given one
                best_mode="min",
                save_decision_policy=policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
                todelete_subdir=_REMOVED,  # in a moment, where files go one by one
            ),
        )

    def save(self, state: TrainState, run_identity: dict[str, Any], loss: float) -> None:
        """Starts to save; a failure of an earlier save surfaces here.

        Args:
            run_identity: what restore_latest must be given again, JSON values.
            loss: mean training loss since the checkpoint before, which ranks the best.

        Raises:
            CheckpointError: a save failed.
        """
        step = int(state.step)
        record = run_identity | {_DIGEST: digest(state)}
        with self._explained(f"the checkpoint of step {step}, or the one before it,"):
            self._manager.wait_until_finished()
            self._clear_removed()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(record)
                ),
                metrics={"loss": loss},
            )

    def restore_latest(
        self, abstract_state: TrainState, run_identity: dict[str, Any]
    ) -> TrainState | None:
        """The newest whole checkpoint, or None if there is none at all.

        Broken ones are reported and moved to `workdir/broken_checkpoints`.

        Args:
            abstract_state: shapes, dtypes and shardings to restore to; any mesh will do.

        Raises:
            ValueError: a checkpoint belongs to other weights, data or settings, or all are broken.
        """
        while (step := self._newest_of_all()) is not None:
            with consensus.fail_together():
                state, record, problem = self._read(step, abstract_state, run_identity)
            problem = consensus.any_problem(problem)
            if problem is None and digest(state) != record[_DIGEST]:
                problem = "the arrays are not those that were saved: their digest differs"
            if problem is None:
                return state
            self._put_aside(step, problem)
        with consensus.fail_together():
            self._check_none_broken()
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint that is whole on disk, whatever is being written."""
        return max(self._steps(), default=None)

    def wait(self) -> None:
        """Blocks until everything is on disk.

        Raises:
            CheckpointError: a save failed.
        """
        with self._explained("the last checkpoint"):
            self._manager.wait_until_finished()
        self._clear_removed()

    def close(self) -> None:
        """Stops the background threads without waiting for success, which `wait` does."""
        try:
            self._manager.close()
        except Exception as error:  # must not hide why the run ends
            logger.debug("orbax, when it was closed: %r", error)

    def _clear_removed(self):
        """What was killed before it was gone has no step's name any more."""
        if jax.process_index() == 0 and self._removed.exists():
            self._removed.rmtree()

    def _clear_half_removed(self):
        """What earlier versions left, which removed file after file; never the newest."""
        steps = self._steps() if jax.process_index() == 0 else []
        for path in (self._directory / str(step) for step in steps[:-1]):
            if not all((path / name).exists() for name in _NEEDED):
                logger.warning("%s is what a removal left that was killed; removing it", path)
                path.rmtree()

    def _steps(self) -> list[int]:
        if not self._directory.exists():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def _newest_of_all(self) -> int | None:
        """As the first process sees it, which alone moves checkpoints."""
        newest = max(self._manager.all_steps(), default=-1)
        newest = int(consensus.broadcast_from_first(newest))
        return None if newest < 0 else newest

    def _read(
        self, step: int, abstract_state: TrainState, run_identity: dict[str, Any]
    ) -> tuple[TrainState | None, dict | None, str | None]:
        """State and record of a checkpoint, or why they cannot be read."""
        with _reader(self._directory) as reader:
            record, problem = _restored(reader, step, data=ocp.args.JsonRestore())
            if problem is None and not (isinstance(record.data, dict) and _DIGEST in record.data):
                problem = "its record of what it was made with is corrupt"
            if problem is not None:
                return None, None, problem
            self._check_belongs(step, record.data, run_identity)
            target = ocp.args.StandardRestore(abstract_state)
            restored, problem = _restored(reader, step, state=target)
        return None if restored is None else restored.state, record.data, problem

    def _check_none_broken(self):
        if self._aside.exists():
            broken = sorted((int(path.name) for path in self._aside.iterdir()), reverse=True)
            raise ValueError(
                f"{self._directory}: no whole checkpoint is left; broken ones {broken} are in "
                f"{self._aside}; delete that folder to start from step 0, or use another workdir"
            )

    def _check_belongs(self, step, record, run_identity):
        for name, expected in run_identity.items():
            if name in _NOTED_LATER and name not in record:
                continue
            if record.get(name) == expected:
                continue
            values = f"{name}={record.get(name)!r}, this run has {name}={expected!r}"
            what, mend = _IN_WORDS.get(name, (None, "restore that setting"))
            raise ValueError(
                f"{self._directory / str(step)} was made with "
                f"{values if what is None else f'{what} ({values})'}; {mend} to resume, or use "
                "another workdir"
            )

    def _put_aside(self, step: int, problem: str):
        logger.warning(
            "checkpoint of step %d is broken (%s); trying the one before it", step, problem
        )
        with consensus.fail_together():
            if jax.process_index() == 0:
                self._aside.mkdir(parents=True, exist_ok=True)
                target = self._aside / str(step)
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self, what: str):
        """Turns any failure to write into a CheckpointError."""
        try:
            yield
        except Exception as error:
            first = full_disk_behind(error) or error
            raise CheckpointError(
                f"{what} could not be written to {self._directory}: {first}\n{self.what_is_kept()}"
            ) from error

    def what_is_kept(self) -> str:
        """For messages about a disk that is full."""
        good = self.newest_step()
        return (
            f"The newest good checkpoint is {'none' if good is None else f'that of step {good}'}; "
            "free some space and run the same command again to resume from it"
        )


def read_checkpoint(
    workdir: epath.Path,
    abstract_state: TrainState,
    pretrained: str,
    step: int | None = None,
    text_tower: str | None = None,
) -> TrainState:
    """A checkpoint of a run that may still be going on: nothing there is changed.

    Args:
        abstract_state: shapes, dtypes and shardings to restore to.
        pretrained: fingerprint of the weights that `abstract_state` was derived from.
        step: of the checkpoint; by default the newest.
        text_tower: likewise of the text tower beside them; None is not compared.

    Raises:
        ValueError: there is no such checkpoint, it is broken, or it belongs to other weights.
    """
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise ValueError(f"{workdir}: expected the workdir of a run; there is no {directory}")
    with _reader(directory) as manager:
        steps = sorted(manager.all_steps())
        if not steps or step not in (None, *steps):
            wanted = "any checkpoint" if step is None else f"a checkpoint of step {step}"
            raise ValueError(f"{directory}: expected {wanted}; there are those of steps {steps}")
        step = steps[-1] if step is None else step
        where = directory / str(step)
        try:
            record = manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))
            if record.data["pretrained"] != pretrained:
                raise ValueError(
                    f"{where} was made with pretrained={record.data['pretrained']!r}, these "
                    f"weights are {pretrained!r}; give those that the run began with"
                )
            noted = record.data.get(TEXT_TOWER, text_tower)
            if text_tower not in (None, noted):
                raise ValueError(
                    f"{where} was made with text_tower={noted!r}, that of these weights is "
                    f"{text_tower!r}, though their image towers are the same; give those that "
                    "the run began with, for it was tuned against their class embeddings"
                )
            target = ocp.args.StandardRestore(abstract_state)
            state = manager.restore(step, args=ocp.args.Composite(state=target)).state
            expected = record.data[_DIGEST]
        except (PermissionError, MemoryError):
            raise
        except Exception as error:
            if str(error).startswith(str(where)):
                raise
            raise ValueError(
                f"{where} is broken ({type(error).__name__}: {f'{error} '.splitlines()[0]}); "
                f"choose another of the steps {steps}"
            ) from error
    if digest(state) != expected:
        raise ValueError(
            f"{where} is broken: its arrays are not those that were saved; choose another of the "
            f"steps {steps}"
        )
    return state


def _reader(directory: epath.Path) -> ocp.CheckpointManager:
    """Reads as if this process were alone, also into arrays of which it holds a part."""
    own = jax.process_index()
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            read_only=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
            ),
        ),
    )


def _restored(reader: ocp.CheckpointManager, step: int, **items) -> tuple[Any, str | None]:
    """Some items of a checkpoint, or why they cannot be read."""
    try:
        return reader.restore(step, args=ocp.args.Composite(**items)), None
    except (PermissionError, MemoryError):  # nothing is wrong with the checkpoint
        raise
    except Exception as error:
        while error.__cause__ is not None:  # orbax wraps the reason several times
            error = error.__cause__
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


@functools.cache
def _checksums_on(sharding: jax.sharding.Sharding):
    def checksum(leaf):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        return jnp.sum(bits * (2 * jnp.arange(len(bits), dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    def checksums(tree):
        return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])

    return jax.jit(checksums, out_shardings=sharding)


def digest(state: TrainState) -> str:
    """Checksum of every bit of every 32-bit leaf, in exact integers, wherever they are sharded.

    Every element's weight is odd, so a change of any single element changes the sum modulo 2^32.
    """
    # The step is whole on every device, so that every process can read what lies like it.
    return np.asarray(_checksums_on(state.step.sharding)(state)).astype(">u4").tobytes().hex()


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _preservation(config: CheckpointingConfig):
    rules = [policies.LatestN(config.keep_newest)]
    if config.keep_best:
        rules.append(policies.BestN(get_metric_fn=_loss, reverse=True, n=config.keep_best))
    if config.keep_every_steps:
        rules.append(policies.EveryNSteps(config.keep_every_steps))
    return policies.AnyPreservationPolicy(rules)
