import torch
from support.cases import cases
from torchvision.transforms import v2

from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.augmentations.rand_augment import RandAugment
from robustcords.data.augmentations.trivial_augment import TrivialAugment
from robustcords.rng import Noise, derive

NOISE = Noise(5, torch.arange(100, 124))
OURS = {
    "trivial": (TrivialAugment(crop=1, flip=True), v2.TrivialAugmentWide()),
    "rand": (RandAugment(operations=3, magnitude=14, crop=1, flip=True), v2.RandAugment(num_ops=3, magnitude=14)),
}


@cases("channels", [1, 3])
@cases("name", OURS)
def test_it_is_torchvisions_transform_seeded_for_each_example(name, channels):
    ours, transform = OURS[name]
    pixels = torch.randint(256, (24, channels, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = pixels.float() / 255
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    found = ours(x, NOISE)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is as it was"
    assert torch.equal(x, pixels.float() / 255)
    cropped = (CropFlip(crop=1, flip=True)(x, NOISE) * 255).round().to(torch.uint8)
    for row, seed in enumerate(Noise(derive(NOISE.seed, "change"), NOISE.keys).seeds().tolist()):
        torch.manual_seed(seed)
        assert torch.equal(found[row], transform(cropped[row]).float() / 255)
    assert (found != cropped.float() / 255).flatten(1).any(dim=1).sum() > 12
    rows = torch.tensor([20, 3])
    assert torch.equal(ours(x[rows], NOISE[rows]), found[rows])
