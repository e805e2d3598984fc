"""Distil with a network of every family whose configs mmseg ships, and print docs/families.md.

The networks are those of the configs, but shallower and narrower where a setting says how deep and wide they
are, with two classes, and untrained. Images have 64×64 pixels.
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mmseg
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models import MultimodalEncoderDecoder
from mmseg.models.decode_heads import SideAdapterCLIPHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import bdd_seg  # noqa: F401  registers the models
from bdd_seg.cli.parts import check_parts
from bdd_seg.distill import SegDistiller
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers import MMSegTeacher
from bdd_seg.teachers.network import input_bands

CONFIGS = Path(mmseg.__file__).parent / '.mim/configs'

# Configs with other heads than the first one of their family has.
MORE = (
    'segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py',
    'setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768.py',
    'setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py',
)

# The one family's teacher, and the other's student.
PARTNER = 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

CASES = sorted(
    [
        *(
            str(min(folder.glob('*.py')).relative_to(CONFIGS))
            for folder in CONFIGS.iterdir()
            if folder.name != '_base_' and any(folder.glob('*.py'))
        ),
        *MORE,
    ]
)
"""FOLDER/NAME.py of the first config of each family, and some more."""

_CLASSES = 2

# Lite R-ASPP pools 49×49 cells of 8 pixels.
_SIZES = {'mobilenet_v3': 400}

# Backbones whose width is a setting, and the settings that depend on it.
_WIDTH_IS_A_SETTING = {
    *('ResNet', 'ResNetV1c', 'ResNeSt', 'VisionTransformer', 'BEiT', 'MAE', 'SwinTransformer', 'PCPVT'),
    *('MixVisionTransformer', 'MSCAN'),
}
_WIDTHS = {
    *('embed_dims', 'embed_dim', 'in_channels', 'out_channels', 'channels', 'c1_in_channels', 'c1_channels'),
    *('feat_channels', 'post_process_channels', 'mid_channels', 'mla_channels', 'up_channels'),
}

PAGE = """# Which of mmseg's networks distil

The first config of each family that mmseg 1.4.2 ships, and some more, as the student of one teacher and
as the teacher of one student (both PSPNet-R18). Each network is that of its config, made small, with
random weights, and trains for one step with `BDDLoss` on images of 64×64 pixels (400×400 for
MobileNetV3, whose head pools over so many). *Yes* means that every loss is finite, that the student's
parameters get a gradient from the teacher, and, for a teacher, that its class logits are those of
mmseg's own inference. {distil} of the {all} rows distil in both roles; of the others the reason is what
the error says. "Please install onedl-mmcv" means mmcv's compiled operators, which its wheel lacks.
[Networks that need compiled operators](compiled_operators.md) has alternatives.

```bash
OMP_NUM_THREADS=1 python tests/stress/families.py > docs/families.md
```

| family | config | as student | as teacher | reason |
| --- | --- | --- | --- | --- |
"""


def small_model(config: str, size: int = 64) -> ConfigDict:
    """Return the model of one of mmseg's configs for images of this size and two classes, untrained."""
    model = load_config(f'mmseg::{config}').model
    for part in _dicts(model):
        for key in ('pretrained', 'init_cfg'):
            if part.get(key):
                part[key] = None
        part.pop('class_weight', None)
        if 'num_classes' in part:
            part['num_classes'] = _CLASSES
        if part.get('depth', 0) > 50:
            part['depth'] = 50
        if isinstance(part.get('num_layers'), int) and 'out_indices' in part:
            part['num_layers'] = len(part['out_indices'])
            part['out_indices'] = tuple(range(part['num_layers']))
        for key in ('depths', 'num_layers'):
            if isinstance(part.get(key), list | tuple):
                part[key] = [1] * len(part[key])
        if 'img_size' in part:
            part['img_size'] = (size, size)
        if part.get('type') == 'CLIPTextEncoder':
            part.update(dataset_name=None, vocabulary=[f'class {i}' for i in range(_CLASSES)])
    if model.get('backbone', {}).get('type') in _WIDTH_IS_A_SETTING:
        if 'depth' in model.backbone:
            model.backbone.update(base_channels=8, stem_channels=8)
        for part in _dicts([model.get(key) for key in ('backbone', 'neck', 'decode_head', 'auxiliary_head')]):
            for key in _WIDTHS & part.keys():
                part[key] = _narrower(part[key])
    model.data_preprocessor.pop('size_divisor', None)
    model.data_preprocessor.update(size=(size, size), test_cfg=None)
    model.test_cfg.mode = 'whole'
    return model


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _dicts(part)


def _narrower(width: Any) -> Any:
    if isinstance(width, list | tuple):
        return type(width)(_narrower(one) for one in width)
    return width // 8 if isinstance(width, int) and width > 16 else width


