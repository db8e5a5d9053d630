// Bars and curves as SVG, with axes, units, and values on hover.

const niceStep = (span, most) => {
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) || rough;
};

function ticks(low, high, most = 5) {
  if (!(high > low)) return [low];
  const step = niceStep(high - low, most);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

const short = (x) => {
  const size = Math.abs(x);
  const cut = (y, unit) => String(Number(y.toPrecision(3))) + unit;
  return (size >= 1e9 ? cut(x / 1e9, "G") : size >= 1e6 ? cut(x / 1e6, "M") : size >= 1e4 ? cut(x / 1e3, "k") : size > 0 && size < 1e-3 ? x.toExponential(0) : cut(x, "")).replace("-", "−");
};

const FRAME = { width: 440, height: 190, left: 52, right: 20, top: 10, bottom: 40 };

/** Axes around `marks`; `x` and `y` are `{low, high, label, ticks, place, text}`. */
function frame(x, y, label, marks) {
  const { width, height, left, right, top, bottom } = FRAME;
  const base = height - bottom;
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    y.ticks.map((t) => svg("g", {},
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y.place(t), y2: y.place(t) }),
      svg("text", { x: left - 6, y: y.place(t) + 4, "text-anchor": "end" }, y.text(t)))),
    x.ticks.map((t) => svg("g", {},
      svg("line", { class: "axis", x1: x.place(t), x2: x.place(t), y1: base, y2: base + 4 }),
      svg("text", { x: x.place(t), y: base + 16, "text-anchor": "middle" }, x.text(t)))),
    marks,
    svg("line", { class: "axis", x1: left, x2: width - right, y1: base, y2: base }),
    svg("text", { class: "name", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
    svg("text", { class: "name", x: -(top + base) / 2, y: 12, "text-anchor": "middle", transform: "rotate(-90)" }, y.label));
}

/** A histogram: bin i counts `[low + i w, low + (i + 1) w)`. `kind` maps a bin to a class of its bar. */
function histogram({ counts, low, width, xLabel, yLabel, log, text = short, name, kind }) {
  const most = Math.max(1, ...counts);
  const high = low + counts.length * width;
  const { left, right, top, bottom } = FRAME;
  const base = FRAME.height - bottom;
  // On the logarithmic scale one row is still a bar.
  const level = (n) => (log ? (n > 0 ? (Math.log10(n) + 0.3) / (Math.log10(most) + 0.3) : 0) : n / most);
  const x = (v) => left + ((v - low) / (high - low)) * (FRAME.width - left - right);
  const y = (n) => base - level(n) * (base - top);
  const yTicks = log ? Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, i) => 10 ** i) : ticks(0, most, 4).filter(Number.isInteger);
  const bars = counts.map((n, i) => {
    if (!n) return null;
    const [from, to] = [low + i * width, low + (i + 1) * width];
    const h = Math.max(1, base - y(n));
    return svg("rect", { class: "barmark " + (kind ? kind(from, to) : ""), x: x(from) + 0.5, width: Math.max(0.8, x(to) - x(from) - 1), y: base - h, height: h,
      tip: [`${text(from)} to ${text(to)}`, count(n, yLabel.replace(/s$/, ""), yLabel)] });
  });
  const total = counts.reduce((a, b) => a + b, 0);
  return frame({ label: xLabel, ticks: ticks(low, high, 6), place: x, text },
    { label: yLabel + (log ? " (log)" : ""), ticks: yTicks, place: y, text: short },
    `${name}: ${count(total, yLabel.replace(/s$/, ""), yLabel)} from ${text(low)} to ${text(high)}, most in one bar ${short(most)}`, bars);
}

/** A curve through points. */
function curve({ xs, ys, xLabel, yLabel, name }) {
  const [xl, xh] = [0, Math.max(...xs)];
  let [yl, yh] = [Math.min(0, ...ys), Math.max(...ys)];
  if (!(yh > yl)) yh = yl + 1;
  const { left, right, top, bottom } = FRAME;
  const base = FRAME.height - bottom;
  const x = (v) => left + ((v - xl) / (xh - xl || 1)) * (FRAME.width - left - right);
  const y = (v) => base - ((v - yl) / (yh - yl)) * (base - top);
  const points = xs.map((v, i) => `${x(v).toFixed(1)},${y(ys[i]).toFixed(1)}`).join(" ");
  return frame({ label: xLabel, ticks: ticks(xl, xh, 5), place: x, text: short }, { label: yLabel, ticks: ticks(yl, yh, 4), place: y, text: short },
    `${name}: from ${figure(ys[0])} to ${figure(ys[ys.length - 1])}`, svg("polyline", { class: "curve", points }));
}

/** A chart in a figure, with a switch between linear and logarithmic counts, which is remembered. */
function figureOf(title, options, remembered) {
  const holder = el("div");
  let log = memory.get(remembered) === "log";
  const draw = () => fill(holder, histogram({ ...options, name: title, log }));
  const toggle = el("label", { class: "check" }, el("input", { type: "checkbox", checked: log, change: (e) => {
    log = e.target.checked;
    memory.set(remembered, log ? "log" : "linear");
    draw();
  } }), "log counts");
  draw();
  return el("figure", {}, el("figcaption", { class: "spread" }, el("h3", {}, title), toggle), holder);
}
