"""Text as Markdown shows it, and tables."""

from io import StringIO

import pytest

from robustcords.report.tabular import in_markdown, on_terminal, plain
from robustcords.runtime.progress import verbatim


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", r"a \| b"),
        ("*bold* and `code`", r"\*bold\* and \`code\`"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("[a](b) [c] (d)", r"[a\](b) [c] (d)"),
        ("cifar10_small_trades", "cifar10_small_trades"),
        ("_said_ and __all__", r"\_said\_ and \_\_all\_\_"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_a_table_in_markdown() -> None:
    assert in_markdown(["a", "b", "c"], [["1", "2", "3"]], left=2) == (
        "| a | b | c |\n| :-- | :-- | --: |\n| 1 | 2 | 3 |"
    )


def test_a_table_on_the_terminal_takes_text_for_no_markup() -> None:
    shown = StringIO()
    verbatim(shown, width=40).print(on_terminal(["[red]a", "b"], [["[bold]1", "x[/b] :smile:"]]))
    for text in ("[red]a", "[bold]1", "x[/b] :smile:"):
        assert text in shown.getvalue()
