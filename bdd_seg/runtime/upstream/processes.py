"""Join the processes of a launcher on machines without a GPU.

Reason: mmengine's ``init_dist`` insists on a GPU; processes that ``torchrun --max-restarts`` starts anew look
for those that died, in a store that torchrun shares (pytorch issue 135712); SyncBN has no CPU version.
Test: tests/cli/test_tools.py, tests/runtime/test_many_processes.py.
Goes when: mmengine joins over gloo where there is no GPU, and torchrun's default store survives a restart.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from torch import distributed

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import walk


class Launcher(NamedTuple):
    """A program that starts processes, and the environment variables that it sets for them.

    Attributes:
        command: The program, as a user calls it.
        needs: The variable by which mmengine finds a process's GPU.
        rank: The variable with a process's number among all.
        size: The variable with the number of all.
    """

    command: str
    needs: str
    rank: str
    size: str


LAUNCHERS = {
    'pytorch': Launcher('torchrun --nproc-per-node=GPUS', 'RANK', 'RANK', 'WORLD_SIZE'),
    'slurm': Launcher('srun', 'SLURM_PROCID', 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'),
    'mpi': Launcher('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
}
"""Value of ``--launcher`` → launcher."""


def join_processes(cfg: Config) -> None:
    """Join the launcher's other processes over gloo where there is no GPU; with one the Runner joins them.

    ``env_cfg.dist_cfg.timeout``, in seconds, holds as it does with GPUs.

    Args:
        cfg: The whole config. Its ``model_wrapper_cfg`` is changed in place.

    Raises:
        ConfigError: torchrun would restart processes in a way in which they do not find each other.
    """
    restarts = int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0))
    if restarts and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
        raise ConfigError(
            f'--max-restarts={restarts}: restarted processes would look for those that died. Begin the line '
            'with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and use --standalone or --rdzv-backend=c10d'
        )
    if cfg.launcher != 'pytorch' or get_device() != 'cpu' or distributed.is_initialized():
        return
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    distributed.init_process_group('gloo', timeout=None if timeout is None else timedelta(seconds=timeout))
    cfg.model_wrapper_cfg = {  # the Runner's own, but for the devices
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def check_sync_bn(model: Mapping[str, Any]) -> None:
    """Check that a model which is trained by several processes without a GPU has no SyncBN.

    Args:
        model: The model's settings, without a teacher, which trains nothing.

    Raises:
        ConfigError: It has one. The message gives the options that replace it.
    """
    if get_device() != 'cpu' or get_world_size() == 1:
        return
    synchronised = [
        f'{key}.type=BN' for key, part in walk(model, 'model') if part.get('type') in ('SyncBN', 'MMSyncBN')
    ]
    if synchronised:
        raise ConfigError(
            'SyncBN works with GPUs only. On several CPU processes pass '
            f'--cfg-options {" ".join(synchronised)}'
        )
