"""Text as Markdown shows it, and tables."""

from io import StringIO

from support.cases import cases

from robustcords.report.markdown import fitting, in_markdown, on_terminal, plain
from robustcords.runtime.progress import verbatim


@cases(
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


@cases(("width", "columns"), [(200, 4), (45, 3), (36, 2), (10, 2)])
def test_a_narrow_terminal_has_fewer_columns_and_whole_figures(width: int, columns: int) -> None:
    header = ["method", "AutoAttack standard 8/255", "clean", "training time"]
    rows = [["a method with quite a long name", "24.10 ± 0.57", "54.50", "33:18"]]
    console = verbatim(StringIO(), width)
    table = fitting(header, rows, console)
    assert len(table.columns) == columns
    console.print(table)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    if width > 10:
        assert all(cell in text for cell in rows[0][1:columns])
    assert ("no room here for: " in " ".join(text.split())) == (columns < 4)
