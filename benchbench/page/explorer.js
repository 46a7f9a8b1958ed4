// The page's own script: filters, charts, sorting and the panel of one cell. It reads the data island and the table of
// cells, loads nothing, and writes texts of a run as text only. Without it the page has everything but these.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const section = document.getElementById("explorer"), charts = document.getElementById("charts");
  const tip = document.getElementById("tip"), counted = document.getElementById("counted");
  const cells = data.cells.map((cell, number) => ({ ...cell, number }));
  const rows = new Map(), hidden = new Map();  // the table's row of a cell; axis -> values that are filtered out
  const WIDTH = 320, HEIGHT = 216, LEFT = 46, BOTTOM = 184, TOP = 12, MOST_PANELS = 24, HUES = 6, NEAR = 24;
  let selected = null, shown = cells;

  const build = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const html = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const options = (pairs) => pairs.map(([value, title]) => html("option", { value }, title));
  const mark = (status) => html("span", { class: `mark ${status}` }, status);

  // ---- Filters ----------------------------------------------------------------------------------------------------

  const axes = [...data.axes.map(([name, title], place) => ({ name, title, of: (cell) => cell.at[place] })),
    { name: "status", title: "Status", of: (cell) => cell.status }];
  for (const axis of axes) {
    axis.values = [...new Set(cells.map(axis.of))].filter((value) => value !== null && value !== "");
    axis.numeric = axis.values.length > 0 && axis.values.every((value) => typeof value === "number");
    axis.values.sort((a, b) => (axis.numeric ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  }
  const differing = axes.filter((axis) => axis.values.length > 1);

  const filter = (axis) => {
    const summary = html("summary"), list = html("div", { class: "values" });
    const off = new Set();
    hidden.set(axis, off);
    const boxes = axis.values.map((value) => {
      const box = html("input", { type: "checkbox", checked: "", change: () => {
        off[box.checked ? "delete" : "add"](value);
        update();
      } });
      list.append(html("label", {}, box, String(value)));
      return box;
    });
    const all = (on) => html("button", { type: "button", click: () => {
      boxes.forEach((box, place) => {
        if (box.parentNode.hidden) return;
        box.checked = on;
        off[on ? "delete" : "add"](axis.values[place]);
      });
      update();
    } }, on ? "all" : "none");
    const search = html("input", { type: "search", placeholder: "find", "aria-label": `Find ${axis.title}`, input: () => {
      const word = search.value.toLowerCase();
      boxes.forEach((box) => { box.parentNode.hidden = !box.parentNode.textContent.toLowerCase().includes(word); });
    } });
    list.prepend(...(boxes.length > 10 ? [search] : []), html("span", {}, all(true), " ", all(false)));
    axis.tell = () => {
      const count = axis.values.length - off.size;
      summary.textContent = `${axis.title}: ${off.size ? `${count} of ${axis.values.length}` : "all"}`;
      summary.classList.toggle("set", off.size > 0);
    };
    axis.reset = () => { off.clear(); boxes.forEach((box) => { box.checked = true; }); };
    return html("details", { class: "filter" }, summary, list);
  };

  const update = () => {
    shown = cells.filter((cell) => differing.every((axis) => !hidden.get(axis).has(axis.of(cell))));
    const kept = new Set(shown.map((cell) => cell.number));
    rows.forEach((row, number) => { row.hidden = !kept.has(number); });
    if (selected !== null && !kept.has(selected)) select(null);
    differing.forEach((axis) => axis.tell());
    counted.textContent = `${shown.length} of ${cells.length} cells`;
    redraw();
  };

  // ---- Charts -----------------------------------------------------------------------------------------------------

  const chooser = (title, pairs, value) => {
    const select = html("select", { change: () => redraw() }, ...options(pairs));
    select.value = value;
    return { select, label: html("label", {}, title, " ", select) };
  };
  const abscissae = axes.filter((axis) => axis.numeric && axis.values.every((value) => value > 0));
  const loads = abscissae.filter((axis) => (axis.name === "batch" || axis.name === "rate") && axis.values.length > 1);
  const over = loads[0] || abscissae.find((axis) => axis.values.length > 1) || abscissae[0];
  const hueable = differing.filter((axis) => axis.name !== "status");
  const hue = ["variant", "output", "input"].map((name) => hueable.find((axis) => axis.name === name))
    .find((axis) => axis && axis !== over);
  const names = (list) => list.map((axis) => [axis.name, axis.title]);
  const byMetric = chooser("Show", data.metrics, (data.metrics.find(([name]) => name === "sys_tok_s") || data.metrics[0] || [""])[0]);
  const byOver = chooser("over", names(abscissae), over ? over.name : "");
  const byHue = chooser("lines", [["", "all alike"], ...names(hueable)], hue ? hue.name : "");

  const number = (value) => {
    if (value >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
    return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  };
  const scale = (low, high, from, to, log) => (value) => {
    const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return Number((from + (Number.isFinite(share) ? share : 0.5) * (to - from)).toFixed(1));
  };
  const ticks = (low, high, log) => {
    const found = [], step = 10 ** Math.floor(Math.log10((high - low) / 2 || 1));
    if (log) {
      const each = high / low > 1e4 ? [1] : [1, 2, 5];
      for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) found.push(...each.map((n) => n * 10 ** power));
    } else {
      const wide = [1, 2, 5].map((n) => n * step).find((n) => (high - low) / n <= 5) || 10 * step;
      for (let value = 0; value <= high; value += wide) found.push(value);
    }
    return found.filter((value) => value >= low && value <= high);
  };

  const redraw = () => {
    const metric = data.metrics.findIndex(([name]) => name === byMetric.select.value);
    const [x, colour] = [byOver, byHue].map((by) => axes.find((axis) => axis.name === by.select.value));
    const split = hueable.filter((axis) => axis !== x && axis !== colour);
    const drawn = shown.filter((cell) => x && cell.status !== "invalid" && cell.values[metric] && x.of(cell) !== null);
    const ends = drawn.flatMap((cell) => cell.values[metric].slice(0, 3)).filter((value) => value !== null);
    const least = Math.min(...ends), most = Math.max(...ends), log = least > 0 && most / least > 8;
    const yEnds = log ? [least / 1.2, most * 1.2] : [Math.min(0, least), most * 1.08 || 1];
    const xs = [...new Set(drawn.map((cell) => x.of(cell)))].sort((a, b) => a - b);
    const lines = colour ? colour.values.filter((value) => drawn.some((cell) => colour.of(cell) === value)) : [];
    const plan = { metric, x, colour, lines, xs, log, yEnds, yAt: scale(...yEnds, BOTTOM, TOP, log), xAt: scale(xs[0], xs[xs.length - 1], LEFT + 14, WIDTH - 14, true) };
    const panels = new Map();
    for (const cell of drawn) {
      const name = split.map((axis) => `${axis.title.toLowerCase()} ${axis.of(cell) ?? "–"}`).join(", ");
      panels.set(name, [...(panels.get(name) || []), cell]);
    }
    const left = panels.size - MOST_PANELS, invalid = shown.filter((cell) => cell.status === "invalid").length;
    const notes = [left > 0 ? `${left} more panels: filter to see them.` : "", invalid ? `Not drawn: ${invalid} invalid.` : "",
      drawn.length ? "" : "No cell to draw."].filter(Boolean).join(" ");
    const legend = html("p", { class: "legend" });
    if (colour && lines.length <= HUES) lines.forEach((value, place) => legend.append(html("span", { class: `hue${place}` }, String(value))));
    charts.replaceChildren(...(legend.childNodes.length ? [legend] : []),
      ...[...panels].slice(0, MOST_PANELS).map(([name, own]) => panel(name, own, plan)), html("p", { class: "small" }, notes));
    if (selected !== null) ring();
  };

  const panel = (name, own, plan) => {
    const { metric, x, colour, lines, xs, log, yEnds, yAt, xAt } = plan;
    const label = `${data.metrics[metric][1]} over ${x.title.toLowerCase()}${name ? `, ${name}` : ""}`;
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}: ${own.length} cells, also in the table below` });
    for (const value of ticks(...yEnds, log)) {
      picture.append(svg("path", { class: "grid", d: `M${LEFT} ${yAt(value)}H${WIDTH - 4}` }),
        svg("text", { x: LEFT - 5, y: yAt(value) + 3, "text-anchor": "end" }, number(value)));
    }
    let free = 0;
    for (const value of xs) {
      if (xAt(value) < free) continue;
      free = xAt(value) + 26;
      picture.append(svg("text", { x: xAt(value), y: BOTTOM + 13, "text-anchor": "middle" }, number(value)));
    }
    picture.append(svg("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, x.title));
    const points = [];
    for (const value of colour ? lines : [null]) {
      const line = own.filter((cell) => !colour || colour.of(cell) === value).sort((a, b) => x.of(a) - x.of(b));
      const group = svg("g", { class: `line ${lines.length > HUES ? "many" : `hue${Math.max(lines.indexOf(value), 0)}`}` });
      const at = line.map((cell) => [xAt(x.of(cell)), yAt(cell.values[metric][0])]);
      group.append(svg("path", { d: at.map(([px, py], place) => `${place ? "L" : "M"}${px} ${py}`).join("") }));
      line.forEach((cell, place) => {
        const [px, py] = at[place], [, low, high] = cell.values[metric];
        if (low !== null && high !== null && lines.length <= HUES) group.append(svg("path", { class: "span", d: `M${px} ${yAt(Math.max(low, yEnds[0]))}V${yAt(high)}` }));
        group.append(svg("circle", { cx: px, cy: py, r: lines.length > HUES ? 2 : 3.2, class: cell.status, "data-point": cell.number }));
        points.push({ cell, px, py, group });
      });
      picture.append(group);
    }
    const figure = html("figure", {}, html("figcaption", {}, label), picture);
    const nearest = (event) => {
      const box = picture.getBoundingClientRect(), unit = WIDTH / box.width;
      const away = (point) => Math.hypot((event.clientX - box.left) * unit - point.px, (event.clientY - box.top) * unit - point.py);
      const best = points.reduce((a, b) => (away(b) < away(a) ? b : a));
      return away(best) < NEAR ? best : null;
    };
    const hover = (event) => {
      const point = nearest(event);
      points.forEach(({ group }) => group.classList.toggle("hot", point !== null && group === point.group));
      tell(point && point.cell, metric, event);
    };
    picture.addEventListener("pointermove", hover);
    picture.addEventListener("pointerleave", () => { points.forEach(({ group }) => group.classList.remove("hot")); tell(null); });
    picture.addEventListener("click", (event) => {
      const point = nearest(event);
      if (point) select(point.cell.number === selected ? null : point.cell.number, figure);
    });
    return figure;
  };

  const interval = (value) => (value[4] ? ` (95 % interval ${value[4]})` : "");
  const tell = (cell, metric, event) => {
    tip.hidden = !cell;
    if (!cell) return;
    const value = cell.values[metric];
    tip.replaceChildren(html("strong", {}, cell.name), html("br"), `${data.metrics[metric][1]}: ${value[3]}${interval(value)}`, html("br"),
      mark(cell.status), cell.reasons.length ? ` ${cell.reasons.join(", ")}` : "");
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  };

  // ---- The panel of one cell --------------------------------------------------------------------------------------

  const ring = () => {
    document.querySelectorAll(".selected").forEach((node) => node.classList.remove("selected"));
    document.querySelectorAll(`[data-point="${selected}"], tr[data-cell="${selected}"]`).forEach((node) => node.classList.add("selected"));
  };
  const select = (which, figure = null) => {
    document.querySelectorAll(".detail").forEach((node) => node.remove());
    selected = which;
    ring();
    if (which === null) return;
    const close = html("button", { type: "button", click: () => select(null) }, "close");
    const content = detail(cells[which], close);
    if (figure) figure.after(html("div", { class: "detail" }, content));
    else {
      const row = rows.get(which);
      row.after(html("tr", { class: "detail" }, html("td", { colspan: row.cells.length }, content)));
    }
    content.scrollIntoView({ block: "nearest" });
  };

  const detail = (cell, close) => {
    const checked = [...document.querySelectorAll(`[data-checks="${cell.number}"] li`)].map((line) => line.textContent.trim());
    const why = checked.filter((line) => /^(suspect|invalid): /.test(line));
    const meaning = (code) => data.reasons[`${cell.status} ${code}`] || data.reasons[`suspect ${code}`] || ["meaning unknown"];
    const told = why.length ? why : cell.reasons.map((code) => `${code}: ${meaning(code).join("; ")}`);
    const list = (lines) => html("ul", { class: "checks" }, ...lines.map((line) => html("li", {}, line)));
    const values = data.metrics.flatMap(([, title], place) => cell.values[place] ? [html("div", {}, html("dt", {}, title), html("dd", {}, cell.values[place][3] + interval(cell.values[place])))] : []);
    const others = checked.filter((line) => !why.includes(line));
    return html("div", { class: "content" }, html("h3", {}, cell.name, " ", mark(cell.status), " ", close),
      html("p", { class: "small" }, data.runs[cell.run]), ...(told.length ? [list(told)] : []),
      cell.timeline ? timeline(cell.timeline) : html("p", { class: "small" }, "No timeline: no round of it is kept here."),
      html("dl", {}, ...values), ...(others.length ? [html("details", {}, html("summary", {}, "What was checked"), list(others))] : []));
  };

  const timeline = ({ unit_ms: unit, of, requests }) => {
    const most = Math.max(1, ...requests.flatMap((times) => times.slice(0, 4))), high = Math.max(3, Math.min(12, 240 / requests.length)), width = 400;
    const at = scale(0, most, 4, width - 4, false), bottom = high * requests.length;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${bottom + 30}`, class: "timeline", role: "img", "aria-label": `Timeline of ${requests.length} requests` });
    const ms = (value) => (value === null ? "never" : `${number(value * unit)} ms`);
    requests.forEach((times, place) => {
      const [due, sent, first, last, failed] = times;
      const bar = svg("g", {}, svg("title", {}, `due at ${ms(due)}, sent at ${ms(sent)}, first token at ${ms(first)}, last at ${ms(last)}`));
      [[due, sent, "waiting"], [sent, first, "prefill"], [first, last, "decode"]].forEach(([from, to, kind]) => {
        if (from === null || to === null) return;
        bar.append(svg("rect", { x: at(from), y: place * high, width: Math.max(0, at(to) - at(from)), height: high * 0.86, class: kind }));
      });
      if (failed) bar.append(svg("text", { x: at(last ?? first ?? sent ?? due) + 3, y: (place + 0.8) * high, class: "failed" }, "failed"));
      picture.append(bar);
    });
    for (const value of ticks(0, (most * unit) / 1e3, false)) {
      picture.append(svg("text", { x: at((value * 1e3) / unit), y: bottom + 13, "text-anchor": value ? "middle" : "start" }, `${number(value)} s`));
    }
    const count = requests.length < of ? `${requests.length} of ${of} requests, evenly chosen` : `${of} request${of > 1 ? "s" : ""}`;
    return html("figure", {}, html("figcaption", {}, `Last measured round, ${count}: `, ...["waiting to be sent", "prefill (to first token)", "decode (to last token)"]
      .map((words) => html("span", { class: `key ${words.split(" ")[0]}` }, words))), picture);
  };

  // ---- The table --------------------------------------------------------------------------------------------------

  const table = document.querySelector("#cell-tables table"), body = table.tBodies[0];
  document.querySelectorAll("#cell-tables tr[data-cell]").forEach((row) => {
    const which = Number(row.dataset.cell);
    rows.set(which, row);
    body.append(row);
    row.tabIndex = 0;
    row.addEventListener("click", () => { if (!String(window.getSelection())) select(which === selected ? null : which); });
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") select(which === selected ? null : which); });
  });
  const region = table.parentNode;
  region.classList.toggle("long", rows.size > 40);
  document.getElementById("cell-tables").replaceChildren(region);
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const texts = head.classList.contains("text");
    const key = (row) => row.cells[column].textContent.trim();
    const value = (row) => (texts ? key(row) : parseFloat(key(row).replace(/[,±]/g, "")));
    const compare = (a, b) => (texts ? value(a).localeCompare(value(b), "en", { numeric: true }) : value(a) - value(b));
    const missing = (row) => (texts ? key(row) === "–" : Number.isNaN(value(row)));
    head.replaceChildren(html("button", { type: "button", click: () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") || "none"];
      [...table.tHead.rows[0].cells].forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
      select(null);
      const list = [...rows].sort(([a], [b]) => a - b).map(([, row]) => row);
      if (next !== "none") list.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : compare(a, b) * (next === "ascending" ? 1 : -1)));
      body.append(...list);
    } }, ...head.childNodes));
  });

  document.querySelectorAll(".scroll").forEach((box) => {
    const hint = html("p", { class: "hint", hidden: "" }, "More columns to the right: scroll sideways \u2192");
    box.before(hint);
    new ResizeObserver(() => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; }).observe(box);
  });

  // ---- Start ------------------------------------------------------------------------------------------------------

  const reset = html("button", { type: "button", click: () => { differing.forEach((axis) => axis.reset()); update(); } }, "reset");
  document.getElementById("filters").append(...differing.map(filter), reset, counted);
  document.getElementById("choosers").append(byMetric.label, byOver.label, ...(hueable.length ? [byHue.label] : []));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { select(null); tell(null); } });
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.filter[open]").forEach((open) => { if (!open.contains(event.target)) open.open = false; });
  });
  section.hidden = false;
  update();
})();
