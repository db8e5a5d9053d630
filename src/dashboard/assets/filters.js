// The bar above list and atlas: search, filters, how many pass.

const CHOICES = {
  state: [["", "All latents"], ["alive", "Alive"], ["dead", "Dead"], ["dense", "Dense"], ["sparse", "Neither"]],
  named: [["", "With or without label"], ["yes", "With label"], ["no", "Without label"]],
};

let refresh = () => {};
let pending = 0;

/** Puts a change into the address without a step in the history, and shows it. */
function change(key, value) {
  view[key] = value;
  history.replaceState(null, "", address(view.page, view.latent));
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => refresh());
}

function select(key, label, options) {
  return el("select", { "aria-label": label, id: `filter-${key}`, change: (e) => change(key, e.target.value) },
    options.map(([value, name]) => el("option", { value, selected: view[key] === value }, plain(name, 40))));
}

function field(key, label, unit, attributes) {
  return el("label", { class: "field" }, label, el("input", { type: "number", min: 0, step: "any", inputmode: "decimal", id: `filter-${key}`,
    value: view[key], input: (e) => change(key, e.target.value), ...attributes }), unit);
}

/** The bar; `show` draws what it governs and is called on every change. */
function filterBar(show) {
  const total = el("output", { class: "count", id: "count", "aria-live": "polite" });
  const search = el("input", { type: "search", id: "search", placeholder: "label, token, concept, number", "aria-label": "Search latents",
    autocomplete: "off", spellcheck: "false", value: view.q, input: (e) => change("q", e.target.value),
    title: "All words must match. label:x, concept:x and token:x look in one place, text:x in the context of the list; #12 is latent 12." });
  const hasConcepts = index.class_names.length > 0;
  const isNarrowed = () => Object.keys(DEFAULTS).some((k) => k !== "sort" && k !== "q" && view[k] !== "");
  const more = el("details", { class: "more", open: isNarrowed() },
    el("summary", {}, "Filters"),
    el("div", { class: "filters", role: "group", "aria-label": "Filters" },
      select("state", "Dead or dense", CHOICES.state),
      select("named", "Labelled", CHOICES.named),
      hasConcepts && select("class", "Class of the concept", [["", "Any concept class"], ...index.class_names.map((c) => [c, c])]),
      field("dmin", "Density from", "%"),
      field("dmax", "to", "%", { "aria-label": "Density to, percent" }),
      hasConcepts && field("f1", "F1 at least", "", { max: 1 }),
      el("button", { type: "button", id: "clear", click: () => {
        Object.assign(view, DEFAULTS, { sort: view.sort });
        go(address(view.page, view.latent));
      } }, "Clear")));
  refresh = () => {
    const n = matches().order.length;
    total.textContent = n === index.n ? count(n, "latent") : `${n.toLocaleString("en-US")} of ${count(index.n, "latent")}`;
    for (const id of ["list", "atlas", "overview"]) byId(`nav-${id}`).href = address(id);
    show();
  };
  return el("div", { class: "searchbar", role: "search" }, el("div", { class: "searchline" }, search, total), more);
}
