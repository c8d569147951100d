"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PERCENT = new Set(["acc", "asr", "ra", "base_rate", "before_acc", "before_asr", "after_acc", "after_asr", "after_ra", "spread", "idle_acc_drop"]);
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
  if (column === "der") return value.toFixed(3);
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

function compare(first, second) {
  if (first === second) return 0;
  if (first === null || first === undefined) return 1;
  if (second === null || second === undefined) return -1;
  if (typeof first === "number" && typeof second === "number") return first - second;
  return String(first).localeCompare(String(second), undefined, { numeric: true });
}

// A table whose heads sort it; `link(column, row)` makes a cell a button.
function sortableTable(place, columns, rows, caption, link = () => null) {
  const table = element("table");
  table.append(element("caption", caption, { class: "skip" }));
  const body = element("tbody");
  const lines = rows.map((row) => {
    const line = element("tr");
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
    return { line, row };
  });
  const heads = element("tr");
  columns.forEach((column, index) => {
    const head = element("th", undefined, { scope: "col", "aria-sort": "none", ...(WORDS.has(column) ? { class: "word" } : {}) });
    const button = element("button", column.replaceAll("_", " ") + (PERCENT.has(column) ? " %" : ""), { type: "button" });
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of heads.children) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      lines.sort((one, other) => direction * compare(one.row[index], other.row[index]));
      body.append(...lines.map((each) => each.line));
    });
    head.append(button);
    heads.append(head);
  });
  const top = element("thead");
  top.append(heads);
  body.append(...lines.map((each) => each.line));
  table.append(top, body);
  place.replaceChildren(table);
  return lines;
}
