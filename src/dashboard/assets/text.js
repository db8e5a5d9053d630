// Text of strangers, made visible: control characters as glyphs, bidirectional text kept to its place, endless tokens cut.

/** Controls, zero-width and bidirectional characters, line separators, tags: what would be unseen or would disturb its neighbours. */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e0fff}]/u;
const UNSEEN_ALL = new RegExp(UNSEEN.source, "gu");
/** Joiners are parts of emoji and of scripts; alone they are shown. */
const JOINERS = /^[\u200c\u200d\ufe00-\ufe0f]+$/;

const GLYPHS = {
  0x0a: "↵", 0x09: "⇥", 0x7f: "DEL", 0xad: "SHY", 0x200b: "ZWSP", 0x200c: "ZWNJ", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM",
  0x061c: "ALM", 0x2028: "LS", 0x2029: "PS", 0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ",
  0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM",
};

/** Names rather than control pictures, which few fonts have. */
const CONTROLS = "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

function glyph(character) {
  const code = character.codePointAt(0);
  if (GLYPHS[code]) return GLYPHS[code];
  if (code < 0x20) return CONTROLS[code];
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

/** Text as nodes; `spaces` shows blanks as dots too. */
function visible(text, spaces) {
  const pattern = spaces ? new RegExp(UNSEEN.source + "| |\u00a0", "gu") : UNSEEN_ALL;
  if (JOINERS.test(text)) return [...text].map((c) => el("span", { class: "glyph" }, glyph(c)));
  if (!(spaces ? pattern : UNSEEN).test(text)) return [text];
  pattern.lastIndex = 0;
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const sign = match[0] === " " ? "·" : match[0] === "\u00a0" ? "⍽" : glyph(match[0]);
    nodes.push(el("span", { class: "glyph" }, sign));
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

/** The same as one line of plain text, for titles and names that only screen readers see. */
function plain(text, most = 200) {
  const sign = (c) => (c === "\n" || c === "\t" ? glyph(c) : `⟨${glyph(c)}⟩`);
  const line = JOINERS.test(text) ? [...text].map(sign).join("") : text.replace(UNSEEN_ALL, sign);
  const letters = [...line];
  return letters.length > most ? letters.slice(0, most).join("") + "…" : line;
}

function cutTo(text, most) {
  const letters = [...text.slice(0, 2 * most + 2)];
  return letters.length > most ? letters.slice(0, most).join("") + "…" : text;
}

/** A token as a chip: blanks at its ends are shown, for ` the` and `the` are two tokens. */
function chip(text, attributes) {
  const short = cutTo(text, 40).replace(/^ +| +$/g, (s) => "·".repeat(s.length));
  return el("bdi", { class: "chip", title: short.length < text.length ? plain(text, 600) : null, ...attributes }, short === "" ? "∅" : visible(short));
}

/** A label, cut, in a direction of its own. */
function labelled(text, most = 120) {
  const short = cutTo(text, most);
  return el("bdi", { title: short.length < text.length ? plain(text, 600) : null }, visible(short));
}
