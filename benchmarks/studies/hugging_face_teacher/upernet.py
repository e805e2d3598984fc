_base_ = '../../../configs/pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
model = dict(
    type='SegDistiller',
    teacher=dict(type='TransformersTeacher', model='work_dirs/hugging_face_teacher', precision='bf16'),
)
