"""A teacher that runs through the real ``torch.compile``."""

from functools import partial

import torch
from helpers import build

from bdd_seg.teachers.mmseg import MMSegTeacher

LOGITS = 'decode_head.conv_seg'


def test_compiles_for_any_size_of_crop(tiny_configs, batch, monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    arguments = str(tiny_configs['teacher']), str(tiny_configs['checkpoint'])
    teachers = MMSegTeacher(*arguments), MMSegTeacher(*arguments, compile=True)
    for teacher in teachers:
        teacher.build(build(tiny_configs['student']), [None])
    eager, compiled = teachers
    for inputs in (batch[0], batch[0][:, :, :24], batch[0][:1, :, :, :40]):
        torch.testing.assert_close(compiled(inputs).maps[LOGITS], eager(inputs).maps[LOGITS])
    assert compiled.network.is_compiled
