"""The gradients of one global batch, on however many processes run this file.

Under torchrun each process takes its share of the batch and DDP averages; the tests also call
:func:`of_one_process` on the whole batch.
"""

import argparse
import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from many_processes import TESTS, job, relative_errors, torchrun
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from warm_python import warm_python

import bdd_seg  # noqa: F401  registers the models

IMAGES = 4
FEATURES = {'student_tap': 'backbone.layer4', 'teacher_tap': 'backbone.layer4'}
LOSSES = {
    'channel': [{'type': 'BDDLoss', 'domain': 'channel', 'tau_forward': 2.0}],
    'pixel': [{'type': 'BDDLoss', 'domain': 'pixel', 'tau_reverse': 2.0}],
    'feature': [{'type': 'FeatureLoss', 'student_channels': 32, 'teacher_channels': 128, **FEATURES}],
    'masked channel': [{'type': 'BDDLoss', 'domain': 'channel', 'mask_ignored': True}],
    'masked pixel': [{'type': 'BDDLoss', 'domain': 'pixel', 'mask_ignored': True}],
    'mean over labelled': [{'type': 'BDDLoss'}],
}
"""Name of a case → its ``distill_losses``."""


WHOLE, HALF = 1.0, 0.5
RUNS = [
    ('channel', 'float32', 0.0),
    ('channel', 'float64', 0.0),
    ('pixel', 'float32', 0.0),
    ('pixel', 'float64', 0.0),
    ('feature', 'float32', 0.0),
    ('feature', 'float64', 0.0),
    ('masked channel', 'float64', WHOLE),
    ('masked channel', 'float64', HALF),
    ('masked pixel', 'float64', HALF),
    ('mean over labelled', 'float64', HALF),
    ('mean over labelled', 'float64', WHOLE),
]
LIMITS = {'float32': (1e-6, 1e-5), 'float64': (1e-9, 1e-8)}
"""Of the norm of all gradients' differences over the gradients', and of the worst parameter's. mmseg divides
by the number of pixels + 1e-7, hence no smaller ones."""


def global_batch(ignored: float) -> tuple[torch.Tensor, list[SegDataSample]]:
    """(4, 3, 32, 64) images in float64, and their labels 0 to 18 and 255.

    Args:
        ignored: The part of the first image's rows that is labelled 255; the third image has half of it.
    """
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(IMAGES, 3, 32, 64)))
    samples = []
    for i in range(IMAGES):
        label = rng.integers(0, 20, size=(1, 32, 64))
        label[label == 19] = 255
        label[:, : round(32 * ignored * {0: 1, 2: 0.5}.get(i, 0))] = 255
        sample = SegDataSample(metainfo={'img_shape': (32, 64), 'ori_shape': (32, 64)})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label))
        samples.append(sample)
    return images, samples


def student_of(config: str, case: str, dtype: torch.dtype) -> nn.Module:
    """A SegDistiller with its teacher, BatchNorm in eval mode with statistics of its own, no dropout."""
    cfg = Config.fromfile(config)
    cfg.model.distill_losses = LOSSES[case]
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.dropout_ratio = 0
        head.loss_decode.avg_non_ignore = case == 'mean over labelled'
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        cfg.model[part].norm_cfg = {'type': 'BN'}
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_()
        # Logits as wide as those of trained networks: the gradient of untrained ones is a difference of
        # nearly equal softmaxes, of which float32 keeps too few digits.
        model.decode_head.conv_seg.weight.mul_(50)
        model.teacher.model.decode_head.conv_seg.weight.mul_(20)
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model.to(dtype)


def gradients(
    model: nn.Module, images: torch.Tensor, samples: list[SegDataSample]
) -> dict[str, torch.Tensor]:
    """Of the sum of all losses, by the student's names; ``model`` may be wrapped in DDP."""
    student = model.module if isinstance(model, MMDistributedDataParallel) else model
    model.zero_grad()
    loss, _ = student.parse_losses(model(images, samples, mode='loss'))
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in student.named_parameters()}


