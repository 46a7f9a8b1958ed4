// Filters, charts, sorting and the panel of one cell. Reads the data island and the table of cells, and loads nothing;
// without scripts the page has everything but these. Stands after drawing.js, in one script element.
const data = JSON.parse(document.getElementById("data").textContent);
const cells = data.cells.map((cell, number) => ({ ...cell, number }));
const table = document.querySelector("#cell-tables table");
const [charts, tip, counted] = ["charts", "tip", "counted"].map((id) => document.getElementById(id));
const rows = new Map();  // the table's row of each cell
const MOST_PANELS = 24, MOST_TOLD = 6;
let selected = null, firstChosen = null, shown = cells;

const mark = (status) => html("span", { class: `mark ${status}` }, status);
const button = (text, click) => html("button", { type: "button", click }, text);
const interval = (value) => (value[4] && value[4] !== "–" ? ` (95 % interval ${value[4]})` : "");
const told = (value) => `${value[3]}${interval(value)}${value[5] ? `, ${value[5]}` : ""}`;

// ---- Axes and filters -------------------------------------------------------------------------------------------

const axes = [...data.axes.map(([name, title, words], place) => ({ name, title, words, of: (cell) => cell.at[place] })),
  { name: "status", title: "Status", words: ["valid", "suspect", "invalid"], of: (cell) => cell.status }];
for (const axis of axes) {
  axis.values = [...new Set(cells.map(axis.of))].filter((value) => value !== null && value !== "");
  axis.numeric = axis.values.length > 0 && axis.values.every((value) => typeof value === "number");
  axis.values.sort((a, b) => (axis.numeric ? a - b : axis.words.indexOf(a) - axis.words.indexOf(b)));
  axis.off = new Set();  // values that are filtered out
}
const differing = axes.filter((axis) => axis.values.length > 1);
const splitting = differing.filter((axis) => axis.name !== "status");
const implied = differing.some((axis) => axis.name === "variant") ? ["tool"] : [];  // a variant names its run

const filterOf = (axis) => {
  const set = (box, value, on) => {
    box.checked = on;
    axis.off[on ? "delete" : "add"](value);
  };
  const boxes = axis.values.map((value) => {
    const change = ({ target }) => { set(target, value, target.checked); update(); };
    return html("input", { type: "checkbox", change });
  });
  const labels = axis.values.map((value, place) => html("label", {}, boxes[place], String(value)));
  const all = (on) => {
    boxes.forEach((box, place) => { if (!labels[place].hidden) set(box, axis.values[place], on); });
    update();
  };
  const find = (event) => {
    const word = event.target.value.toLowerCase();
    labels.forEach((one) => { one.hidden = !one.textContent.toLowerCase().includes(word); });
  };
  const words = { placeholder: "find", "aria-label": `Find ${axis.title}` };
  const search = html("input", { type: "search", ...words, input: find });
  const summary = html("summary");
  axis.tell = () => {
    const kept = axis.values.length - axis.off.size;
    summary.textContent = `${axis.title}: ${axis.off.size ? `${kept} of ${axis.values.length}` : "all"}`;
    summary.classList.toggle("set", axis.off.size > 0);
  };
  axis.reset = () => boxes.forEach((box, place) => set(box, axis.values[place], true));
  axis.reset();
  const choices = html("span", {}, button("all", () => all(true)), " ", button("none", () => all(false)));
  return html("details", { class: "filter" }, summary,
    html("div", { class: "values" }, ...(boxes.length > 10 ? [search] : []), choices, ...labels));
};

// Whether the filters leave a cell, apart from those of the axes named.
const isKept = (cell, apart = []) =>
  differing.every((axis) => apart.includes(axis.name) || !axis.off.has(axis.of(cell)));

const update = () => {
  shown = cells.filter((cell) => isKept(cell));
  const kept = new Set(shown.map((cell) => cell.number));
  rows.forEach((row, number) => { row.hidden = !kept.has(number); });
  if (selected !== null && !kept.has(selected)) select(null);
  differing.forEach((axis) => axis.tell());
  counted.textContent = `${shown.length} of ${cells.length} cells`;
  redraw();
};

// ---- Charts -----------------------------------------------------------------------------------------------------

const chooser = (title, pairs, value) => {
  const options = pairs.map(([name, words]) => html("option", { value: name }, words));
  const select = html("select", { change: () => redraw() }, ...options);
  select.value = value;
  return { select, label: html("label", {}, title, " ", select) };
};
const named = (list, name) => list.find((axis) => axis.name === name);
const names = (list) => list.map((axis) => [axis.name, axis.title]);
const abscissae = axes.filter((axis) => axis.numeric && axis.values.every((value) => value > 0));
const firstOver = [...["batch", "rate"].map((name) => named(splitting, name)), ...splitting, named(axes, "batch"), ...abscissae]
  .find((axis) => axis && abscissae.includes(axis));
