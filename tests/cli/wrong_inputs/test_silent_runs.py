"""Runs that would look well and learn nothing, or fail hours later: one line before the first step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from spoil import images_of, labels_of, pixels, resize, write
from trial import NO_VALIDATION, SHORT, TRAIN, TRAINS, Case, by_name, check

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


def pretrained(prefix: str | None = None) -> list[str]:
    options = ['type=Pretrained', 'checkpoint=TEACHER', *([] if prefix is None else [f'prefix={prefix}'])]
    return [f'model.backbone.init_cfg.{option}' for option in options]


CASES = [
    Case(
        'pretrained weights that fit nothing',
        r"^model.backbone.init_cfg: checkpoint '\S+' has filled no .* prefix='backbone.' beside it",
        config='teacher',
        options=pretrained(),
    ),
    Case('pretrained weights with their prefix', TRAINS, config='teacher', options=pretrained('backbone.')),
    Case(
        'pretrained weights with another prefix',
        "has no weights that begin with the prefix 'encoder'. Write prefix='backbone.'",
        config='teacher',
        options=pretrained('encoder'),
    ),
    Case(
        'padding that is no label',
        'seg_pad_val is 99',
        config='distilled',
        options=['model.data_preprocessor.seg_pad_val=99'],
    ),
    Case(
        'checkpointed activations',
        TRAINS,
        config='distilled',
        options=['activation_checkpointing=decode_head'],
    ),
]


@pytest.mark.parametrize('case', CASES, ids=by_name)
def test_configs(attempt, refused, tiny_configs, case):
    _, options = case.filled({'TEACHER': tiny_configs['checkpoint']})
    options = [*SHORT, *NO_VALIDATION, *options]
    if case.message == TRAINS:
        check(attempt(TRAIN, tiny_configs[case.config], options=options), TRAINS, reference=[])
    else:
        refused(case.message, TRAIN, tiny_configs[case.config], options=options)


def of_two_sizes(data: Path, split: str) -> None:
    for path in (images_of(data, split)[0], labels_of(data, split)[0]):
        resize((80, 64))(path)


def test_validation_in_batches_of_different_sizes(refused, tiny_configs, data):
    of_two_sizes(data, 'val')
    options = [f'val_dataloader.dataset.data_root={data}', 'val_dataloader.batch_size=2', *SHORT]
    refused('val_dataloader.batch_size=1$', TRAIN, tiny_configs['student'], options=options)


def test_masks_of_0_and_255(refused, tiny_configs, data):
    for path in labels_of(data):
        write(path, np.where(pixels(path) == 0, 0, 255).astype(np.uint8))
    options = [f'train_dataloader.dataset.data_root={data}', *SHORT, *NO_VALIDATION]
    refused(r'Other values do: 255 \(ignored\), as in', TRAIN, tiny_configs['student'], options=options)


def test_the_best_checkpoint_cannot_be_resumed(attempt, refused, tiny_configs, tmp_path):
    assert attempt(TRAIN, tiny_configs['student'], options=[*SHORT, *NO_VALIDATION]).message is None
    run = tmp_path / 'run'
    content = load_checkpoint(run / 'iter_2.pth')
    torch.save({key: content[key] for key in content if key != 'optimizer'}, run / 'best_mIoU_iter_2.pth')
    options = [*NO_VALIDATION, 'train_cfg.max_iters=4', f'load_from={run}/best_mIoU_iter_2.pth']
    expected = f"no optimizer state, .* Resume from '{run}/iter_2.pth'"
    refused(expected, TRAIN, tiny_configs['student'], flags=['--resume'], options=options)