def two_steps(model: nn.Module, images: torch.Tensor, samples: list[SegDataSample]) -> Iterator[dict]:
    """The gradients of a first and of a second step, which DDP refuses where a parameter was unused."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        yield gradients(model, images, samples)
        optimizer.step()


def of_one_process(
    config: str, case: str, dtype: torch.dtype, ignored: float, share: slice = slice(None)
) -> list[dict[str, torch.Tensor]]:
    """The two steps' gradients of one process that has the whole batch, or a share of it."""
    images, samples = global_batch(ignored)
    model = student_of(config, case, dtype)
    return list(two_steps(model, images[share].to(dtype), samples[share]))


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(
        b''.join(tensor.detach().numpy().tobytes() for tensor in tensors.values())
    ).hexdigest()


def of_this_process(config: str, case: str, dtype: torch.dtype, ignored: float) -> dict[str, Any]:
    """Return this process's gradients from its share of the batch, and whether the others got the same."""
    share = slice(distributed.get_rank(), None, distributed.get_world_size())
    images, samples = global_batch(ignored)
    model = student_of(config, case, dtype)
    if distributed.get_rank():
        with torch.no_grad():
            for parameter in model.parameters():  # DDP has to bring those of rank 0
                parameter.add_(1)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)  # as the Runner does
    steps = list(two_steps(wrapped, images[share].to(dtype), samples[share]))
    teacher = model.teacher.model.state_dict()
    return {
        'steps': steps,
        'gradients': set(all_gather_object(digest(steps[1]))),
        'weights': set(all_gather_object(digest(dict(model.named_parameters())))),
        'teachers': set(all_gather_object(digest(teacher))),
    }


def gradients_of(processes: int, config: Path, folder: Path, runs: list[tuple[str, str, float]]) -> dict:
    """Return the gradients that this file writes when so many processes run it."""
    script = TESTS / 'gradients_of_processes.py'
    command = [*torchrun(processes, python=warm_python()), script, config, folder / 'gradients.pth']
    names = [','.join(map(str, run)) for run in runs]
    with job([*command, *names], folder / 'log.txt', folder) as started:
        assert started.wait() == 0, started.output[-3000:]
    results = torch.load(folder / 'gradients.pth', weights_only=False)
    assert [*results] == ['sync_bn', *names]
    return results


def check_gradients(
    results: dict, processes: int, config: Path, case: str, dtype: str, ignored: float
) -> None:
    """Against those of one process, which has all images, or has the others' shares in turn."""
    result = results[f'{case},{dtype},{ignored}']
    arguments = config, case, getattr(torch, dtype), ignored
    whole = of_one_process(*arguments)
    shares = [of_one_process(*arguments, slice(i, None, processes)) for i in range(processes)]
    mean = {name: sum(share[0][name] for share in shares) / processes for name in whole[0]}
    every, worst = LIMITS[dtype]
    for step, reference in enumerate(whole if dtype == 'float64' else whole[:1]):
        errors = relative_errors(result['steps'][step], reference)
        # Means over what counts (of the positions, or of the images where the domain is the image) are each
        # process's own, and DDP's mean of those weighs all processes alike.
        if case in ('masked pixel', 'mean over labelled') or (case, ignored) == ('masked channel', WHOLE):
            assert errors[0] > 1e-3
        else:
            assert errors[0] < every and errors[1] < worst, (step, errors)
    errors = relative_errors(result['steps'][0], mean)
    assert errors[0] < every and errors[1] < worst, errors
    assert any(name.startswith('distill_losses') for name in mean) is (case == 'feature')
    for what in ('gradients', 'weights', 'teachers'):
        assert len(result[what]) == 1, f'{what} differ between the processes'


def complaint_of_sync_bn() -> str:
    try:
        nn.SyncBatchNorm(3)(torch.zeros(2, 3, 4, 4))
    except ValueError as error:
        return str(error)
    return ''


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('out')
    parser.add_argument('runs', nargs='+', help='CASE,DTYPE,IGNORED')
    args = parser.parse_args()
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    distributed.init_process_group('gloo')
    results: dict[str, Any] = {'sync_bn': complaint_of_sync_bn()}
    for run in args.runs:
        case, dtype, ignored = run.split(',')
        results[run] = of_this_process(args.config, case, getattr(torch, dtype), float(ignored))
    if distributed.get_rank() == 0:
        torch.save(results, args.out)
    gc.collect()  # DDP's users of the group, which could abort the process at its end
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
