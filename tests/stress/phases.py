"""Says in a file what a training is doing, so that it can be killed while doing it."""

import os
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

LONGEST = {'train': 0.03, 'val': 0.05, 'write': 0.1}
"""About how many seconds each takes."""


@HOOKS.register_module()
class SayPhase(Hook):
    """Writes ``PHASE ITERATION`` into ``work_dir/phase``, and makes writing a checkpoint take a while."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        self.file = Path(runner.work_dir) / 'phase'
        fsync = os.fsync

        def slow(descriptor):
            self.say('write', runner)
            time.sleep(LONGEST['write'])
            fsync(descriptor)

        os.fsync = slow

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.say('train', runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.say('val', runner)

    def say(self, phase, runner):
        beside = self.file.with_name('phase.new')
        beside.write_text(f'{phase} {runner.iter}')
        beside.replace(self.file)
