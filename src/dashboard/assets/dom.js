// Elements, numbers, small tools. Text enters the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";

/** Sets attributes: `class`, `aria-*`, ..., functions as listeners, `vars` as CSS custom properties, `tip` as the text of the tooltip. */
function dress(node, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "vars") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else if (name === "tip") node.tip = value;
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

/** An element with attributes and children; strings become text nodes, null is left out. */
function el(tag, attributes, ...children) {
  const node = dress(document.createElement(tag), attributes);
  node.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = dress(document.createElementNS(SVG, tag), attributes);
  node.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

const byId = (id) => document.getElementById(id);

/** Replaces all children. */
function fill(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

/** Four significant digits; a dash for what is not known. */
function figure(x, digits = 4) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e9) return x.toLocaleString("en-US");
  if (size >= 1e6 || size < 1e-4) return x.toExponential(2).replace("-", "−").replace("e+", "e");
  const text = size >= 1000 ? Math.round(x).toLocaleString("en-US") : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A share of rows as percent. */
function percent(x) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "0 %";
  const p = x * 100;
  return (p < 0.001 ? p.toExponential(1).replace("-", "−") : String(Number(p.toPrecision(3)))) + " %";
}

const signed = (x, digits) => (x > 0 ? "+" : "") + figure(x, digits);

const count = (n, one, many) => `${n.toLocaleString("en-US")} ${n === 1 ? one : many || one + "s"}`;

/** Says something to screen readers. */
function say(text) {
  byId("live").textContent = text;
}

/** What is remembered between visits; a browser may forbid it for files. */
const memory = {
  get(key) {
    try {
      return localStorage.getItem("lapidary." + key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem("lapidary." + key, value);
    } catch {
      // Then it holds for this visit.
    }
  },
};

async function copy(text, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    // Pages opened from disk may have no clipboard of their own.
    const area = el("textarea", { class: "unseen", value: text, "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = done ? "Copied" : "Select it by hand";
  say(button.textContent);
  setTimeout(() => (button.textContent = before), 1200);
  button.focus();
}

/** A part of a command line, quoted for a shell where it must be. */
function quoted(word) {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'";
}
