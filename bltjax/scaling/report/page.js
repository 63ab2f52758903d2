"use strict";
// All text goes in by textContent and setAttribute: nothing that came from data is ever read as HTML.
const study = JSON.parse(document.getElementById("study").textContent);
const root = document.documentElement;
const tip = document.getElementById("tip");
const dialog = document.getElementById("manifest");
const state = { axis: study.own, hidden: new Set() };
const items = new WeakMap(); // what is said of each element
const series = new Map(study.series.map((one) => [one.id, one]));

function make(parent, name, attributes = {}, text = null) {
  const drawn = parent instanceof SVGElement || name === "svg";
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

function mixed(colour, shade) {
  // Dark colours, black above all, are lifted on a dark page.
  const own = colour === "#000000" ? "var(--ink)" : `color-mix(in srgb, #ffffff var(--lift), ${colour})`;
  return shade >= 1 ? own : `color-mix(in srgb, ${own} ${Math.round(100 * shade)}%, var(--page))`;
}
function colourOf(mark) {
  if (mark.colour !== undefined) return mixed(study.parts[mark.colour % study.parts.length], 1);
  return mixed(mark.series ? series.get(mark.series).colour : "#000000", mark.shade ?? 1);
}

const polygon = (points) => "M" + points.map(([x, y]) => `${x} ${y}`).join("L") + "Z";
const star = polygon([...Array(10).keys()].map((i) => {
  const r = i % 2 ? 4 : 10, a = (Math.PI * i) / 5 - Math.PI / 2;
  return [(r * Math.cos(a)).toFixed(2), (r * Math.sin(a)).toFixed(2)];
}));
const SHAPES = {
  o: "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z", s: polygon([[-5, -5], [5, -5], [5, 5], [-5, 5]]),
  "^": polygon([[0, -6], [6, 5], [-6, 5]]), v: polygon([[0, 6], [6, -5], [-6, -5]]),
  "<": polygon([[-6, 0], [5, -6], [5, 6]]), ">": polygon([[6, 0], [-5, -6], [-5, 6]]),
  D: polygon([[0, -6.5], [6.5, 0], [0, 6.5], [-6.5, 0]]),
  P: polygon([[-2, -6], [2, -6], [2, -2], [6, -2], [6, 2], [2, 2], [2, 6], [-2, 6], [-2, 2], [-6, 2], [-6, -2], [-2, -2]]),
  X: polygon([[-5, -6], [0, -2], [5, -6], [6, -5], [2, 0], [6, 5], [5, 6], [0, 2], [-5, 6], [-6, 5], [-2, 0], [-6, -5]]),
  "*": star,
};
const ARROWS = { left: "<", right: ">", up: "^", down: "v" };
const DASHES = { solid: "", dashed: "7 4", dotted: "1.5 4" };

function shapeOf(mark) {
  if (mark.kind === "optimum") return "*";
  if (mark.direction) return ARROWS[mark.direction];
  return mark.shape || (mark.series ? series.get(mark.series).shape : "o");
}

// Words of a run, as its table has them.
function facts(run) {
  const row = study.runs[run];
  return study.columns.map(([name, words]) => [words, row[name]]).filter(([, value]) => value !== undefined);
}
function list(parent, pairs) {
  const out = make(parent, "dl");
  for (const [name, value] of pairs) {
    make(out, "dt", {}, name);
    make(out, "dd", {}, value);
  }
}

function showTip(item) {
  tip.replaceChildren();
  if (item.title) make(tip, "strong", {}, item.title);
  if (item.text) make(tip, "div", {}, item.text);
  if (item.run) list(tip, facts(item.run));
  tip.hidden = false;
  const box = item.element.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const middle = item.at ?? box.left + box.width / 2;
  const left = Math.max(8, Math.min(middle - own.width / 2, root.clientWidth - own.width - 8));
  const above = box.top - own.height - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : Math.min(box.bottom + 10, innerHeight - own.height - 4)}px`;
}
function hideTip() {
  tip.hidden = true;
}

function showManifest(run) {
  hideTip();
  const row = study.runs[run];
  dialog.querySelector("h2").textContent = `${row.preset}, run ${run}`;
  const body = dialog.querySelector(".body");
  body.replaceChildren();
  list(body, facts(run));
  const manifest = study.manifests[run];
  if (manifest === undefined) make(body, "p", { class: "soft" }, "The manifest of this run is not part of the report.");
  else make(body, "pre", { tabindex: "0", "aria-label": "manifest.json" }, JSON.stringify(manifest, null, 1));
  dialog.showModal();
  dialog.scrollTop = 0;
}

// Something that can be pointed at and focused; of a figure one is in the tab order, arrow keys reach the others.
function interactive(plot, element, { title = "", text = "", run = null, follow = false }) {
  const item = { element, title, text, run };
  const spoken = [title, text, ...(run ? facts(run).map(([name, value]) => `${name} ${value}`) : [])];
  element.classList.add("item");
  element.setAttribute("role", run ? "button" : "img");
  element.setAttribute("tabindex", plot.items.length ? "-1" : "0");
  element.setAttribute("aria-label", spoken.filter(Boolean).join(", "));
  if (run) element.dataset.run = run;
  items.set(element, item);
  element.addEventListener("mouseenter", (event) => showTip({ ...item, at: follow ? event.clientX : undefined }));
  element.addEventListener("mouseleave", hideTip);
  element.addEventListener("focus", () => {
    if (!element.matches(":focus-visible")) return;
    for (const other of plot.items) other.setAttribute("tabindex", other === element ? "0" : "-1");
    showTip(item);
  });
  element.addEventListener("blur", hideTip);
  if (run) element.addEventListener("click", () => showManifest(run));
  element.addEventListener("keydown", (event) => {
    const here = plot.items.indexOf(element), last = plot.items.length - 1;
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: last };
    if (event.key in to) {
      event.preventDefault();
      plot.items[Math.max(0, Math.min(last, to[event.key]))].focus({ focusVisible: true });
    } else if (run && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      showManifest(run);
    }
  });
  plot.items.push(element);
}

function scaleOf(axis, from, to) {
  const [low, high] = axis.range, place = axis.log ? Math.log : (value) => value;
  return (value) => from + ((place(value) - place(low)) / (place(high) - place(low))) * (to - from);
}

// Shortens words until they fit; pointing at them shows the rest.
function cut(words, room) {
  const whole = words.textContent;
  for (let letters = whole.length - 1; letters > 0 && words.getComputedTextLength() > room; letters -= 1)
    words.textContent = `${whole.slice(0, letters)}…`;
  if (words.textContent !== whole) make(words, "title", {}, whole);
}

function draw(plot) {
  const { figure, box } = plot, view = viewOf(figure), width = box.clientWidth;
  if (!width) return;
  plot.width = width;
  plot.items = [];
  box.replaceChildren();
  const narrow = width < 560, named = view.y.names, square = view.x.names && named;
  const ends = view.y.ticks.map(([, text]) => text.length), longest = Math.max(...ends, 1);
  const above = named && narrow && !square; // names of rows stand above them
  const left = above ? 6 : Math.min(0.42 * width, 7 * longest + 12);
  const rows = view.y.ticks.length, each = square ? 46 : above ? 46 : 32;
  const margin = { left, right: 14, top: view.y.label ? 26 : 6, bottom: 46 };
  const inner = named ? each * rows : Math.max(230, Math.min(430, 0.56 * width));
  const height = inner + margin.top + margin.bottom;
  const svg = make(box, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${figure.title}. ${view.x.label} and ${view.y.label}. Arrow keys go from mark to mark.` });
  const x = scaleOf(view.x, margin.left, width - margin.right);
  const y = scaleOf(view.y, height - margin.bottom, margin.top);
  const floor = height - margin.bottom, right = width - margin.right;

  if (view.y.label) cut(make(svg, "text", { x: 2, y: 13 }, view.y.label), width - 4);
  for (const [value, text] of view.y.ticks) {
    if (!named) make(svg, "line", { class: "grid", x1: margin.left, x2: right, y1: y(value), y2: y(value) });
    const at = above ? { x: 2, y: y(value) - 9 } : { x: left - 7, y: y(value) + 4, "text-anchor": "end" };
    cut(make(svg, "text", at, text), above ? width - 4 : left - 9);
  }
  let free = -Infinity;
  for (const [value, text] of view.x.ticks) {
    const at = x(value), half = 3.6 * text.length;
    if (!view.x.names) make(svg, "line", { class: "grid", x1: at, x2: at, y1: margin.top, y2: floor });
    if (at - half < free || at + half > width + 4) continue;
    free = at + half + 6;
    make(svg, "text", { x: at, y: floor + 17, "text-anchor": "middle" }, text);
  }
  make(svg, "path", { class: "axis", fill: "none", d: `M${margin.left} ${margin.top}V${floor}H${right}` });
  const words = make(svg, "text", { y: floor + 37, "text-anchor": "middle" }, view.x.label);
  cut(words, width - 4);
  const half = words.getComputedTextLength() / 2 + 1;
  words.setAttribute("x", Math.max(half, Math.min((margin.left + right) / 2, width - half)));
  if (view.level !== null) make(svg, "line", { class: "level", x1: margin.left, x2: right, y1: y(view.level), y2: y(view.level) });

  for (const mark of view.marks) {
    if (mark.series && state.hidden.has(mark.series)) continue;
    DRAW[mark.kind](plot, svg, mark, { x, y, margin, floor, right, each, above });
  }
}

