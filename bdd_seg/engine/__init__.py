from bdd_seg.engine.batch_check import BatchCheckHook
from bdd_seg.engine.checkpoint import find_checkpoint, load_checkpoint
from bdd_seg.engine.command_line import (
    add_config_arguments,
    add_hooks,
    config_from,
    join_processes,
    make_folder,
    run_tool,
)
from bdd_seg.engine.config import check_config, check_datasets, leaf_datasets, load_config
from bdd_seg.engine.explain import naming_the_cause
from bdd_seg.engine.finite import FiniteLossHook
from bdd_seg.engine.hooks import LossScheduleHook, LossStateHook
from bdd_seg.engine.machine import describe_machine
from bdd_seg.engine.metrics import ClassIoUMetric
from bdd_seg.engine.optim_wrapper import BFloat16OptimWrapper
from bdd_seg.engine.resume import ExactResumeHook, latest_checkpoint
from bdd_seg.engine.storage import WholeFileBackend
from bdd_seg.engine.weights_check import CheckpointFitsHook

__all__ = [
    'BFloat16OptimWrapper',
    'BatchCheckHook',
    'CheckpointFitsHook',
    'ClassIoUMetric',
    'ExactResumeHook',
    'FiniteLossHook',
    'LossScheduleHook',
    'LossStateHook',
    'WholeFileBackend',
    'add_config_arguments',
    'add_hooks',
    'check_config',
    'check_datasets',
    'config_from',
    'describe_machine',
    'find_checkpoint',
    'join_processes',
    'latest_checkpoint',
    'leaf_datasets',
    'load_checkpoint',
    'load_config',
    'make_folder',
    'naming_the_cause',
    'run_tool',
]
