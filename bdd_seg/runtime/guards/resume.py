"""What makes a run that was killed and resumed the run that was not."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import HOOKS
from torch.utils.data import get_worker_info

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint, unsafe_reason

# What random numbers are drawn for. Each number of a stream begins a sequence of its own.
_STEPS, _DRAWS = 0, 1

# Of a checkpoint: tensors by far the most.
_LARGE = {'state_dict', 'ema_state_dict', 'optimizer'}

_SAMPLER_SEED = 'sampler_seed'  # in the message hub, which checkpoints keep


def latest_checkpoint(work_dir: str | Path) -> str | Path | None:
    """The newest whole checkpoint in a work dir.

    That is the one that mmengine's note ``last_checkpoint`` names, also where the folder has moved since. If
    the note or its checkpoint was cut short or is gone, it is the youngest other; the log says so.

    Returns:
        Its path, None where training has saved none. What is no local file, such as ``s3://...`` or a folder
        of DeepSpeed's, is returned as it was noted.

    Raises:
        ConfigError: There are checkpoints, and none can be read; or there is none, but one was noted.
    """
    folder = Path(work_dir)
    note = folder / 'last_checkpoint'
    text = note.read_text().strip() if note.is_file() else ''
    noted = Path(text)
    if '://' in text or (text and noted.is_dir()):
        return text
    others = sorted(
        [*folder.glob('iter_*.pth'), *folder.glob('epoch_*.pth')], key=lambda path: -path.stat().st_mtime
    )
    problems = []
    for path in dict.fromkeys([folder / noted.name, noted, *others]):  # each once, in this order
        if path.suffix and path.is_file():
            try:
                load_checkpoint(path)
            except ConfigError as error:
                problems.append(str(error))
                print_log(f'Passed over: {error}')
            else:
                return path
    if text and not problems:
        problems.append(f'{str(note)!r} names {text!r}, which is gone. To begin anew, remove the note')
    if problems:
        raise ConfigError(f'nothing to resume from in {str(folder)!r}: {problems[0]}')
    return None


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training end as one that was never interrupted, bit for bit on the same machine.

    Checkpoints hold the weights, the optimizer, the schedules, the EMA and the log, and mmengine keeps the
    order of the data. This hook adds

    - random numbers that follow from the seed and from how far the training is, and from nothing that went
      before: those of an iteration (dropout) from its number, those of a sample (augmentation) from the
      number of its draw. Hence augmentation does not depend on the number of workers and of processes
      either;
    - the seed of the interrupted run, where the config sets none;
    - the validation of the checkpoint's iteration, which comes after the saving and may not have happened.

    Not kept are the gradients of a checkpoint saved amid an accumulation (``accumulative_counts``).
    """

    priority = 'LOWEST'  # nothing draws between its seeding and the step

    def __init__(self) -> None:
        self._looked_at_content = False

    def before_train(self, runner: Runner) -> None:
        iterations = [int(n) for n in all_gather(torch.tensor(runner.iter))]
        if len(set(iterations)) > 1:
            raise ConfigError(
                f'the processes resume at different iterations, {iterations}: all machines must see the same '
                f'work dir, {runner.work_dir!r}'
            )
        if any(isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1 for hook in runner.hooks):
            runner.logger.warning(
                'default_hooks.checkpoint.max_keep_ckpts=1 removes the only checkpoint before it writes the '
                'next. With 2 a run that is stopped in between, or by a full disk, can be resumed'
            )
        loader = runner.train_dataloader
        sampler = loader.sampler
        if not (isinstance(runner.train_loop, IterBasedTrainLoop) and isinstance(sampler, InfiniteSampler)):
            runner.logger.warning(
                'ExactResumeHook: after a resume the augmentations will be others, since it knows the draws '
                'of an IterBasedTrainLoop with an InfiniteSampler only'
            )
            return
        # The seed of the data's order. mmengine draws one where the config has none, for a resumed run again.
        if runner.iter:
            sampler.seed = runner.message_hub.get_info(_SAMPLER_SEED, sampler.seed)
        runner.message_hub.update_info(_SAMPLER_SEED, sampler.seed)
        # By this torch asks for the samples of a batch, instead of one after the other.
        loader.dataset.__getitems__ = _SeededDraws(loader.dataset, sampler, loader.batch_size, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        loop, val_loop = runner.train_loop, runner.val_loop
        if not isinstance(loop, IterBasedTrainLoop) or val_loop is None:
            return
        loop._decide_current_val_interval()  # it may change on the way
        if (
            loop.iter > 0
            and loop.iter >= loop.val_begin
            and (loop.iter % loop.val_interval == 0 or loop.iter == loop.max_iters)
        ):
            runner.logger.info(f'Validating at iteration {loop.iter}, as the interrupted run may not have')
            val_loop.run()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._looked_at_content:
            return
        self._looked_at_content = True
        reason = unsafe_reason({key: checkpoint[key] for key in checkpoint.keys() - _LARGE})
        if reason is not None:
            runner.logger.warning(
                f'Checkpoints of this run hold more than data, and --resume will refuse them: {reason}'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(_seed_numpy_and_python(runner.seed, _STEPS, runner.iter, get_rank()))


class _SeededDraws:
    """Loads batches for a data loader, the ``n``-th draw of the training with the ``n``-th random numbers."""

    def __init__(self, dataset: Any, sampler: InfiniteSampler, batch_size: int, first_batch: int) -> None:
        self.dataset = dataset
        # Not the sampler, which cannot be sent to workers that are spawned.
        self.seed, self.rank, self.world_size = sampler.seed, sampler.rank, sampler.world_size
        self.batch_size = batch_size
        self.next_batch = first_batch
        self.is_in_worker = False

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        worker = get_worker_info()
        if worker is not None and not self.is_in_worker:  # the loader gives each worker every n-th batch
            self.is_in_worker = True
            self.next_batch += worker.id
        samples = []
        for position, index in enumerate(indices):
            # All processes together draw one sequence, the sampler gives each every n-th.
            draw = (self.next_batch * self.batch_size + position) * self.world_size + self.rank
            # Without the GPUs' generators, which no augmentation uses and no worker may touch.
            torch.default_generator.manual_seed(_seed_numpy_and_python(self.seed, _DRAWS, draw))
            samples.append(self.dataset[index])
        self.next_batch += 1 if worker is None else worker.num_workers
        return samples


def _seed_numpy_and_python(seed: int, *key: int) -> int:
    """Seed numpy and Python, and return a seed for torch."""
    words = [int(word) for word in np.random.SeedSequence(seed, spawn_key=key).generate_state(6)]
    np.random.seed(words[:4])
    random.seed(words[4])
    return words[5]
