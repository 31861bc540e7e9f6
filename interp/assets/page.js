"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const drawings = [];

  const read = (element) => JSON.parse(element.textContent);
  const fail = (target, problem) => {
    target.textContent = "This picture could not be drawn: " + problem.message;
    console.error(problem);
  };

  for (const element of document.querySelectorAll("script[data-plot]")) {
    const target = document.getElementById(element.dataset.plot);
    const spec = read(element);
    spec.layout.font = { ...spec.layout.font, color: ink() };
    drawings.push(Plotly.newPlot(target, spec.data, spec.layout, config).catch((e) => fail(target, e)));
  }
  for (const element of document.querySelectorAll("script[data-view]")) {
    const target = document.getElementById(element.dataset.view);
    const { component, props } = read(element);
    try {
      CircuitsVis.render(target.id, CircuitsVis[component], props);
    } catch (problem) {
      fail(target, problem);
    }
  }
  dark.addEventListener("change", () => {
    for (const plot of document.querySelectorAll(".plot")) Plotly.relayout(plot, { "font.color": ink() });
  });
  Promise.all(drawings).then(() => { document.documentElement.dataset.drawn = "true"; });
})();
