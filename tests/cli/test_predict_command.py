"""`bdd-seg predict`: what the command line takes, and its users' mistakes in one line."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, Hostile, build, complaint
from mmengine.config import Config
from PIL import Image
from small_network import ABOUT, onnx_file

from bdd_seg.cli import predict
from bdd_seg.deploy.predict import MARK

TOOL = ROOT / 'bdd_seg/cli/predict.py'


@pytest.fixture(scope='module')
def trained(tiny_configs, tmp_path_factory) -> Path:
    """A work dir: the student's weights with its distiller's config."""
    folder = tmp_path_factory.mktemp('work')
    shutil.copy(tiny_configs['distilled'], folder / 'distilled.py')
    torch.manual_seed(0)
    model = build(Config.fromfile(tiny_configs['student']))
    meta = {'dataset_meta': {'classes': ('road', *(f'class {i}' for i in range(18)))}, 'iter': 6}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'iter_6.pth')
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command and return what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['predict', *map(str, words)])
        predict.main()
        return capsys.readouterr()

    return run


def test_every_form_of_a_model_gives_the_same(command, trained, scenes, tmp_path):
    images = scenes / 'leftImg8bit/val'
    forms = [[trained / 'distilled.py', trained / 'iter_6.pth'], [trained], [trained / 'iter_6.pth']]
    maps = []
    for number, model in enumerate(forms):
        out = tmp_path / str(number)
        printed = command(*model, images, '--out', out, '--workers', 0, '--no-overlay').out
        assert f'{out}: 4 images in ' in printed and 'images/s)' in printed
        maps.append([np.array(Image.open(file)) for file in sorted(out.rglob('*.png'))])
    assert len(maps[0]) == 4
    assert all(np.array_equal(a, b) for a, *others in zip(*maps, strict=True) for b in others)


def test_broken_files_are_named_and_counted(command, trained, scenes, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    (folder / 'text.png').write_text('hello')
    (folder / 'empty.jpg').touch()
    shutil.copy(next((scenes / 'leftImg8bit/val').rglob('*.png')), folder / 'good.png')
    said = command(trained, folder / '*', '--out', tmp_path / 'out', '--workers', 0)
    assert '1 image in ' in said.out and '2 skipped, as said above' in said.out
    assert f'skipped {folder / "text.png"}: image {str(folder / "text.png")!r} cannot be read' in said.err
    assert 'it is empty' in said.err
    assert (tmp_path / 'out/overlays/good.jpg').exists()
    again = command(trained, folder, '--out', tmp_path / 'out', '--workers', 0, '--skip-existing')
    assert (
        'passed over, since the outputs are there: 1' in again.out
    )  # and its exit code is 0, though all others are broken


def test_images_and_a_video_at_once(command, trained, scenes, tmp_path):
    image = cv2.imread(str(next((scenes / 'leftImg8bit/val').rglob('*.png'))))
    cv2.imwrite(str(tmp_path / 'one.png'), image)
    writer = cv2.VideoWriter(str(tmp_path / 'v.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 5, (96, 48))
    for _ in range(2):
        writer.write(image)
    writer.release()
    out = tmp_path / 'out'
    printed = command(trained, tmp_path, '--out', out, '--workers', 0, '--labels', '--device', 'cpu').out
    assert '1 image and 1 video with 2 frames in' in printed
    found = sorted(str(file.relative_to(out)) for file in out.rglob('*') if file.is_file())
    frames = [f'labels/v/{number:08d}.png' for number in range(2)]
    assert found == [MARK, 'labels/one.png', *frames, 'overlays/one.jpg', 'overlays/v.mp4']


def test_files_of_others_are_kept(trained, scenes, tmp_path, command, monkeypatch):
    """A data set has labels of its own, under the same names as predictions would."""
    (tmp_path / 'images').mkdir()
    shutil.copy(next((scenes / 'leftImg8bit/val').rglob('*.png')), tmp_path / 'images/a.png')
    truth = tmp_path / 'labels/a.png'
    truth.parent.mkdir()
    Image.new('L', (96, 48), 7).save(truth)
    before = truth.read_bytes()
    words = [trained, tmp_path / 'images', '--out', tmp_path, '--workers', 0, '--no-overlay']
    for further in ([], ['--skip-existing']):
        said = complaint(monkeypatch, TOOL, *words, *further)
        assert f'{str(truth.parent)!r} holds files that bdd-seg predict has not written' in said
    assert truth.read_bytes() == before and not (tmp_path / MARK).exists()
    command(*words, '--force')
    assert truth.read_bytes() != before
    truth.write_bytes(b'old')
    command(*words)  # it is a folder of predictions by now
    assert truth.read_bytes() != b'old'


def test_a_file_names_the_preparation_that_it_does_not_hold(command, scenes, tmp_path):
    image = next((scenes / 'leftImg8bit/val').rglob('*.png'))
    for transforms, line in ((), ''), (('CLAHE', 'Rerange'), 'expects images prepared by CLAHE, Rerange'):
        file = onnx_file(tmp_path / 'x.onnx', ABOUT.model_copy(update={'prepared_by': transforms}))
        said = command(file, image, '--out', tmp_path / 'out', '--workers', 0, '--device', 'cpu').err
        assert line in said and bool(said) == bool(line)


@pytest.mark.parametrize(
    'words, message',
    [
        (['{work}', 'nowhere.jpg'], "input 'nowhere.jpg' does not exist"),
        (['{work}', '{empty}'], 'holds no image'),
        (['{work}', '{empty}/*.jpg'], 'holds no image'),
        (['{lonely}', '{image}'], 'has no config beside it'),
        (['{empty}', '{image}'], 'holds no checkpoint'),
        (['nowhere.pth', '{image}'], "'nowhere.pth' does not exist"),
        (['{work}/distilled.py', '{image}'], 'is a config: give its checkpoint after it'),
        (['{work}/distilled.py', '{work}/iter_6.pth'], 'give images, folders or videos after'),
        (['{work}/iter_6.pth', '{work}/iter_6.pth', '{image}'], 'give its config before it'),
        (['{teacher}', '{work}/iter_6.pth', '{image}'], 'does not fit the model of'),
        (['{work}/distilled.py', '{hostile}', '{image}'], 'holds more than weights and is refused'),
        (['{work}', '{text}'], 'nothing could be predicted: 1 skipped'),
        (['{work}', '{text}', '--batch-size', '0'], '--batch-size 0 is out of range'),
        (['{work}', '{text}', '--opacity', '1.5'], '--opacity 1.5 is out of range'),
        (['{work}', '{image}', '--device', 'cuda:77'], "--device 'cuda:77' cannot be used"),
        (['{work}', '{image}', '--device', 'gpu'], "--device 'gpu' cannot be used"),
        (['{work}', '{video}', '--no-overlay'], 'leaves nothing to write of a video'),
        (['{work}', '{video}'], 'nothing could be predicted: 1 skipped'),
        (['{work}', '{image}', '--out', '{text}'], 'is a file, not a folder'),
    ],
)
def test_mistakes_end_in_one_line(words, message, trained, tiny_configs, scenes, tmp_path, monkeypatch):
    places = {
        'work': trained,
        'teacher': tiny_configs['teacher'],
        'image': next((scenes / 'leftImg8bit/val').rglob('*.png')),
        'empty': tmp_path / 'empty',
        'text': tmp_path / 'text.png',
        'video': tmp_path / 'v.mp4',
        'lonely': tmp_path / 'lonely/model.pth',
        'hostile': tmp_path / 'hostile.pth',
    }
    places['empty'].mkdir()
    places['lonely'].parent.mkdir()
    shutil.copy(trained / 'iter_6.pth', places['lonely'])
    places['text'].write_text('hello')
    places['video'].write_text('hello')
    torch.save({'state_dict': Hostile(tmp_path / 'made')}, places['hostile'])
    words = [word.format(**places) for word in words]
    out = [] if '--out' in words else ['--out', tmp_path / 'out']
    assert message in complaint(monkeypatch, TOOL, *words, *out, '--workers', 0)
    assert not (tmp_path / 'made').exists()
    assert not [path for path in tmp_path.glob('out/**/*') if path.is_file() and path.name != MARK]
