#!/usr/bin/env python3
"""Dashboards in a real Chromium: search, sort, keys, links, atlas, dark, narrow, hostile text, ten thousand latents.

    dashboard.py --lapidary target/release/lapidary --synthetic target/release/examples/synthetic_features [--page PAGE ...]

Needs `pip install playwright` and Chromium (--chromium, default: the first on PATH); downloads nothing. Every page must make no request,
log nothing to the console and run no script of the corpus. --page adds pages made elsewhere (a file, or index.html of a folder).
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from playwright.sync_api import sync_playwright

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]


class Tab:
    """A page whose every misdeed is kept."""

    def __init__(self, browser, path, at="", **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.folder = pathlib.Path(path).resolve().parent.as_uri()
        self.misdeeds = []
        keep = self.misdeeds.append
        self.page.on("console", lambda m: keep(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: keep(f"error: {e}"))
        self.page.on("dialog", lambda d: (keep(f"dialog: {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: None if r.url.startswith((self.folder, "data:,")) else keep(f"request: {r.url}"))
        self.page.goto(pathlib.Path(path).resolve().as_uri() + at)
        self.page.wait_for_selector("#main h1, #main table", state="attached")

    def until(self, script, arg=None):
        """Polls from here: the policy of the page forbids what Playwright would poll with there."""
        for _ in range(600):
            if self.page.evaluate(script, arg):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def go(self, at):
        self.page.evaluate("at => { location.hash = at }", at)
        self.page.wait_for_timeout(80)

    def opened(self, latent):
        self.until("i => new RegExp(`^Latent ${i}\\\\b`).test(document.querySelector('#latent-title')?.textContent ?? '')", latent)

    def close(self):
        assert self.page.evaluate("window.pwned === undefined"), "a script of the corpus ran"
        assert not self.misdeeds, self.misdeeds
        self.context.close()

    def fits(self):
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{self.page.url} is {wide} px too wide"


def rows(page):
    """Numbers of the latents whose rows exist."""
    return [int(t) for t in page.locator(".latents .c-latent a").all_text_contents()]


def column(page, name):
    """Figures of a column; None for a dash."""
    texts = page.locator(f".latents tbody .c-{name}").all_text_contents()
    return [None if t == "–" else float(re.sub(r"[ %,]", "", t).replace("−", "-")) for t in texts]


def check_list(browser, path):
    tab = Tab(browser, path)
    page = tab.page
    total = int(page.evaluate("JSON.parse(document.getElementById('index').textContent).n"))
    assert rows(page)[:3] == [0, 1, 2]
    assert page.locator("#count").text_content() == f"{total:,} latents"
    # Sorting, by pointer and in the address, and back again.
    page.click("th.c-density button")
    page.wait_for_selector("th.c-density[aria-sort=descending]")
    shown = column(page, "density")
    assert shown == sorted(shown, reverse=True) and shown[0] > shown[-1], shown[:5]
    page.click("th.c-density button")
    page.wait_for_selector("th.c-density[aria-sort=ascending]")
    shown = column(page, "density")
    assert shown == sorted(shown)
    assert "sort=density" in page.url
    page.click("th.c-latent button")
    page.wait_for_selector("th.c-latent[aria-sort=ascending]")
    # Search: by number, by label, with all words, with none.
    page.fill("#search", "#12")
    tab.until("document.querySelectorAll('.latents .c-latent a').length === 1")
    assert rows(page) == [12]
    label = page.evaluate("JSON.parse(document.getElementById('index').textContent).labels.find(l => l && l.length > 2 && /^[a-z]+$/.test(l))")
    if label:
        page.fill("#search", f"label:{label}")
        page.wait_for_timeout(150)
        assert rows(page), label
        assert all(label in t.lower() for t in page.locator(".latents tbody .c-label").all_text_contents())
    page.fill("#search", "nothing can match this")
    tab.until("document.querySelectorAll('.latents .c-latent a').length === 0")
    assert page.locator("#count").text_content() == f"0 of {total:,} latents"
    page.get_by_role("button", name="Clear search and filters").click()
    assert page.locator("#count").text_content() == f"{total:,} latents"
    # A filter, kept in the address and through a reload.
    page.click("summary")
    page.select_option("#filter-state", "alive")
    page.fill("#filter-dmin", "0.5")
    tab.until("document.querySelector('#count').textContent.includes(' of ')")
    said = page.locator("#count").text_content()
    assert all(d >= 0.5 for d in column(page, "density"))
    page.reload()
    page.wait_for_selector("#count")
    assert page.locator("#count").text_content() == said
    page.click("#clear")
    # The table has its names.
    assert page.locator("table.latents").get_attribute("aria-rowcount") == str(total + 1)
    tab.close()


def check_keys(browser, path):
    tab = Tab(browser, path)
    page = tab.page
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    tab.opened(second)
    page.keyboard.press("j")
    tab.opened(int(second) + 1)
    page.keyboard.press("ArrowLeft")
    tab.opened(second)
    page.keyboard.press("u")
    page.wait_for_selector(".latents")
    assert page.locator("tr.selected a").text_content() == second
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("jk#")
    assert page.input_value("#search") == "jk#", "keys in a field are text"
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.wait_for_selector(".overview")
    page.keyboard.press("g")
    page.keyboard.press("a")
    page.wait_for_selector("#map")
    page.keyboard.press("g")
    page.keyboard.press("l")
    page.wait_for_selector(".latents")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.go_back()
    page.wait_for_selector("#map")
    tab.close()


def check_latent(browser, path):
    tab = Tab(browser, path)
    page = tab.page
    i = page.evaluate("""() => { const x = JSON.parse(document.getElementById('index').textContent);
        return x.flags.findIndex((f, i) => !(f & 1) && x.peaks[i].length > 0) }""")
    tab.go(f"#/latent/{i}")
    tab.opened(i)
    assert page.locator(".context").count() >= 5
    assert page.locator(".chart").count() >= 1
    # A token says its value, by pointer and by the keyboard; arrow keys stay inside the context.
    token = page.locator(".tokens .token.peak").nth(0)
    token.hover()
    told = page.locator("#tip").text_content()
    assert "of max" in told and "position" in told, told
    page.mouse.move(2, 2)
    line = page.locator(".tokens").nth(0)
    line.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").is_visible() and "position" in page.locator("#tip").text_content()
    assert page.locator("#latent-title").text_content().startswith(f"Latent {i}")
    # Switches.
    page.keyboard.press("w")
    assert page.locator(".contexts.raw").count() > 0
    page.keyboard.press("w")
    before = page.locator(".chart").nth(0).inner_html()
    page.locator("figcaption input").nth(0).click()
    assert page.locator(".chart").nth(0).inner_html() != before
    # A neighbour, and back.
    link = page.locator("#nearest a").nth(0)
    to = link.locator(".num").text_content()
    link.click()
    tab.opened(to)
    page.go_back()
    tab.opened(i)
    # Copying gives the command.
    page.locator("button.copy").nth(0).click()
    tab.until("document.querySelector('button.copy').textContent !== 'Copy'")
    tab.close()


def check_atlas(browser, path):
    tab = Tab(browser, path, "#/atlas")
    page = tab.page
    page.wait_for_selector("#nearby a")
    page.wait_for_timeout(200)
    # Where latent 5 is drawn with the camera as it starts.
    at = page.evaluate("""() => { const x = JSON.parse(document.getElementById('index').textContent), c = document.querySelector('#map'), b = c.getBoundingClientRect();
        const unit = Math.min(b.width, b.height), far = (i, j) => Math.hypot(x.x[i] - x.x[j], x.y[i] - x.y[j]);
        // The latent that is furthest from its nearest: its point is its own.
        let best = [0, 0];
        for (let i = 0; i < Math.min(x.n, 300); i++) { let d = 9; for (let j = 0; j < x.n; j++) if (j !== i) d = Math.min(d, far(i, j)); if (d > best[0]) best = [d, i]; }
        const i = best[1];
        return [i, b.left + b.width / 2 + (x.x[i] - 0.5) * 0.9 * unit, b.top + b.height / 2 + (0.5 - x.y[i]) * 0.9 * unit] }""")
    page.mouse.move(at[1], at[2])
    page.wait_for_selector("#tip:not([hidden])")
    assert f"Latent {at[0]}" in page.locator("#tip").text_content(), (at, page.locator("#tip").text_content())
    page.mouse.click(at[1], at[2])
    tab.opened(at[0])
    page.go_back()
    page.wait_for_selector("#nearby a")
    # By the keyboard: move, zoom, and the list follows.
    before = page.locator("#nearby").text_content()
    page.focus("#map")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.wait_for_timeout(150)
    assert page.locator("#nearby").text_content() != before
    page.locator("#nearby a").nth(0).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#latent-title")
    tab.close()


def contrast(page, selector):
    """Of the text against its ground, as WCAG counts it."""
    return page.evaluate("""(selector) => {
        const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(') ? [m[0] * 255, m[1] * 255, m[2] * 255, m[3] ?? 1] : [...m.slice(0, 3), m[3] ?? 1]; };
        const over = (a, b) => a.slice(0, 3).map((x, k) => x * a[3] + b[k] * (1 - a[3]));
        const lum = (c) => { const [r, g, b] = c.map((x) => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        let worst = 99;
        for (const node of [...document.querySelectorAll(selector)].slice(0, 200)) {
            const grounds = [];
            for (let n = node; n; n = n.parentElement) grounds.unshift(parse(getComputedStyle(n).backgroundColor));
            const ground = grounds.reduce((under, g) => over(g, under), [255, 255, 255]);
            const ink = over(parse(getComputedStyle(node).color), ground);
            const [a, b] = [lum(ink), lum(ground)];
            worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
        }
        return worst;
    }""", selector)


def check_looks(browser, path):
    for scheme in ["light", "dark"]:
        tab = Tab(browser, path, color_scheme=scheme)
        ground = tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light"), ground
        for at, selectors in [("#/", ["a", ".note", ".chip", ".c-density", ".count", ".none", ".glyph"]),
                              ("#/latent/2", ["a", ".note", ".token", ".token.active", ".meta span", "dt", "code", ".mark", ".chip", ".glyph"]),
                              ("#/overview", ["a", ".note", "dt", "dd", "td", "th"])]:
            tab.go(at)
            tab.page.wait_for_timeout(200)
            for selector in selectors:
                ratio = contrast(tab.page, selector)
                assert ratio >= 4.5, f"{scheme} {at} {selector}: contrast {ratio:.2f}"
        # The switch, and that it is remembered.
        tab.page.keyboard.press("t")
        chosen = tab.page.evaluate("document.documentElement.dataset.theme")
        tab.page.reload()
        assert tab.page.evaluate("document.documentElement.dataset.theme") == chosen == "light"
        tab.close()
    tab = Tab(browser, path, viewport={"width": 375, "height": 740}, has_touch=True)
    for at in ["#/", "#/latent/2", "#/atlas", "#/overview"]:
        tab.go(at)
        tab.page.wait_for_timeout(200)
        tab.fits()
    tab.close()


def check_hostile(browser, path):
    tab = Tab(browser, path)
    page = tab.page
    scripts = page.evaluate("document.scripts.length")
    for i in list(range(0, 12)):
        tab.go(f"#/latent/{i}")
        tab.opened(i)
        assert page.evaluate("document.querySelectorAll('#main img, #main script, #main b, #main iframe').length") == 0
    for at in ["#/", "#/?q=%3Cscript%3E", "#/atlas", "#/overview", "#/latent/%3Cscript%3E", "#/latent/999999999", "#/?sort=__proto__&class=constructor"]:
        tab.go(at)
        assert page.evaluate("document.scripts.length") <= scripts
    # Text is shown as it is written, and what turns text around stays in its token.
    tab.go("#/?q=token:onerror")
    page.wait_for_timeout(100)
    assert "<img src=x onerror=" in page.locator(".latents").text_content()
    tab.go("#/latent/1")
    tab.opened(1)
    assert page.locator(".glyph").count() > 0
    assert all(page.evaluate("[...document.querySelectorAll('.token')].map(t => getComputedStyle(t).unicodeBidi === 'isolate')"))
    # A token without end is cut, and opens.
    long = page.locator(".token", has_text="longlong").first
    if long.count():
        assert len(long.text_content()) < 60
        long.click()
        assert len(long.text_content()) > 150
    # Even with a hole in the program the policy would hold.
    held = page.evaluate("""() => { try { document.body.innerHTML = '<img src=x onerror="window.pwned=9">'; return false } catch { return true } }""")
    assert held, "Trusted Types do not hold"
    tab.misdeeds = [m for m in tab.misdeeds if "TrustedHTML" not in m]
    tab.close()


def check_speed(browser, path, n):
    """From the input event to the frame after it."""
    tab = Tab(browser, path)
    page = tab.page
    load = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    timed = page.evaluate("""async () => {
        const frame = () => new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
        const took = async (act) => { await frame(); const t = performance.now(); act(); await frame(); return performance.now() - t; };
        const search = document.querySelector('#search');
        const type = (text) => () => { search.value = text; search.dispatchEvent(new Event('input', { bubbles: true })); };
        const out = {};
        out.first_search = await took(type('wo'));
        out.search = Math.max(...[await took(type('word1')), await took(type('word12')), await took(type('token:dog')), await took(type(''))]);
        const head = (c) => () => document.querySelector(`th.c-${c} button`).click();
        out.sort = Math.max(await took(head('density')), await took(head('label')), await took(head('f1')), await took(head('latent')));
        const scroller = document.querySelector('#scroller');
        out.scroll = Math.max(await took(() => { scroller.scrollTop = 1e5 }), await took(() => { scroller.scrollTop = 36e4 }));
        const open = async (i) => { const t = performance.now(); location.hash = `#/latent/${i}`;
            while (!document.querySelector('#latent-title')?.textContent.startsWith(`Latent ${i}`)) await frame(); return performance.now() - t; };
        out.open = Math.max(await open(1), await open(70), await open(130));
        out.atlas = await took(() => { location.hash = '#/atlas' });
        return out;
    }""")
    print(f"  {n} latents: page loaded in {load:.0f} ms; " + ", ".join(f"{k} {v:.0f} ms" for k, v in timed.items()))
    tab.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lapidary", required=True)
    parser.add_argument("--synthetic", required=True)
    parser.add_argument("--page", action="append", default=[])
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"))
    args = parser.parse_args()
    if not args.chromium:
        sys.exit("no Chromium: install one, or name it with --chromium")
    with tempfile.TemporaryDirectory() as work, sync_playwright() as play:
        work = pathlib.Path(work)

        def made(name, n, kind, out):
            table = work / f"{name}-table"
            if not table.exists():
                subprocess.run([args.synthetic, str(table), str(n), kind], check=True)
            subprocess.run([args.lapidary, "dashboard", "--features", str(table), "--out", str(work / out), "--quiet"], check=True, stdout=subprocess.DEVNULL)
            return work / out if out.endswith(".html") else work / out / "index.html"

        browser = play.chromium.launch(executable_path=args.chromium, args=ARGS)
        pages = [made("plain", 500, "plain", "plain.html"), made("plain", 500, "plain", "plain"), *map(pathlib.Path, args.page)]
        for path in pages:
            for check in [check_list, check_keys, check_latent, check_atlas, check_looks]:
                start = time.time()
                check(browser, path)
                print(f"  {path.parent.name}/{path.name}: {check.__name__} passed in {time.time() - start:.1f} s", flush=True)
        for path in [made("hostile", 200, "hostile", "hostile.html"), made("hostile", 200, "hostile", "hostile-site")]:
            for check in [check_hostile, check_looks]:
                check(browser, path)
                print(f"  {path.parent.name}/{path.name}: {check.__name__} passed", flush=True)
        check_speed(browser, made("many", 10_000, "plain", "many"), 10_000)
        browser.close()
    print("the dashboard's browser checks passed")


main()
