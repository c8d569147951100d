"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PERCENT = new Set(["acc", "asr", "ra", "base_rate", "before_acc", "before_asr", "after_acc", "after_asr", "after_ra", "reported_acc", "reported_asr", "reported_ra", "spread", "idle_acc_drop"]);
const ROWS_AT_ONCE = 200; // a browser lays out thousands of rows slowly
const COLLATOR = new Intl.Collator(undefined, { numeric: true });
const WORDS = new Set(["label", "record", "attack", "dataset", "architecture", "method", "protocol", "budget", "status", "error", "layer", "pruned by"]);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shown(column, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (PERCENT.has(column)) return (100 * value).toFixed(1);
  if (column.startsWith("der")) return value.toFixed(3);
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

function heading(column) {
  const words = column === "label" ? "method" : column.replaceAll("_", " ").replace(/\b(acc|asr|ra|der)\b/g, (word) => word.toUpperCase());
  return words + (PERCENT.has(column) ? " %" : "");
}

function compare(first, second) {
  if (first === second) return 0;
  if (first === null || first === undefined) return 1;
  if (second === null || second === undefined) return -1;
  if (typeof first === "number" && typeof second === "number") return first - second;
  return COLLATOR.compare(String(first), String(second));
}

// A table whose heads sort it; `link(column, row)` makes a cell a button. Of many rows the first are in the document, more on request.
function sortableTable(place, columns, rows, caption, link = () => null) {
  const table = element("table");
  const body = element("tbody");
  const more = element("button", undefined, { type: "button", class: "more" });
  const entries = rows.map((row) => ({ row, words: row.filter((value) => value !== null).join("\n").toLowerCase() }));
  let wanted = "";
  let limit = ROWS_AT_ONCE;

  function lineOf(row) {
    const line = element("tr", undefined, row.some((value) => /\boracle\b/.test(value)) ? { class: "oracle" } : {});
    columns.forEach((column, index) => {
      const cell = element("td", undefined, WORDS.has(column) ? { class: "word" } : {});
      const action = link(column, row);
      if (action) {
        const button = element("button", shown(column, row[index]), { type: "button" });
        button.addEventListener("click", action);
        cell.append(button);
      } else cell.textContent = shown(column, row[index]);
      line.append(cell);
    });
    return line;
  }

  function render() {
    const matching = entries.filter((entry) => entry.words.includes(wanted));
    body.replaceChildren(...matching.slice(0, limit).map((entry) => lineOf(entry.row)));
    more.hidden = matching.length <= limit;
    more.textContent = `${Math.min(limit, matching.length)} of ${matching.length} rows are shown: show all`;
    return matching.length;
  }

  function sortBy(head, index) {
    const direction = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of heads.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const distinct = [...new Set(rows.map((row) => row[index]))].sort(compare);
    const rank = new Map(distinct.map((value, position) => [value, position]));
    entries.sort((one, other) => direction * (rank.get(one.row[index]) - rank.get(other.row[index])));
    render();
  }

  const heads = element("tr");
  columns.forEach((column, index) => {
    const head = element("th", undefined, { scope: "col", "aria-sort": "none", ...(WORDS.has(column) ? { class: "word" } : {}) });
    const button = element("button", heading(column), { type: "button" });
    button.addEventListener("click", () => sortBy(head, index));
    head.append(button);
    heads.append(head);
  });
  more.addEventListener("click", () => { limit = Infinity; render(); });
  const top = element("thead");
  top.append(heads);
  table.append(element("caption", caption, { class: "skip" }), top, body);
  place.replaceChildren(table, more);
  render();
  return { count: rows.length, filter(words) { wanted = words.toLowerCase(); limit = ROWS_AT_ONCE; return render(); } };
}
