"""Trained networks, whichever kind of file they lie in."""

import shutil

import pytest
import torch
from helpers import build
from mmengine.config import Config
from safetensors.torch import save_file

from bdd_seg.deploy.load import build_plain, find_pair, load_trained, training_config_file
from bdd_seg.errors import ConfigError


@pytest.fixture
def published(tiny_configs, tmp_path):
    """A folder with the student's checkpoint and its config of the same name."""
    model = build(tiny_configs['student'])
    torch.save({'state_dict': model.state_dict(), 'meta': {'iter': 6}}, tmp_path / 'student.pth')
    shutil.copy(tiny_configs['student'], tmp_path / 'student.py')
    return model, tmp_path


def test_each_form_gives_the_same_network(published, tiny_configs):
    model, folder = published
    save_file(model.state_dict(), folder / 'student.safetensors')
    work_dir = folder / 'work'
    work_dir.mkdir()
    shutil.copy(folder / 'student.pth', work_dir / 'iter_6.pth')
    shutil.copy(folder / 'student.py', work_dir / 'any_name.py')
    for source in (
        (tiny_configs['student'], folder / 'student.pth'),
        (folder / 'student.pth',),
        (folder / 'student.safetensors',),
        (work_dir,),
    ):
        trained = load_trained(*source)
        assert not trained.model.training
        assert torch.equal(trained.model.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)
        assert trained.about.classes[:2] == ('road', 'sidewalk')
    assert load_trained(work_dir).meta == {'iter': 6}


def test_other_weights_in_a_work_dir_keep_their_config(published, tiny_configs):
    """As exported or published ones have it beside them."""
    model, folder = published
    for name in ('iter_6.pth', 'small.pth', 'other.safetensors'):
        shutil.copy(folder / 'student.pth', folder / name)
    for name in ('training.py', 'small.py', 'other.py'):
        shutil.copy(tiny_configs['student'], folder / name)
    assert find_pair(folder) == (str(folder / 'training.py'), str(folder / 'iter_6.pth'))
    assert find_pair(folder / 'small.pth')[0] == str(folder / 'small.py')


def test_checkpoints_of_a_training_have_its_config(published, tiny_configs):
    """Not that of a later test, which may have replaced the one in the work dir."""
    _, folder = published
    assert training_config_file(folder) is None
    for session, record in (('20250101', 'loss'), ('20250102', 'loss'), ('20250103', 'mIoU')):
        (folder / session / 'vis_data').mkdir(parents=True)
        (folder / session / 'vis_data/scalars.json').write_text(f'{{"{record}": 1.0, "step": 1}}')
        shutil.copy(tiny_configs['student'], folder / session / 'vis_data/config.py')
    trained = folder / '20250102/vis_data/config.py'
    shutil.copy(tiny_configs['student'], folder / 'tested.py')
    for name in ('iter_6.pth', 'best_mIoU_iter_3.pth', 'other.pth'):
        shutil.copy(folder / 'student.pth', folder / name)
    assert training_config_file(folder) == trained
    assert find_pair(folder) == (str(trained), str(folder / 'iter_6.pth'))
    assert find_pair(folder / 'best_mIoU_iter_3.pth')[0] == str(trained)
    assert find_pair(folder / 'other.pth')[0] == str(folder / 'tested.py')
    assert find_pair(folder / 'student.pth')[0] == str(folder / 'student.py')
    trained.unlink()
    assert training_config_file(folder) == folder / '20250101/vis_data/config.py'


def test_heads_of_the_training_are_left_out(published, tiny_configs):
    _, folder = published
    trained = load_trained(tiny_configs['student'], folder / 'student.pth')
    assert not any(name.startswith('auxiliary_head') for name in trained.model.state_dict())
    assert 'auxiliary_head' not in trained.cfg.model
    assert 'auxiliary_head' in Config.fromfile(tiny_configs['student']).model


def test_a_distillers_network_is_its_student(tiny_configs, published):
    model, folder = published
    trained = load_trained(tiny_configs['distilled'], folder / 'student.pth')
    assert type(trained.model).__name__ == 'EncoderDecoder' and trained.cfg.model.type == 'EncoderDecoder'


def test_nothing_is_downloaded(tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': 'https://x.invalid/r.pth'}
    build_plain(cfg)
    assert cfg.model.backbone.init_cfg['type'] == 'Pretrained'


def test_wrong_inputs(published, tiny_configs):
    _, folder = published
    empty = folder / 'empty'
    empty.mkdir()
    shutil.copy(folder / 'student.pth', empty / 'x.pth')
    (folder / 'bad.safetensors').write_bytes(b'text')
    for source, message in [
        ((folder / 'no.pth',), 'does not exist. Give CONFIG.py CHECKPOINT'),
        ((tiny_configs['student'],), 'give the checkpoint, too'),
        ((tiny_configs['student'], folder / 'no.pth'), "no.pth' does not exist"),
        ((tiny_configs['student'], folder / 'no.safetensors'), "no.safetensors' does not exist"),
        ((tiny_configs['student'], folder / 'bad.safetensors'), 'is damaged'),
        ((tiny_configs['teacher'], folder / 'student.pth'), 'does not fit the model of'),
        ((empty / 'x.pth',), 'no config beside it'),
        ((empty / '..' / 'work',), 'does not exist'),
        ((folder / 'no.onnx',), 'does not exist'),
    ]:
        with pytest.raises(ConfigError, match='.') as raised:
            load_trained(*source)
        assert message in str(raised.value) and '\n' not in str(raised.value)
    (empty / 'x.pth').unlink()
    with pytest.raises(ConfigError, match='holds no checkpoint'):
        find_pair(empty)
    for name in ('a.py', 'b.py'):
        (empty / name).touch()
    (empty / 'x.pth').touch()
    with pytest.raises(ConfigError, match=r'several configs beside it \(a.py, b.py\)'):
        find_pair(empty / 'x.pth')
