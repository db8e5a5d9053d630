// The list: a table whose rows exist only where they are seen.

const ROW = 36;
const SPARE = 5;
let selected = null;

/** Where the first screen of the list is kept while a latent is open. */
let listTop = 0;

/** The strongest context, cut around its peak. */
function snippet(i) {
  const parts = index.snippets[i];
  if (!parts) return null;
  const [before, peak, after] = parts;
  const lead = /^ */.exec(peak)[0];
  return el("div", { class: "snippet" }, el("bdi", { class: "before" }, el("bdi", {}, visible(before + lead))), el("bdi", { class: "token active peak" }, visible(peak.slice(lead.length) || peak)),
    el("bdi", { class: "after" }, visible(after)));
}

function listPage(main) {
  const spaceAbove = el("tr", { class: "space", "aria-hidden": "true" }, el("td"));
  const spaceBelow = spaceAbove.cloneNode(true);
  const body = el("tbody");
  const heads = COLUMNS.map((c) => el("th", { scope: "col", class: `c-${c.id}` + (c.wide ? " wide" : ""), "data-column": c.id },
    el("button", { type: "button", title: c.about, click: () => sortBy(c) }, c.name, el("span", { class: "arrow", "aria-hidden": "true" }))));
  heads.splice(2, 0, el("th", { scope: "col", class: "c-tokens wide" }, el("span", {}, "Where it is strongest")));
  const table = el("table", { class: "latents", "aria-label": "Latents" }, el("thead", {}, el("tr", { "aria-rowindex": 1 }, heads)), body);
  const empty = el("p", { class: "pad", hidden: true }, "No latent passes. ",
    el("button", { type: "button", click: () => byId("clear").click() }, "Clear search and filters"));
  const scroller = el("div", { class: "scroller", id: "scroller", role: "region", "aria-label": "List of latents", tabindex: 0 }, table, empty);
  let drawn = { from: -1, to: -1, order: null };

  const row = (i, rank) => {
    const label = labelOf(i);
    const marks = [isDead(i) && el("span", { class: "mark" }, "dead"), isDense(i) && el("span", { class: "mark" }, "dense")];
    const link = el("a", { href: address("latent", i), "data-latent": i, tabindex: i === selected ? 0 : -1 }, String(i));
    const cells = COLUMNS.map((c) => {
      if (c.id === "latent") return el("th", { scope: "row", class: "c-latent" }, link);
      if (c.id === "label") return el("td", { class: "c-label" }, label === null ? el("span", { class: "none" }, "no label") : labelled(label), marks);
      const text = c.show ? c.show(i) : figure(c.value(i), 3);
      const concept = c.id === "f1" && conceptOf(i) !== null ? [["best concept: ", labelled(conceptOf(i), 80)], `${classOf(i) === null ? "" : plain(classOf(i), 40) + " · "}F1 ${text}`] : null;
      return el("td", { class: `c-${c.id} n` + (c.wide ? " wide" : ""), tip: concept }, text);
    });
    cells.splice(2, 0, el("td", { class: "c-tokens wide" }, snippet(i)));
    return el("tr", { "aria-rowindex": rank + 2, class: i === selected ? "selected" : null, click: (e) => {
      // A row is as large a target as its link; selections of text and the link itself are left alone.
      if (e.target.closest("a") || String(getSelection())) return;
      go(address("latent", i));
    } }, cells);
  };

  const draw = (force) => {
    const { order } = matches();
    const height = Math.min(scroller.clientHeight || 600, 4000);
    const from = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
    const to = Math.min(order.length, Math.ceil((scroller.scrollTop + height) / ROW) + SPARE);
    if (!force && drawn.from === from && drawn.to === to && drawn.order === order) return;
    drawn = { from, to, order };
    const focused = document.activeElement?.dataset?.latent;
    spaceAbove.firstChild.style.height = `${from * ROW}px`;
    spaceBelow.firstChild.style.height = `${(order.length - to) * ROW}px`;
    fill(body, spaceAbove, order.slice(from, to).map((i, r) => row(i, from + r)), spaceBelow);
    if (focused !== undefined) body.querySelector(`a[data-latent="${focused}"]`)?.focus({ preventScroll: true });
  };

  const show = () => {
    const { order } = matches();
    table.setAttribute("aria-rowcount", order.length + 1);
    if (selected === null || !matches().place.has(selected)) selected = order[0] ?? null;
    for (const head of heads) {
      const id = head.dataset.column;
      if (!id) continue;
      const sorted = view.sort.replace(/^-/, "") === id ? (view.sort.startsWith("-") ? "descending" : "ascending") : "none";
      head.setAttribute("aria-sort", sorted);
      head.querySelector(".arrow").textContent = sorted === "ascending" ? " ▲" : sorted === "descending" ? " ▼" : "";
    }
    empty.hidden = order.length > 0;
    draw(true);
  };

  const sortBy = (column) => {
    const [up, down] = [column.id, "-" + column.id];
    const first = column.falls ? down : up;
    change("sort", view.sort === first ? (first === up ? down : up) : first);
    scroller.scrollTop = 0;
  };

  scroller.addEventListener("scroll", () => {
    listTop = scroller.scrollTop;
    requestAnimationFrame(() => draw(false));
  });
  const bar = filterBar(() => {
    if (known.order !== drawn.order && drawn.order) scroller.scrollTop = 0;
    show();
  });
  put(main, el("h1", { class: "unseen" }, "Latents"), bar, scroller);
  watch(scroller, () => draw(false));

  const bringIn = (rank) => {
    const top = rank * ROW;
    const room = scroller.clientHeight - table.tHead.offsetHeight - ROW;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
  };

  // Selected by the keyboard, whether its row exists or not.
  page.move = (step) => {
    const { order, place } = matches();
    if (!order.length) return;
    const rank = Math.min(order.length - 1, Math.max(0, (place.get(selected) ?? -1) + step));
    selected = order[rank];
    bringIn(rank);
    draw(true);
    body.querySelector(`a[data-latent="${selected}"]`)?.focus({ preventScroll: true });
  };
  page.enter = () => {
    if (selected !== null) go(address("latent", selected));
  };
  refresh();
  scroller.scrollTop = listTop;
  bringIn(matches().place.get(selected) ?? 0);
  draw(true);
}
