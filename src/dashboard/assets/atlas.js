// The map of atoms: points on a canvas, the same as a list beside it for those who cannot point.

const CLASS_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "plus"];
const camera = { x: 0.5, y: 0.5, scale: 0.9 };
let atlasColour = memory.get("atlas") || "density";

/** Outline of a shape around (0, 0), of about the same area each. */
function trace(pen, shape, x, y, r) {
  if (shape === "square") pen.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  else if (shape === "triangle") {
    pen.moveTo(x, y - r * 1.3);
    pen.lineTo(x + r * 1.2, y + r * 0.9);
    pen.lineTo(x - r * 1.2, y + r * 0.9);
  } else if (shape === "diamond") {
    pen.moveTo(x, y - r * 1.3);
    pen.lineTo(x + r * 1.3, y);
    pen.lineTo(x, y + r * 1.3);
    pen.lineTo(x - r * 1.3, y);
  } else if (shape === "cross" || shape === "plus") {
    const t = r * 0.45;
    const l = r * 1.35;
    const points = [[-t, -l], [t, -l], [t, -t], [l, -t], [l, t], [t, t], [t, l], [-t, l], [-t, t], [-l, t], [-l, -t], [-t, -t]];
    const c = shape === "cross" ? Math.SQRT1_2 : 1;
    const s = shape === "cross" ? Math.SQRT1_2 : 0;
    points.forEach(([a, b], k) => pen[k ? "lineTo" : "moveTo"](x + a * c - b * s, y + a * s + b * c));
  } else {
    pen.moveTo(x + r, y);
    pen.arc(x, y, r, 0, 7);
  }
  pen.closePath();
}

