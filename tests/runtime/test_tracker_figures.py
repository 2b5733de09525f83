"""What trackers are given of a table."""

from robustcords.runtime.trackers import figures


def test_every_number_has_the_name_of_its_keys():
    row = {"epoch": 3, "train_loss": 0.5, "counts": None, "seconds": {"total": 2.0, "attack": 1.5}, "label": "PGD"}
    row |= {"selection": {"classes": [4, 6], "effective_size": 9.5}, "complete": True}
    assert figures(row) == {
        "epoch": 3,
        "train_loss": 0.5,
        "seconds/total": 2.0,
        "seconds/attack": 1.5,
        "selection/classes/0": 4,
        "selection/classes/1": 6,
        "selection/effective_size": 9.5,
    }


def test_names_have_no_character_that_a_tracker_refuses():
    assert figures({"pgd": {"8/255": 0.5}, "per_class": {"cat, tabby": 0.1}}) == {
        "pgd/8/255": 0.5,
        "per_class/cat_ tabby": 0.1,
    }


def test_long_lists_are_left_to_the_files():
    assert figures({"classes": [1] * 1000, "few": [1] * 2}) == {"few/0": 1, "few/1": 1}
