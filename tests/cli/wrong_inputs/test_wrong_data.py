"""Images and label maps that are broken or unusual: one line that names the file, or a run that trains."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from spoil import (
    as_folder,
    as_loop,
    as_mode,
    crop,
    fill,
    halve,
    images_of,
    labels_of,
    one_wrong_label,
    pixels,
    resize,
    with_palette,
    write,
)
from trial import NO_VALIDATION, SAME, SHORT, TRAIN, TRAINS, by_name, check


@dataclass(frozen=True)
class Spoilt:
    """A data set with files changed, and the line that it leads to, or ``SAME`` or ``TRAINS``.

    Attributes:
        image: Changes each image of the split.
        label: Changes each label map of the split.
    """

    name: str
    message: str
    image: Callable[[Path], object] | None = None
    label: Callable[[Path], object] | None = None
    split: str = 'train'


DATA_SETS = [
    Spoilt(
        'labels beyond the classes',
        "road \\(0\\), .* and 14 more. Other values do: 200, as in '.*labelTrainIds.png'. There is nothing",
        label=fill(200),
    ),
    Spoilt('a label one beyond the classes', "labelTrainIds.png' has labels 19; the", label=one_wrong_label),
    Spoilt(
        'labels of validation beyond the classes',
        "val/.*' has labels 200; the classes are",
        label=fill(200),
        split='val',
    ),
    Spoilt(
        'smaller label maps', r"TrainIds.png' has 24×48 .*8bit.png' 48×96 where they", label=resize((48, 24))
    ),
    Spoilt('larger label maps', r"TrainIds.png' has 96×192 .*8bit.png' 48×96", label=resize((192, 96))),
    Spoilt('label maps a column less wide', "TrainIds.png' has 48×95 .*' 48×96", label=resize((95, 48))),
    Spoilt(
        'smaller label maps of validation',
        r"val/.*' has 24×48 .*' 48×96",
        label=resize((48, 24)),
        split='val',
    ),
    Spoilt('label maps in colours', "labelTrainIds.png' has 3 channels, as colours", label=as_mode('RGB')),
    Spoilt(
        'label maps of validation in colours',
        "val/.*' has 3 channels, as colours",
        label=as_mode('RGB'),
        split='val',
    ),
    Spoilt('label maps with transparency', "labelTrainIds.png' has 2 channels", label=as_mode('LA')),
    Spoilt(
        'label maps of 16 bits beyond 8',
        r"labelTrainIds.png' has values up to \d+, which mmseg cuts to 8 bits",
        label=lambda path: write(path, pixels(path).astype(np.uint16) * 256),
    ),
    Spoilt(
        'label maps of 16 bits within 8', SAME, label=lambda path: write(path, pixels(path).astype(np.uint16))
    ),
    Spoilt('label maps with a palette', SAME, label=with_palette),
    Spoilt('label maps of one bit', TRAINS, label=lambda path: write(path, pixels(path) > 5)),
    Spoilt('nothing but ignored pixels', r'and 14 more. Other values do: 255 \(ignored\)', label=fill(255)),
    Spoilt('images with transparency', SAME, image=as_mode('RGBA')),
    Spoilt(
        'images of 16 bits',
        SAME,
        image=lambda path: cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257),
    ),
    Spoilt('grey images', TRAINS, image=as_mode('L')),
    Spoilt('images in CMYK', TRAINS, image=as_mode('CMYK', format='JPEG')),
    Spoilt('images of 3 by 3 pixels', TRAINS, image=crop(3, 3), label=crop(3, 3)),
    Spoilt(
        'images of 1 pixel',
        "TrainIds.png' has a single row or column of pixels",
        image=crop(1, 1),
        label=crop(1, 1),
    ),
    Spoilt('empty images', "8bit.png' cannot be read: it is empty", image=lambda path: path.write_bytes(b'')),
    Spoilt('halves of PNG images', r"8bit.png' cannot be read: is it whole", image=halve),
    Spoilt(
        'halves of JPEG images',
        r"8bit.png' cannot be read: is it whole",
        image=lambda path: (as_mode('RGB', format='JPEG')(path), halve(path)),
    ),
    Spoilt('images that are texts', "8bit.png' cannot be read", image=lambda path: path.write_text('text')),
    Spoilt(
        'images of validation that are texts',
        "image .*/val/.*8bit.png' cannot be read",
        image=lambda path: path.write_text('text'),
        split='val',
    ),
    Spoilt('images that are folders', r"no image ending in '_leftImg8bit.png' in", image=as_folder),
    Spoilt('images that are links to themselves', '8bit.png.: Too many levels of symbolic', image=as_loop),
    Spoilt('no images', "train_dataloader.dataset: no image ending in '_leftImg8bit.png'", image=Path.unlink),
    Spoilt('no label maps', "8bit.png' has no label map .*Ids.png', and so 7 others", label=Path.unlink),
    Spoilt(
        'no label maps of validation',
        'val_dataloader.dataset: .* has no label map .*/val',
        label=Path.unlink,
        split='val',
    ),
    Spoilt(
        'empty label maps', "TrainIds.png' cannot be read: it is e", label=lambda path: path.write_bytes(b'')
    ),
    Spoilt(
        'halves of label maps', "Ids.png' cannot be read: .*OSError: image file is truncated", label=halve
    ),
    Spoilt(
        'label maps that are texts', "Ids.png' cannot be read", label=lambda path: path.write_text('text')
    ),
    Spoilt('label maps that are folders', "TrainIds.png' cannot be read: Is a directory", label=as_folder),
]


@pytest.mark.parametrize('case', DATA_SETS, ids=by_name)
def test_data_sets(attempt, reference, tiny_configs, data, case):
    for path in images_of(data, case.split) if case.image else ():
        case.image(path)
    for path in labels_of(data, case.split) if case.label else ():
        case.label(path)
    options = [f'{loader}.dataset.data_root={data}' for loader in ('train_dataloader', 'val_dataloader')]
    options += [*SHORT, *(NO_VALIDATION if case.split == 'train' else ())]
    check(attempt(TRAIN, tiny_configs['student'], options=options), case.message, reference)


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda data: images_of(data)[3].write_text('text'), "8bit.png' cannot be read: is it whole, and an"),
        (lambda data: one_wrong_label(labels_of(data)[3]), "labelTrainIds.png' has labels 19"),
        (lambda data: crop(40, 40)(labels_of(data)[3]), "labelTrainIds.png' has 40×40 pixels"),
    ],
    ids=['text', 'label', 'size'],
)
def test_what_worker_processes_find(refused, tiny_configs, data, spoil, expected):
    spoil(data)
    options = [f'train_dataloader.dataset.data_root={data}', 'train_dataloader.num_workers=2', *SHORT]
    options += ['train_dataloader.batch_size=8', 'train_dataloader.persistent_workers=True']
    refused(expected, TRAIN, tiny_configs['student'], options=options)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('domain', ['channel', 'pixel'])
def test_distilling_where_all_pixels_are_ignored(attempt, reference, tiny_configs, data, domain, masked):
    for path in labels_of(data):
        fill(255)(path)
    options = [f'model.distill_losses.0.{key}' for key in (f'domain={domain}', f'mask_ignored={masked}')]
    options += [*SHORT, *NO_VALIDATION, f'train_dataloader.dataset.data_root={data}']
    check(attempt(TRAIN, tiny_configs['distilled'], options=options), TRAINS, reference)


@pytest.mark.parametrize('left', [1, 7])
def test_a_data_set_of_fewer_images(attempt, reference, tiny_configs, data, left):
    """One image, and one label map without an image, which nobody misses."""
    for path in images_of(data)[left:]:
        path.unlink()
    options = [*SHORT, *NO_VALIDATION, f'train_dataloader.dataset.data_root={data}']
    check(attempt(TRAIN, tiny_configs['student'], options=options), TRAINS, reference)
