"""Recorded answers: exact to float16, the same for every student, and of this teacher and crop alone."""

import re
import shutil

import pytest
import torch
from helpers import logged_losses, same, train, weights
from safetensors import safe_open

from bdd_seg.errors import ConfigError
from bdd_seg.teachers import MMSegTeacher
from bdd_seg.teachers.recording import RESERVE, Recording, compact, image_digests

LOGITS, LAYER = 'decode_head.conv_seg', 'backbone.layer4'


def teacher_of(tiny_configs, student, folder, taps=(None,), **options):
    teacher = MMSegTeacher(
        str(tiny_configs['teacher']), str(tiny_configs['checkpoint']), record=folder, **options
    )
    teacher.build(student, taps)
    return teacher


def silenced(teacher):
    """The teacher with a network that fails if it is run."""

    def fail(images):
        raise AssertionError('the network ran')

    teacher._run = fail
    return teacher


def test_answers_are_replayed_without_the_network(tiny_configs, student, batch, tmp_path):
    inputs, _ = batch
    live = teacher_of(tiny_configs, student, None)(inputs).maps[LOGITS]
    recorded = teacher_of(tiny_configs, student, tmp_path)(inputs).maps[LOGITS]
    assert recorded.dtype == live.dtype
    assert torch.equal(recorded, live.half().float()) and not torch.equal(recorded, live)
    replay = silenced(teacher_of(tiny_configs, student, tmp_path))
    assert torch.equal(replay(inputs).maps[LOGITS], recorded)
    assert torch.equal(replay(inputs.flip(0)[:1]).maps[LOGITS], recorded[1:])  # in batches of any kind


def test_a_teacher_in_bfloat16_is_recorded_exactly(tiny_configs, student, batch, tmp_path):
    inputs, _ = batch
    live = teacher_of(tiny_configs, student, None, precision='bf16')(inputs).maps[LOGITS]
    assert torch.equal(
        teacher_of(tiny_configs, student, tmp_path, precision='bf16')(inputs).maps[LOGITS], live
    )
    replay = silenced(teacher_of(tiny_configs, student, tmp_path, precision='bf16'))
    assert torch.equal(replay(inputs).maps[LOGITS], live)


def test_another_crop_and_another_teacher_are_answered_live(tiny_configs, student, batch, tmp_path):
    inputs, _ = batch
    teacher_of(tiny_configs, student, tmp_path)(inputs)
    changed = inputs.clone()
    changed[0, 0, 0, 0] += 1e-3
    content = torch.load(tiny_configs['checkpoint'], weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'] += 1
    torch.save(content, tmp_path / 'other.pth')
    other_weights = MMSegTeacher(str(tiny_configs['teacher']), tmp_path / 'other.pth', record=tmp_path)
    other_weights.build(student, [None])
    others = {
        'crop': (teacher_of(tiny_configs, student, tmp_path), changed),
        'weights': (other_weights, inputs),
        'precision': (teacher_of(tiny_configs, student, tmp_path, precision='bf16'), inputs),
    }
    for teacher, images in others.values():
        with pytest.raises(AssertionError, match='the network ran'):
            silenced(teacher)(images)
    with pytest.raises(AssertionError, match='the network ran'), torch.autocast('cpu', torch.bfloat16):
        silenced(teacher_of(tiny_configs, student, tmp_path))(inputs)


def test_further_taps_join_those_that_are_there(tiny_configs, student, batch, tmp_path):
    inputs, _ = batch
    logits = teacher_of(tiny_configs, student, tmp_path)(inputs).maps[LOGITS]
    both = teacher_of(tiny_configs, student, tmp_path, [None, LAYER])(inputs).maps
    (folder,) = tmp_path.iterdir()
    for file in folder.rglob('*.safetensors'):
        with safe_open(file, framework='pt') as content:
            assert {*content.keys()} == {LOGITS, LAYER}
    replay = silenced(teacher_of(tiny_configs, student, tmp_path, [None, LAYER]))(inputs).maps
    assert same(replay, both) and torch.equal(both[LOGITS], logits)


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'gone'])
def test_a_damaged_file_is_made_anew(tiny_configs, student, batch, tmp_path, damage):
    inputs, _ = batch
    first = teacher_of(tiny_configs, student, tmp_path)(inputs).maps[LOGITS]
    file = next(tmp_path.rglob('*.safetensors'))
    content = file.read_bytes()
    if damage == 'gone':
        file.unlink()
    else:
        file.write_bytes(content[:-4] if damage == 'cut' else content[:-1] + bytes([content[-1] ^ 1]))
    second = teacher_of(tiny_configs, student, tmp_path)(inputs).maps[LOGITS]
    assert torch.allclose(second, first, rtol=2**-9, atol=1e-6)  # computed for one image, rounded to float16
    replay = silenced(teacher_of(tiny_configs, student, tmp_path))
    assert torch.equal(replay(inputs).maps[LOGITS], second)


