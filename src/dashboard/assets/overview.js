// The run: its figures with their definitions, what its latents are like as a whole, where everything comes from.

function densityFigure() {
  const alive = index.density.filter((d) => d > 0).map(Math.log10);
  if (!alive.length) return null;
  const low = Math.floor(Math.min(...[-1, ...alive.slice(0, 1)], alive.reduce((a, b) => Math.min(a, b), 0)) * 4) / 4;
  const width = 0.125;
  const counts = new Array(Math.max(1, Math.round(-low / width))).fill(0);
  for (const d of alive) counts[Math.max(0, Math.min(counts.length - 1, Math.floor((d - low) / width)))]++;
  return figureOf("Density of all latents", { counts, low, width, xLabel: "share of rows, log scale", yLabel: "latents",
    text: (x) => percent(10 ** x) }, "log-densities");
}

function countsCard() {
  const dead = index.flags.filter((f) => f & 1).length;
  const dense = index.flags.filter((f) => f & 2).length;
  const named = index.labels.filter((l) => l !== null).length;
  const link = (n, search) => el("a", { href: "#/?" + new URLSearchParams(search) }, n.toLocaleString("en-US"));
  return el("section", { class: "card", "aria-labelledby": "counts-title" },
    el("h2", { id: "counts-title" }, "Latents"),
    el("dl", { class: "stats" },
      stat("All", link(index.n, {})), stat("Dead", link(dead, { state: "dead" }), "Never active on the encoded rows"),
      stat("Dense", link(dense, { state: "dense" }), `Active on more than ${percent(index.overview.dense_above)} of the rows`),
      stat("Labelled", link(named, { named: "yes" })), stat("Rows encoded", figure(index.rows)), stat("Mean L0", figure(index.overview.l0), "Active latents per row")),
    densityFigure());
}

function conceptsCard() {
  if (!index.class_names.length) return null;
  const rows = index.class_names.map((name, c) => {
    const own = index.f1.filter((f, i) => index.classes[i] === c && f !== null);
    const best = new Map();
    index.f1.forEach((f, i) => {
      if (index.classes[i] === c && f !== null) best.set(index.concepts[i], Math.max(f, best.get(index.concepts[i]) ?? 0));
    });
    return [name, own.length, best.size, [...best.values()].filter((f) => f >= 0.7).length];
  });
  return el("section", { class: "card", "aria-labelledby": "classes-title" },
    el("h2", { id: "classes-title" }, "Known concepts"),
    el("table", { class: "small rows" },
      el("thead", {}, el("tr", {}, ["Class", "Latents that find one best", "Concepts among these", "with F1 ≥ 0.7"].map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {}, rows.map(([name, ...n]) => el("tr", {}, el("th", { scope: "row" }, el("a", { href: "#/?" + new URLSearchParams({ class: name, sort: "-f1" }) }, plain(name, 40))), n.map((x) => el("td", { class: "n" }, figure(x))))))));
}

/** What most people look for first; the table has all. */
const KEY_FIGURES = { fvu: "FVU (0 is perfect)", l0: "L0, latents per row", dead_fraction: "Dead", dense_fraction: "Dense", ce_loss_score: "CE recovered", enc_dec_cosine: "Enc·dec cosine" };

function scoresCard() {
  const scores = index.overview.scores;
  if (!scores) return el("section", { class: "card" }, el("h2", {}, "Scores"), el("p", { class: "note" }, "None were given: run `lapidary score`, then `lapidary dashboard` with --dictionary."));
  return el("section", { class: "card", "aria-labelledby": "scores-title" },
    el("h2", { id: "scores-title" }, "Scores"),
    el("p", { class: "note" }, `${figure(scores.rows)} rows of the ${plain(scores.split, 30)} split. What a figure means: its formula, in the last column or over its name.`),
    el("dl", { class: "key-figures" }, scores.lines.filter(([id]) => KEY_FIGURES[id]).map(([id, , formula, , value]) => stat(KEY_FIGURES[id], id.endsWith("_fraction") ? percent(value) : figure(value), formula))),
    el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Scores" }, el("table", { class: "scores" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Metric"), el("th", { scope: "col", class: "n" }, "Dictionary"),
        scores.beside.map((name) => el("th", { scope: "col", class: "n" }, plain(name, 40))), el("th", { scope: "col", class: "unit" }, "Unit"), el("th", { scope: "col", class: "formula" }, "Definition"))),
      el("tbody", {}, scores.lines.map(([id, unit, formula, whose, value, others]) => el("tr", {},
        el("th", { scope: "row", tip: [plain(formula, 300), plain(unit, 40)] }, plain(id, 60)), el("td", { class: "n" }, el("strong", {}, figure(value))), others.map((v) => el("td", { class: "n" }, figure(v))),
        el("td", { class: "unit" }, plain(unit, 40)), el("td", { class: "formula" }, plain(formula, 300), whose ? el("span", { class: "note" }, ` (${plain(whose, 200)})`) : null)))))));
}

function curvesCard() {
  const curves = index.overview.curves.filter(([, , xs]) => xs.length > 1);
  if (!curves.length) return null;
  return el("section", { class: "card", "aria-labelledby": "curves-title" }, el("h2", { id: "curves-title" }, "Training"),
    curves.map(([name, unit, xs, ys]) => el("figure", {}, el("figcaption", {}, el("h3", {}, plain(name, 60))), curve({ name, xs, ys, xLabel: "tokens seen", yLabel: unit }))));
}

function overviewPage(main) {
  const sections = index.overview.sections.map(([name, lines]) => el("section", { class: "card provenance" }, el("h2", {}, name),
    el("dl", {}, lines.map(([key, value]) => [el("dt", {}, plain(key, 120)), el("dd", {}, labelled(value, 200))]))));
  put(main, el("div", { class: "overview" }, el("h1", {}, "Overview"),
    el("div", { class: "masonry" }, countsCard(), curvesCard(), conceptsCard()), scoresCard(), el("h2", { class: "part" }, "Where it comes from"), el("div", { class: "masonry" }, sections)));
  for (const id of ["list", "atlas", "overview"]) byId(`nav-${id}`).href = address(id);
}
