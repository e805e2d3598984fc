import random

import numpy as np
import pytest
import torch
from helpers import build
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmseg.models import SegDataPreProcessor

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.teachers.cached.pipeline import ReadTeacherCache
from bdd_seg.teachers.cached.store import CachedOutputs, Manifest, TeacherCache
from bdd_seg.teachers.cached.teacher import CachedTeacher

LOGITS = 'decode_head.conv_seg'
CROP = (64, 96)


def make_cache(folder, shape, align_corners=False, scale=1, seed=0) -> tuple[TeacherCache, np.ndarray]:
    """A cache of one image, and its logits (3, h, w) at stride 8 as float64.

    ``scale`` is how much larger than the image the teacher's input was.
    """
    rng = np.random.default_rng(seed)
    height, width = scale * shape[0], scale * shape[1]
    logits = rng.normal(scale=5, size=(3, -(-height // 8), -(-width // 8))).astype(np.float16)
    back = np.array([[1 / scale, 0, (1 / scale - 1) / 2], [0, 1 / scale, (1 / scale - 1) / 2], [0, 0, 1]])
    cache = TeacherCache(folder)
    manifest = Manifest({}, 3, None, LOGITS, {LOGITS: [8, 8]}, align_corners, [])
    cache.write_manifest(manifest)
    (folder / 'x.png').write_bytes(b'an image')
    digest = cache.digest(str(folder / 'x.png'))
    cache.write(digest, CachedOutputs({LOGITS: torch.from_numpy(logits)}, back, (height, width), shape))
    manifest.images[digest] = {'path': '', 'size': shape, 'sha256': file_digest(cache.file_of(digest))}
    cache.write_manifest(manifest)
    return cache, logits.astype(np.float64)


def answer(cache: TeacherCache, shape, transforms, seed=0, copies=1):
    """The image of coordinates as a student gets it, (N, 3, H, W), and the cached logits and mask."""
    steps = [
        dict(type='LoadCoordinates', height=shape[0], width=shape[1]),
        *transforms,
        dict(type='PackSegInputs'),
    ]
    pipeline = ReadTeacherCache(str(cache.folder), steps)
    random.seed(seed)
    np.random.seed(seed)
    samples = [pipeline({'img_path': str(cache.folder / 'x.png'), 'seg_fields': []}) for _ in range(copies)]
    data = SegDataPreProcessor(size=CROP)(pseudo_collate(samples), training=True)
    teacher = CachedTeacher(str(cache.folder))
    teacher.taps = [LOGITS]
    answer = teacher(data['inputs'], data['data_samples'])
    return data['inputs'].double().numpy(), answer.maps[LOGITS].double().numpy(), answer.known[LOGITS].numpy()


def cell_centres(image: np.ndarray) -> np.ndarray:
    """Return an image at the middle of each cell of stride 8: the mean of the 4 pixels around it."""
    return np.stack([image[:, 3 + a :: 8, 3 + b :: 8] for a in (0, 1) for b in (0, 1)]).mean(axis=0)


def naive_sample(logits: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear interpolation at a position in cells, the outermost cells continued."""
    height, width = logits.shape[1:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = x - left, y - top
    upper = (1 - a) * logits[:, top, left] + a * logits[:, top, right]
    lower = (1 - a) * logits[:, bottom, left] + a * logits[:, bottom, right]
    return (1 - b) * upper + b * lower


ratios = st.floats(0.5, 2.0)
pipelines = st.tuples(
    st.tuples(ratios, ratios), st.booleans(), st.sampled_from(['horizontal', 'vertical', 'diagonal'])
)


@given(st.integers(64, 180), st.integers(64, 180), pipelines, st.sampled_from([1, 2]), st.integers(0, 2**16))
@settings(max_examples=300, deadline=None)
def test_logits_are_those_of_the_whole_image_cropped_and_resized(
    tmp_path_factory, height, width, pipeline, scale, seed
):
    folder = tmp_path_factory.mktemp('cache')
    (by_x, by_y), flipped, direction = pipeline
    cache, whole = make_cache(folder, (height, width), scale=scale, seed=seed)
    transforms = [
        dict(type='Resize', scale=(int(width * by_x), int(height * by_y))),
        dict(type='RandomCrop', crop_size=CROP, cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=float(flipped), direction=direction),
    ]
    image, logits, mask = answer(cache, (height, width), transforms, seed)
    assert logits.shape == (1, 3, CROP[0] // 8, CROP[1] // 8)
    x, y, inside = cell_centres(image[0])
    rows, columns = np.nonzero(inside > 0.9999)
    for row, column in list(zip(rows, columns, strict=True))[::7]:
        position = (
            (x[row, column] + 0.5) * whole.shape[2] / width - 0.5,
            (y[row, column] + 0.5) * whole.shape[1] / height - 0.5,
        )
        # At the very edge the image of coordinates repeats its outermost pixels.
        if not (0.5 < x[row, column] < width - 1.5 and 0.5 < y[row, column] < height - 1.5):
            continue
        expected = naive_sample(whole, *position)
        np.testing.assert_allclose(logits[0, :, row, column], expected, atol=0.02, rtol=0)
    assert mask[0][inside > 0.9999].all()
    assert not mask[0][inside == 0].any()


def test_align_corners_reads_where_the_head_put_it(tmp_path):
    cache, whole = make_cache(tmp_path, CROP, align_corners=True)
    _, logits, mask = answer(cache, CROP, [])
    np.testing.assert_allclose(logits[0], whole, atol=1e-5)
    assert mask.all()
    _, flipped, _ = answer(cache, CROP, [dict(type='RandomFlip', prob=1.0)])
    np.testing.assert_allclose(flipped[0], whole[:, :, ::-1], atol=1e-5)


def test_an_unchanged_image_gives_the_cached_logits(tmp_path):
    cache, whole = make_cache(tmp_path, CROP)
    _, logits, mask = answer(cache, CROP, [dict(type='PhotoMetricDistortion')], copies=2)
    np.testing.assert_allclose(logits, np.stack([whole, whole]), atol=1e-5)
    assert mask.all()


def test_padding_is_unknown(tmp_path):
    cache, _ = make_cache(tmp_path, (40, 56))
    _, _, mask = answer(cache, (40, 56), [])
    expected = np.zeros((8, 12), bool)
    expected[:5, :7] = True
    assert np.array_equal(mask[0], expected)


def test_turned_images_are_followed(tmp_path):
    shape = (160, 200)
    cache, whole = make_cache(tmp_path, shape)
    smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(whole)[None], 5, 1, 2)[0].numpy()
    cache.write(
        cache.digest(str(tmp_path / 'x.png')),
        CachedOutputs({LOGITS: torch.from_numpy(smooth)}, np.eye(3), shape, shape),
    )
    cache.manifest.images[cache.digest(str(tmp_path / 'x.png'))]['sha256'] = file_digest(
        cache.file_of(cache.digest(str(tmp_path / 'x.png')))
    )
    cache.write_manifest(cache.manifest)
    transforms = [dict(type='RandomRotate', prob=1.0, degree=40.0), dict(type='RandomCrop', crop_size=CROP)]
    for seed in range(5):
        image, logits, mask = answer(cache, shape, transforms, seed)
        x, y, inside = cell_centres(image[0])
        steepest = max(np.abs(np.diff(smooth, axis=axis)).max() for axis in (1, 2))
        for row, column in np.argwhere(inside > 0.9999):
            expected = naive_sample(
                smooth, (x[row, column] + 0.5) / 8 - 0.5, (y[row, column] + 0.5) / 8 - 0.5
            )
            off = np.abs(logits[0, :, row, column] - expected).max()
            assert off < 0.01 + 2 * steepest / 16
        assert mask[0][inside > 0.9999].all()
        assert not mask[0][inside == 0].any()


@pytest.fixture
def student(tiny_configs):
    return build(tiny_configs['student'])


def cache_of(folder, classes=19, **changes) -> str:
    manifest = Manifest(
        changes.pop('teacher', {}),
        classes,
        changes.pop('class_names', None),
        LOGITS,
        {LOGITS: [8, 8]},
        False,
        [],
    )
    manifest.images = {'0': {}}
    for key, value in changes.items():
        setattr(manifest, key, value)
    TeacherCache(folder).write_manifest(manifest)
    return str(folder)


def test_what_a_cache_must_hold(student, tmp_path):
    teacher = CachedTeacher(cache_of(tmp_path))
    assert not teacher.is_built
    teacher.build(student, [None])
    assert teacher.is_built
    assert teacher.logits_tap == LOGITS
    named = CachedTeacher(cache_of(tmp_path))
    named.build(student, ['logits'])  # as of a live teacher
    assert named.taps == [LOGITS]
    with pytest.raises(
        ConfigError,
        match="holds decode_head.conv_seg, not 'backbone.layer4'; make another: .*"
        '--taps backbone.layer4 decode_head.conv_seg$',
    ):
        teacher.build(student, ['backbone.layer4'])
    with pytest.raises(ConfigError, match='predicts 7 classes, the student 19'):
        CachedTeacher(cache_of(tmp_path, classes=7)).build(student, [None])
    with pytest.raises(ConfigError, match='is not complete'):
        CachedTeacher(cache_of(tmp_path, images={})).build(student, [None])


def test_the_cache_must_come_from_the_teacher_that_the_config_names(student, tiny_configs, tmp_path):
    from bdd_seg.teachers.mmseg import MMSegTeacher

    settings = dict(config=str(tiny_configs['teacher']), checkpoint=str(tiny_configs['checkpoint']))
    fingerprint = MMSegTeacher(**settings).fingerprint()
    CachedTeacher(cache_of(tmp_path, teacher=fingerprint), **settings).build(student, [None])
    for key, value, message in (
        ('checkpoint', 'f' * 64, 'checkpoint is ffffffffffff..., not'),
        ('config', 'f' * 64, 'config is ffffffffffff..., not'),
        ('normalisation', {'mean': None}, "normalisation is {'mean': None}, not {'mean': \\[123.675"),
        ('precision', 'bf16', "precision is 'bf16', not None"),
    ):
        teacher = CachedTeacher(cache_of(tmp_path, teacher={**fingerprint, key: value}), **settings)
        with pytest.raises(ConfigError, match=f'comes from another teacher than the config names.*{message}'):
            teacher.build(student, [None])
    resized = cache_of(tmp_path, teacher={**fingerprint, 'input_size': [64, 64]})
    with pytest.raises(ConfigError, match=r'its input_size is \[64, 64\], not None'):
        CachedTeacher(resized, **settings).build(student, [None])
    for wrong, message in (
        ({**settings, 'chek_class_names': False}, 'chek_class_names'),
        ({'precision': 'bf16'}, "'config'"),
    ):
        with pytest.raises(ConfigError, match=f'gives it other arguments than that takes.*{message}'):
            CachedTeacher(cache_of(tmp_path, teacher=fingerprint), **wrong).build(student, [None])
    unknown = CachedTeacher(cache_of(tmp_path, teacher={'type': 'Unknown'}), **settings)
    with pytest.raises(ConfigError, match='comes from a Unknown, which is no teacher here'):
        unknown.build(student, [None])
    elsewhere = {**settings, 'checkpoint': 'not_on_this_machine.pth'}
    CachedTeacher(cache_of(tmp_path, teacher=fingerprint), **elsewhere).build(student, [None])


def test_samples_without_cached_outputs_are_an_error(student, tmp_path, batch):
    teacher = CachedTeacher(cache_of(tmp_path))
    teacher.build(student, [None])
    with pytest.raises(
        ConfigError, match='the training data brings no cached outputs of cache .*. Train with the tools'
    ):
        teacher(*batch)
