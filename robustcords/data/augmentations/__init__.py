"""Augmentations: random changes of training images."""

AUGMENTATIONS = {
    "crop_flip": "robustcords.data.augmentations.crop_flip:CropFlip",
    "cutmix": "robustcords.data.augmentations.cutmix:CutMix",
    "cutout": "robustcords.data.augmentations.cutout:Cutout",
    "mixup": "robustcords.data.augmentations.mixup:MixUp",
    "none": "robustcords.data.augmentations.none:NoAugmentation",
    "rand_augment": "robustcords.data.augmentations.rand_augment:RandAugment",
    "resized_crop": "robustcords.data.augmentations.resized_crop:ResizedCrop",
    "trivial_augment": "robustcords.data.augmentations.trivial_augment:TrivialAugment",
}
