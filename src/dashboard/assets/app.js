// Pages by address, keys, tooltip, theme, help.

/** What the page that is shown can do: move(step), enter(), up(), redraw(). */
let page = {};

/** Goes to an address: a step in the history, like a link. */
function go(to) {
  if (location.hash !== to) history.pushState(null, "", to);
  route();
}

/** Puts a page in place of the one before, with the layout that it needs. */
function put(main, ...nodes) {
  for (const watch of watching.splice(0)) watch.disconnect();
  document.body.className = "on-" + view.page;
  fill(main, nodes);
}

/** Draws again when the size of an element changes, while its page is shown. */
const watching = [];
function watch(node, draw) {
  const observer = new ResizeObserver(draw);
  observer.observe(node);
  watching.push(observer);
}

function route() {
  readAddress();
  page = {};
  refresh = () => {};
  hideTip();
  const main = byId("main");
  for (const id of ["list", "atlas", "overview"]) {
    byId(`nav-${id}`).href = address(id);
    if (id === view.page) byId(`nav-${id}`).setAttribute("aria-current", "page");
    else if (id === "list" && view.page === "latent") byId("nav-list").setAttribute("aria-current", "true");
    else byId(`nav-${id}`).removeAttribute("aria-current");
  }
  const name = { list: "Latents", atlas: "Atlas", overview: "Overview", latent: `Latent ${view.latent}` }[view.page];
  document.title = `${name} · ${plain(index.title, 100)}`;
  if (view.page === "latent") latentPage(main, view.latent).then(() => say(nameOf(view.latent)));
  else {
    window.scrollTo(0, 0);
    ({ list: listPage, atlas: atlasPage, overview: overviewPage })[view.page](main);
    say(name);
  }
}

// One tooltip for everything that has a `tip`: lines of text or nodes, or a function that makes them.
const tip = byId("tip");

function showTip(lines, at) {
  fill(tip, lines.map((line) => el("div", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.max(6, Math.min(window.innerWidth - box.width - 6, at.x - box.width / 2));
  const y = at.y - box.height - 12 > 4 ? at.y - box.height - 12 : (at.bottom ?? at.y) + 14;
  tip.style.left = `${x}px`;
  tip.style.top = `${y}px`;
}

function hideTip() {
  tip.hidden = true;
}

function tipOf(target) {
  for (let node = target; node && node !== document; node = node.parentNode) if (node.tip) return node;
  return null;
}

function tipFor(target) {
  const node = tipOf(target);
  if (!node) return hideTip();
  const box = (node.getClientRects()[0] || node.getBoundingClientRect());
  showTip(typeof node.tip === "function" ? node.tip() : node.tip, { x: box.left + box.width / 2, y: box.top, bottom: box.bottom });
}

document.addEventListener("mouseover", (e) => {
  if (e.target.id !== "map") tipFor(e.target);
});
document.addEventListener("focusin", (e) => (tipOf(e.target) ? tipFor(e.target) : hideTip()));
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, true);
document.addEventListener("click", (e) => {
  const token = e.target.closest?.(".token");
  if (token?.full) openToken(token);
  if (token) tipFor(token);
});

// Theme: the system's until one is chosen.
const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[theme];
  memory.set("theme", theme);
  page.redraw?.();
}

byId("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.redraw?.());

// Keys.
const KEYS = [
  ["/", "search"], ["j  ↓ or →", "next latent"], ["k  ↑ or ←", "previous latent"], ["Enter", "open it"], ["u  Esc", "back to the list"],
  ["g l", "list of latents"], ["g a", "atlas"], ["g o", "overview"], ["Tab, then ← →", "read a context token by token"],
  ["w", "show spaces in contexts"], ["t", "light, dark, as the system"], ["?", "these keys"],
];

const help = byId("help");
fill(help, el("h2", { id: "help-title" }, "Keys"),
  el("dl", { class: "keys" }, KEYS.map(([keys, act]) => [el("dt", {}, keys.split("  ").map((k) => [el("kbd", {}, k), " "])), el("dd", {}, act)])),
  el("p", { class: "note" }, "Search: all words must match; label:x, concept:x and token:x look in one place, text:x in the context of the list, #12 is latent 12. The address holds search, filters and order: pass it on."),
  el("form", { method: "dialog" }, el("button", { autofocus: true }, "Close")));
// The form must not navigate where forms are forbidden.
help.querySelector("form").addEventListener("submit", (e) => {
  e.preventDefault();
  help.close();
});
byId("keys").addEventListener("click", () => help.showModal());
byId("skip").addEventListener("click", () => byId("main").focus());

let afterG = 0;

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || help.open) return;
  const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName) && e.target.type !== "checkbox";
  if (inField) {
    if (e.key === "Escape") e.target.blur();
    else if (e.key === "Enter" && e.target.id === "search") page.enter?.();
    else if (e.key === "ArrowDown" && e.target.id === "search") page.move?.(selected === matches().order[0] ? 0 : 1);
    else return;
    e.preventDefault();
    return;
  }
  const onLatent = view.page === "latent";
  const onButton = /^(A|BUTTON|SUMMARY)$/.test(e.target.tagName);
  const target = Date.now() - afterG < 1500 && { l: "list", a: "atlas", o: "overview" }[e.key];
  afterG = e.key === "g" ? Date.now() : 0;
  if (target) go(address(target));
  else if (e.key === "/") {
    if (!byId("search")) {
      go(address("list"));
    }
    byId("search").focus();
    byId("search").select();
  } else if (e.key === "j" || (e.key === "ArrowDown" && !onLatent && view.page !== "overview") || (e.key === "ArrowRight" && onLatent)) page.move?.(1);
  else if (e.key === "k" || (e.key === "ArrowUp" && !onLatent && view.page !== "overview") || (e.key === "ArrowLeft" && onLatent)) page.move?.(-1);
  else if (e.key === "Enter" && !onButton) page.enter?.();
  else if (e.key === "u" || e.key === "Escape") {
    if (!tip.hidden && e.key === "Escape") hideTip();
    else page.up?.();
  } else if (e.key === "w") byId("show-spaces")?.click();
  else if (e.key === "t") byId("theme").click();
  else if (e.key === "?") help.showModal();
  else return;
  e.preventDefault();
});

byId("title").textContent = plain(index.title, 100);
setTheme(THEMES.includes(memory.get("theme")) ? memory.get("theme") : "auto");
window.addEventListener("hashchange", route);
route();
// The first search need not wait for this.
(window.requestIdleCallback || setTimeout)(() => searchable());
