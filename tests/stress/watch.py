import json
import os
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class WatchResources(Hook):
    """Writes a line into ``work_dir/resources.jsonl`` after each iteration.

    Resident memory in bytes and open files, both of the training process and of its data loader's workers,
    and the seconds since the line before.
    """

    priority = 'LOWEST'

    def before_train(self, runner):
        self.file = (Path(runner.work_dir) / 'resources.jsonl').open('w')
        self.page = os.sysconf('SC_PAGE_SIZE')
        self.last = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        me = os.getpid()
        processes = [me, *map(int, Path(f'/proc/{me}/task/{me}/children').read_text().split())]
        memory = sum(int(Path(f'/proc/{p}/statm').read_text().split()[1]) * self.page for p in processes)
        files = sum(len(os.listdir(f'/proc/{p}/fd')) for p in processes)
        now = time.perf_counter()
        self.file.write(json.dumps({'memory': memory, 'files': files, 'seconds': now - self.last}) + '\n')
        self.last = now

    def after_train(self, runner):
        self.file.close()
