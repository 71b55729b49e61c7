(() => {
  const source = document.getElementById("graph-data");
  if (!source) return;
  const { nodes, edges, groups } = JSON.parse(source.textContent);
  const canvas = document.getElementById("graph-canvas"), strip = document.getElementById("graph-strip"), card = document.getElementById("graph-card");
  const pen = canvas.getContext("2d"), small = strip.getContext("2d");
  const W = 118, H = 32, X = 0, Y = 1, LEVEL = 2, OP = 3, LABEL = 4, NAME = 5, MAKES = 6, TAKES = 7, FACTS = 8, GONE = 9;
  const byId = new Map(groups.map((g, k) => [g.id, k]));
  const above = nodes.map(() => []), below = nodes.map(() => []), members = groups.map(() => []);
  const at = new Map(nodes.map((n, k) => [n[X] + "," + n[Y], k]));
  for (const e of edges) {
    const a = at.get(e[0] + "," + e[1]), b = at.get(e[e.length - 2] + "," + e[e.length - 1]);
    if (a !== undefined && b !== undefined) { below[a].push(b); above[b].push(a); }
  }
  nodes.forEach((n, k) => { for (const g of [...n[MAKES], ...n[TAKES]]) members[g].push(k); });
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (const n of nodes) { left = Math.min(left, n[X] - W); right = Math.max(right, n[X] + W); top = Math.min(top, n[Y] - H); bottom = Math.max(bottom, n[Y] + H); }
  const view = { x: 0, y: 0, scale: 1 };  // x, y: what lies in the middle
  let chosen = -1, group = -1, colours = null, waiting = false, size = { w: 0, h: 0 };

  const read = () => {
    const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
    const fills = {}, inks = {};
    for (const l of [0, 1, 2, 3, 4, 5]) { fills[l] = get("--l" + l); inks[l] = get("--l" + l + "-ink"); }
    fills[-1] = get("--held"); inks[-1] = get("--held-ink"); fills[-2] = get("--none"); inks[-2] = get("--none-ink");
    colours = { fills, inks, edge: get("--edge"), mark: get("--mark"), ink: get("--ink"), card: get("--card") };
  };
  const fitted = (c, ctx) => {
    const box = c.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    const w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
    if (c.width !== w || c.height !== h) { c.width = w; c.height = h; }
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, box.width, box.height);
    return { w: box.width, h: box.height };
  };
  const paint = () => {
    waiting = false;
    if (!colours) read();
    size = fitted(canvas, pen);
    const { x, y, scale } = view, w = size.w / 2 / scale, h = size.h / 2 / scale;
    const seen = { l: x - w - W, r: x + w + W, t: y - h - H, b: y + h + H };
    pen.translate(size.w / 2, size.h / 2); pen.scale(scale, scale); pen.translate(-x, -y);
    pen.lineWidth = Math.min(1.4, 1.1 / scale); pen.strokeStyle = colours.edge; pen.beginPath();
    const lit = [];
    edges.forEach((e) => {
      const y0 = e[1], y1 = e[e.length - 1];
      if (Math.max(y0, y1) < seen.t || Math.min(y0, y1) > seen.b) return;
      if (chosen >= 0 && ((e[0] === nodes[chosen][X] && y0 === nodes[chosen][Y]) || (e[e.length - 2] === nodes[chosen][X] && y1 === nodes[chosen][Y]))) { lit.push(e); return; }
      trace(e);
    });
    pen.stroke();
    if (lit.length) { pen.strokeStyle = colours.mark; pen.lineWidth = 2 / Math.min(1, scale); pen.beginPath(); lit.forEach(trace); pen.stroke(); }
    const inGroup = group >= 0 ? new Set(members[group]) : null, words = scale > 0.42;
    pen.textBaseline = "middle"; pen.textAlign = "center";
    const bw = Math.max(W, 4 / scale), bh = Math.max(H, 3 / scale);  // from afar, no node vanishes
    nodes.forEach((n, k) => {
      if (n[X] < seen.l || n[X] > seen.r || n[Y] < seen.t || n[Y] > seen.b) return;
      pen.globalAlpha = inGroup && !inGroup.has(k) && k !== chosen ? 0.28 : 1;
      pen.fillStyle = colours.fills[n[LEVEL]];
      pen.beginPath(); pen.roundRect(n[X] - bw / 2, n[Y] - bh / 2, bw, bh, 6); pen.fill();
      pen.lineWidth = k === chosen ? 3 / Math.min(1, scale) : 1;
      pen.strokeStyle = k === chosen ? colours.mark : colours.edge;
      if (k === chosen || scale > 0.2) { pen.setLineDash(n[GONE] ? [4, 3] : []); pen.stroke(); pen.setLineDash([]); }
      if (!words) return;
      pen.fillStyle = colours.inks[n[LEVEL]];
      const op = n[OP].length > 18 ? n[OP].slice(0, 17) + "…" : n[OP];
      if (n[LABEL] && n[LEVEL] !== -2) {
        pen.font = "600 11.5px system-ui, sans-serif"; pen.fillText(op, n[X], n[Y] - 7, W - 8);
        pen.font = "11px system-ui, sans-serif"; pen.fillText(n[LABEL], n[X], n[Y] + 7.5, W - 8);
      } else { pen.font = "600 11.5px system-ui, sans-serif"; pen.fillText(op, n[X], n[Y] + .5, W - 8); }
    });
    pen.globalAlpha = 1;
    paintStrip(inGroup);
  };
  const trace = (e) => {
    pen.moveTo(e[0], e[1] + H / 2);
    for (let k = 2; k < e.length; k += 2) {
      const px = e[k - 2], py = k === 2 ? e[1] + H / 2 : e[k - 1], qx = e[k], qy = k === e.length - 2 ? e[k + 1] - H / 2 : e[k + 1], half = (py + qy) / 2;
      if (px === qx) pen.lineTo(qx, qy); else pen.bezierCurveTo(px, half, qx, half, qx, qy);
    }
  };
  const paintStrip = (inGroup) => {
    const box = fitted(strip, small);
    if (box.w < 2) return;
    const sx = (box.w - 8) / Math.max(1, right - left), sy = (box.h - 8) / Math.max(1, bottom - top);
    nodes.forEach((n, k) => {
      small.globalAlpha = inGroup && !inGroup.has(k) ? 0.2 : 1;
      small.fillStyle = colours.fills[n[LEVEL]];
      const h = Math.max(1.5, Math.min(8, H * sy * 1.2)), w = Math.max(5, W * sx);
      small.fillRect(4 + (n[X] - left) * sx - w / 2, 4 + (n[Y] - top) * sy - h / 2, w, h);
    });
    small.globalAlpha = 1; small.strokeStyle = colours.mark; small.lineWidth = 1.5;
    const w = size.w / view.scale, h = size.h / view.scale;
    const x0 = Math.max(1, 4 + (view.x - w / 2 - left) * sx), x1 = Math.min(box.w - 1, 4 + (view.x + w / 2 - left) * sx);
    const y0 = Math.max(1, 4 + (view.y - h / 2 - top) * sy), y1 = Math.min(box.h - 1, 4 + (view.y + h / 2 - top) * sy);
    small.strokeRect(x0, y0, Math.max(3, x1 - x0), Math.max(3, y1 - y0));
  };
  const ask = () => { if (!waiting) { waiting = true; requestAnimationFrame(paint); } };
  const bound = () => {
    view.scale = Math.max(0.004, Math.min(2.5, view.scale));
    view.x = Math.max(left, Math.min(right, view.x)); view.y = Math.max(top, Math.min(bottom, view.y));
    ask();
  };
  const fit = () => {
    const box = canvas.getBoundingClientRect();
    view.scale = Math.min(1.2, box.width / (right - left), box.height / (bottom - top));
    view.x = (left + right) / 2; view.y = (top + bottom) / 2; bound();
  };
  const begin = () => {  // at a size that can be read, from the top
    const box = canvas.getBoundingClientRect();
    fit();
    if (view.scale >= 0.6) return;
    view.scale = Math.max(0.7, Math.min(1, box.width / (right - left)));
    const first = nodes.reduce((a, n) => (n[Y] < a[Y] ? n : a), nodes[0]);
    view.x = (right - left) * view.scale <= box.width ? (left + right) / 2 : first[X];
    view.y = top + box.height / 2 / view.scale; bound();
  };
  const zoom = (factor, px = size.w / 2, py = size.h / 2) => {
    const x = view.x + (px - size.w / 2) / view.scale, y = view.y + (py - size.h / 2) / view.scale;
    view.scale = Math.max(0.004, Math.min(2.5, view.scale * factor));
    view.x = x - (px - size.w / 2) / view.scale; view.y = y - (py - size.h / 2) / view.scale; bound();
  };
  const reveal = (k) => {
    const n = nodes[k], w = size.w / 2 / view.scale - W, h = size.h / 2 / view.scale - H * 2;
    if (view.scale < 0.42) { view.scale = 0.9; view.x = n[X]; view.y = n[Y]; }
    else if (Math.abs(n[X] - view.x) > w || Math.abs(n[Y] - view.y) > h) { view.x = n[X]; view.y = n[Y]; }
    bound();
  };

  // what is chosen
  const make = (tag, text, parent, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) { if (tag === "dd" || tag === "li" || tag === "button" || tag === "h3") { const b = document.createElement("bdi"); b.textContent = text; made.append(b); } else made.textContent = text; }
    if (name) made.className = name;
    parent?.append(made);
    return made;
  };
  const facts = (rows) => { const list = make("dl", undefined, card); for (const [name, value] of rows) { make("dt", name, list); make("dd", value, list); } };
  const chips = (head, keys, text, act, level = "h4") => {
    if (!keys.length) return;
    make(level, head, card);
    const row = make("div", undefined, card, "chips");
    const button = (words, does) => { const b = make("button", words, row, "chip"); b.type = "button"; b.addEventListener("click", does); return b; };
    const add = (some) => some.map((k) => button(text(k), () => act(k)))[0];
    add(keys.slice(0, 60));
    if (keys.length > 60) {
      const more = button("and " + (keys.length - 60) + " more", () => { more.remove(); add(keys.slice(60)).focus(); });
    }
  };
  const fill = (write) => {  // anew; who was in there stays there
    const inside = card.contains(document.activeElement);
    card.replaceChildren();
    write();
    if (inside) card.focus();
  };
  const selectNode = (k) => {
    chosen = k; group = nodes[k][MAKES].length ? nodes[k][MAKES][0] : -1;
    const n = nodes[k];
    fill(() => {
      make("h3", n[OP], card);
      facts([["name", n[NAME]], ...n[FACTS]]);
      chips("Its units are of", n[MAKES], (g) => groups[g].id, selectGroup);
      chips("It reads units of", n[TAKES], (g) => groups[g].id, selectGroup);
      chips("Reads from", above[k], (j) => nodes[j][OP] + " " + nodes[j][NAME], selectNode);
      chips("Is read by", below[k], (j) => nodes[j][OP] + " " + nodes[j][NAME], selectNode);
    });
    highlight(); reveal(k);
  };
  const selectGroup = (g) => {
    group = g; chosen = -1;
    fill(() => {
      make("h3", "Group " + groups[g].id, card);
      facts(groups[g].facts);
      for (const [head, texts] of groups[g].lists) { make("h4", head, card); const list = make("ul", undefined, card); for (const t of texts) make("li", t, list); }
      chips("Nodes", members[g], (j) => nodes[j][OP] + " " + nodes[j][NAME], selectNode);
    });
    highlight();
    if (members[g].length) reveal(members[g][0]);
  };
  const highlight = () => {
    for (const s of document.querySelectorAll(".series.curve")) s.classList.toggle("on", group >= 0 && s.dataset.group === groups[group].id);
  };
  const held = (g) => Number(groups[g].facts[0][0] === "may lose");
  const told = groups.map((_, g) => g).filter((g) => groups[g].facts.length).sort((a, b) => held(a) - held(b));
  const hint = () => fill(() => {
    make("p", "Choose a node: click on it, or walk with the arrow keys. G goes from group to group.", card, "note");
    chips("Groups", told, (g) => groups[g].id + ": " + groups[g].facts[0][1], selectGroup, "h3");
  });
  const turn = (by) => { if (told.length) selectGroup(told[(told.indexOf(group) + by + told.length + (group < 0 && by < 0)) % told.length]); };
  let opener = null;  // what was chosen elsewhere on the page, to go back to
  const clear = () => { chosen = group = -1; hint(); highlight(); ask(); };
  const back = () => {
    const to = opener?.isConnected ? opener : card.contains(document.activeElement) ? canvas : null;
    opener = null;
    clear();
    to?.focus();
  };
  document.addEventListener("group", (event) => {
    const g = byId.get(event.detail);
    if (g === undefined) return;
    opener = document.activeElement?.closest?.("[data-group]");
    selectGroup(g);
    document.getElementById("graph").scrollIntoView({ block: "start" });
    canvas.focus({ preventScroll: true });
  });

  // pointer, wheel, fingers
  const fingers = new Map();
  let moved = 0, spread = 0;
  const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, place(event)); moved = spread = 0; });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const now = place(event);
    fingers.set(event.pointerId, now);
    moved += Math.abs(now[0] - last[0]) + Math.abs(now[1] - last[1]);
    view.x -= (now[0] - last[0]) / view.scale / fingers.size; view.y -= (now[1] - last[1]) / view.scale / fingers.size;
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], wide = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(wide / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = wide;
    }
    bound();
  });
  const lift = (event) => {
    const was = fingers.delete(event.pointerId);
    if (!was || moved > 6 || fingers.size || event.type === "pointercancel") return;
    const [px, py] = place(event), x = view.x + (px - size.w / 2) / view.scale, y = view.y + (py - size.h / 2) / view.scale;
    const near = Math.max(0, 5 / view.scale);
    let best = -1, least = Infinity;
    nodes.forEach((n, k) => { const d = Math.abs(n[X] - x) + Math.abs(n[Y] - y); if (Math.abs(n[X] - x) <= W / 2 + near && Math.abs(n[Y] - y) <= H / 2 + near && d < least) { best = k; least = d; } });
    if (best >= 0) selectNode(best); else clear();
  };
  canvas.addEventListener("pointerup", lift); canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY / 200), ...place(event));
    else if (document.activeElement === canvas) { view.x += event.deltaX / view.scale; view.y += event.deltaY / view.scale; bound(); }
    else return;  // the page scrolls on until the graph is chosen
    event.preventDefault();
  }, { passive: false });
  const jump = (event) => {
    const box = strip.getBoundingClientRect();
    view.x = (right - left) * view.scale > size.w ? left + (event.clientX - box.left) / box.width * (right - left) : (left + right) / 2;
    view.y = top + (event.clientY - box.top) / box.height * (bottom - top); bound();
  };
  strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); jump(event); });
  strip.addEventListener("pointermove", (event) => { if (strip.hasPointerCapture(event.pointerId)) jump(event); });

  // keys
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = 90 / view.scale, move = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (move && event.shiftKey) { view.x += move[0] * far; view.y += move[1] * far; bound(); }
    else if (move && chosen < 0) selectNode(group >= 0 && members[group].length ? members[group][0] : 0);
    else if (event.key === "ArrowUp") selectNode(above[chosen][0] ?? chosen);
    else if (event.key === "ArrowDown") selectNode(below[chosen][0] ?? chosen);
    else if (event.key === "ArrowLeft") selectNode(Math.max(0, chosen - 1));
    else if (event.key === "ArrowRight") selectNode(Math.min(nodes.length - 1, chosen + 1));
    else if (event.key === "Enter" && group >= 0) selectGroup(group);
    else if (event.key === "g" || event.key === "G") turn(event.shiftKey ? -1 : 1);
    else if (event.key === "+" || event.key === "=") zoom(1.3);
    else if (event.key === "-") zoom(1 / 1.3);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  canvas.closest(".graph").addEventListener("keydown", (event) => { if (event.key === "Escape") back(); });
  const find = document.getElementById("graph-find");
  let last = -1;
  const search = (from) => {
    const wanted = find.value.trim().toLowerCase();
    if (!wanted) return;
    if (byId.has(wanted)) { selectGroup(byId.get(wanted)); return; }
    for (let k = 1; k <= nodes.length; k++) {
      const j = (from + k) % nodes.length;
      if (nodes[j][NAME].toLowerCase().includes(wanted) || nodes[j][OP].toLowerCase().includes(wanted)) { last = j; selectNode(j); return; }
    }
    card.replaceChildren(); make("p", "Nothing here is called that.", card, "note");
  };
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); search(last); } });
  find.addEventListener("input", () => { last = -1; });
  document.getElementById("graph-in").addEventListener("click", () => zoom(1.3));
  document.getElementById("graph-out").addEventListener("click", () => zoom(1 / 1.3));
  document.getElementById("graph-fit").addEventListener("click", fit);
  document.addEventListener("repaint", () => { colours = null; ask(); });
  addEventListener("beforeprint", () => { colours = null; fit(); paint(); });
  hint();
  let wide = 0;
  new ResizeObserver(() => { const now = canvas.getBoundingClientRect().width; if (!wide) begin(); wide = now; ask(); }).observe(canvas);
})();
