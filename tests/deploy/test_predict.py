"""Predicting images and videos: equal to mmseg's own inference, whatever the size, and whatever is broken."""

import copy
import sys
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import pytest
import torch
from helpers import build
from mmengine.config import Config, ConfigDict
from mmseg.apis import inference_model
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

import bdd_seg.cli.test
import bdd_seg.deploy.predict as predict_module
from bdd_seg.deploy.about import About, Resize, about_model
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import Source, find_sources
from bdd_seg.deploy.predict import Progress, Wanted, Writers, batches, predict_all
from bdd_seg.deploy.predictor import Failed, Loaded, Predictor, Preparation, prediction_pipeline
from bdd_seg.errors import ConfigError

CPU = torch.device('cpu')
LABELS = Wanted(overlays=False)
SLIDE = {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 24)}
RESIZED = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (128, 64), 'keep_ratio': True},
    {'type': 'LoadAnnotations'},
    {'type': 'PackSegInputs'},
]


def varied(model: nn.Module) -> nn.Module:
    """Draw weights such that the classes vary from pixel to pixel."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope='module')
def student(tiny_configs) -> Trained:
    cfg = Config.fromfile(tiny_configs['student'])
    model = varied(build(cfg))
    return Trained(model, about_model(model, cfg), cfg, Path('student.pth'), {})


@pytest.fixture(scope='module')
def images(scenes) -> Path:
    """The four validation images, 48×96."""
    return scenes / 'leftImg8bit/val'


def changed(student: Trained, test_cfg=None, pipeline=None) -> Trained:
    cfg = copy.deepcopy(student.cfg)
    model = student.model
    if pipeline is not None:
        cfg.test_dataloader.dataset.pipeline = pipeline
    if test_cfg is not None:
        cfg.model.test_cfg = test_cfg
        model = copy.deepcopy(model)
        model.test_cfg = Config(test_cfg)
    return Trained(model, about_model(model, cfg), cfg, student.file, {})


def predicted(trained, inputs, out, wanted=LABELS, **flags):
    sources = find_sources([str(path) for path in inputs], out)
    return predict_all(trained, sources, out, wanted, CPU, **{'workers': 0, **flags})


def read(file: Path) -> np.ndarray:
    return np.array(Image.open(file))


@pytest.mark.parametrize('test_cfg, pipeline', [(None, None), (SLIDE, None), (SLIDE, RESIZED)])
def test_label_maps_are_those_of_mmsegs_inference_model(student, images, tmp_path, test_cfg, pipeline):
    trained = changed(student, test_cfg, pipeline)
    outcome = predicted(trained, [images], tmp_path)
    assert outcome.images == 4 and not outcome.skipped
    trained.model.cfg = copy.deepcopy(trained.cfg)
    trained.model.cfg.test_pipeline = trained.cfg.test_dataloader.dataset.pipeline
    seen = set()
    for file in images.rglob('*.png'):
        labels = read(tmp_path / 'labels' / file.relative_to(images))
        expected = inference_model(trained.model, str(file)).pred_sem_seg.data[0].numpy()
        assert (labels == expected).all()
        seen.update(np.unique(labels))
    assert len(seen) > 3  # else equal would say nothing


def test_label_maps_are_those_of_the_test_command(student, images, tiny_configs, tmp_path, monkeypatch):
    checkpoint = tmp_path / 'student.pth'
    torch.save({'state_dict': student.model.state_dict()}, checkpoint)
    words = [
        'test',
        tiny_configs['student'],
        checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--out',
        tmp_path / 'maps',
    ]
    monkeypatch.setattr(sys, 'argv', list(map(str, words)))
    bdd_seg.cli.test.main()
    predicted(student, [images], tmp_path)
    maps = list((tmp_path / 'maps').glob('*.png'))
    assert len(maps) == 4
    for file in maps:
        (own,) = (tmp_path / 'labels').rglob(file.name)
        assert (read(own) == read(file)).all()


def test_a_label_map_can_be_a_ground_truth(student, images, tmp_path):
    """mmseg reads the numbers, and a viewer sees the colours of the classes."""
    predicted(student, [images], tmp_path)
    file = next((tmp_path / 'labels').rglob('*.png'))
    results = LoadAnnotations()({'seg_map_path': str(file), 'seg_fields': [], 'reduce_zero_label': False})
    assert (results['gt_seg_map'] == read(file)).all()
    colours = np.array(student.about.palette, np.uint8)[read(file)]
    assert (cv2.imread(str(file))[..., ::-1] == colours).all()


def test_overlays_and_probabilities(student, images, tmp_path):
    predicted(student, [images], tmp_path, Wanted(probabilities=True, opacity=0.4))
    for file in images.rglob('*.png'):
        name = file.relative_to(images).with_suffix('')
        overlay = cv2.imread(str(tmp_path / 'overlays' / f'{name}.jpg'))
        assert overlay.shape[0] > 48 and overlay.shape[1] >= 96
        labels = read(tmp_path / 'labels' / f'{name}.png')
        colours = np.array(student.about.palette)[labels][..., ::-1]
        expected = 0.4 * colours + 0.6 * cv2.imread(str(file))
        assert np.abs(overlay[:48, :96] - expected).mean() < 12  # of JPEG
        with np.load(tmp_path / 'probabilities' / f'{name}.npz', allow_pickle=False) as content:
            probabilities = content['probabilities']
        assert probabilities.shape == (19, 48, 96) and probabilities.dtype == np.float16
        assert np.abs(probabilities.astype(float).sum(0) - 1).max() < 5e-3
        assert (probabilities.argmax(0) == labels).mean() > 0.99


def test_images_of_any_size_in_batches_by_processes(student, images, tmp_path):
    """The same as one by one, up to rounding, which may turn a tie."""
    folder = tmp_path / 'mixed'
    folder.mkdir()
    source = cv2.imread(str(next(images.rglob('*.png'))))
    for number, (width, height) in enumerate(
        [(96, 48), (50, 33), (96, 48), (50, 33), (17, 90), (96, 48), (50, 33)]
    ):
        cv2.imwrite(str(folder / f'{number}.png'), cv2.resize(source, (width, height)))
    (folder / '7.png').write_text('a text')
    outcome = predicted(student, [folder], tmp_path / 'a', Wanted(), batch_size=2, workers=1)
    assert outcome.images == 7
    (skipped,) = outcome.skipped
    assert skipped[0].name == '7.png' and 'is it whole, and an image?' in skipped[1]
    predicted(student, [folder], tmp_path / 'b')
    for number in range(7):
        a, b = (read(tmp_path / run / f'labels/{number}.png') for run in 'ab')
        assert a.shape == cv2.imread(str(folder / f'{number}.png')).shape[:2]
        assert (a == b).mean() > 0.999
        assert (tmp_path / f'a/overlays/{number}.jpg').exists()


def test_too_little_memory_for_a_padded_image_is_no_wrong_size(student, monkeypatch):
    def run(images, multiple):
        raise RuntimeError('sizes differ') if multiple is None else torch.OutOfMemoryError

    predictor = Predictor(student, CPU)
    monkeypatch.setattr(predictor, '_run', run)
    with pytest.raises(torch.OutOfMemoryError):
        predictor([Loaded(0, torch.zeros(3, 97, 131), SegDataSample(), None)])


def test_images_are_padded_for_networks_that_need_a_multiple(tmp_path, student):
    norm = {'type': 'BN'}
    settings = {
        'type': 'EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor', 'mean': [100.0] * 3, 'std': [50.0] * 3},
        'backbone': {'type': 'DDRNet', 'in_channels': 3, 'channels': 4, 'ppm_channels': 4, 'norm_cfg': norm},
        'decode_head': {
            **{'type': 'DDRHead', 'in_channels': 16, 'channels': 4, 'num_classes': 5, 'norm_cfg': norm},
            'loss_decode': [{'type': 'CrossEntropyLoss'}] * 2,
        },
        'test_cfg': {'mode': 'whole'},
    }
    model = varied(MODELS.build(ConfigDict(settings)))
    palette = tuple((i, i, i) for i in range(5))
    about = About(classes=tuple('abcde'), palette=palette)
    trained = Trained(model, about, None, Path('m.pth'), {})
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (97, 131, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'odd.png'), image)
    cv2.imwrite(str(tmp_path / 'even.png'), image[:64, :96])
    outcome = predicted(trained, [tmp_path / 'odd.png', tmp_path / 'even.png'], tmp_path / 'out')
    assert outcome.images == 2
    inputs = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 100) / 50
    with torch.no_grad():
        padded = nn.functional.pad(inputs, (0, 136 - 131, 0, 104 - 97))
        logits = resize(model(padded, mode='tensor'), (104, 136), mode='bilinear')[:, :, :97, :131]
        whole = resize(model(inputs[:, :, :64, :96], mode='tensor'), (64, 96), mode='bilinear')
    assert (read(tmp_path / 'out/labels/odd.png') == logits.argmax(1)[0].numpy()).all()
    assert (read(tmp_path / 'out/labels/even.png') == whole.argmax(1)[0].numpy()).all()


class Fussy(nn.Module):
    """A segmentor that fails at each size."""

    def test_step(self, data):
        raise RuntimeError('a shape does not fit\nat all')


def test_an_image_that_the_network_does_not_take_is_passed_over(student, images, tmp_path, capsys):
    model = Fussy()
    model.data_preprocessor = student.model.data_preprocessor
    outcome = predicted(Trained(model, student.about, student.cfg, student.file, {}), [images], tmp_path)
    assert outcome.images == 0 and len(outcome.skipped) == 4
    assert 'does not take images of 48×96 pixels: a shape does not fit' in capsys.readouterr().err


def test_a_binary_network(tmp_path, images):
    settings = {
        'type': 'EncoderDecoder',
        'backbone': {
            'type': 'ResNetV1c',
            'depth': 18,
            'base_channels': 4,
            'stem_channels': 4,
            'norm_cfg': {'type': 'BN'},
        },
        'decode_head': {
            **{'type': 'FCNHead', 'in_channels': 32, 'channels': 4, 'num_classes': 2, 'out_channels': 1},
            **{
                'threshold': 0.3,
                'num_convs': 1,
                'loss_decode': {'type': 'CrossEntropyLoss', 'use_sigmoid': True},
            },
        },
        'data_preprocessor': {'type': 'SegDataPreProcessor', 'mean': [100.0] * 3, 'std': [50.0] * 3},
        'test_cfg': {'mode': 'whole'},
    }
    model = varied(MODELS.build(ConfigDict(settings)))
    about = About(classes=('no', 'yes'), palette=((0, 0, 0), (255, 255, 255)), threshold=0.3)
    predicted(Trained(model, about, None, Path('m'), {}), [images], tmp_path, Wanted(probabilities=True))
    for file in (tmp_path / 'labels').rglob('*.png'):
        labels = read(file)
        found = np.load(str(file).replace('labels', 'probabilities').replace('.png', '.npz'))['probabilities']
        assert found.shape == (2, 48, 96)
        clear = np.abs(found[1].astype(float) - 0.3) > 1e-3
        assert (labels == (found[1] > 0.3))[clear].all()


def a_video(file: Path, frames: list[np.ndarray]) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*'mp4v'), 12.5, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return file


def frames_of(file: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(file)), []
    while (read_ := capture.read())[0]:
        frames.append(read_[1])
    return frames


@pytest.fixture(scope='module')
def video(images, tmp_path_factory) -> Path:
    frames = [cv2.imread(str(file)) for file in sorted(images.rglob('*.png'))]
    return a_video(tmp_path_factory.mktemp('video') / 'drive.mp4', frames * 2)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_video_in_a_video_out(student, video, tmp_path, workers):
    outcome = predicted(student, [video], tmp_path, Wanted(), batch_size=3, workers=workers)
    assert (outcome.images, outcome.videos, outcome.frames) == (0, 1, 8)
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['drive.mp4']
    painted = cv2.VideoCapture(str(tmp_path / 'overlays/drive.mp4'))
    assert painted.get(cv2.CAP_PROP_FPS) == 12.5
    pairs = list(zip(frames_of(video), frames_of(tmp_path / 'overlays/drive.mp4'), strict=True))
    assert len(pairs) == 8
    student.model.cfg = copy.deepcopy(student.cfg)
    student.model.cfg.test_pipeline = copy.deepcopy(student.cfg.test_dataloader.dataset.pipeline)
    for frame, shown in pairs:
        labels = inference_model(student.model, frame).pred_sem_seg.data[0].numpy()
        expected = 0.5 * frame + 0.5 * np.array(student.about.palette)[labels][..., ::-1]
        assert shown.shape == frame.shape
        assert np.abs(shown - expected)[:28].mean() < 15  # above the legend, after the codec


def test_label_maps_of_frames(student, video, tmp_path):
    wanted = Wanted(overlays=False, frame_labels=True)
    predicted(student, [video], tmp_path, wanted)
    files = sorted((tmp_path / 'labels/drive').iterdir())
    assert [file.name for file in files] == [f'{number:08d}.png' for number in range(8)]
    assert [path.name for path in tmp_path.iterdir()] == ['labels']
    student.model.cfg = copy.deepcopy(student.cfg)
    student.model.cfg.test_pipeline = copy.deepcopy(student.cfg.test_dataloader.dataset.pipeline)
    for file, frame in zip(files, frames_of(video), strict=True):
        assert (read(file) == inference_model(student.model, frame).pred_sem_seg.data[0].numpy()).all()


def test_what_is_there_is_made_again_or_passed_over(student, images, video, tmp_path):
    inputs = [images, video]
    predicted(student, inputs, tmp_path, Wanted())
    files = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert len(files) == 4 + 4 + 1
    first = next((tmp_path / 'labels').rglob('*.png'))
    before = {path: path.read_bytes() for path in files}
    first.write_bytes(b'old')
    assert predicted(student, inputs, tmp_path, Wanted(), skip_existing=True).existing == 5
    assert first.read_bytes() == b'old'
    next((tmp_path / 'overlays').rglob('*.jpg')).unlink()
    outcome = predicted(student, inputs, tmp_path, Wanted(), skip_existing=True)
    assert (outcome.images, outcome.existing) == (1, 4)
    predicted(student, inputs, tmp_path, Wanted())
    assert {path: path.read_bytes() for path in files if path.suffix != '.mp4'} == {
        path: content for path, content in before.items() if path.suffix != '.mp4'
    }


def test_a_broken_video_is_passed_over(student, images, tmp_path):
    (tmp_path / 'v.mp4').write_text('a text')
    outcome = predicted(student, [tmp_path / 'v.mp4', images], tmp_path / 'out', Wanted())
    assert outcome.images == 4 and outcome.videos == 0
    assert 'has no frame that can be read' in outcome.skipped[0][1]


def test_images_of_other_channels_are_named(student, images, tmp_path):
    about = student.about.model_copy(update={'bands': 4})
    trained = Trained(student.model, about, None, student.file, {})
    assert prediction_pipeline(trained)[0]['transform']['color_type'] == 'unchanged'
    outcome = predicted(trained, [images], tmp_path)
    assert outcome.skipped[0][1] == 'it has 3 channels, and the network takes 4'
    with pytest.raises(ConfigError, match='a video has frames of 3 channels'):
        Preparation(trained, keep_picture=False, arrays=True)


def test_a_network_without_a_config_resizes_as_it_tells(student):
    about = student.about.model_copy(update={'resize': Resize(scale=(128, 64), keep_ratio=True)})
    pipeline = prediction_pipeline(Trained(student.model, about, None, student.file, {}))
    assert [step['type'] for step in pipeline] == ['CheckedLoading', 'Resize', 'PackSegInputs']
    assert pipeline[1] == {'type': 'Resize', 'scale': (128, 64), 'keep_ratio': True}


def test_labels_have_no_probabilities(student):
    about = student.about.model_copy(update={'gives': 'labels'})
    with pytest.raises(ConfigError, match='puts out labels, no probabilities'):
        Predictor(Trained(student.model, about, None, Path('m.onnx'), {}), CPU, probabilities=True)


def loaded(number: int, width: int) -> Loaded:
    sample = SegDataSample(metainfo={'ori_shape': (1, width)})
    return Loaded(number, torch.zeros(3, 1, width), sample, None)


def test_batches_have_one_size_and_nobody_waits_for_long():
    widths = [1, 2, 1, 3, 1, 2, 4, 5, 6, 7, 8, 9]
    items = [*(loaded(number, width) for number, width in enumerate(widths)), Failed(12, 'broken')]
    got = list(batches(items, 2))
    assert got.count(Failed(12, 'broken')) == 1
    numbers = [[item.number for item in batch] for batch in got if not isinstance(batch, Failed)]
    assert sorted(sum(numbers, [])) == list(range(12))
    assert numbers[:2] == [[0, 2], [1, 5]]
    assert all(len({widths[number] for number in batch}) == 1 and len(batch) <= 2 for batch in numbers)
    assert [9] in numbers[:-1]  # came before the end, since too many of other sizes waited


def test_an_exception_of_a_writer_is_raised():
    def fail() -> None:
        raise ConfigError('disk full')

    with pytest.raises(ConfigError, match='disk full'), Writers(1, 8) as writers:
        writers.submit(fail)


def test_no_more_tasks_wait_than_the_limit():
    with Writers(1, 2) as writers:
        held, go_on = [], Event()
        writers.submit(go_on.wait)
        writers.submit(held.append, 1)
        third = Thread(target=writers.submit, args=(held.append, 2))
        third.start()
        third.join(0.05)
        assert third.is_alive() and not held  # it waits for the first
        go_on.set()
        third.join(10)
        assert not third.is_alive()
    assert held == [1, 2]


def test_few_probabilities_are_held_at_once(student, images, tmp_path, monkeypatch):
    limits = []

    class Counted(Writers):
        def __init__(self, threads, limit):
            limits.append((threads, limit))
            super().__init__(threads, limit)

    monkeypatch.setattr(predict_module, 'Writers', Counted)
    image = next(images.rglob('*.png'))
    for probabilities in (False, True):
        wanted = Wanted(overlays=False, probabilities=probabilities)
        predicted(student, [image], tmp_path / str(probabilities), wanted)
    assert limits == [(0, 0), (0, 2)]


def test_a_file_that_cannot_be_written_ends_it(student, images, tmp_path):
    (tmp_path / 'labels').write_text('a file where a folder should be')
    with pytest.raises(ConfigError, match='cannot be written'):
        predicted(student, [images], tmp_path, workers=1)
    (tmp_path / 'overlays').write_text('and another')
    with pytest.raises(ConfigError, match='cannot be written'):
        predicted(student, [images], tmp_path, Wanted(frame_labels=True))


def test_the_line_of_progress():
    progress = Progress('images', 200)
    progress.add(50)
    assert progress.line(25.0) == 'images: 50 of 200, 2.0 images/s, 75 s left'
    assert Progress('v.mp4', None).line(10.0) == 'v.mp4: 0, 0.0 images/s'


def test_sources_are_told_by_their_suffix():
    assert Source(Path('a/B.MP4'), 'B').is_video and not Source(Path('a.jpg'), 'a').is_video
