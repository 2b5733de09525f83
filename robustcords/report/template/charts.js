"use strict";
(() => {
  const LIGHT = { text: "#1b1f24", quiet: "#57606a", grid: "#e4e8ec", ground: "#ffffff" };
  const DARK = { text: "#e6e9ee", quiet: "#a3adb8", grid: "#2c333b", ground: "#1d2229" };
  const PAPER = { full: 690, small: 330 };
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true };

  const axis = (theme) => ({
    color: theme.quiet, gridcolor: theme.grid, linecolor: theme.quiet, tickcolor: theme.quiet,
  });

  // Only what depends on the theme, with dotted names, which leave the rest of the layout as it is.
  function changes(theme, plot) {
    const found = {
      "font.color": theme.text,
      "font.size": 12,
      "hoverlabel.bgcolor": theme.ground,
      "hoverlabel.bordercolor": theme.quiet,
      "hoverlabel.font.color": theme.text,
      "hoverlabel.align": "left",
      "hoverlabel.namelength": -1,
    };
    for (const name of ["xaxis", "yaxis"]) {
      for (const [key, value] of Object.entries(axis(theme))) found[`${name}.${key}`] = value;
    }
    (plot.layout.annotations || []).forEach((_, n) => { found[`annotations[${n}].font.color`] = theme.text; });
    return found;
  }

  function paint(theme) {
    for (const plot of plots) Plotly.relayout(plot, changes(theme, plot));
  }

  for (const plot of plots) {
    const figure = figures[plot.dataset.figure];
    Plotly.newPlot(plot, figure.data, figure.layout, config);
  }
  const screen = () => paint(dark.matches ? DARK : LIGHT);
  screen();
  dark.addEventListener("change", screen);

  // Paper is white and of one width, whatever the screen is; what is folded up is printed too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
    for (const plot of plots) {
      const width = plot.parentElement.classList.contains("small") ? PAPER.small : PAPER.full;
      Plotly.relayout(plot, { ...changes(LIGHT, plot), width });
    }
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
    for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
    screen();
  });
  document.documentElement.dataset.charts = String(plots.length);
})();
