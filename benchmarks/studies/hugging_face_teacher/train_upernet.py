"""Train a small UPerNet of Hugging Face on street scenes, as a teacher from elsewhere.

    python benchmarks/studies/hugging_face_teacher/train_upernet.py --out FOLDER

Nothing of bdd_seg takes part but the data: the network, its loss and its files are those of ``transformers``.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmseg.datasets import CityscapesDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

import bdd_seg  # noqa: F401  # mends the libraries

CONFIG = 'configs/pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'


def build() -> UperNetForSemanticSegmentation:
    """Return the network with random weights: a ResNet-50 whose stages are a quarter as wide."""
    classes = CityscapesDataset.METAINFO['classes']
    backbone = ResNetConfig(  # type: ignore[call-arg]  # its base class takes out_features
        embedding_size=16,
        hidden_sizes=[64, 128, 256, 512],
        depths=[3, 4, 6, 3],
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=64,
        auxiliary_in_channels=256,
        auxiliary_channels=32,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    return UperNetForSemanticSegmentation(config)


def train(model: nn.Module, config: Config, iterations: int, preprocess: nn.Module) -> None:
    """Train on the data of ``config``, by SGD with the learning rate of the demo's schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, iterations, power=0.9)
    batches = iter(Runner.build_dataloader(config.train_dataloader, seed=0))
    model.train()
    for _ in (bar := tqdm(range(iterations), mininterval=10)):
        batch = preprocess(next(batches), training=True)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in batch['data_samples']])
        with torch.autocast('cpu', torch.bfloat16):
            loss = model(batch['inputs'], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f'{loss.item():.3f}')


@torch.inference_mode()
def mean_iou(model: UperNetForSemanticSegmentation, config: Config, preprocess: nn.Module) -> float:
    """Return the mIoU on the images of ``config.test_dataloader``, in percent."""
    model.eval()
    totals: list[Tensor] = []
    for batch in Runner.build_dataloader(config.test_dataloader, seed=0):
        batch = preprocess(batch, training=False)
        (sample,) = batch['data_samples']
        logits = F.interpolate(model(batch['inputs']).logits, sample.gt_sem_seg.shape, mode='bilinear')
        areas = IoUMetric.intersect_and_union(
            logits.argmax(1)[0], sample.gt_sem_seg.data[0], model.config.num_labels, 255
        )
        totals.append(torch.stack(areas[:2]))
    intersection, union = torch.stack(totals).sum(0)
    return 100 * (intersection / union).nanmean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='where the model is saved')
    parser.add_argument('--iterations', type=int, default=3000, metavar='N', help='default: 3000')
    arguments = parser.parse_args()
    set_random_seed(0)
    init_default_scope('mmseg')
    config = Config.fromfile(CONFIG)
    preprocess = MODELS.build(config.model.data_preprocessor)
    model = build()
    train(model, config, arguments.iterations, preprocess)
    model.save_pretrained(arguments.out)
    mean, std = config.model.data_preprocessor.mean, config.model.data_preprocessor.std
    settings = {
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': [value / 255 for value in mean],
        'image_std': [value / 255 for value in std],
    }
    (arguments.out / 'preprocessor_config.json').write_text(json.dumps(settings, indent=2) + '\n')
    for root in ('data/street_scenes', 'data/street_scenes_test'):
        config.test_dataloader.dataset.data_root = root
        print(f'mIoU on the validation images of {root}: {mean_iou(model, config, preprocess):.2f}')


if __name__ == '__main__':
    main()