function path(mark, x, y) {
  return "M" + mark.x.map((value, i) => `${x(value).toFixed(1)} ${y(mark.y[i]).toFixed(1)}`).join("L");
}
function nameOf(mark) {
  return mark.series ? series.get(mark.series).name : "";
}
function point(plot, svg, mark, i, { x, y }, hollow = false) {
  const group = make(svg, "g", { transform: `translate(${x(mark.x[i]).toFixed(1)} ${y(mark.y[i]).toFixed(1)})` });
  make(group, "circle", { r: 8, fill: "transparent" }); // for fingers, but not over its neighbours
  const shape = make(group, "path", { d: SHAPES[shapeOf(mark)], class: hollow ? "hollow" : "edge" });
  if (hollow) {
    shape.style.stroke = colourOf(mark);
    shape.style.strokeWidth = "2px";
  } else shape.style.fill = colourOf(mark);
  make(group, "circle", { r: 11, class: "ring" });
  const run = mark.runs ? mark.runs[i] : null;
  interactive(plot, group, { title: run ? study.runs[run].preset : nameOf(mark), text: mark.texts ? mark.texts[i] : "", run });
}

const DRAW = {
  runs: (plot, svg, mark, at) => mark.x.forEach((_, i) => point(plot, svg, mark, i, at)),
  optimum: (plot, svg, mark, at) => mark.x.forEach((_, i) => point(plot, svg, mark, i, at)),
  bound: (plot, svg, mark, at) => mark.x.forEach((_, i) => point(plot, svg, mark, i, at, true)),
  line(plot, svg, mark, { x, y }) {
    const group = make(svg, "g"), d = path(mark, x, y), thin = Boolean(mark.runs);
    const line = make(group, "path", { d, fill: "none", "stroke-width": thin ? 1.3 : 2.2, "stroke-linejoin": "round",
      "stroke-linecap": "round", "stroke-dasharray": DASHES[mark.line ?? "solid"], class: thin ? "thin" : "" });
    line.style.stroke = colourOf(mark);
    if (!thin) return;
    make(group, "path", { d, fill: "none", stroke: "transparent", "stroke-width": 9 });
    interactive(plot, group, { title: study.runs[mark.runs[0]].preset, run: mark.runs[0], follow: true });
  },
  band(plot, svg, mark, { x, y }) {
    const upper = mark.x.map((value, i) => `${x(value).toFixed(1)} ${y(mark.high[i]).toFixed(1)}`);
    const lower = mark.x.map((value, i) => `${x(value).toFixed(1)} ${y(mark.low[i]).toFixed(1)}`).reverse();
    const area = make(svg, "path", { d: `M${upper.join("L")}L${lower.join("L")}Z`, "fill-opacity": mark.shade });
    area.style.fill = mixed(series.get(mark.series).colour, 1);
  },
  interval(plot, svg, mark, at) {
    const { x, y, margin, floor } = at;
    mark.x.forEach((value, i) => {
      const low = mark.low[i], high = mark.high[i], foot = low === null ? floor : y(low), head = high === null ? margin.top : y(high);
      let d = `M${x(value)} ${foot}V${head}`;
      if (low !== null) d += `M${x(value) - 5} ${foot}h10`;
      if (high !== null) d += `M${x(value) - 5} ${head}h10`;
      const bar = make(svg, "path", { d, fill: "none", "stroke-width": 1.6 });
      bar.style.stroke = colourOf(mark);
      point(plot, svg, mark, i, at);
    });
  },
  bar(plot, svg, mark, { x, y, each, above }) {
    mark.x.forEach((_, i) => {
      const tall = above ? 20 : 0.72 * each, top = y(mark.y[i]) - (above ? 3 : tall / 2);
      const size = { x: x(mark.low[i]), y: top, width: Math.max(0, x(mark.high[i]) - x(mark.low[i])), height: tall };
      const group = make(svg, "g");
      make(group, "rect", { ...size, class: "edge" }).style.fill = colourOf(mark);
      make(group, "rect", { ...size, class: "ring" });
      if (size.width > 46) make(group, "text", { x: size.x + size.width / 2, y: top + tall / 2 + 4, "text-anchor": "middle",
        "pointer-events": "none", class: "in" }, `${Math.round(100 * (mark.high[i] - mark.low[i]))} %`).style.fill =
        mark.colour % study.parts.length === 1 ? "#ffffff" : "#14171d";
      interactive(plot, group, { text: mark.texts[i], run: mark.runs[i] });
    });
  },
  cell(plot, svg, mark, { x, y, each }) {
    const low = Math.min(...mark.value), spread = Math.max(...mark.value) - low || 1, step = Math.abs(x(1) - x(0));
    mark.x.forEach((_, i) => {
      const share = (mark.value[i] - low) / spread;
      const size = { x: x(mark.x[i]) - 0.48 * step, y: y(mark.y[i]) - 0.46 * each, width: 0.96 * step, height: 0.92 * each };
      const group = make(svg, "g");
      make(group, "rect", { ...size, fill: `color-mix(in oklab, #00204d ${Math.round(90 * share)}%, #ffea46)` });
      if (share === 0) make(group, "rect", { ...size, fill: "none", "stroke-width": 3 }).style.stroke = "var(--ink)";
      make(group, "rect", { ...size, class: "ring" });
      make(group, "text", { x: x(mark.x[i]), y: y(mark.y[i]) + 4, "text-anchor": "middle" }, mark.value[i].toFixed(4))
        .style.fill = share > 0.5 ? "#ffffff" : "#14171d";
      interactive(plot, group, { title: study.runs[mark.runs[i]].preset, run: mark.runs[i] });
    });
  },
};

