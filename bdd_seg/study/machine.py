"""Description of the machine that measures."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch


def describe_machine(gpu: bool) -> dict[str, Any]:
    """Return CPU, cores, threads, GPU, torch and the date, to be kept beside a measurement.

    Args:
        gpu: True for a measurement on the GPU, whose name is then included.
    """
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return {
        'cpu': names[0] if names else platform.processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if gpu else None,
        'torch': torch.__version__,
        'date': time.strftime('%Y-%m-%d'),
    }
