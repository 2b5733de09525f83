"""How training changes images at random."""

AUGMENTATIONS = {
    "crop_flip": "robustcords.data.augmentations.crop_flip:CropFlip",
    "cutmix": "robustcords.data.augmentations.cutmix:CutMix",
    "cutout": "robustcords.data.augmentations.cutout:Cutout",
    "mixup": "robustcords.data.augmentations.mixup:MixUp",
    "none": "robustcords.data.augmentations.none:NoAugmentation",
    "rand_augment": "robustcords.data.augmentations.rand_augment:RandAugment",
    "trivial_augment": "robustcords.data.augmentations.trivial_augment:TrivialAugment",
}