@pytest.mark.parametrize(
    'values, dtype',
    [
        ([0.0, -3.5, 2.0**-100, 2.0**100], torch.bfloat16),  # float16 would lose the small one and overflow
        ([0.1, 1 / 3], torch.float16),
        ([1.0, 1.001953125], torch.float16),  # 1 + 2**-9, which bfloat16 rounds off
    ],
)
def test_the_smallest_exact_type(values, dtype):
    value = torch.tensor(values)
    stored = compact(value)
    assert stored.dtype == dtype
    assert (stored.float() - value).abs().max() <= 2**-11 * value.abs().max()


def test_digests_tell_content_shape_and_dtype_apart_and_no_memory_format():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    digests = image_digests(images)
    assert digests == image_digests(images.contiguous(memory_format=torch.channels_last))
    others = [images[:1].reshape(1, 3, 2, 8), images[:1].view(torch.int32), images[1:], images[:1] + 1]
    assert len({digests[0], *(image_digests(other)[0] for other in others)}) == 5


@pytest.mark.parametrize('value', [70001.0, float('nan'), float('inf')])
def test_what_cannot_be_stored_is_refused(tmp_path, value):
    recording = Recording(tmp_path, {})
    with pytest.raises(ConfigError, match='big has values that are not finite, or too large for float16'):
        recording.answer(
            torch.zeros(1, 3, 2, 2), ['big'], lambda images: {'big': torch.full((1, 1, 1, 1), value)}
        )
    assert not list(tmp_path.rglob('*.safetensors'))


def test_only_the_missing_images_are_computed(tmp_path):
    images, seen = torch.arange(4.0).reshape(4, 1, 1, 1), []

    def compute(some):
        seen.append(some.flatten().tolist())
        return {'twice': 2 * some}

    recording = Recording(tmp_path, {})
    for batch, expected in ((images[1:3], [1, 2]), (images, [0, 3])):
        found = recording.answer(batch, ['twice'], compute)['twice']
        assert torch.equal(found, 2 * batch)
        assert seen.pop() == expected
    assert torch.equal(recording.answer(images.flip(0), ['twice'], compute)['twice'], 2 * images.flip(0))
    assert not seen


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(3, 1, RESERVE - 1))
    told = []
    monkeypatch.setattr('bdd_seg.teachers.recording.print_log', lambda text, **_: told.append(text))
    recording = Recording(tmp_path, {})
    for i in range(3):
        found = recording.answer(
            torch.full((1, 3, 2, 2), float(i)), ['a'], lambda images: {'a': images[:, :1]}
        )
        assert torch.equal(found['a'], torch.full((1, 1, 2, 2), float(i)))
    assert not list(tmp_path.rglob('*.safetensors'))
    assert len(told) == 2 and 'less than 2.0 GB left: nothing more is recorded' in told[1]


def test_the_recording_is_the_same_whether_or_not_the_teacher_ran_before(
    tiny_configs, student, batch, tmp_path
):
    """A first look runs it on one process of many, and not in a resumed training."""
    inputs, _ = batch
    teacher = teacher_of(tiny_configs, student, tmp_path)
    with torch.no_grad():
        teacher(inputs[:1])
    assert not list(tmp_path.iterdir())
    teacher(inputs)
    silenced(teacher_of(tiny_configs, student, tmp_path))(inputs)


def test_trainings_with_a_live_a_recorded_and_a_replayed_teacher_are_one(tiny_configs, tmp_path):
    """Bit for bit, with a teacher in bfloat16, through the tool."""
    folder = tmp_path / 'record'
    options = ['--cfg-options', 'model.teacher.precision=bf16']
    train(tiny_configs['distilled'], tmp_path / 'live', *options)
    outputs = [
        train(tiny_configs['distilled'], tmp_path / name, *options, f'model.teacher.record={folder}')
        for name in ('first', 'second')
    ]
    assert re.search(r'teacher is recorded in .*: 1\.2 kB a crop, at most 14\.6 kB for the rest', outputs[0])
    assert 'The teacher is replayed from' in outputs[1]
    live = tmp_path / 'live'
    for name in ('first', 'second'):
        assert same(weights(tmp_path / name / 'iter_6.pth'), weights(live / 'iter_6.pth'))
        assert logged_losses(tmp_path / name) == logged_losses(live)
