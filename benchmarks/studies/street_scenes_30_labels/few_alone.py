_base_ = '../../../configs/pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
train_dataloader = dict(dataset=dict(indices=list(range(0, 600, 20))))  # 30 of the 600 images
loss = dict(loss_decode=dict(avg_non_ignore=True))  # the mean is that of the labelled pixels
model = dict(decode_head=loss, auxiliary_head=loss)
