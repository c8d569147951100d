const METHOD_COLUMNS = ["label", "records", "before_acc", "before_asr", "base_rate", "acc", "asr", "ra", "der", "der_low", "der_high", "removed", "seconds", "spread", "idle_records", "idle_untouched", "idle_acc_drop"];
const place = (id) => document.getElementById(id);
const column = Object.fromEntries(DATA.columns.map((name, index) => [name, index]));
let runs = null;

function filterRuns(words) {
  place("shown").textContent = `${runs.filter(words)} of ${runs.count} runs`;
}

function showRunsOf(words) {
  place("filter").value = words;
  filterRuns(words);
  place("runs").scrollIntoView();
}

function goTo(what, name) {
  location.hash = `${what}=${encodeURIComponent(name)}`;
}

function showMethods() {
  place("notes").append(...DATA.notes.map((text) => element("li", text)));
  const rows = DATA.methods.map((method) => METHOD_COLUMNS.map((name) => method[name]));
  sortableTable(place("methods"), METHOD_COLUMNS, rows, "Methods, best first", (name, row) => (name === "label" ? () => goTo("method", row[0]) : null));
  place("statements").querySelector("ul").append(...DATA.statements.map((text) => element("li", text)));
  place("statements").hidden = DATA.statements.length === 0;
}

function showRuns() {
  runs = sortableTable(place("cells"), DATA.columns, DATA.cells, "Every run", (name, row) => (name === "record" ? () => goTo("record", row[column.record]) : null));
  place("filter").addEventListener("input", (event) => filterRuns(event.target.value));
  filterRuns("");
}

// The stored sweep row nearest to u: what is between two stored values was not measured.
function nearest(sweep, u) {
  return sweep.reduce((best, row) => (Math.abs(row.u - u) < Math.abs(best.u - u) ? row : best));
}

function readThreshold(study) {
  const u = Number(place("u").value);
  place("u-value").textContent = u.toFixed(2);
  const pruned = study.layers.reduce((sum, layer) => sum + layer.z.filter((z) => z > u).length, 0);
  let text = `${pruned} channels lie above u = ${u.toFixed(2)}.`;
  if (study.sweep.length) {
    const row = nearest(study.sweep, u);
    text += ` Measured at u = ${row.u}: ACC ${shown("acc", row.acc)} %, ASR ${shown("asr", row.asr)} %, RA ${shown("ra", row.ra)} %.`;
    drawSweep(study, u);
  }
  place("reading").textContent = text;
  if (study.layers.length) drawChannels(study, u);
}

function showImages(study) {
  const figures = study.images.flatMap(([clean, triggered]) => [[clean, "clean"], [triggered, "with trigger"]]).map(([source, caption]) => {
    const figure = element("figure");
    figure.append(element("img", undefined, { src: source, alt: `test image, ${caption}` }), element("figcaption", caption));
    return figure;
  });
  place("images").replaceChildren(...figures);
}

function hasEvidence(study) {
  return Boolean(study) && study.layers.length + study.sweep.length > 0;
}

function showRecord(name) {
  place("record").value = name;
  const own = DATA.cells.filter((row) => row[column.record] === name);
  const first = own[0];
  place("facts").textContent = first
    ? `${first[column.attack]} on ${first[column.dataset]}, ${first[column.architecture]}: ACC ${shown("acc", first[column.before_acc])} %, ASR ${shown("asr", first[column.before_asr])} % before any repair; ${own.length} runs.`
    : "";
  const study = DATA.records[name];
  place("evidence").hidden = !hasEvidence(study);
  place("images").hidden = !study;
  if (study) showImages(study);
  if (!hasEvidence(study)) {
    place("facts").textContent += " Nothing more is stored: run bench correlate and bench sweep on it first.";
    return;
  }
  const outlying = study.layers.flatMap((layer) => layer.z.map((z, channel) => [layer.name, channel, layer.sigma[channel], z, layer.tac[channel], ((study.pruned[layer.name] || {})[channel] || []).join(", ")]));
  outlying.sort((one, other) => other[3] - one[3]);
  sortableTable(place("channels"), ["layer", "channel", "sigma", "z", "TAC", "pruned by"], outlying.slice(0, 50), "Channels farthest above their layer's mean");
  sortableTable(place("sweep"), ["u", "pruned", "acc", "asr", "ra"], study.sweep.map((row) => [row.u, row.pruned, row.acc, row.asr, row.ra]), "Sweep over u");
  place("u").oninput = () => readThreshold(study);
  readThreshold(study);
}

function followLink() {
  const [, what, word] = location.hash.match(/^#(record|method)=(.*)$/) || [];
  if (!what) return;
  const name = decodeURIComponent(word);
  if (what === "method") showRunsOf(name);
  else if ([...place("record").options].some((option) => option.value === name)) {
    showRecord(name);
    place("records").scrollIntoView();
  }
}

function drawAll() {
  drawCosts();
  drawEffectiveness();
  const study = DATA.records[place("record").value];
  if (hasEvidence(study)) readThreshold(study);
}

function start() {
  showMethods();
  showRuns();
  const names = [...new Set(DATA.cells.map((row) => row[column.record]))];
  place("record").append(...names.map((name) => element("option", name, { value: name })));
  place("record").addEventListener("change", (event) => goTo("record", event.target.value));
  addEventListener("hashchange", followLink);
  if (names.length) showRecord(names.find((name) => hasEvidence(DATA.records[name])) || names[0]);
  drawAll();
  followLink();
}

start();
