"""How training changes images at random."""

AUGMENTATIONS = {
    "crop_flip": "robustcords.data.augmentations.crop_flip:CropFlip",
    "none": "robustcords.data.augmentations.none:NoAugmentation",
}
