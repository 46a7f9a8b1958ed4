// How the page's script makes elements, axes, the chart of one panel and the timeline of one round. Texts of a run
// become text nodes and attributes only.
"use strict";
const WIDTH = 320, HEIGHT = 216, LEFT = 46, RIGHT = 14, TOP = 12, BOTTOM = 184;  // of a panel, in its own units
const HUES = 8;  // of more lines none has a colour
const NEAR = 24;  // how far from a point the pointer means it
const TOUCHING = 4;  // points that are nearer to it are meant with it: lines often lie on top of each other
const WIDEST = 2;  // intervals of ratios beyond it, and its inverse, are cut
const LOG_FROM = 8;  // values that span more than this stand on a log axis

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
const label = (x, y, text, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, text);

const number = (value) => {
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
};

// A function from low..high to from..to; the middle where low is high.
const scale = (low, high, from, to, log) => (value) => {
  const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return Number((from + (Number.isFinite(share) ? share : 0.5) * (to - from)).toFixed(1));
};

const ticks = (low, high, log) => {
  const values = [];
  if (log) {
    const each = high / low > 1e4 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
      values.push(...each.map((n) => n * 10 ** power));
    }
  } else {
    const unit = 10 ** Math.floor(Math.log10((high - low) / 2 || 1));
    const step = [1, 2, 5].map((n) => n * unit).find((n) => (high - low) / n <= 5) || 10 * unit;
    for (let n = Math.ceil(low / step); n * step <= high; n += 1) values.push(n * step);
  }
  return values.filter((value) => value >= low && value <= high);
};

// The ends of the axis of ratios: all points, 1, and the intervals as far as they are not cut.
const ratioEnds = (points, ends) => {
  const values = [1, ...points, ...ends.map((end) => Math.max(1 / WIDEST, Math.min(WIDEST, end)))];
  const low = Math.min(...values), high = Math.max(...values), pad = 0.06 * (high - low) || 0.01;
  return [low - pad, high + pad];
};

// What all panels share: `cells` are those drawn, `x` and `colour` axes (colour may be missing), `metric` an index,
// `ratio` whether its values are ratios.
const planOf = (cells, x, colour, metric, ratio) => {
  const ends = cells.flatMap((cell) => cell.values[metric].slice(0, 3)).filter((value) => value !== null);
  const least = Math.min(...ends), most = Math.max(...ends), log = !ratio && least > 0 && most / least > LOG_FROM;
  const points = cells.map((cell) => cell.values[metric][0]);
  const usual = log ? [least / 1.2, most * 1.2] : [Math.min(0, least), most * 1.08 || 1];
  const yEnds = ratio ? ratioEnds(points, ends) : usual;
  const xs = [...new Set(cells.map((cell) => x.of(cell)))].sort((a, b) => a - b);
  const lines = colour ? colour.values.filter((value) => cells.some((cell) => colour.of(cell) === value)) : [];
  const all = colour && colour.values.length <= HUES ? colour.values : lines;  // a value keeps its colour if others go
  return { x, colour, metric, ratio, xs, lines, log, yEnds, many: lines.length > HUES, hueOf: (value) => Math.max(0, all.indexOf(value)),
    xAt: scale(xs[0], xs[xs.length - 1], LEFT + RIGHT, WIDTH - RIGHT, true), yAt: scale(...yEnds, BOTTOM, TOP, log) };
};

const drawAxes = (picture, { x, xs, xAt, yAt, yEnds, log, ratio }) => {
  for (const value of ticks(...yEnds, log)) {
    const text = ratio ? String(Number(value.toFixed(4))) : number(value);
    picture.append(svg("path", { class: "grid", d: `M${LEFT} ${yAt(value)}H${WIDTH - 4}` }),
      label(LEFT - 5, yAt(value) + 3, text, "end"));
  }
  if (ratio) picture.append(svg("path", { class: "grid one", d: `M${LEFT} ${yAt(1)}H${WIDTH - 4}` }));
  let free = 0;
  for (const value of xs) {
    if (xAt(value) < free) continue;
    free = xAt(value) + 26;
    picture.append(label(xAt(value), BOTTOM + 13, number(value)));
  }
  picture.append(label((LEFT + WIDTH) / 2, HEIGHT - 3, x.title));
};

// How a line looks, for the legend.
const keyOf = (place) => svg("svg", { class: `line hue${place}`, viewBox: "0 0 30 8", role: "presentation" },
  svg("path", { class: "curve", d: "M1 4H29" }), svg("circle", { cx: 15, cy: 4, r: 3 }));