function atlasPage(main) {
  const canvas = el("canvas", { id: "map", tabindex: 0, role: "application", "aria-roledescription": "map",
    "aria-label": "Map of atoms: near points have similar atoms. Arrow keys move, plus and minus zoom, 0 shows all; the list beside it names the latents at the centre." });
  const nearby = el("ol", { class: "nearby", id: "nearby" });
  const legend = el("div", { class: "maplegend" });
  const colour = el("select", { id: "atlas-colour", "aria-label": "Colour of the points", change: (e) => {
    atlasColour = e.target.value;
    memory.set("atlas", atlasColour);
    draw();
  } }, [["density", "Colour: density"], ["class", "Colour and shape: concept class"]].map(([value, name]) => el("option", { value, selected: atlasColour === value }, name)));
  const zoomButton = (name, label, act) => el("button", { type: "button", "aria-label": label, title: label, click: act }, name);
  const tools = el("div", { class: "maptools" }, index.class_names.length > 0 && colour,
    zoomButton("+", "Zoom in", () => zoom(1.5)), zoomButton("−", "Zoom out", () => zoom(1 / 1.5)), zoomButton("All", "Show all", () => whole()));
  // The points are drawn once per view; what is pointed at is drawn over a copy of them.
  const base = el("canvas");
  const pen = base.getContext("2d");
  const top = canvas.getContext("2d");
  /** Steps of the ramp. */
  const STEPS = 16;
  let hovered = null;
  let size = { w: 1, h: 1, unit: 1 };

  const alive = index.density.filter((d) => d > 0);
  const low = Math.log10(alive.reduce((a, b) => Math.min(a, b), 1));
  const high = Math.log10(alive.reduce((a, b) => Math.max(a, b), 1e-9));
  const level = (i) => (index.density[i] > 0 ? Math.max(0, Math.min(1, (Math.log10(index.density[i]) - low) / (high - low || 1))) : null);
  const placeX = (i) => (index.x[i] - camera.x) * camera.scale * size.unit + size.w / 2;
  const placeY = (i) => (camera.y - index.y[i]) * camera.scale * size.unit + size.h / 2;
  const radius = () => Math.max(2.2, Math.min(7, (index.n > 4000 ? 2.6 : index.n > 1500 ? 3.2 : 4.2) * Math.sqrt(camera.scale)));

  const drawMap = () => {
    const style = getComputedStyle(document.documentElement);
    const dark = style.getPropertyValue("--dark").trim() === "1";
    const [ink, faint, ground] = ["--fg", "--line", "--bg"].map((v) => style.getPropertyValue(v).trim());
    // One hue: light to dark on paper, dark to light at night.
    const ramp = (t) => (dark ? `hsl(205 75% ${28 + 52 * t}%)` : `hsl(205 80% ${74 - 52 * t}%)`);
    const { order, place } = matches();
    const all = order.length === index.n;
    const ratio = window.devicePixelRatio || 1;
    size = { w: canvas.clientWidth, h: canvas.clientHeight, unit: Math.min(canvas.clientWidth, canvas.clientHeight) };
    for (const c of [canvas, base]) {
      if (c.width !== Math.round(size.w * ratio)) c.width = Math.round(size.w * ratio);
      if (c.height !== Math.round(size.h * ratio)) c.height = Math.round(size.h * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size.w, size.h);
    const r = radius();
    // -2 dead, -1 without class, otherwise a step of the ramp or a class.
    const kindOf = (i) => {
      const t = level(i);
      if (t === null) return -2;
      return atlasColour === "class" ? index.classes[i] : Math.min(STEPS - 1, Math.floor(t * STEPS));
    };
    // Names appear once there is room for them.
    const inView = order.filter((i) => Math.abs(placeX(i) - size.w / 2) < size.w / 2 && Math.abs(placeY(i) - size.h / 2) < size.h / 2);
    const named = inView.length <= 70 ? inView.filter((i) => labelOf(i) !== null) : [];
    pen.lineWidth = 1;
    if (!all) {
      pen.fillStyle = faint;
      for (let i = 0; i < index.n; i++) {
        if (place.has(i)) continue;
        pen.fillRect(placeX(i) - 1, placeY(i) - 1, 2, 2);
      }
    }
    const kinds = new Map();
    for (const i of order) {
      const [x, y] = [placeX(i), placeY(i)];
      if (x < -9 || y < -9 || x > size.w + 9 || y > size.h + 9) continue;
      const kind = kindOf(i);
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push(i);
    }
    for (const kind of [...kinds.keys()].sort((a, b) => a - b)) {
      const byClass = atlasColour === "class" && kind >= 0;
      // A stamp per kind: ten thousand of them cost less than ten thousand outlines.
      const half = Math.ceil(r * 1.5) + 1;
      const stamp = el("canvas", { width: Math.round(2 * half * ratio), height: Math.round(2 * half * ratio) });
      const p = stamp.getContext("2d");
      p.scale(ratio, ratio);
      p.beginPath();
      trace(p, byClass ? SHAPES[kind % SHAPES.length] : "circle", half, half, kind === -1 ? r * 0.6 : r);
      if (kind === -2) {
        p.strokeStyle = ink;
        p.globalAlpha = 0.45;
        p.stroke();
      } else {
        p.fillStyle = kind === -1 ? faint : byClass ? CLASS_COLOURS[kind % CLASS_COLOURS.length] : ramp((kind + 0.5) / STEPS);
        p.fill();
      }
      for (const i of kinds.get(kind)) pen.drawImage(stamp, placeX(i) - half, placeY(i) - half, 2 * half, 2 * half);
    }
    pen.font = "12px " + getComputedStyle(document.body).fontFamily;
    pen.direction = "ltr";
    pen.lineJoin = "round";
    for (const i of named) {
      const name = plain(cutTo(labelOf(i), 24));
      pen.strokeStyle = ground;
      pen.lineWidth = 3;
      pen.strokeText(name, placeX(i) + r + 3, placeY(i) + 4);
      pen.fillStyle = ink;
      pen.fillText(name, placeX(i) + r + 3, placeY(i) + 4);
    }
    drawLegend(ramp);
    drawTop();
  };

  const drawTop = () => {
    const style = getComputedStyle(document.documentElement);
    top.setTransform(1, 0, 0, 1, 0, 0);
    top.clearRect(0, 0, canvas.width, canvas.height);
    if (base.width && base.height) top.drawImage(base, 0, 0);
    const ratio = window.devicePixelRatio || 1;
    top.setTransform(ratio, 0, 0, ratio, 0, 0);
    const stroke = (colour, width) => {
      top.strokeStyle = style.getPropertyValue(colour).trim();
      top.lineWidth = width;
      top.stroke();
    };
    if (document.activeElement === canvas) {
      top.beginPath();
      top.moveTo(size.w / 2 - 8, size.h / 2);
      top.lineTo(size.w / 2 + 8, size.h / 2);
      top.moveTo(size.w / 2, size.h / 2 - 8);
      top.lineTo(size.w / 2, size.h / 2 + 8);
      stroke("--fg", 1);
    }
    for (const i of [hovered, selected]) {
      if (i === null) continue;
      top.beginPath();
      trace(top, "circle", placeX(i), placeY(i), radius() + 4);
      stroke("--bg", 4);
      stroke("--fg", 2);
    }
  };

  const draw = () => {
    drawMap();
    drawList(matches().order);
  };

  const drawLegend = (ramp) => {
    const dead = index.flags.filter((f) => f & 1).length;
    const deadNote = dead ? el("span", {}, el("span", { class: "ring", "aria-hidden": "true" }), "dead") : null;
    if (atlasColour === "class" && index.class_names.length) {
      fill(legend, index.class_names.map((name, c) => {
        const swatch = el("canvas", { class: "swatch", width: 28, height: 28, "aria-hidden": "true" });
        const p = swatch.getContext("2d");
        p.fillStyle = CLASS_COLOURS[c % CLASS_COLOURS.length];
        p.beginPath();
        trace(p, SHAPES[c % SHAPES.length], 14, 14, 8);
        p.fill();
        return el("span", {}, swatch, plain(name, 30));
      }), deadNote);
    } else {
      const bar = el("span", { class: "densities", "aria-hidden": "true" });
      bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ")})`;
      fill(legend, el("span", {}, "density ", percent(10 ** low), " ", bar, " ", percent(10 ** high)), deadNote);
    }
  };

  const drawList = (order) => {
    const far = (i) => (index.x[i] - camera.x) ** 2 + (index.y[i] - camera.y) ** 2;
    const near = order.map((i) => [far(i), i]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, 24);
    fill(nearby, near.map(([, i]) => el("li", {}, latentLink(i))));
    for (const link of nearby.querySelectorAll("a")) {
      const i = Number(link.querySelector(".num").textContent);
      link.addEventListener("focus", () => mark(i));
      link.addEventListener("mouseenter", () => mark(i));
    }
  };

  // The list stays: it must not change under the pointer.
  const mark = (i) => {
    if (hovered === i) return;
    hovered = i;
    drawTop();
  };

  const schedule = () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(draw);
  };
  const whole = () => {
    Object.assign(camera, { x: 0.5, y: 0.5, scale: 0.9 });
    schedule();
  };
  const zoom = (by, px = size.w / 2, py = size.h / 2) => {
    const scale = Math.max(0.5, Math.min(200, camera.scale * by));
    const [dx, dy] = [(px - size.w / 2) / size.unit, (py - size.h / 2) / size.unit];
    camera.x += dx / camera.scale - dx / scale;
    camera.y -= dy / camera.scale - dy / scale;
    camera.scale = scale;
    schedule();
  };
  const pan = (dx, dy) => {
    camera.x -= dx / (camera.scale * size.unit);
    camera.y += dy / (camera.scale * size.unit);
    schedule();
  };
  const hit = (event) => {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [best, found] = [(radius() + 5) ** 2, null];
    for (const i of matches().order) {
      const d = (placeX(i) - px) ** 2 + (placeY(i) - py) ** 2;
      if (d < best) [best, found] = [d, i];
    }
    return found;
  };

  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (e) => {
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    if (fingers.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (e) => {
    const before = fingers.get(e.pointerId);
    if (!before) {
      const i = hit(e);
      canvas.style.cursor = i === null ? "grab" : "pointer";
      mark(i);
      if (i === null) hideTip();
      else showTip([[el("strong", {}, `Latent ${i}`)], labelOf(i) === null ? "no label" : labelled(labelOf(i), 80), `density ${percent(index.density[i])}`], { x: e.clientX, y: e.clientY });
      return;
    }
    const now = [e.clientX, e.clientY];
    if (fingers.size === 2) {
      const other = [...fingers.entries()].find(([id]) => id !== e.pointerId)[1];
      const [was, is] = [Math.hypot(before[0] - other[0], before[1] - other[1]), Math.hypot(now[0] - other[0], now[1] - other[1])];
      const box = canvas.getBoundingClientRect();
      if (was > 0) zoom(is / was, (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
      moved += 10;
    } else {
      moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
      if (moved > 4) pan(now[0] - before[0], now[1] - before[1]);
    }
    fingers.set(e.pointerId, now);
  });
  const lift = (e) => {
    const was = fingers.delete(e.pointerId);
    if (was && e.type === "pointerup" && moved <= 4) {
      const i = hit(e);
      if (i !== null) go(address("latent", i));
    }
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => {
    hideTip();
    mark(null);
  });
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(Math.exp(-e.deltaY * 0.0015), e.clientX - box.left, e.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[e.key];
    if (by) pan(...by);
    else if (e.key === "+" || e.key === "=") zoom(1.3);
    else if (e.key === "-") zoom(1 / 1.3);
    else if (e.key === "0") whole();
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  canvas.addEventListener("focus", drawTop);
  canvas.addEventListener("blur", drawTop);

  const bar = filterBar(draw);
  put(main, el("h1", { class: "unseen" }, "Atlas"), bar,
    el("div", { class: "atlas" },
      el("div", { class: "mapbox" }, canvas, tools, legend),
      el("section", { class: "mapside", "aria-labelledby": "nearby-title" }, el("h2", { id: "nearby-title" }, "At the centre"), nearby)));
  page.redraw = draw;
  page.move = (by) => {
    const links = [...nearby.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  };
  watch(canvas, schedule);
  refresh();
}
