"""What numbers were measured on."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch


def describe_machine(gpu: bool) -> dict[str, Any]:
    """CPU, cores, GPU, torch and the date, to be kept beside a measurement.

    Args:
        gpu: Whether it is measured on the GPU.
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
