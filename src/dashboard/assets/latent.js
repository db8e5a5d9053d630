// One latent: what is known of it, what it does to the output, who is near it, where it is active.

function stat(name, value, about) {
  return el("div", { class: "stat", title: about }, el("dt", {}, name), el("dd", {}, value));
}

function statsCard(i, detail) {
  const q = index.quantiles.map((share, k) => [share, detail.latent.quantiles[k]]).filter(([, v]) => v !== undefined);
  return el("section", { class: "card", "aria-labelledby": "stats-title" },
    el("h2", { id: "stats-title" }, "Activity"),
    el("dl", { class: "stats" },
      stat("Density", percent(index.density[i]), "Share of the rows on which it is active"),
      stat("Active rows", `${figure(index.fires[i])} of ${figure(index.rows)}`, "Rows on which it is active, of those encoded"),
      stat("Max", figure(index.max[i]), "Largest value"),
      stat("Mean when active", figure(index.mean[i]), "Mean value over the rows on which it is active"),
      stat("Enc·dec cosine", figure(index.cos[i]), "Cosine of its encoder row with its atom")),
    q.length > 0 && el("table", { class: "small" }, el("caption", {}, "Quantiles of active values"),
      el("thead", {}, el("tr", {}, q.map(([share]) => el("th", { scope: "col" }, percent(share))))),
      el("tbody", {}, el("tr", {}, q.map(([, v]) => el("td", { class: "n" }, figure(v, 3)))))),
    detail.latent.histogram.length > 0 && figureOf("Active values", { counts: detail.latent.histogram, low: 0, width: detail.latent.width,
      xLabel: "value", yLabel: "rows" }, "log-values"));
}

function tokenTable(title, rows, detail, sign) {
  const most = Math.max(...rows.map(([, v]) => Math.abs(v)), 1e-9);
  return el("table", { class: "logits " + sign }, el("caption", {}, title),
    el("thead", { class: "unseen" }, el("tr", {}, el("th", { scope: "col" }, "Token"), el("th", { scope: "col" }, "Logit weight"))),
    el("tbody", {}, rows.map(([t, v]) => el("tr", { tip: [["token ", el("bdi", {}, JSON.stringify(plain(detail.texts[t], 300)))], `id ${detail.ids[t]}`, `logit weight ${signed(v)}`] },
      el("td", {}, chip(detail.texts[t])),
      el("td", { class: "n" }, el("span", { class: "meter", "aria-hidden": "true", vars: { "--share": (Math.abs(v) / most).toFixed(3) } }), signed(v, 3))))));
}

function logitsCard(detail) {
  const own = detail.latent;
  if (!own.top.length && !own.logits.length) {
    return el("section", { class: "card" }, el("h2", {}, "Output tokens"), el("p", { class: "note" }, "Not known: the table was made without a host, or off the residual stream."));
  }
  return el("section", { class: "card", "aria-labelledby": "logits-title" },
    el("h2", { id: "logits-title", title: "Logit weights of the atom through the final norm and the unembedding" }, "Output tokens"),
    el("div", { class: "pair" }, tokenTable("Raised (+)", own.top, detail, "plus"), tokenTable("Lowered (−)", own.bottom, detail, "minus")),
    own.logits.length > 0 && figureOf("Logit weights of all tokens", { counts: own.logits, low: own.low, width: (own.high - own.low) / own.logits.length,
      xLabel: "logit weight", yLabel: "tokens", kind: (a, b) => (b <= 0 ? "minus" : a >= 0 ? "plus" : "") }, "log-logits"));
}

function latentLink(i) {
  const label = labelOf(i);
  return el("a", { class: "to", href: address("latent", i), "aria-label": nameOf(i) }, el("span", { class: "num" }, String(i)), " ",
    label === null ? el("span", { class: "none" }, isDead(i) ? "dead" : "no label") : labelled(label, 60));
}

function neighboursCard(detail) {
  const { nearest, coactive } = detail.latent;
  return el("section", { class: "card late", "aria-labelledby": "near-title" },
    el("h2", { id: "near-title" }, "Neighbours"),
    nearest.length > 0 && el("table", { class: "links", id: "nearest" }, el("caption", {}, "Nearest atoms"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Latent"), el("th", { scope: "col", class: "n", title: "Cosine of the two atoms" }, "cosine"))),
      el("tbody", {}, nearest.map(([i, c]) => el("tr", {}, el("td", {}, latentLink(i)), el("td", { class: "n" }, figure(c, 3)))))),
    coactive.length > 0 && el("table", { class: "links", id: "coactive" }, el("caption", {}, "Active on the same rows"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Latent"),
        el("th", { scope: "col", class: "n", title: "Rows on which both are active over rows on which either is" }, "Jaccard"),
        el("th", { scope: "col", class: "n", title: "log2 p(both) / (p(one) p(other)), bits" }, "PMI, bits"))),
      el("tbody", {}, coactive.map(([i, j, p]) => el("tr", {}, el("td", {}, latentLink(i)), el("td", { class: "n" }, figure(j, 3)), el("td", { class: "n" }, figure(p, 3)))))),
    !nearest.length && !coactive.length && el("p", { class: "note" }, "None: no other atom is close, none is active with it."));
}

