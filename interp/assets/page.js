"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  // plotly's own bar offers to send the chart to its makers' server; a page that keeps to itself does not.
  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  };
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
