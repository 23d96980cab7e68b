// What all views share: the data files, elements, numbers as text, and charts drawn as SVG.
"use strict";

const maskx = (() => {
  // A page in a folder may not read other files, but it may load scripts: each hands its value to `receive`.
  const waiting = new Map();
  const loading = new Map();
  const MOST_KEPT = 200;

  function receive(name, value) {
    if (name === "summary") {
      maskx.start(value);
      return;
    }
    waiting.get(name)?.(value);
    waiting.delete(name);
  }

  function load(name) {
    if (loading.has(name)) return loading.get(name);
    const promise = new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => {
        script.remove();
        if (waiting.delete(name)) reject(new Error(`data/${name}.js is damaged`));
      };
      script.onerror = () => reject(new Error(`data/${name}.js is missing`));
      document.head.append(script);
    });
    loading.set(name, promise);
    // The oldest pages go: a walk through thousands of images must not fill the memory.
    const pages = [...loading.keys()].filter((key) => key.includes("/"));
    if (pages.length > MOST_KEPT) loading.delete(pages[0]);
    return promise;
  }

  const SVG = "http://www.w3.org/2000/svg";
  const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title"]);

  // Make an element; attributes whose value is null or false are left out, functions are listeners.
  function el(tag, attributes = {}, ...children) {
    const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") made.addEventListener(name, value);
      else if (name === "style") Object.assign(made.style, value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
  const signed = (value) =>
    value === null || value === undefined ? "–" : (value < 0 ? "−" : "+") + Math.abs(100 * value).toFixed(1);
  const whole = (value) => value.toLocaleString("en");
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`;
    if (size !== 0 && size < 0.001) return value.toExponential(0);
    return String(+value.toPrecision(3));
  };

  const MODEL_COLORS = 6;
  const modelColor = (number) => `var(--model-${number % MODEL_COLORS})`;
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

  function table(caption, heads, rows, options = {}) {
    const head = heads.map((text, column) => el("th", { scope: "col", class: column >= (options.texts ?? 1) ? "number" : null }, text));
    const body = rows.map((row) =>
      el("tr", {}, row.map((cell, column) => {
        const attributes = { class: column >= (options.texts ?? 1) ? "number" : null };
        return column === 0 ? el("th", { scope: "row" }, cell) : el("td", attributes, cell);
      })));
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
  }

  function ticks(low, high, count = 5) {
    const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
    const factor = [1, 2, 5, 10].find((f) => (high - low) / (step * f) <= count) ?? 10;
    const found = [];
    for (let value = Math.ceil(low / (step * factor) - 1e-9); value * step * factor <= high + 1e-9 * (high - low); value++) {
      found.push(+(value * step * factor).toPrecision(12));
    }
    return found;
  }

  // Lines over numbers. series: [{name, points: [[x, y], ...], color, dash, marks}].
  function lineChart({ label, series, x, y, xLabel, yLabel, width = 640, height = 360, format = short, diagonal = false }) {
    const margin = { left: yLabel ? 56 : 44, right: 12, top: 10, bottom: xLabel ? 44 : 26 };
    const inner = { width: width - margin.left - margin.right, height: height - margin.top - margin.bottom };
    const px = (value) => margin.left + ((value - x[0]) / (x[1] - x[0] || 1)) * inner.width;
    const py = (value) => margin.top + inner.height - ((value - y[0]) / (y[1] - y[0] || 1)) * inner.height;
    const parts = [];
    for (const value of ticks(y[0], y[1], Math.max(3, Math.floor(inner.height / 55)))) {
      parts.push(el("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: py(value), y2: py(value) }));
      parts.push(el("text", { class: "tick", x: margin.left - 6, y: py(value) + 4, "text-anchor": "end" }, format(value)));
    }
    for (const value of ticks(x[0], x[1], Math.max(4, Math.floor(inner.width / 90)))) {
      parts.push(el("line", { class: "grid", x1: px(value), x2: px(value), y1: margin.top, y2: margin.top + inner.height }));
      parts.push(el("text", { class: "tick", x: px(value), y: margin.top + inner.height + 16, "text-anchor": "middle" }, short(value)));
    }
    if (diagonal) parts.push(el("path", { class: "diagonal", d: `M${px(x[0])} ${py(y[0])}L${px(x[1])} ${py(y[1])}` }));
    for (const line of series) {
      const at = line.points.map(([a, b]) => `${px(a).toFixed(1)} ${py(b).toFixed(1)}`);
      if (at.length) parts.push(el("path", { class: "line", d: `M${at.join("L")}`, stroke: line.color, "stroke-dasharray": line.dash || null }));
      if (line.marks || at.length === 1) {
        parts.push(line.points.map(([a, b]) => el("circle", { cx: px(a), cy: py(b), r: 3, fill: line.color })));
      }
    }
    if (xLabel) parts.push(el("text", { class: "axis", x: margin.left + inner.width / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
    if (yLabel) {
      const middle = margin.top + inner.height / 2;
      parts.push(el("text", { class: "axis", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, yLabel));
    }
    return el("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, parts.flat());
  }

  function legend(entries) {
    return el("ul", { class: "legend" }, entries.map(({ name, color, dash }) =>
      el("li", {}, el("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" },
        el("line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: color, "stroke-width": 3, "stroke-dasharray": dash || null })), name)));
  }

  // A bar from 0 with a whisker for its interval, of a row in a table.
  function bar(value, { color, interval = null, most = 1, label }) {
    if (value === null || value === undefined) return el("span", { class: "bar-none" }, "–");
    const share = (v) => `${Math.max(0, Math.min(100, (100 * v) / most))}%`;
    const whisker = interval &&
      el("span", { class: "whisker", style: { left: share(interval[0]), width: `calc(${share(interval[1])} - ${share(interval[0])})` } });
    const track = el("span", { class: "track", "aria-hidden": "true" },
      el("span", { class: "fill", style: { width: share(value), background: color } }), whisker);
    return el("span", { class: "bar-row", title: label }, track, el("span", { class: "bar-text" }, percent(value)));
  }

  // A select with its label; options: [[value, text], ...].
  function choice(label, options, value, changed, attributes = {}) {
    const select = el("select", { change: () => changed(select.value), ...attributes },
      options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text)));
    return el("label", { class: "field" }, el("span", {}, label), select);
  }

  return { receive, load, el, percent, signed, whole, short, modelColor, DASHES, table, lineChart, legend, bar, choice };
})();
