"""Images without labels: where they are found, how they are drawn, and that no label of theirs counts."""

import math
import os
from collections import Counter
from itertools import islice, product

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from mmseg.models import FCNHead
from mmseg.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmseg.structures import SegDataSample

from bdd_seg.datasets import MixedSampler, UnlabelledImages, WithUnlabelled
from bdd_seg.datasets.unlabelled_hook import ignores_unlabelled
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import check_data
from bdd_seg.runtime.upstream.configs import leaf_datasets

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(40, 20), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(16, 24)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]


@TRANSFORMS.register_module()
class LoadHalfLabels(LoadAnnotations):
    """A user's own way to load labels."""


def write_image(path, value=0, size=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def write_video(path, frames=7):
    """A video whose n-th frame is grey, 30·n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """5 labelled images in ``labelled``, 11 unlabelled ones in ``more``."""
    folder = tmp_path_factory.mktemp('images')
    for name in 'abcde':
        write_image(folder / f'labelled/{name}.jpg', ord(name))
        labels = np.random.default_rng(0).integers(0, 2, (20, 40))
        cv2.imwrite(str(folder / f'labelled/{name}.png'), labels)
    for number in range(11):
        write_image(folder / f'more/{number:02d}.png', number)
    return folder


@pytest.fixture
def labelled(folder) -> dict:
    """Settings of the labelled images, with labels 0 and 1."""
    return dict(
        type='BaseSegDataset',
        data_root=str(folder / 'labelled'),
        metainfo=dict(classes=('grass', 'path'), palette=[[0, 128, 0], [128, 128, 128]]),
        pipeline=PIPELINE,
    )


@pytest.fixture
def more(folder) -> str:
    """The folder of the unlabelled images."""
    return str(folder / 'more')


def paths_of(dataset) -> list[str]:
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def test_a_folder_is_searched_with_all_folders_in_it(tmp_path):
    for name in ('b.jpg', 'a/2.PNG', 'a/c/1.jpeg', 'a/1.tif'):
        write_image(tmp_path / 'there' / name)
    (tmp_path / 'there/notes.txt').write_text('not an image')
    (tmp_path / 'linked').symlink_to(tmp_path / 'there')
    expected = ['a/1.tif', 'a/2.PNG', 'a/c/1.jpeg', 'b.jpg']
    for folder in ('there', 'linked'):
        found = paths_of(UnlabelledImages(str(tmp_path / folder)))
        assert [os.path.relpath(path, tmp_path / folder) for path in found] == expected
    tiffs = UnlabelledImages(str(tmp_path / 'there'), img_suffix='.tif')
    assert paths_of(tiffs) == [str(tmp_path / 'there/a/1.tif')]
    capitals = UnlabelledImages(str(tmp_path / 'there'), img_suffix=['.PNG'])
    assert paths_of(capitals) == [str(tmp_path / 'there/a/2.PNG')]
    assert paths_of(UnlabelledImages('there', data_root=str(tmp_path), stride=3)) == [
        str(tmp_path / 'there' / name) for name in (expected[0], expected[3])
    ]


def test_a_list_and_a_text_file_of_paths(more, folder):
    names = ['03.png', '01.png', '07.png']
    (folder / 'list.txt').write_text('more/03.png\n\nmore/01.png\nmore/07.png\n')
    from_list = UnlabelledImages(names, data_root=more)
    from_text = UnlabelledImages('list.txt', data_root=str(folder), indices=[0, 2])
    assert paths_of(from_list) == [f'{more}/{name}' for name in names]
    assert paths_of(from_text) == [f'{more}/{name}' for name in (names[0], names[2])]


def test_the_frames_of_a_video_are_written_once(tmp_path):
    video, folder = tmp_path / 'drive.avi', tmp_path / 'frames'
    write_video(video)

    def frames(stride=3):
        return paths_of(UnlabelledImages(str(video), stride=stride, frames_folder=str(folder)))

    found = frames()
    assert [os.path.basename(path) for path in found] == ['00000000.jpg', '00000003.jpg', '00000006.jpg']
    levels = [cv2.imread(path).mean() for path in found]
    assert levels == pytest.approx([0, 90, 180], abs=2)
    for path in found:
        os.utime(path, (0, 0))
    assert frames() == found
    assert {os.stat(path).st_mtime for path in found} == {0}
    assert len(frames(stride=2)) == 4  # in a folder of its own
    assert frames() == found
    os.remove(found[1])
    os.remove(os.path.join(os.path.dirname(found[0]), 'frames.json'))  # as after an interruption
    assert frames() == found
    write_video(video, frames=4)
    replaced = frames()
    assert len(replaced) == 2 and not {*replaced} & {*found}


@pytest.mark.parametrize('load', ['LoadAnnotations', 'LoadHalfLabels', LoadHalfLabels])
def test_any_pipeline_works_and_every_label_is_ignored(more, load):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomChoice', transforms=[[dict(type='CheckedLoading', transform=dict(type=load))]]),
        dict(type='GenerateEdge'),
        *PIPELINE[2:3],
        dict(type='RandomCrop', crop_size=(16, 24), cat_max_ratio=0.75),
        *PIPELINE[4:],
    ]
    for index in (255, 7):
        dataset = UnlabelledImages(more, pipeline, ignore_index=index)
        for sample in islice(dataset, 4):
            labels = sample['data_samples'].gt_sem_seg.data
            assert sample['inputs'].shape[1:] == labels.shape[1:]
            assert labels.shape[1] <= 16 and labels.shape[2] <= 24
            assert labels.unique().tolist() == [index]
            assert not sample['data_samples'].gt_edge_map.data.any()


def test_the_images_are_those_that_the_labelled_data_set_would_give(labelled):
    plain = DATASETS.build(labelled)
    unlabelled = UnlabelledImages(['d.jpg', 'b.jpg'], PIPELINE, data_root=labelled['data_root'])
    for position, same in enumerate((3, 1)):
        samples = []
        for dataset, index in ((plain, same), (unlabelled, position)):
            np.random.seed(5)
            samples.append(dataset[index])
        assert torch.equal(samples[0]['inputs'], samples[1]['inputs'])


@pytest.mark.parametrize(
    'images, expected',
    [
        ('empty', r"no image \(.jpg, .*\) in '.*empty'"),
        ('absent', "images='.*absent' does not exist. Give a folder"),
        (['more/01.png', 'gone.png'], "1 of 2 images that its list names do not exist, the first: '.*gone"),
        ([], 'its list names no image'),
        ('blank.txt', "'.*blank.txt' names no image"),
        ('broken.mp4', "'.*broken.mp4' has no frame that can be read"),
    ],
)
def test_images_that_are_not_there(folder, images, expected):
    (folder / 'empty').mkdir(exist_ok=True)
    (folder / 'blank.txt').touch()
    (folder / 'broken.mp4').write_bytes(b'no video' * 100)
    with pytest.raises(ConfigError, match=expected):
        UnlabelledImages(images, data_root=str(folder), frames_folder=str(folder / 'frames'))


@pytest.mark.parametrize('wrong', [{'stride': 0}, {'stride': 1.5}, {'ignore_index': -1}])
def test_settings_out_of_range(more, wrong):
    with pytest.raises(ConfigError, match=f'{next(iter(wrong))} must be .* got'):
        UnlabelledImages(more, **wrong)


def test_labelled_and_unlabelled_images_are_one_data_set(labelled, more, tmp_path):
    other = dict(type='UnlabelledImages', images=['05.png'], data_root=more, pipeline=PIPELINE[:2])
    both = WithUnlabelled(labelled, [dict(type='UnlabelledImages', images=more), other])
    assert len(both) == 5 + 11 + 1
    assert both.metainfo == DATASETS.build(labelled).metainfo
    assert both[2]['data_samples'].gt_sem_seg.data.max() == 1
    assert both[5]['data_samples'].gt_sem_seg.data.unique().tolist() == [255]
    assert set(both[16]) >= {'img', 'gt_seg_map'}  # its own pipeline does not pack
    wrapped = dict(type='ConcatDataset', datasets=[labelled, labelled])
    assert len(WithUnlabelled(wrapped, other)) == 11
    mixed = dict(type='MultiImageMixDataset', dataset=labelled, pipeline=[])
    assert len(WithUnlabelled(mixed, other)) == 6
    with pytest.raises(ConfigError, match='must be UnlabelledImages, got BaseSegDataset'):
        WithUnlabelled(labelled, labelled)
    with pytest.raises(ConfigError, match='Give unlabelled a pipeline of its own'):
        WithUnlabelled(mixed, dict(type='UnlabelledImages', images=more))


def test_the_checks_of_the_data_reach_both(labelled, more):
    cfg = Config(
        dict(
            model=dict(decode_head=dict(type='FCNHead', num_classes=2)),
            train_dataloader=dict(
                dataset=dict(
                    type='WithUnlabelled',
                    dataset=labelled,
                    unlabelled=dict(type='UnlabelledImages', images=more),
                )
            ),
        )
    )
    for _ in range(2):
        check_data(cfg, 'train')
        leaves = dict((where, leaf) for leaf, where in leaf_datasets(cfg.train_dataloader.dataset, 'x'))
        assert list(leaves) == ['x.dataset', 'x.unlabelled']
        assert leaves['x.unlabelled'].pipeline == leaves['x.dataset'].pipeline
        assert [step.type for step in leaves['x.dataset'].pipeline].count('CheckLabels') == 1
    both = DATASETS.build(cfg.train_dataloader.dataset)
    assert {tuple(both[i]['data_samples'].gt_sem_seg.data.unique().tolist()) for i in (0, 7)} == {
        (0, 1),
        (255,),
    }
    both.datasets[0].pipeline.transforms[-1].num_classes = 1
    with pytest.raises(ConfigError, match='labels 1; the classes are 0 to 0'):
        both[0]


@pytest.fixture
def both(labelled, more) -> WithUnlabelled:
    """5 labelled and 11 unlabelled images."""
    return WithUnlabelled(labelled, dict(type='UnlabelledImages', images=more))


def drawn(dataset, draws, rank=0, world_size=1, skip=0, **settings) -> list[int]:
    sampler = DATA_SAMPLERS.build({'type': 'MixedSampler', 'dataset': dataset, 'seed': 3, **settings})
    sampler.rank, sampler.world_size = rank, world_size
    if skip:
        sampler.skip(skip)
    return list(islice(sampler, draws))


@pytest.mark.parametrize('share', [0, 0.1, 0.29, 0.5, 2 / 3, 1])
def test_the_share_holds_in_every_batch_of_every_process(both, share):
    for batch_size, (rank, world_size) in product((1, 3, 8), [(0, 1), (0, 2), (1, 2), (2, 3)]):
        for skipped in (0, 7):  # batches before an interruption
            indices = drawn(both, 40 * batch_size, rank, world_size, skipped * batch_size, unlabelled=share)
            batches = np.array(indices).reshape(40, batch_size) >= 5
            exact = share * batch_size
            assert {*batches.sum(1).tolist()} <= {math.floor(exact + 1e-9), math.ceil(exact - 1e-9)}
            assert batches.sum() == pytest.approx(share * 40 * batch_size, abs=1)


def test_each_image_comes_once_before_any_comes_again(both):
    shares = [drawn(both, 220, rank, 2) for rank in (0, 1)]
    together = [index for pair in zip(*shares, strict=True) for index in pair]
    for kind in (range(5), range(5, 16)):
        sequence = [index for index in together if index in kind]
        rounds = [sequence[i : i + len(kind)] for i in range(0, len(sequence) - len(kind), len(kind))]
        assert len(rounds) > 15
        assert all(sorted(one) == [*kind] for one in rounds)
        assert len({*map(tuple, rounds)}) > 10  # shuffled anew
    assert Counter(index >= 5 for index in together) == {True: 220, False: 220}


def test_the_order_follows_from_the_seed_and_the_position(both):
    whole = drawn(both, 60)
    assert drawn(both, 60) == whole
    assert drawn(both, 40, skip=20) == whole[20:]
    assert drawn(both, 60, seed=4) != whole
    assert drawn(both, 8, shuffle=False) == [0, 5, 1, 6, 2, 7, 3, 8]
    # Two processes together draw what one draws, batch by batch.
    shares = [drawn(both, 30, rank, 2) for rank in (0, 1)]
    for start in range(0, 30, 2):
        batch = [index for share in shares for index in share[start : start + 2]]
        assert sorted(batch) == sorted(whole[2 * start : 2 * start + 4])


def test_a_sampler_that_cannot_draw(both, labelled):
    for share in (-0.1, 1.5, 'half', None):
        with pytest.raises(ConfigError, match='must be a share from 0 to 1, got'):
            MixedSampler(both, share)
    with pytest.raises(ConfigError, match='no images without labels, it is a BaseSegDataset'):
        MixedSampler(DATASETS.build(labelled))


def head_of(loss=None, **settings) -> FCNHead:
    loss = loss or dict(type='CrossEntropyLoss', avg_non_ignore=True)
    return FCNHead(
        in_channels=4, channels=4, num_classes=3, norm_cfg=None, loss_decode=ConfigDict(loss), **settings
    )


def samples_of(labels: torch.Tensor) -> list[SegDataSample]:
    samples = [SegDataSample() for _ in labels]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label[None])
    return samples


def test_the_students_own_loss_and_its_gradient_ignore_them_exactly():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 6, 5), generator=generator)
    labels[0, :2] = 255
    labels[[1, 3]] = 255  # without labels
    head, kept = head_of(), [0, 2]
    found = logits.clone().requires_grad_()
    loss = head.loss_by_feat(found, samples_of(labels))['loss_ce']
    loss.backward()
    alone = logits[kept].clone().requires_grad_()
    expected = F.cross_entropy(alone, labels[kept], ignore_index=255)
    expected.backward()
    # mmseg adds 1.2e-7 to the number of pixels.
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.grad[kept], alone.grad, rtol=1e-8, atol=0)
    assert not found.grad[[1, 3]].any()


@pytest.mark.parametrize(
    'loss, sampler, exact',
    [
        (dict(type='CrossEntropyLoss', avg_non_ignore=True), None, True),
        (dict(type='CrossEntropyLoss'), None, False),
        (dict(type='CrossEntropyLoss', avg_non_ignore=True), dict(type='OHEMPixelSampler'), False),
        (dict(type='LovaszLoss', reduction='none'), None, True),
        (dict(type='SiLogLoss'), None, False),  # for depths: refuses the trial
    ],
)
def test_losses_that_ignore_images_without_labels(loss, sampler, exact):
    head, state = head_of(loss, sampler=sampler), torch.get_rng_state()
    assert ignores_unlabelled(head) is exact
    assert torch.equal(torch.get_rng_state(), state)
