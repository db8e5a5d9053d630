// The address says what is shown: `#/latent/12?q=dog&sort=-density`. Which latents pass, and in which order, follows from it.

const DEFAULTS = { q: "", sort: "latent", dmin: "", dmax: "", state: "", named: "", class: "", f1: "" };

/** What the address says now. */
const view = { page: "list", latent: 0, ...DEFAULTS };

function readAddress() {
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter((p) => p !== "");
  const given = new URLSearchParams(search);
  for (const key of Object.keys(DEFAULTS)) view[key] = given.get(key) ?? DEFAULTS[key];
  if (!COLUMNS.some((c) => c.id === view.sort.replace(/^-/, ""))) view.sort = DEFAULTS.sort;
  view.page = "list";
  if (parts[0] === "latent" && /^\d+$/.test(parts[1] || "") && Number(parts[1]) < index.n) {
    view.page = "latent";
    view.latent = Number(parts[1]);
  } else if (parts[0] === "atlas" || parts[0] === "overview") view.page = parts[0];
}

/** The address of a page, with the search and the order that hold now. */
function address(page, latent) {
  const given = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) if (view[key] !== DEFAULTS[key]) given.set(key, view[key]);
  const path = page === "latent" ? `latent/${latent}` : page === "list" ? "" : page;
  const search = given.toString();
  return `#/${path}${search ? "?" + search : ""}`;
}

/** Columns of the list: how they are called, read and sorted; `hide` is the width below which they are left out. */
const COLUMNS = [
  { id: "latent", name: "Latent", value: (i) => i },
  { id: "label", name: "Label", value: (i) => lowered()[i] },
  { id: "density", name: "Density", value: (i) => index.density[i], show: (i) => percent(index.density[i]), falls: true, about: "Share of the rows on which the latent is active" },
  { id: "max", name: "Max", value: (i) => index.max[i], falls: true, wide: true, about: "Largest value" },
  { id: "mean", name: "Mean", value: (i) => index.mean[i], falls: true, wide: true, about: "Mean value over the rows on which it is active" },
  { id: "f1", name: "F1", value: (i) => index.f1[i], falls: true, wide: true, about: "F1 of the known concept that it finds best, on rows that chose neither" },
  { id: "cos", name: "Enc·dec", value: (i) => index.cos[i], falls: true, wide: true, about: "Cosine of encoder row and atom" },
].filter((c) => c.id !== "f1" || index.class_names.length > 0);

let lowers = null;
const lowered = () => (lowers ??= index.labels.map((l) => (l === null ? null : l.toLowerCase())));

let haystacks = null;

/** Lower-case texts that the search looks into, by field. */
function searchable() {
  if (haystacks) return haystacks;
  const tokens = index.vocabulary.texts.map((t) => t.toLowerCase());
  haystacks = Array.from({ length: index.n }, (_, i) => {
    const label = (labelOf(i) || "").toLowerCase();
    const concept = `${conceptOf(i) || ""} ${classOf(i) || ""}`.toLowerCase();
    const token = [...index.peaks[i], ...index.raised[i]].map((p) => tokens[p]).join("\n");
    const text = (index.snippets[i] || []).join("").toLowerCase();
    return { label, concept, token, text, any: `${label}\n${concept}\n${token}` };
  });
  return haystacks;
}

/** Words that must all be found; `label:`, `concept:`, `token:` and `text:` look in one place, `#12` and `12` name a latent. */
function matcher(query) {
  const words = query.toLowerCase().match(/\S+/g) || [];
  const texts = words.length ? searchable() : null;
  return (i) =>
    words.every((word) => {
      const number = /^#?(\d+)$/.exec(word);
      if (number && Number(number[1]) === i) return true;
      if (word.startsWith("#")) return number ? false : texts[i].any.includes(word);
      const field = /^(label|concept|token|text):(.*)$/s.exec(word);
      return field ? texts[i][field[1]].includes(field[2]) : texts[i].any.includes(word);
    });
}

function number(text) {
  const x = parseFloat(String(text).replace(",", "."));
  return Number.isFinite(x) ? x : null;
}

let known = { key: null, order: null, place: null };

/** Latents that pass, in order; `place` finds one's rank. */
function matches() {
  const key = JSON.stringify(Object.keys(DEFAULTS).map((k) => view[k]));
  if (known.key === key) return known;
  const passes = matcher(view.q);
  const [low, high, f1] = [number(view.dmin), number(view.dmax), number(view.f1)];
  const order = [];
  for (let i = 0; i < index.n; i++) {
    const d = index.density[i] * 100;
    if (low !== null && d < low) continue;
    if (high !== null && d > high) continue;
    if (f1 !== null && !(index.f1[i] !== null && index.f1[i] >= f1)) continue;
    if (view.state === "alive" && isDead(i)) continue;
    if (view.state === "dead" && !isDead(i)) continue;
    if (view.state === "dense" && !isDense(i)) continue;
    if (view.state === "sparse" && (isDense(i) || isDead(i))) continue;
    if (view.named === "yes" && labelOf(i) === null) continue;
    if (view.named === "no" && labelOf(i) !== null) continue;
    if (view.class !== "" && classOf(i) !== view.class) continue;
    if (!passes(i)) continue;
    order.push(i);
  }
  const down = view.sort.startsWith("-");
  const column = COLUMNS.find((c) => c.id === view.sort.replace(/^-/, ""));
  if (column.id !== "latent" || down) {
    const values = new Array(index.n);
    for (const i of order) values[i] = column.value(i);
    const direction = down ? -1 : 1;
    // What is not known comes last either way; equals keep the order of their numbers.
    order.sort((a, b) => {
      const x = values[a];
      const y = values[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return x < y ? -direction : x > y ? direction : a - b;
    });
  }
  const ranks = new Int32Array(index.n).fill(-1);
  order.forEach((i, rank) => (ranks[i] = rank));
  const place = { has: (i) => ranks[i] >= 0, get: (i) => (ranks[i] >= 0 ? ranks[i] : undefined) };
  known = { key, order, place };
  return known;
}

/** The latent `step` further in the list's order, or by number where the list does not hold it. */
function neighbour(latent, step) {
  const { order, place } = matches();
  const rank = place.get(latent);
  if (rank === undefined) {
    const next = latent + step;
    return next >= 0 && next < index.n ? next : null;
  }
  return order[rank + step] ?? null;
}