function viewOf(figure) {
  return figure.views.find((view) => view.axis === state.axis) ?? figure.views[0];
}

function swatch(parent, mark) {
  const svg = make(parent, "svg", { width: 20, height: 14, viewBox: "-10 -7 20 14", "aria-hidden": "true" });
  if (mark.kind === "line") {
    make(svg, "path", { d: "M-9 0H9", "stroke-width": 2.2 }).style.stroke = colourOf({ ...mark, shade: 1 });
  } else if (mark.kind === "bar") {
    make(svg, "rect", { x: -7, y: -6, width: 14, height: 12 }).style.fill = colourOf(mark);
  } else {
    make(svg, "path", { d: SHAPES[shapeOf({ ...mark, direction: undefined })], class: "edge" }).style.fill = colourOf(mark);
  }
}

function fill(plot) {
  const { figure, element } = plot, view = viewOf(figure);
  const legend = element.querySelector(".legend"), notes = element.querySelector(".notes");
  legend.replaceChildren();
  for (const mark of view.marks) {
    if (!mark.label || (mark.kind !== "bar" && state.hidden.has(mark.series))) continue;
    const item = make(legend, "li");
    swatch(item, mark);
    make(item, "span", {}, mark.label);
  }
  notes.replaceChildren();
  if (figure.views.length > 1 && view.axis !== state.axis)
    make(notes, "li", {}, `There is nothing to show over ${study.axes[state.axis]}; shown over ${study.axes[view.axis]}.`);
  for (const note of view.notes) make(notes, "li", {}, note);
  element.dataset.axis = view.axis;
  draw(plot);
}

