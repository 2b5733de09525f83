import io
import sqlite3
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from support.cases import cases
from torchvision.transforms.functional import center_crop, resize

from robustcords.data.images import ImageSet
from robustcords.data.pixels import channels_of, to_array
from robustcords.errors import UserError


def png(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_image(mode="RGB", size=(6, 4), seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=None)


def test_bytes_file_and_image_give_the_same_pixels(tmp_path):
    image = random_image()
    (tmp_path / "a.png").write_bytes(png(image))
    expected = np.asarray(image).transpose(2, 0, 1)
    for picture in (image, png(image), tmp_path / "a.png"):
        assert np.array_equal(to_array(picture), expected)


@cases(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, [255]),
        ("L", 130, [130]),
        ("LA", (130, 0), [130]),
        ("I;16", 65535, [255]),
        ("I;16", 257 * 77 + 100, [77]),
        ("I;16", 257 * 77 + 200, [78]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 0), [1, 2, 3]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
    ],
)
def test_the_rule_for_modes(mode, pixel, expected):
    image = Image.new(mode, (2, 3), pixel)
    for picture in (image, png(image, "TIFF")):
        assert to_array(picture).tolist() == [[[value] * 2] * 3 for value in expected]


def test_palettes_become_their_colours():
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert to_array(png(image)).ravel().tolist() == [9, 8, 7]


