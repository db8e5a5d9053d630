// Where a latent is active: contexts by group, each token on a ground by value / max, its figures on hover and by the keyboard.

const GROUPS = { t: "Top activations", q: "By value", r: "Random contexts" };
let showSpaces = memory.get("spaces") === "yes";
let showIds = memory.get("ids") === "yes";

/** Letters of a token that are shown before it must be opened. */
const LETTERS = 40;

function tokenNodes(text, isOpen) {
  const letters = [...text];
  if (isOpen || letters.length <= LETTERS) return visible(text, showSpaces);
  return [...visible(letters.slice(0, LETTERS).join(""), showSpaces), el("span", { class: "glyph" }, `…+${letters.length - LETTERS}`)];
}

/** One token; `at` is its place in the context. */
function tokenNode(detail, context, at, max) {
  const text = detail.texts[context.tokens[at]];
  const id = detail.ids[context.tokens[at]];
  const value = context.values[at];
  const share = max > 0 ? Math.min(1, value / max) : 0;
  const classes = ["token"];
  if (value > 0) classes.push("active");
  if (value < 0) classes.push("negative");
  if (at === context.peak) classes.push("peak");
  const shown = text === "" && id < 0 ? [el("span", { class: "glyph" }, String(context.positions[at]))] : text === "" ? [el("span", { class: "glyph" }, "∅")] : tokenNodes(text, false);
  const node = el("span", { class: classes.join(" "), tabindex: -1, vars: value > 0 ? { "--share": share.toFixed(3) } : null }, shown);
  node.tip = () => [
    [el("strong", {}, `${figure(value)}`), value ? ` = ${(100 * value / max).toFixed(0)} % of max` : " (not active)"],
    text === "" ? null : ["token ", el("bdi", {}, JSON.stringify(plain(text, 300)))],
    [id >= 0 ? `id ${id} · ` : "", `position ${context.positions[at]}`],
  ].filter((line) => line !== null);
  if ([...text].length > LETTERS) node.full = text;
  // A line of the text ends here, on the page too.
  if (text.includes("\n")) return [node, el("br")];
  // The blank before a word stays off the coloured ground, so that neighbours are told apart and no ground hangs at a line's end.
  if (value > 0 && !showSpaces && /^ +\S/.test(text)) {
    node.firstChild.nodeValue = node.firstChild.nodeValue.replace(/^ +/, "");
    return [" ", node];
  }
  return [node];
}

function contextNode(detail, context, max, number, group) {
  const peakValue = context.values[context.peak] ?? 0;
  const jumped = (at) => at > 0 && context.positions[at] !== context.positions[at - 1] + 1;
  const tokens = context.tokens.map((_, at) => [jumped(at) ? el("span", { class: "gap", title: "masked rows are left out" }, "…") : null, tokenNode(detail, context, at, max)]);
  const line = el("div", { class: "tokens", tabindex: 0, role: "group",
    "aria-label": `${group}, context ${number}: document ${context.document}, value ${figure(peakValue)}. Arrow keys read the tokens.`,
    keydown: walk }, tokens);
  const ids = showIds ? el("div", { class: "ids" }, context.tokens.map((t) => detail.ids[t]).join(" ")) : null;
  return el("li", { class: "context" },
    el("div", { class: "meta" }, el("span", { class: "value" }, figure(peakValue, 3)),
      el("span", {}, `doc ${context.document}`), el("span", {}, `pos ${context.positions[context.peak] ?? "–"}`)),
    el("div", {}, line, ids));
}

/** Arrow keys go from token to token within a context. */
function walk(event) {
  const line = event.currentTarget;
  const all = [...line.querySelectorAll(".token")];
  const at = all.indexOf(document.activeElement);
  let to = null;
  if (event.key === "ArrowRight") to = at + 1;
  else if (event.key === "ArrowLeft") to = at < 0 ? all.length - 1 : at - 1;
  else if (event.key === "Home") to = 0;
  else if (event.key === "End") to = all.length - 1;
  else if (event.key === "Enter" && document.activeElement.full) {
    openToken(document.activeElement);
    event.preventDefault();
    event.stopPropagation();
    return;
  } else return;
  event.preventDefault();
  event.stopPropagation();
  all[Math.max(0, Math.min(all.length - 1, to))]?.focus();
}

/** Shows all of a token that was cut. */
function openToken(node) {
  fill(node, tokenNodes(node.full, true));
  node.full = null;
}

/** All groups; `redraw` is called when a switch changes. */
function contextsOf(detail, latent, redraw) {
  const max = index.max[latent] || 0;
  const bands = [...new Set(detail.contexts.filter((c) => c.group === "q").map((c) => c.band))].sort((a, b) => b - a);
  const sections = [["t", null], ...bands.map((b) => ["q", b]), ["r", null]];
  const nBands = bands.length ? Math.max(...bands) + 1 : 0;
  const made = sections.map(([group, band]) => {
    const own = detail.contexts.filter((c) => c.group === group && c.band === band);
    if (!own.length) return null;
    let title = GROUPS[group];
    let note = count(own.length, "context");
    if (group === "q") {
      const peaks = own.map((c) => c.values[c.peak]);
      const [low, high] = [Math.min(...peaks), Math.max(...peaks)].map((v) => figure(v, 3));
      title = `Band ${band + 1} of ${nBands}` + (band + 1 === nBands ? ", strongest" : band === 0 ? ", weakest" : "");
      note += `, values ${low} to ${high}`;
    }
    if (group === "r") note += `, ${count(own.filter((c) => c.values.some((v) => v > 0)).length, "of them active", "of them active")}`;
    const id = `group-${group}${band ?? ""}`;
    return el("section", { "aria-labelledby": id, class: "group" },
      el("div", { class: "grouphead" }, el("h3", { id }, title), el("span", { class: "note" }, note)),
      el("ol", { class: "contexts" + (showSpaces ? " raw" : "") }, own.map((c, i) => contextNode(detail, c, max, i + 1, title))));
  }).filter(Boolean);
  const check = (name, id, value, set) => el("label", { class: "check" }, el("input", { type: "checkbox", id, checked: value, change: (e) => {
    set(e.target.checked);
    redraw();
    byId(id).focus();
  } }), name);
  const legend = el("div", { class: "legend", role: "img", "aria-label": `Ground of tokens: no colour at 0, full colour at the largest value, ${figure(max)}. Active tokens are underlined, the chosen one is bold.` },
    el("span", {}, "0"), el("span", { class: "ramp" }), el("span", {}, figure(max, 3)), el("span", { class: "note" }, "value; ", el("span", { class: "token active peak" }, "bold"), " = chosen row"));
  const jumps = el("nav", { class: "jumps", "aria-label": "Groups of contexts" }, made.map((s) => el("button", { type: "button", click: () => {
    s.scrollIntoView({ block: "start" });
    s.querySelector(".tokens")?.focus({ preventScroll: true });
  } }, s.querySelector("h3").textContent)));
  return el("section", { class: "card wide-card", "aria-labelledby": "contexts-title" },
    el("div", { class: "spread" }, el("h2", { id: "contexts-title" }, "Contexts"),
      el("div", { class: "checks" },
        check("show spaces", "show-spaces", showSpaces, (on) => memory.set("spaces", (showSpaces = on) ? "yes" : "no")),
        check("token ids", "show-ids", showIds, (on) => memory.set("ids", (showIds = on) ? "yes" : "no")))),
    made.length ? [legend, jumps, made] : el("p", { class: "note" }, isDead(latent) ? "A dead latent was never active on these rows." : "The table has no contexts of this latent."));
}