const firstHue = ["variant", "output", "input"].map((name) => named(splitting, name))
  .find((axis) => axis && axis !== firstOver);
const firstMetric = data.metrics.find(([name]) => name === "sys_tok_s") || data.metrics[0];
const byMetric = chooser("Show", data.metrics, firstMetric ? firstMetric[0] : "");
const byOver = chooser("over", names(abscissae), firstOver ? firstOver.name : "");
const byHue = chooser("lines", [["", "all alike"], ...names(splitting)], firstHue ? firstHue.name : "");

const redraw = () => {
  const metric = data.metrics.findIndex(([name]) => name === byMetric.select.value);
  const ratio = data.ratios.includes(byMetric.select.value);
  const [x, colour] = [byOver, byHue].map((by) => named(axes, by.select.value));
  const drawn = shown.filter((cell) => x && cell.status !== "invalid" && cell.values[metric] && x.of(cell) !== null);
  const plan = drawn.length ? planOf(drawn, x, colour, metric, ratio) : { lines: [] };
  const panels = new Map();
  const split = splitting.filter((axis) => axis !== x && axis !== colour && !implied.includes(axis.name));
  const panelOf = (cell) => split.map((axis) => `${axis.title.toLowerCase()} ${axis.of(cell) ?? "–"}`).join(", ");
  for (const cell of drawn) panels.set(panelOf(cell), [...(panels.get(panelOf(cell)) || []), cell]);
  const lacking = cells.filter((cell) => isKept(cell, ["status"]) && x && !drawn.includes(cell) && x.of(cell) !== null);
  const figures = [...panels].slice(0, MOST_PANELS).map(([name, own]) => drawPanel(
    `${data.metrics[metric][1]}${plan.log ? ", log scale," : ""} over ${x.title.toLowerCase()}${name && `, ${name}`}`, own, plan,
    (meant, event) => tell(meant, metric, event), choose, lacking.filter((cell) => panelOf(cell) === name)));
  const hued = plan.many ? [] : plan.lines;
  const keys = hued.map((value) => html("span", { class: `hue${plan.hueOf(value)}` }, keyOf(plan.hueOf(value)), String(value)));
  const legend = html("p", { class: "legend" }, ...(hued.length ? [`${colour.title}: `] : []), ...keys);
  const notes = [], left = panels.size - MOST_PANELS, absent = shown.length - drawn.length;
  if (left > 0) notes.push(`${left} more panels: filter to see them.`);
  if (plan.many) notes.push(`${plan.lines.length} lines, too many for colours: point at one for its name, or filter.`);
  if (ratio) notes.push("Ratio to the baseline: above 1 is better, for latencies too. Pale: undecided.");
  const broken = drawn.length ? ", where lines break" : "";
  if (absent) notes.push(`Not drawn: ${absent} of ${shown.length} cells, invalid or without a number here${broken}.`);
  charts.replaceChildren(legend, ...figures, html("p", { class: "small" }, notes.join(" ")));
  ring();
};

