const DARK = matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito's colours, told apart with any colour vision; of two of them a dark page needs a paler, a white one a darker shade.
const COLORS = ["", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "", "#8c6d00", "#7f7f7f"];
const SYMBOLS = ["circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon", "triangle-down", "triangle-left", "hexagon"];
const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d"] };
// Plotly reads a little HTML in its texts; what comes from files is only text.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function themeColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(layout) {
  const [ink, paper, line] = ["--ink", "--paper", "--line"].map(themeColor);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    ...layout, paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, size: 12 }, margin: { t: 30, r: 10, b: 50, l: 55 },
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis }, hoverlabel: { font: { size: 12 } },
  };
}

function draw(id, traces, layout) {
  Plotly.react(id, traces, themed(layout), CONFIG);
}

function chooseColors() {
  COLORS[0] = DARK.matches ? "#56b4e9" : "#0072b2";
  COLORS[5] = DARK.matches ? "#f0e442" : "#882255";
}

chooseColors();
DARK.addEventListener("change", () => {
  chooseColors();
  drawAll();
});

function drawCosts() {
  const methods = DATA.methods.map((method) => method.label);
  const traces = methods.map((method, index) => {
    const points = DATA.points.filter((point) => point[0] === method);
    return {
      name: plain(method), mode: "markers", type: "scatter",
      x: points.map((point) => 100 * point[2]), y: points.map((point) => 100 * point[3]), text: points.map((point) => plain(point[1])),
      hovertemplate: "%{text}<br>ACC lost %{x:.1f} points, ASR %{y:.1f} %",
      marker: { color: COLORS[index % COLORS.length], symbol: SYMBOLS[index % SYMBOLS.length], size: 8, opacity: 0.8 },
    };
  }).filter((trace) => trace.x.length);
  draw("cost-figure", traces, {
    xaxis: { title: { text: "accuracy lost, points" } }, yaxis: { title: { text: "ASR after repair, %" }, range: [-3, 103] },
    shapes: [{ type: "rect", layer: "below", x0: Math.min(0, ...DATA.points.map((point) => 100 * point[2])) - 1, x1: 100 * DATA.removed.acc_drop, y0: -3, y1: 100 * DATA.removed.asr, line: { width: 0 }, fillcolor: COLORS[7], opacity: 0.2 }],
    legend: { orientation: "h", y: -0.25 },
  });
}

function drawEffectiveness() {
  const rows = DATA.methods.filter((row) => row.der !== null).reverse();
  draw("der-figure", [{
    type: "bar", orientation: "h", y: rows.map((row) => plain(row.label)), x: rows.map((row) => row.der), marker: { color: COLORS[0] },
    error_x: { type: "data", symmetric: false, array: rows.map((row) => (row.der_high ?? row.der) - row.der), arrayminus: rows.map((row) => row.der - (row.der_low ?? row.der)), color: themeColor("--ink") },
    hovertemplate: "%{y}: DER %{x:.3f}<extra></extra>",
  }], { xaxis: { title: { text: "DER, mean over records<br>with 95 % interval" }, range: [0, 1] }, yaxis: { automargin: true } });
}

function drawChannels(study, u) {
  const groups = { kept: [[], [], []], pruned: [[], [], []] };
  for (const layer of study.layers) {
    layer.z.forEach((z, channel) => {
      const by = (study.pruned[layer.name] || {})[channel] || [];
      const [x, y, text] = groups[z > u ? "pruned" : "kept"];
      x.push(z);
      y.push(layer.tac[channel]);
      text.push(plain(`${layer.name}, channel ${channel}: sigma ${layer.sigma[channel]}` + (by.length ? `, pruned by ${by.join(", ")}` : "")));
    });
  }
  const looks = { kept: { color: COLORS[0], symbol: "circle", size: 5, opacity: 0.5 }, pruned: { color: COLORS[1], symbol: "diamond", size: 9 } };
  const traces = Object.entries(groups).map(([name, [x, y, text]]) => ({
    name, x, y, text, mode: "markers", type: "scatter", marker: looks[name],
    hovertemplate: "%{text}<br>z %{x:.2f}, TAC %{y:.3g}<extra></extra>",
  }));
  draw("channels-figure", traces, {
    xaxis: { title: { text: "Lipschitz bound, standard deviations<br>above its layer's mean" } }, yaxis: { title: { text: "trigger-activated change" } },
    shapes: [{ type: "line", x0: u, x1: u, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", color: COLORS[1] } }],
  });
}

function drawSweep(study, u) {
  const traces = [["acc", "ACC", 0], ["asr", "ASR", 1], ["ra", "RA", 2]].map(([key, name, look]) => ({
    name, mode: "lines+markers", type: "scatter", x: study.sweep.map((row) => row.u), y: study.sweep.map((row) => (row[key] === null ? null : 100 * row[key])),
    line: { color: COLORS[look] }, marker: { symbol: SYMBOLS[look], size: 6 },
  }));
  draw("sweep-figure", traces, {
    xaxis: { title: { text: "u" } }, yaxis: { title: { text: "% of test images" }, range: [-3, 103] },
    shapes: [{ type: "line", x0: u, x1: u, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", color: COLORS[7] } }],
  });
}