@cases(
    ("orientation", "turned"),
    [
        (1, lambda stored: stored),
        (2, np.fliplr),
        (3, lambda stored: np.rot90(stored, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda stored: np.rot90(stored, -1)),  # by 90 degrees clockwise
        (7, lambda stored: np.rot90(stored, 2).T),
        (8, np.rot90),
    ],
)
def test_orientation_is_applied(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = random_image("L", (5, 3))
    assert np.array_equal(to_array(png(image, exif=exif)), turned(np.asarray(image))[None])


def test_resizing_crops_the_centre():
    image = Image.new("L", (30, 10), 0)
    image.paste(200, (7, 0, 23, 10))
    assert (to_array(image, 5) == 200).all()
    assert to_array(png(image), 10).shape == (1, 10, 10)
    assert to_array(png(random_image("RGB", (600, 400)), "JPEG"), 32).shape == (3, 32, 32)
    # Shrinking averages: an even chequerboard becomes grey.
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(to_array(board, 8).astype(int) - 128).max() <= 2


def deep_png(colour_type: int, values: np.ndarray) -> bytes:
    """Encodes (H, W, C) numbers of 16 bits, which Pillow does not write in all these types."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@cases(("colour_type", "samples", "channels"), [(0, 1, 1), (4, 2, 1), (2, 3, 3), (6, 4, 3)])
def test_png_of_sixteen_bits(colour_type, samples, channels):
    values = np.array([0, 257 * 77, 65535])
    found = to_array(deep_png(colour_type, np.repeat(values[None, :, None], samples, axis=2)))
    assert found.tolist() == [[[0, 77, 255]]] * channels
    assert channels_of(deep_png(colour_type, np.zeros((1, 1, samples)))) == channels


@cases("size", [(50, 37), (37, 50), (21, 64), (32, 32)])
@cases("side", [32, 29])
def test_resizing_is_torchvisions(size, side):
    picture = random_image("RGB", size)
    expected = center_crop(resize(picture, side), [side, side])
    assert np.array_equal(to_array(png(picture), side), np.asarray(expected).transpose(2, 0, 1))


@cases(
    ("picture", "message"),
    [
        (b"", "no bytes"),
        (b"hello", "not an image"),
        (png(random_image("RGB", (60, 60)))[:2000], "truncated"),
        (None, "there is no image"),
        (Image.new("F", (2, 2)), "mode 'F'"),
        ("/no/such/file.png", "No such file"),
        (17, "int is not an image"),
        (torch.zeros(2, 2), "not an image"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), "torch.int64"),
        (torch.full((1, 2, 2), 1.5), "normalisation belongs in the model"),
        (torch.full((1, 2, 2), -0.1), "normalisation belongs in the model"),
        (torch.full((1, 2, 2), float("nan")), "normalisation belongs in the model"),
    ],
)
def test_what_cannot_be_decoded_is_named_with_its_row(picture, message):
    rows = [(random_image(), 0), (picture, 1)]
    with pytest.raises(UserError, match=r"^list, row 1: .*" + message) as error:
        ImageSet.from_dataset(rows)
    assert "\n" not in str(error.value)


def test_a_decompression_bomb_is_refused(monkeypatch):
    bomb = png(Image.new("1", (400, 400)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UserError, match=r"row 0: .*decompression bomb"):
        ImageSet.from_dataset([(bomb, 0)])


@cases("count", [1, 64, 65, 1024, 1025, 2500])
def test_rows_keep_their_order(count):
    pixels = torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = ImageSet.from_dataset([(image, row % 3) for row, image in enumerate(pixels)], classes=["a", "b", "c"])
    assert torch.equal(found.images, pixels)
    assert found.labels.tolist() == [row % 3 for row in range(count)]
    assert found.classes == ("a", "b", "c")


def test_grey_stays_grey_and_mixed_sets_become_colour():
    grey, colour = random_image("L"), random_image("RGB")
    assert ImageSet.from_dataset([(grey, 0), (grey, 1)]).images.shape == (2, 1, 4, 6)
    for order in ([grey, colour], [colour, grey]):
        images = ImageSet.from_dataset([(image, label) for label, image in enumerate(order)]).images
        for image, decoded in zip(order, images, strict=True):
            assert np.array_equal(decoded.numpy(), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_floats_stay_floats_and_integers_of_any_kind_are_labels():
    images = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    labels = [np.int32(0), torch.tensor(1), 2]
    found = ImageSet.from_dataset(list(zip(images, labels, strict=True)))
    assert found.images.dtype == torch.float32
    assert torch.equal(found.images, images.float())
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == [0, 1, 2]
    assert found.classes == ("0", "1", "2")


def test_reads_in_the_callers_thread():
    class Stored(torch.utils.data.Dataset):
        classes = ("no", "yes")

        def __init__(self):
            self.table = sqlite3.connect(":memory:")
            self.table.execute("create table rows (id, label)")
            self.table.executemany("insert into rows values (?, ?)", [(0, 1), (1, 0)])

        def __len__(self):
            return 2

        def __getitem__(self, row):
            return random_image(), self.table.execute("select label from rows where id = ?", (row,)).fetchone()[0]

    found = ImageSet.from_dataset(Stored())
    assert found.labels.tolist() == [1, 0]
    assert found.classes == ("no", "yes")


@cases(
    ("label", "message"),
    [
        ("cat", "'cat' is not an integer"),
        (1.0, "1.0 is not an integer"),
        (True, "True is not an integer"),
        (None, "there is no label"),
        (-1, "-1 is out of range"),
        (2, r"2 is out of range \(allowed: 0 to 1\)"),
    ],
)
def test_labels_that_are_none(label, message):
    with pytest.raises(UserError, match="row 1: the.*" + message if label is not None else message):
        ImageSet.from_dataset([(random_image(), 0), (random_image(), label)], classes=["a", "b"])


def test_other_sizes_are_named_with_the_option():
    rows = [(random_image(), 0), (random_image(size=(5, 4)), 1)]
    with pytest.raises(
        UserError, match=r"row 1: the image is 5 x 4 pixels, those before it are 6 x 4; set data\.image_size"
    ):
        ImageSet.from_dataset(rows)


@cases(
    ("dataset", "message"),
    [
        ([], "list: there are no images"),
        (iter([]), "not a map-style dataset"),
        ([random_image()], "row 0: the dataset does not give pairs"),
        ([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2, dtype=torch.uint8), 1)], "row 1: uint8 pixels, but float32"),
        ([(torch.zeros(1, 2, 2), 0), (torch.zeros(4, 2, 2), 1)], "row 1: 4 channels, but 1"),
        ([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), 10**12)], "row 1: the label 1000000000000 is out of range"),
    ],
)
def test_datasets_that_are_none(dataset, message):
    with pytest.raises(UserError, match=message):
        ImageSet.from_dataset(dataset)
