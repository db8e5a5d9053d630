// The index, which is always here, and the chunks, which are parsed (or loaded from their files) when a latent is opened.

const index = JSON.parse(byId("index").textContent);

/** The digits of `json.rs`: printable ASCII without what JSON or HTML would escape. */
const PLACE = new Int16Array(128);
{
  let next = 0;
  for (let code = 32; code < 127; code++) if (!'"\\\u003c\u003e&'.includes(String.fromCharCode(code))) PLACE[code] = next++;
}

function places(digits, width) {
  const found = new Array(digits.length / width);
  for (let i = 0; i < found.length; i++) {
    let n = 0;
    for (let j = 0; j < width; j++) n = n * 90 + PLACE[digits.charCodeAt(i * width + j)];
    found[i] = n;
  }
  return found;
}

const isDead = (i) => (index.flags[i] & 1) !== 0;
const isDense = (i) => (index.flags[i] & 2) !== 0;
const conceptOf = (i) => (index.concepts[i] < 0 ? null : index.concept_names[index.concepts[i]]);
const classOf = (i) => (index.classes[i] < 0 ? null : index.class_names[index.classes[i]]);
const sourceOf = (i) => (index.sources[i] < 0 ? null : index.source_names[index.sources[i]]);
const labelOf = (i) => index.labels[i];
const tokenText = (place) => index.vocabulary.texts[place];

/** What a latent is called in a sentence. */
function nameOf(i) {
  const label = labelOf(i);
  return label === null ? `latent ${i}` : `latent ${i}, ${plain(label, 60)}`;
}

const chunks = new Map();
const waiting = new Map();

// Only our own chunks can be loaded: no other address passes.
const addresses = window.trustedTypes && index.files
  ? window.trustedTypes.createPolicy("lapidary", {
      createScriptURL(address) {
        if (!/^data\/\d+\.js$/.test(address)) throw new TypeError("not a chunk of this page");
        return address;
      },
    })
  : { createScriptURL: (address) => address };

if (index.files) {
  // Each chunk's file calls this.
  window.lapidaryChunk = (number, data) => {
    const wanted = waiting.get(number);
    if (wanted) wanted(data);
  };
}

/** The chunk with a latent, as a promise; the last few stay. */
function chunkOf(latent) {
  const number = Math.floor(latent / index.chunk);
  if (chunks.has(number)) return chunks.get(number);
  const made = index.files
    ? new Promise((resolve, reject) => {
        waiting.set(number, resolve);
        const script = document.createElement("script");
        const address = `data/${String(number).padStart(3, "0")}.js`;
        script.src = addresses.createScriptURL(address);
        script.addEventListener("error", () => {
          chunks.delete(number);
          reject(new Error(`${address} cannot be read: it must lie beside index.html`));
        });
        script.addEventListener("load", () => script.remove());
        document.head.append(script);
      })
    : Promise.resolve(JSON.parse(byId(`chunk-${number}`).textContent));
  chunks.set(number, made);
  while (chunks.size > 16) chunks.delete(chunks.keys().next().value);
  return made;
}

/** Everything about a latent: `{vocabulary, latent}`, contexts decoded. */
async function detailOf(latent) {
  const chunk = await chunkOf(latent);
  const own = chunk.latents[latent % index.chunk];
  const contexts = own.contexts.map((c) => {
    const tokens = places(c.t, chunk.width);
    const values = new Float64Array(tokens.length);
    for (let i = 0; i < c.v.length; i += 2) values[c.v[i]] = c.v[i + 1];
    const positions = typeof c.p === "number" ? tokens.map((_, i) => c.p + i) : c.p;
    return { group: c.g, band: c.b === undefined ? null : c.b, document: c.d, peak: c.k, tokens, values, positions };
  });
  return { latent: own, contexts, texts: chunk.vocabulary.texts, ids: chunk.vocabulary.ids };
}
