"""The chart in README: clean and robust accuracy after 5, 15 and 45 minutes of one core.

    python benchmarks/readme_chart.py docs/minutes.svg

Drawn from the reports of the runs in docs/results/runs; docs/results.md says how these were made.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from robustcords.report.run_report import Report

RUNS = Path(__file__).parents[1] / "docs/results/runs"
FOLDERS = {"five_minutes": 5, "fifteen_minutes": 15, "forty_five_minutes": 45}
NAMES = {
    "atas": "ATAS",
    "nuat": "NuAT",
    "n-fgsm": "N-FGSM",
    "fgsm-rs": "FGSM-RS",
    "free": "Free AT",
    "gradalign": "GradAlign",
    "trades": "TRADES",
    "trades-bullet": "TRADES, Bullet-Train",
    "adv-glister": "Adv-GLISTER 30 %",
    "adv-glister-bullet": "Adv-GLISTER 30 %, Bullet-Train",
    "kim-et-al": "Kim et al.",
    "pgd-at": "PGD-AT",
    "fast-bat": "Fast-BAT",
    "acat": "ACAT",
    "mart": "MART",
    "awp": "AWP",
    "fat": "FAT",
}
COLOURS = {"atas": "#0072B2", "trades": "#D55E00", "adv-glister-bullet": "#009E73"}  # Okabe and Ito's
BESIDE, BEFORE, ABOVE, BELOW = (9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 19, "start")
LABELS = {
    **dict.fromkeys([("nuat", 15), ("n-fgsm", 15), ("pgd-at", 15), ("kim-et-al", 15)], BEFORE),
    **dict.fromkeys([("gradalign", 15), ("fgsm-rs", 15), ("trades-bullet", 15)], ABOVE),
    **dict.fromkeys([("trades", 5), ("trades", 45), ("adv-glister-bullet", 5), ("adv-glister-bullet", 15)], BELOW),
    **dict.fromkeys([("fast-bat", 15), ("awp", 15)], BELOW),
}
"""Where a label is, from its point: distance across and down, and what of the text is there; else `BESIDE`."""

WIDTH, HEIGHT, MARGIN = 760, 420, 56
ACROSS, UP = (30.0, 66.0), (10.0, 30.0)
"""Ranges of clean and of robust accuracy, in percent."""

STYLE = (
    "text{font:13px sans-serif;fill:#24292f}line,path{stroke:#8c959f;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)

Points = dict[str, dict[int, tuple[float, float]]]


def measured() -> Points:
    """Returns clean and PGD-50-10 accuracy in percent, by method and minutes."""
    points: Points = {name: {} for name in NAMES}
    for folder, minutes in FOLDERS.items():
        for path in sorted((RUNS / folder).glob("*_0/report.json")):
            found = Report.read(path).evaluation["last"]
            name = path.parent.name.removesuffix("_0")
            points[name][minutes] = 100 * (found.clean or 0.0), 100 * (found.pgd["8/255"] or 0.0)
    return points


def place(clean: float, robust: float) -> tuple[float, float]:
    """Returns where a point is in the picture."""
    across, up = ((value - low) / (high - low) for value, (low, high) in ((clean, ACROSS), (robust, UP)))
    return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 1.5 * MARGIN)


def drawn(points: Points) -> str:
    """Returns the picture as SVG."""
    parts = [f"<style>{STYLE}</style>"]
    for value in range(10, 31, 5):
        (left, y), (right, _) = place(ACROSS[0], value), place(ACROSS[1], value)
        parts.append(f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" opacity="0.3"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for value in range(30, 66, 5):
        x, y = place(value, UP[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{value}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">clean accuracy, %</text>')
    parts.append(f'<text x="{MARGIN - 36}" y="18">accuracy under PGD-50-10 at 8/255, %</text>')
    for name, by_minutes in points.items():
        colour = COLOURS.get(name, "#6e7781")
        spots = {minutes: place(*found) for minutes, found in sorted(by_minutes.items())}
        for one, other in pairwise(spots.values()):
            line = f"M{one[0]:.1f} {one[1]:.1f}L{other[0]:.1f} {other[1]:.1f}"
            parts.append(f'<path d="{line}" style="stroke:{colour};stroke-width:2"/>')
        for minutes, (x, y) in spots.items():
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
            label = f"{NAMES[name]}, {minutes} min" if len(spots) > 1 else NAMES[name]
            across, down, anchor = LABELS.get((name, minutes), BESIDE)
            parts.append(f'<text x="{x + across:.1f}" y="{y + down:.1f}" text-anchor="{anchor}">{label}</text>')
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">\n{body}\n</svg>\n'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn(measured()), encoding="utf-8")
