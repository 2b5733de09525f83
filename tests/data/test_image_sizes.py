from pathlib import Path

from PIL import Image

from robustcords.data.image_sizes import sizes_below


def test_what_is_no_image_is_passed_over(class_folders: Path):
    (class_folders / "train" / "cat" / "text.png").write_text("no image")
    (class_folders / "train" / "cat" / "link.png").symlink_to("nowhere.png")
    Image.new("1", (20_000, 9_000)).save(class_folders / "train" / "cat" / "huge.png")  # more than Pillow opens
    assert sizes_below(class_folders) == {(6, 5)}