const plots = study.figures.map((figure) => {
  const element = document.getElementById(`figure-${figure.name}`);
  return { figure, element, box: element.querySelector(".plot"), items: [], width: 0 };
});
function update() {
  hideTip();
  for (const button of document.querySelectorAll("[data-x]")) button.setAttribute("aria-pressed", button.dataset.x === state.axis);
  for (const button of document.querySelectorAll("[data-series]"))
    button.setAttribute("aria-pressed", !state.hidden.has(study.series[button.dataset.series].id));
  for (const button of document.querySelectorAll("[data-set]")) button.setAttribute("aria-pressed", button.dataset.set === root.dataset.theme);
  plots.forEach(fill);
}

document.querySelectorAll("[data-series]").forEach((button) => swatch(button, { kind: "runs", series: study.series[button.dataset.series].id }));
document.querySelectorAll("[data-series] svg").forEach((svg) => svg.parentElement.prepend(svg));
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.x) state.axis = button.dataset.x;
  else if (button.dataset.series) {
    const { id } = study.series[button.dataset.series];
    if (!state.hidden.delete(id)) state.hidden.add(id);
  } else if (button.dataset.set) root.dataset.theme = button.dataset.set;
  else if (button.dataset.close !== undefined) return dialog.close();
  else return;
  update();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
// Going to a mark by keyboard may scroll the page: what is said of it goes along.
addEventListener("scroll", () => {
  const item = items.get(document.activeElement);
  if (item && !tip.hidden && document.activeElement.matches(":focus-visible")) showTip(item);
  else hideTip();
}, { passive: true });
addEventListener("resize", () => plots.filter((plot) => plot.box.clientWidth !== plot.width).forEach(draw));
update();