const tell = (meant, metric, event) => {
  tip.hidden = meant.length === 0;
  if (tip.hidden) return;
  const lines = meant.slice(0, MOST_TOLD).map((cell) => {
    const value = cell.values[metric], why = cell.reasons.length ? ` ${cell.reasons.join(", ")}` : "";
    const text = `${data.metrics[metric][1]}: ${told(value)} `;
    return html("p", {}, html("strong", {}, cell.name), html("br"), text, mark(cell.status), why);
  });
  const more = meant.length - lines.length;
  tip.replaceChildren(...lines, more ? `and ${more} more here: filter to see them` : "");
  const below = event.clientY + 18, fits = below + tip.offsetHeight <= window.innerHeight;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 10}px`;
};

// ---- The panel of one cell --------------------------------------------------------------------------------------

const ring = () => {
  document.querySelectorAll(".selected").forEach((node) => node.classList.remove("selected"));
  if (selected === null) return;
  document.querySelectorAll(`[data-point="${selected}"]`).forEach((node) => node.classList.add("selected"));
  rows.get(selected).classList.add("selected");
};

// A click: the nearest cell; again, the next of those that lie there, and at last none.
const choose = (meant, figure) => {
  if (!meant.length) return;
  const numbers = meant.map((cell) => cell.number).sort((a, b) => a - b), at = numbers.indexOf(selected);
  const next = at < 0 ? meant[0].number : numbers[(at + 1) % numbers.length];
  if (at < 0) firstChosen = next;
  select(at >= 0 && next === firstChosen ? null : next, figure);
};

// Below the figure where it was chosen, else below its row.
const select = (which, figure = null) => {
  document.querySelectorAll(".detail").forEach((node) => node.remove());
  selected = which;
  ring();
  if (which === null) return;
  const content = detail(cells[which]), row = rows.get(which);
  if (figure) figure.after(html("div", { class: "detail" }, content));
  else row.after(html("tr", { class: "detail" }, html("td", { colspan: row.cells.length }, content)));
  content.scrollIntoView({ block: "nearest" });
};

const detail = (cell) => {
  const list = (lines) => html("ul", { class: "checks" }, ...lines.map((line) => html("li", {}, line)));
  const items = document.querySelectorAll(`[data-checks="${cell.number}"] li`);
  const checked = [...items].map((item) => item.textContent.trim());
  const found = checked.filter((line) => /^(suspect|invalid): /.test(line));  // with what was found in this cell
  const meaning = (code) => data.reasons[`${cell.status} ${code}`] || data.reasons[`suspect ${code}`] || ["unknown"];
  const why = found.length ? found : cell.reasons.map((code) => `${code}: ${meaning(code).join("; ")}`);
  const values = data.metrics.map(([, title], place) => [title, cell.values[place]]).filter(([, value]) => value)
    .map(([title, value]) => html("div", {}, html("dt", {}, title), html("dd", {}, told(value))));
  const others = checked.filter((line) => !found.includes(line));
  const checks = html("details", {}, html("summary", {}, "What was checked"), list(others));
  const close = () => { select(null); rows.get(cell.number).focus(); };
  return html("div", { class: "content" },
    html("h3", {}, cell.name, " ", mark(cell.status), " ", button("close", close)),
    html("p", { class: "small" }, data.runs[cell.run]), ...(why.length ? [list(why)] : []),
    cell.timeline ? drawTimeline(cell.timeline) : html("p", { class: "small" }, "No timeline: no round is kept here."),
    html("dl", {}, ...values), ...(others.length ? [checks] : []));
};

// ---- The table --------------------------------------------------------------------------------------------------

const gather = () => {
  document.querySelectorAll("#cell-tables tr[data-cell]").forEach((row) => {
    const which = Number(row.dataset.cell), toggle = () => select(which === selected ? null : which);
    rows.set(which, row);
    table.tBodies[0].append(row);
    row.tabIndex = 0;
    row.addEventListener("click", () => { if (!String(window.getSelection())) toggle(); });
    row.addEventListener("keydown", (event) => {
      if (event.target !== row || ![" ", "Enter"].includes(event.key)) return;
      event.preventDefault();  // a space would scroll
      toggle();
    });
  });
  table.parentNode.classList.toggle("long", rows.size > 40);
  document.getElementById("cell-tables").replaceChildren(table.parentNode);
};

const sortable = (body, planned) => (head, column, heads) => {
  const textOf = (row) => row.cells[column].textContent.trim();
  const absent = (row) => ["", "–"].includes(textOf(row));
  const wordy = (row) => !absent(row) && !/^[±+-]?\d/.test(textOf(row));
  const words = head.classList.contains("text") || planned.some(wordy);
  const key = (row) => (words ? textOf(row) : parseFloat(textOf(row).replace(/[,±]/g, "")));
  const compare = (a, b) => (words ? key(a).localeCompare(key(b), "en", { numeric: true }) : key(a) - key(b));
  const sort = () => {
    const following = { none: "ascending", ascending: "descending", descending: "none" };
    const order = following[head.getAttribute("aria-sort") || "none"], sign = order === "ascending" ? 1 : -1;
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    select(null);
    const list = [...planned];
    if (order !== "none") list.sort((a, b) => absent(a) - absent(b) || (absent(a) ? 0 : sign * compare(a, b)));
    body.append(...list);
  };
  const title = head.textContent;
  head.replaceChildren(button(title, sort));
};

// ---- Start ------------------------------------------------------------------------------------------------------

const start = () => {
  gather();
  document.querySelectorAll(".scroll table:not(.prose)").forEach(({ tHead, tBodies: [body] }) => {
    if (body.rows.length > 1) [...tHead.rows[0].cells].forEach(sortable(body, [...body.rows]));
  });
  const reset = button("reset", () => { differing.forEach((axis) => axis.reset()); update(); });
  document.getElementById("filters").append(...differing.map(filterOf), ...(differing.length ? [reset] : []), counted);
  document.getElementById("choosers").append(byMetric.label, byOver.label, ...(splitting.length ? [byHue.label] : []));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (document.activeElement.closest(".detail")) rows.get(selected).focus();  // which is about to go
    document.querySelectorAll("details.filter[open]").forEach((one) => { one.open = false; });
    select(null);
    tell([]);
  });
  document.addEventListener("click", (event) => {
    const open = [...document.querySelectorAll("details.filter[open]")];
    open.filter((one) => !one.contains(event.target)).forEach((one) => { one.open = false; });
  });
  document.querySelectorAll(".scroll").forEach((box) => {
    const hint = html("p", { class: "hint", hidden: "" }, "More columns to the right: scroll sideways →");
    box.before(hint);
    const measure = () => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; };
    measure();  // now: else what is below moves after the first frame
    new ResizeObserver(measure).observe(box);
  });
  document.getElementById("explorer").hidden = false;
  update();
};
if (table) start();