// `absent`: cells of the line that have no point; it breaks where one of them lies between two that have.
const drawLine = (cells, absent, hue, { x, metric, many, xAt, yAt, yEnds }) => {
  const group = svg("g", { class: `line ${many ? "many" : `hue${hue}`}` });
  const points = [...cells].sort((a, b) => x.of(a) - x.of(b))
    .map((cell) => ({ cell, group, px: xAt(x.of(cell)), py: yAt(cell.values[metric][0]) }));
  const gaps = absent.map((cell) => xAt(x.of(cell))).filter((gap) => points.every(({ px }) => px !== gap));
  const broken = (at) => !at || gaps.some((gap) => points[at - 1].px < gap && gap < points[at].px);
  const steps = points.map(({ px, py }, at) => `${broken(at) ? "M" : "L"}${px} ${py}`);
  group.append(svg("path", { class: "curve", d: steps.join("") }));
  for (const { cell, px, py } of points) {
    const [, low, high, , , verdict] = cell.values[metric], pale = verdict === "undecided" ? " undecided" : "";
    if (low !== null && high !== null && !many) {
      const [from, to] = [Math.max(low, yEnds[0]), Math.min(high, yEnds[1])];
      group.append(svg("path", { class: pale, d: `M${px} ${yAt(from)}V${yAt(to)}` }));
    }
    const dot = { cx: px, cy: py, r: many ? 2 : 3.2, "data-point": cell.number };
    group.append(svg("circle", { ...dot, class: cell.status + pale }));
  }
  return points;
};

// A figure of some cells. `point(cells, event)` is called with the cells that the pointer is near, the nearest first,
// or with none; `choose(cells, figure)` for a click. `absent`: cells of the panel that have no point.
const drawPanel = (title, cells, plan, point, choose, absent) => {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `${title}: ${cells.length} cells, also in the table below` });
  const figure = html("figure", {}, html("figcaption", {}, title), picture), points = [];
  drawAxes(picture, plan);
  (plan.colour ? plan.lines : [null]).forEach((value) => {
    const ofLine = (cell) => !plan.colour || plan.colour.of(cell) === value;
    const drawn = drawLine(cells.filter(ofLine), absent.filter(ofLine), plan.hueOf(value), plan);
    if (drawn.length) picture.append(drawn[0].group);
    points.push(...drawn);
  });
  const near = (event) => {
    const box = picture.getBoundingClientRect(), unit = WIDTH / box.width;
    const [x, y] = [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit];
    const away = ({ px, py }) => Math.hypot(x - px, y - py);
    const best = points.reduce((a, b) => (away(b) < away(a) ? b : a));
    if (away(best) >= NEAR) return [];
    const others = points.filter((one) => one !== best && Math.hypot(one.px - best.px, one.py - best.py) < TOUCHING);
    return [best, ...others];
  };
  const over = (event, meant) => {
    points.forEach(({ group }) => group.classList.toggle("hot", meant.length > 0 && group === meant[0].group));
    point(meant.map(({ cell }) => cell), event);
  };
  picture.addEventListener("pointermove", (event) => over(event, near(event)));
  picture.addEventListener("pointerleave", (event) => over(event, []));
  picture.addEventListener("click", (event) => choose(near(event).map(({ cell }) => cell), figure));
  return figure;
};

const PHASES = [["waiting", "waiting to be sent"], ["prefill", "prefill (to first token)"],
  ["decode", "decode (to last token)"]];

const drawTimeline = ({ unit_ms: unit, of, requests }) => {
  const width = 400, high = Math.max(3, Math.min(12, 240 / requests.length)), bottom = high * requests.length;
  const end = Math.max(1, ...requests.flatMap((times) => times.slice(0, 4)));
  const at = scale(0, end, 4, width - 4, false);
  const ms = (value) => (value === null ? "never" : `${number(value * unit)} ms`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${bottom + 18}`, class: "timeline", role: "img",
    "aria-label": `Timeline of ${requests.length} requests` });
  requests.forEach(([due, sent, first, last, failed], place) => {
    const words = `due at ${ms(due)}, sent at ${ms(sent)}, first token at ${ms(first)}, last at ${ms(last)}`;
    const bar = svg("g", {}, svg("title", {}, failed ? `failed: ${words}` : words));
    [[due, sent], [sent, first], [first, last]].forEach(([from, to], phase) => {
      if (from === null || to === null) return;
      const sizes = { x: at(from), y: place * high, width: Math.max(0, at(to) - at(from)), height: high * 0.86 };
      bar.append(svg("rect", { ...sizes, class: PHASES[phase][0] }));
    });
    if (failed) {
      const x = Math.min(at(last ?? first ?? sent ?? due) + 3, width - 30);
      bar.append(svg("text", { x, y: (place + 0.8) * high, class: "failed" }, "failed"));
    }
    picture.append(bar);
  });
  for (const value of ticks(0, (end * unit) / 1e3, false)) {
    const x = at((value * 1e3) / unit);
    const anchor = x > width - 20 ? "end" : "middle";
    picture.append(label(x, bottom + 13, `${number(value)} s`, value ? anchor : "start"));
  }
  const every = `${of} request${of > 1 ? "s" : ""}`;
  const count = requests.length < of ? `${requests.length} of ${every}, evenly chosen` : every;
  const keys = PHASES.map(([kind, words]) => html("span", { class: `key ${kind}` }, words));
  return html("figure", {}, html("figcaption", {}, `Last measured round, ${count}: `, ...keys), picture);
};