function conceptCard(i, detail) {
  if (conceptOf(i) === null) return null;
  return el("section", { class: "card", "aria-labelledby": "concept-title" },
    el("h2", { id: "concept-title" }, "Known concept"),
    el("p", {}, labelled(conceptOf(i)), " ", classOf(i) === null ? null : el("span", { class: "mark" }, plain(classOf(i), 30))),
    el("dl", { class: "stats" }, stat("F1", figure(index.f1[i]), "On rows that chose neither concept nor threshold"), stat("Precision", figure(detail.latent.precision)),
      stat("Recall", figure(detail.latent.recall))));
}

function commandsCard(i) {
  const { dictionary, features, model } = index.overview;
  const strength = index.max[i] ? Math.max(1, Math.round(index.max[i])) : 8;
  const host = `--dictionary ${quoted(dictionary)} --model ${quoted(model)}`;
  const from = quoted(features.replaceAll("'", "''") + "/examples.parquet").replace(/^'|'$/g, "");
  const lines = [
    ["Write text with it turned up", `lapidary steer ${host} --latent ${i}=+${strength} --text 'YOUR TEXT'`],
    ["Write text without it", `lapidary steer ${host} --latent ${i}=0 --text 'YOUR TEXT'`],
    ["See it on a prompt", `lapidary trace ${host} --latent ${i} --text 'YOUR TEXT'`],
  ];
  if (/^[A-Za-z0-9_./-]+$/.test(from)) {
    lines.push(["Its contexts as a table", `duckdb -c "select value, doc_id, position, array_to_string(tokens, '') as text from '${from}' where latent = ${i}"`]);
  }
  lines.push(["This page", location.href.split("#")[0] + `#/latent/${i}`]);
  return el("section", { class: "card late", "aria-labelledby": "next-title" }, el("h2", { id: "next-title" }, "To type next"),
    lines.map(([name, text]) => el("div", { class: "command" },
      el("div", { class: "spread" }, el("span", { class: "note" }, name), el("button", { type: "button", class: "copy", "aria-label": `Copy: ${name}`, click: (e) => copy(text, e.target) }, "Copy")),
      el("code", {}, plain(text, 600).split(/(--[a-z]+)/).map((part) => (part.startsWith("--") ? el("span", {}, part) : part))))));
}

async function latentPage(main, i) {
  selected = i;
  const step = (by, name, key) => {
    const to = neighbour(i, by);
    return to === null ? el("span", { class: "step off", "aria-hidden": "true" }, name)
      : el("a", { class: "step", rel: by < 0 ? "prev" : "next", href: address("latent", to), "aria-label": `${by < 0 ? "Previous" : "Next"}: ${nameOf(to)}`, title: `key ${key}` }, name);
  };
  const { order, place } = matches();
  const rank = place.get(i);
  const label = labelOf(i);
  const source = { concept: "from the known concept", tokens: "from its tokens", file: "from a file" }[sourceOf(i)] ?? sourceOf(i);
  const head = el("div", { class: "head" },
    el("div", { class: "spread" },
      el("a", { href: address("list") }, "← Latents"),
      el("div", { class: "steps" }, el("span", { class: "note" }, rank === undefined ? "not in the list as filtered" : `${(rank + 1).toLocaleString("en-US")} of ${order.length.toLocaleString("en-US")}`), step(-1, "‹ Previous", "k"), step(1, "Next ›", "j"))),
    el("h1", { id: "latent-title", tabindex: -1 }, `Latent ${i}`, label === null ? null : [" ", el("span", { class: "label" }, labelled(label, 160))]),
    el("p", { class: "marks" }, isDead(i) && el("span", { class: "mark" }, "dead"), isDense(i) && el("span", { class: "mark" }, `dense: above ${percent(index.overview.dense_above)}`),
      label !== null && source && el("span", { class: "note" }, `label ${plain(source, 40)}`)));
  // The page before stays until this one is whole: no flash.
  let detail;
  try {
    detail = await detailOf(i);
  } catch (error) {
    put(main, head, el("p", { class: "pad", role: "alert" }, error.message));
    return;
  }
  if (view.page !== "latent" || view.latent !== i) return;
  const draw = () => {
    const top = window.scrollY;
    put(main, el("article", { class: "latent", "aria-labelledby": "latent-title" }, head,
      el("div", { class: "columns" },
        el("div", { class: "side" }, statsCard(i, detail), conceptCard(i, detail), logitsCard(detail), neighboursCard(detail), commandsCard(i)),
        contextsOf(detail, i, draw))));
    window.scrollTo(0, top);
  };
  draw();
  window.scrollTo(0, 0);
  byId("latent-title").focus({ preventScroll: true });
  page.move = (by) => {
    const to = neighbour(i, by);
    if (to !== null) go(address("latent", to));
    else say(by < 0 ? "This is the first." : "This is the last.");
  };
  page.up = () => (go(address("list")));
}