def batch(size: int) -> tuple[Tensor, list[SegDataSample]]:
    """Return (2, 3, size, size) normalised images, and their samples, some of whose labels are ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    samples = []
    for _ in images:
        shape = (size, size)
        sample = SegDataSample(metainfo={'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape})
        label = torch.randint(0, _CLASSES + 1, (1, *shape), generator=generator)
        label[label == _CLASSES] = 255
        sample.gt_sem_seg = PixelData(data=label)
        sample.gt_edge_map = PixelData(data=(label == 0).long())  # which PIDNet's pipeline makes
        samples.append(sample)
    return images, samples


def save(model: ConfigDict, checkpoint: Path) -> nn.Module:
    """Save random weights for a model; return its network as mmseg runs it."""
    torch.manual_seed(0)
    network = revert_sync_batchnorm(MODELS.build(copy.deepcopy(model)))
    if isinstance(network, MultimodalEncoderDecoder):  # SAN cannot be initialised, only loaded
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.05)
    else:
        network.init_weights()
    torch.save({'state_dict': network.state_dict()}, checkpoint)
    return network.eval()


def distiller(student: ConfigDict, teacher: ConfigDict, checkpoint: Path) -> tuple[SegDistiller, nn.Module]:
    """Return the student with its teacher, and the teacher's network as mmseg runs it.

    Settings are checked and models built as tools/train.py does it on one process.
    """
    cascade = 'Cascade' if student.type == 'CascadeEncoderDecoder' else ''
    settings = {
        **student,
        'type': f'{cascade}SegDistiller',
        'teacher': {'config': teacher, 'checkpoint': str(checkpoint)},
        'distill_losses': [{'type': 'BDDLoss'}],
    }
    check_parts(Config({'model': settings, 'default_scope': 'mmseg'}), ['model'], train=True)
    network = save(teacher, checkpoint)
    torch.manual_seed(1)
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(settings)))
    model.init_weights()
    return model.train(), network


def check_step(model: SegDistiller, size: int) -> None:
    """Train for one step: all is finite, and the student learns from the teacher."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = model.loss(*batch(size))
    total, log = model.parse_losses(losses)
    assert 'distill.teacher_acc' in log
    assert [name for name, value in log.items() if not value.isfinite()] == []
    gradients = torch.autograd.grad(
        losses['distill.loss_bdd'], parameters, retain_graph=True, allow_unused=True
    )
    assert sum(gradient.norm() for gradient in gradients if gradient is not None) > 0
    total.backward()
    torch.optim.SGD(parameters, lr=1e-4).step()
    assert [name for name, value in model.named_parameters() if not value.isfinite().all()] == []


def check_answer(teacher: MMSegTeacher, network: nn.Module, size: int) -> None:
    """Compare the teacher's logits with those of mmseg's own inference."""
    images, samples = batch(size)
    answer = teacher(images).maps[teacher.logits_tap]
    torch.manual_seed(0)  # SegNeXt's head draws random numbers
    with torch.no_grad():
        predicted = network.predict(teacher.prepare(images), samples)
    expected = torch.stack([sample.seg_logits.data for sample in predicted])
    if isinstance(network.decode_head, SideAdapterCLIPHead):  # it predicts scores
        expected = expected.log()
    answer = resize(answer, (size, size), mode='bilinear', align_corners=network.align_corners)
    assert (answer.argmax(1) == expected.argmax(1)).double().mean() > 0.999
    # A number that all classes have in common is no difference.
    ours, theirs = (logits[:, 0] - logits[:, 1] for logits in (answer, expected))
    assert theirs.std() > 0
    rounding = 2e-6 * expected.abs().max()  # of float32
    assert (ours - theirs).abs().max() < 0.01 * theirs.std() + rounding


def as_student(config: str, size: int, folder: Path) -> None:
    """Teach the network of a config."""
    model, _ = distiller(small_model(config, size), small_model(PARTNER), folder / 'teacher.pth')
    assert input_bands(model) == 3
    check_step(model, size)


def as_teacher(config: str, size: int, folder: Path) -> None:
    """Let the network of a config teach."""
    model, network = distiller(small_model(PARTNER), small_model(config, size), folder / 'teacher.pth')
    assert input_bands(model.teacher.model) == 3
    check_step(model, size)
    check_answer(model.teacher, network, size)


def problem(case: str, role: Callable[[str, int, Path], None], folder: Path) -> str:
    """Return the reason why a case ends in an error, from its first line; nothing where it distils."""
    try:
        role(case, _SIZES.get(case.partition('/')[0], 64), folder)
    except Exception as error:  # of any kind, by mmseg or by this package
        sentence = f'{type(error).__name__}: {error}'.splitlines()[0].partition('. ')[0]
        return sentence.strip(' .:').rpartition(': ')[2]  # before it stands the place
    return ''


def row(case: str, folder: Path) -> str:
    """Return a case's row of the table."""
    student, teacher = (problem(case, role, folder) for role in (as_student, as_teacher))
    reasons = [student, teacher]
    if student != teacher:
        reasons = [
            f'{role}: {reason}' for role, reason in (('student', student), ('teacher', teacher)) if reason
        ]
    cells = [*case.split('/'), *('no' if reason else 'yes' for reason in (student, teacher))]
    return f'| {" | ".join([*cells, "; ".join(dict.fromkeys(reasons))])} |'


def prepare() -> None:
    """Build networks without a word, as one thread."""
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    MMLogger.get_current_instance().setLevel('ERROR')


if __name__ == '__main__':
    prepare()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, case in enumerate(CASES, 1):
            print(f'{number}/{len(CASES)} {case}', file=sys.stderr)
            with redirect_stdout(sys.stderr):  # some networks print
                rows.append(row(case, Path(temporary)))
    distil = sum('| yes | yes |' in one for one in rows)
    print(PAGE.format(distil=distil, all=len(rows)) + '\n'.join(rows))
