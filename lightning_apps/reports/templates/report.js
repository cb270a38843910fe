"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const COLORS = ["#2b8cd6", "#e0651a", "#1f9e77", "#c65d9b", "#8577f2", "#b8860b", "#d64550", "#808080"];
  const DASHES = ["", "7 3", "2 3"];
  const HEIGHT = 210, LEFT = 54, RIGHT = 10, TOP = 8, BOTTOM = 22;
  const data = byId("chart-data") ? JSON.parse(byId("chart-data").textContent) : [];
  const state = { smoothing: 0, logX: false, logY: false, range: null };

  function make(name, attributes, parent, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }
  const look = (index) => ({
    fill: "none", stroke: COLORS[index % COLORS.length], "stroke-dasharray": DASHES[Math.floor(index / COLORS.length) % 3],
  });
  const say = (value) => value === 0 ? "0"
    : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e")
      : String(Number(value.toPrecision(5)));

  // an average in which older values weigh less by the factor with each step, without its pull towards zero at the start
  function smooth(points) {
    let sum = 0, weight = 0;
    return points.map(([x, y]) => {
      if (y === null) return [x, null];
      sum = state.smoothing * sum + y;
      weight = state.smoothing * weight + 1;
      return [x, sum / weight];
    });
  }

  function ticks(low, high, log, most) {
    if (log && high / low >= 10) {
      const powers = [];
      for (let p = Math.ceil(Math.log10(low)); p <= Math.log10(high); p++) powers.push(10 ** p);
      const every = Math.ceil(powers.length / most);
      return powers.filter((_, index) => index % every === 0);
    }
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let n = Math.ceil(low / step); n <= high / step; n++) found.push(n * step);
    return found;
  }

  const steps = data.flatMap((chart) => chart.series.flatMap((series) => series.points.map((point) => point[0])));
  const first = steps.reduce((a, b) => Math.min(a, b), Infinity), last = steps.reduce((a, b) => Math.max(a, b), -Infinity);
  const shownRange = () => {
    const [low, high] = state.range || [first, last];
    return [state.logX ? Math.max(low, 1) : low, Math.max(high, low + 1, 2)];
  };

  function draw(box, chart) {
    const width = box.clientWidth - 16;
    if (width < 50) return;  // folded away
    box.replaceChildren();
    const title = document.createElement("figcaption"), legend = document.createElement("div");
    title.textContent = chart.title;
    legend.className = "legend";
    box.append(title);
    const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img" }, box);
    svg.setAttribute("aria-label", `${chart.title} by optimizer step`);
    box.append(legend);
    const [x0, x1] = shownRange();
    const fits = ([x, y]) => y !== null && x >= x0 && x <= x1 && !(state.logY && y <= 0);
    const lines = chart.series.map((series) => ({ raw: series.points, line: smooth(series.points) }));
    const ys = lines.flatMap(({ raw, line }) => [...raw.filter(fits), ...line.filter(fits)].map((point) => point[1]));
    const scale = (low, high, log, from, to) => {
      const f = log ? Math.log10 : (v) => v;
      return (v) => from + (to - from) * (f(v) - f(low)) / (f(high) - f(low));
    };
    const px = scale(x0, x1, state.logX, LEFT, width - RIGHT);
    const back = (pixel) => {
      const share = Math.min(1, Math.max(0, (pixel - LEFT) / (width - RIGHT - LEFT)));
      return state.logX ? x0 * (x1 / x0) ** share : x0 + share * (x1 - x0);
    };
    if (!ys.length) {
      make("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, svg, "no finite value here");
    }
    let low = ys.reduce((a, b) => Math.min(a, b), Infinity), high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!ys.length) [low, high] = [1, 2];
    if (high === low) [low, high] = state.logY ? [low / 2, low * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const py = scale(low, high, state.logY, HEIGHT - BOTTOM, TOP);
    for (const value of ys.length ? ticks(low, high, state.logY, 5) : []) {
      make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(value), y2: py(value) }, svg);
      make("text", { x: LEFT - 5, y: py(value) + 4, "text-anchor": "end" }, svg, say(value));
    }
    for (const value of ticks(x0, x1, state.logX, Math.max(2, Math.floor(width / 90)))) {
      make("line", { class: "grid", x1: px(value), x2: px(value), y1: TOP, y2: HEIGHT - BOTTOM }, svg);
      make("text", { x: px(value), y: HEIGHT - 6, "text-anchor": "middle" }, svg, say(value));
    }
    const path = (points) => {
      let out = "", pen = "M";
      for (const point of points) {
        if (!fits(point)) { pen = point[1] === null ? "M" : pen; continue; }
        out += `${pen}${px(point[0]).toFixed(1)} ${py(point[1]).toFixed(1)}`;
        pen = "L";
      }
      return out;
    };
    const values = lines.map(({ raw, line }, place) => {
      const series = chart.series[place], index = series.colour;
      if (state.smoothing > 0) make("path", { ...look(index), d: path(raw), opacity: 0.3 }, svg);
      make("path", { ...look(index), d: path(line), "stroke-width": 1.6, class: "series" }, svg);
      const dots = line.filter(fits);
      if (dots.length <= 40) for (const [x, y] of dots) make("circle", { cx: px(x), cy: py(y), r: 2.4, fill: look(index).stroke }, svg);
      const entry = document.createElement("span");
      make("line", { ...look(index), x1: 0, x2: 24, y1: 5, y2: 5, "stroke-width": 2 }, make("svg", { viewBox: "0 0 24 10" }, entry));
      const value = document.createElement("b");
      entry.append(` ${series.name} `, value);
      legend.append(entry);
      return value;
    });
    const place = document.createElement("span");
    legend.append(place);
    const cross = make("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, svg);
    const pick = make("rect", { class: "pick", y: TOP, height: HEIGHT - BOTTOM - TOP, width: 0 }, svg);
    const at = (event) => (event.clientX - svg.getBoundingClientRect().left) * width / svg.getBoundingClientRect().width;
    let start = null;
    svg.addEventListener("pointerdown", (event) => { start = at(event); });
    svg.addEventListener("pointermove", (event) => {
      const pixel = at(event), step = back(pixel);
      if (start !== null) {
        pick.setAttribute("x", Math.min(start, pixel));
        pick.setAttribute("width", Math.abs(pixel - start));
      }
      lines.forEach(({ line }, index) => {
        const near = line.filter(fits).reduce((a, b) => a && Math.abs(a[0] - step) <= Math.abs(b[0] - step) ? a : b, null);
        values[index].textContent = near ? `${say(near[1])} (${near[0]})` : "–";
      });
      place.textContent = `step ${Math.round(step)}`;
      cross.setAttribute("x1", px(Math.min(Math.max(step, x0), x1)));
      cross.setAttribute("x2", cross.getAttribute("x1"));
      cross.setAttribute("visibility", "visible");
    });
    svg.addEventListener("pointerup", (event) => {
      const ends = start === null ? [0, 0] : [start, at(event)].sort((a, b) => a - b);
      start = null;
      if (ends[1] - ends[0] > 6) zoom(ends.map(back));
    });
    svg.addEventListener("pointerleave", () => { start = null; pick.setAttribute("width", 0); });
    svg.addEventListener("dblclick", () => zoom(null));
  }

  const redraw = () => data.forEach((chart, index) => draw(byId(`chart-${index}`), chart));
  function zoom(range) {
    state.range = range && [Math.max(first, range[0]), Math.min(last, range[1])];
    redraw();
  }
  function scaleBy(factor) {
    const [low, high] = shownRange(), half = (high - low) / 2 * factor, middle = (low + high) / 2;
    if (half >= 0.5) zoom([middle - half, middle + half]);
  }
  if (data.length) {
    byId("chart-tools").hidden = false;
    byId("smoothing").addEventListener("input", (event) => {
      state.smoothing = Number(event.target.value);
      byId("smoothed").textContent = event.target.value;
      redraw();
    });
    byId("log-x").addEventListener("change", (event) => { state.logX = event.target.checked; redraw(); });
    byId("log-y").addEventListener("change", (event) => { state.logY = event.target.checked; redraw(); });
    byId("zoom-in").addEventListener("click", () => scaleBy(0.5));
    byId("zoom-out").addEventListener("click", () => scaleBy(2));
    byId("zoom-all").addEventListener("click", () => zoom(null));
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
    for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => part.open && redraw());
    redraw();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const key = (row, column) => {
      const text = row.cells[column].textContent, value = Number(text.replaceAll(",", ""));
      return text === "none" ? Infinity : text.trim() !== "" && !Number.isNaN(value) ? value : text;
    };
    const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
        body.append(...[...body.rows].sort((a, b) => sign * compare(key(a, column), key(b, column))));
      });
    });
  }
})();
