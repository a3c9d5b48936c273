// The page of `headstart playground`. Drawings are strokes in the unit square; who answers gets pictures of them.

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const answers = globalThis.answers ?? served; // who answers: in a page that stands alone local.js, else the server
const about = await call("about");
const classes = []; // {name, drawings, at, card, pad}
let task = null; // what was learned: {id, names, shots, ms}
let last = null; // what was said of the last drawing
let inside = {}; // curves by inner steps: {loss, accuracy, left_out, of_classes, held}

// -- drawings ---------------------------------------------------------------------------------------------------------

const blank = () => ({ strokes: [], picture: null, seen: null });
const filled = (drawing) => drawing.picture !== null || drawing.strokes.length > 0;

function line(context, stroke, place) {
  context.beginPath();
  stroke.forEach(([x, y], i) => (i ? context.lineTo(...place(x, y)) : context.moveTo(...place(x, y))));
  if (stroke.length === 1) context.lineTo(...place(stroke[0][0], stroke[0][1])); // a dot
  context.stroke();
}

function canvasOf(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  Object.assign(context, { fillStyle: "#fff", strokeStyle: "#000", lineCap: "round", lineJoin: "round" });
  context.fillRect(0, 0, width, height);
  return [canvas, context];
}

// A picture for who answers. There ink is scaled to the usual size, which would make the lines of a small drawing thick: so the strokes
// are scaled here already, and drawn with the same pen whatever their size.
function pictureOf(drawing) {
  if (drawing.picture) return drawing.picture.toDataURL("image/png");
  const [canvas, context] = canvasOf(112, 112);
  const points = drawing.strokes.flat();
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = about.ink ? 80 / Math.max(right - left, bottom - top, 0.12) : 112;
  const [x0, y0] = about.ink ? [(left + right) / 2, (top + bottom) / 2] : [0.5, 0.5];
  context.lineWidth = about.ink ? 9 : 6;
  for (const stroke of drawing.strokes) line(context, stroke, (x, y) => [56 + (x - x0) * scale, 56 + (y - y0) * scale]);
  return canvas.toDataURL("image/png");
}

// A picture file, made small enough to send; what is transparent in it becomes white.
async function read(file) {
  const image = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no picture that the browser can read`); });
  const scale = Math.min(1, 256 / Math.max(image.width, image.height));
  const [canvas, context] = canvasOf(Math.max(8, Math.round(image.width * scale)), Math.max(8, Math.round(image.height * scale)));
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return { ...blank(), picture: canvas };
}

// A square to draw on, by mouse, finger, pen or keys. changed(done) is called as the drawing grows.
class Pad {
  constructor(frame, hint, changed) {
    Object.assign(this, { frame, changed, drawing: blank(), pen: [0.5, 0.5], down: false, keys: false });
    frame.dataset.hint = hint;
    const canvas = (this.canvas = frame.appendChild(document.createElement("canvas")));
    Object.assign(canvas, { className: "pad", tabIndex: 0, role: "application" });
    canvas.setAttribute("aria-roledescription", "drawing pad");
    canvas.addEventListener("pointerdown", (e) => this.begin(e));
    canvas.addEventListener("pointermove", (e) => this.move(e));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (e) => this.end(e));
    canvas.addEventListener("keydown", (e) => this.key(e));
    canvas.addEventListener("blur", () => { this.down = this.keys = false; this.paint(); });
    new ResizeObserver(() => this.paint()).observe(canvas);
  }
  name(text) { this.canvas.setAttribute("aria-label", `${text}. Arrow keys move the pen, space puts it down or lifts it, Delete clears.`); }
  show(drawing) { this.drawing = drawing; this.stroke = null; this.down = false; this.paint(); }
  clear() { Object.assign(this.drawing, blank()); this.show(this.drawing); this.changed(true); }

  at(e) {
    const box = this.canvas.getBoundingClientRect();
    return [(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height].map((v) => Math.min(1, Math.max(0, v)));
  }
  start(point) {
    this.drawing.picture = null; // a drawing takes the place of an upload
    this.drawing.strokes.push((this.stroke = [point]));
  }
  begin(e) {
    if (e.button || this.pointer !== undefined) return;
    this.pointer = e.pointerId;
    this.keys = this.down = false;
    this.canvas.setPointerCapture(e.pointerId);
    this.start(this.at(e));
    this.grown();
  }
  move(e) {
    if (e.pointerId !== this.pointer || !this.stroke) return;
    const events = e.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [e]) this.stroke.push(this.at(each));
    this.grown();
  }
  end(e) {
    if (e.pointerId !== this.pointer) return;
    this.pointer = this.stroke = undefined;
    this.changed(true);
  }
  key(e) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (way) {
      this.pen = this.pen.map((v, i) => Math.min(0.96, Math.max(0.04, v + way[i] * (e.shiftKey ? 0.01 : 0.04))));
      if (this.down) this.stroke.push(this.pen);
    } else if (e.key === " ") {
      this.down = !this.down;
      if (this.down) this.start(this.pen);
      $("spoken").textContent = this.down ? "pen down" : "pen up";
    } else if (e.key === "Delete" || e.key === "Backspace") {
      this.clear();
    } else return;
    e.preventDefault();
    this.keys = true;
    this.grown(way === undefined || !this.down);
  }
  grown(done = false) { this.paint(); this.changed(done); }

  paint() {
    const size = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (!size) return;
    Object.assign(this.canvas, { width: size, height: size });
    const [context, ink] = [this.canvas.getContext("2d"), getComputedStyle(this.canvas).color];
    Object.assign(context, { strokeStyle: ink, lineWidth: size * 0.0175 + 4.5 * devicePixelRatio, lineCap: "round", lineJoin: "round" });
    const picture = this.drawing.picture;
    if (picture) {
      const scale = size / Math.max(picture.width, picture.height);
      const [w, h] = [picture.width * scale, picture.height * scale];
      context.drawImage(picture, (size - w) / 2, (size - h) / 2, w, h);
    }
    for (const stroke of this.drawing.strokes) line(context, stroke, (x, y) => [x * size, y * size]);
    if (this.keys) {
      context.lineWidth = 2 * devicePixelRatio;
      context.beginPath();
      context.arc(this.pen[0] * size, this.pen[1] * size, size * 0.035, 0, 7);
      context.stroke();
    }
    this.frame.classList.toggle("filled", filled(this.drawing) || this.keys);
  }
}

// -- who answers ------------------------------------------------------------------------------------------------------

// Runs one at a time; of calls meanwhile the last one counts, and runs afterwards with what is there then.
function latest(work) {
  let running = false, again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      try { await work(); } catch (error) {
        if (error.status === undefined) console.error(error); // a mistake of the page itself
        complain(error);
      }
    }
    running = false;
  };
}

async function served(path, body) {
  const sent = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const refused = (status, message) => Object.assign(new Error(message), { status });
  const answer = await fetch(path, sent).catch(() => { throw refused(0, "The server does not answer. Is headstart playground still running?"); });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw refused(answer.status, found.detail ?? `The server says ${answer.status}.`);
  return found;
}

async function call(path, body) {
  const of = path.match(/^[a-z-]+/)[0];
  const found = await answers(path, body).catch((error) => { throw Object.assign(error, { of }); });
  complain(null, of);
  return found;
}

// Says what went wrong, until the same thing goes well.
function complain(error, of = error.of) {
  const problem = $("problem");
  if (!error && problem.dataset.of !== of) return;
  problem.hidden = !error;
  problem.dataset.of = of;
  problem.textContent = error ? error.message : "";
}

const steps = () => (about.steps === null ? null : Number($("steps").value));
const rate = () => (about.lr === null || !Number($("rate").value) ? null : about.lr * 10 ** Number($("rate").value));

const learn = latest(async () => {
  const names = unique();
  const taught = classes.map((c, i) => ({ name: names[i], own: c.drawings.filter(filled) })).filter((c) => c.own.length);
  if (taught.length < 2) {
    [task, inside] = [null, { held: inside.held }];
  } else {
    const asked = { classes: taught.map((c) => ({ name: c.name, drawings: c.own.map(pictureOf) })) };
    if (steps() !== null) asked.steps = steps();
    if (rate() !== null) asked.lr = rate();
    const found = await call("adapt", asked);
    task = { id: found.id, ms: found.ms, names: taught.map((c) => c.name), shots: taught.map((c) => c.own.length) };
    found.classes.forEach((c, i) => c.seen.forEach((url, j) => (taught[i].own[j].seen = url)));
  }
  classes.forEach(thumbnails);
  figures();
  bars();
  ask();
  look();
});

const ask = latest(async () => {
  if (!task || !filled(query.drawing)) return answer(null);
  try {
    answer(await call("predict", { id: task.id, drawing: pictureOf(query.drawing) }));
  } catch (error) {
    if (error.status !== 404) throw error;
    learn(); // the task is forgotten
  }
  await new Promise((done) => setTimeout(done, 25)); // no faster than one sees
});

const look = latest(async () => {
  if (task) Object.assign(inside, await call(`curves/${task.id}`).catch((error) => { if (error.status !== 404) throw error; }));
  plots();
  const wanted = rate() ?? "";
  if (inside.held?.rate !== wanted) inside.held = { ...(await call(`held-out${wanted && `?lr=${wanted}`}`)), rate: wanted };
  plots();
});

// -- what is shown ----------------------------------------------------------------------------------------------------

function percent(p) {
  if (p > 0.9999) return "> 99.99 %";
  return `${p > 0.99 ? (Math.floor(p * 1e4) / 100).toFixed(2) : (100 * p).toFixed(1)} %`;
}

function answer(found) {
  last = found;
  const label = $("label");
  const known = found && ($("strict").checked ? found.label : found.best);
  let [text, sure] = [task ? "Nothing drawn yet" : "Teach it two symbols", ""];
  if (found?.best === null) [text, sure] = ["No answer", "Its steps were too long, and nothing finite is left: lower α."];
  else if (found) {
    const p = percent(Math.max(...found.probabilities));
    [text, sure] = known === null ? ["Unknown", `like none of them; the nearest is ${found.best}`] : [known, `${p} sure`];
    if (about.by === "nearness") sure += `\ndistance ${(-found.score).toFixed(1)}, the limit is ${(-about.threshold).toFixed(1)}`;
    else if (known === null) sure += `, ${p}, and it asks for ${percent(about.threshold)}`;
  }
  if (label.textContent !== text) label.textContent = text; // said aloud only when it is another
  label.classList.toggle("quiet", !known);
  $("sure").textContent = sure;
  [...$("bars").children].forEach((row, i) => {
    const p = found?.probabilities[i] ?? 0;
    row.className = known && task.names[i] === known ? "best" : "";
    row.querySelector(".fill").style.setProperty("--p", p);
    row.querySelector(".percent").textContent = found ? percent(p) : "";
  });
  document.querySelector(".sees").hidden = !found;
  if (found) { $("query-seen").src = found.seen; $("predict-ms").innerHTML = `${found.ms.toFixed(1)} <small>ms</small>`; }
}

function bars() {
  const rows = (task?.names ?? []).map((name) => {
    const row = element("li", {}, element("span", { className: "who", textContent: name, title: name }));
    row.append(element("span", { className: "track", ariaHidden: "true" }, element("span", { className: "fill" })), element("span", { className: "percent" }));
    return row;
  });
  $("bars").replaceChildren(...rows);
}

function figures() {
  const shots = task ? [Math.min(...task.shots), Math.max(...task.shots)] : [];
  $("ways").textContent = task ? task.names.length : "–";
  $("shots").textContent = task ? [...new Set(shots)].join("–") : "–";
  $("adapt-ms").innerHTML = task ? `${task.ms.toFixed(1)} <small>ms</small>` : "–";
  $("steps-out").textContent = steps();
  const own = rate() ?? about.lr;
  if (own !== null) $("rate-out").textContent = `${Number(own.toPrecision(2))}${rate() === null ? " (its own)" : ""}`;
  $("rate").setAttribute("aria-valuetext", $("rate-out").textContent);
}

function element(name, properties, ...children) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...children);
  return found;
}

// Curves over 0 … N … steps: bold up to the N that is chosen, faint beyond.
function plot(svg, curves, top, format) {
  const [left, right, high, low, now] = [46, 410, 10, 142, steps() ?? 1];
  const last = Math.max(now, ...curves.map((c) => c.values.length - 1));
  const x = (m) => left + ((right - left) * m) / Math.max(1, last);
  const y = (v) => low - ((low - high) * Math.min(v, top)) / top;
  const parts = [0, 0.5, 1].map((f) => `<path class="grid" d="M${left} ${y(f * top)}H${right}"/><text x="${left - 7}" y="${y(f * top) + 4}" text-anchor="end">${format(f * top)}</text>`);
  const stride = last > 25 ? 10 : last > 10 ? 5 : 1;
  for (let m = 0; m <= last; m += stride) parts.push(`<text x="${x(m)}" y="161" text-anchor="middle">${m}</text>`);
  parts.push(`<path class="now" d="M${x(now)} ${high}V${low}"/>`);
  for (const { values, kind } of curves) {
    const path = (from, to) => values.slice(from, to + 1).map((v, i) => (v === null ? "" : `${i && values[from + i - 1] !== null ? "L" : "M"}${x(from + i).toFixed(1)} ${y(v).toFixed(1)}`)).join("");
    parts.push(`<path class="curve later ${kind}" d="${path(Math.min(now, values.length - 1), values.length)}"/><path class="curve ${kind}" d="${path(0, now)}"/>`);
    const here = values[Math.min(now, values.length - 1)];
    if (here !== null) parts.push(`<circle class="dot ${kind}" cx="${x(now)}" cy="${y(here)}" r="5"/>`);
  }
  svg.innerHTML = parts.join("");
}

function plots() {
  const now = steps() ?? 1;
  const at = (values) => values[Math.min(now, values.length - 1)];
  const loss = inside.loss ?? [];
  const numbers = loss.filter((v) => v !== null);
  plot($("loss"), loss.length ? [{ values: loss, kind: "" }] : [], Math.min(Math.max(...numbers, 0.01), Math.max(1, 20 * (loss[0] ?? 1))), (v) => Number(v.toPrecision(2)));
  const shown = (v) => (v === null ? "nothing finite" : v < 5e-5 ? "below 0.0001" : v.toPrecision(2));
  const near = loss[0] < 1e-3 ? " It starts so near that steps have little left to do." : "";
  const after = now && loss.length ? `, ${shown(at(loss))} after ${now}` : "";
  $("loss-said").textContent = loss.length ? `Before the first step ${shown(loss[0])}${after}.${near}` : "Teach it two symbols to see it.";
  const [own, held] = [inside.accuracy, inside.held?.accuracy];
  plot($("accuracy"), [...(own ? [{ values: own, kind: "" }] : []), ...(held ? [{ values: held, kind: "second" }] : [])], 1, (v) => `${Math.round(100 * v)} %`);
  const said = [own ? `<b>Yours: ${Math.round(100 * at(own))} %</b>, each of ${inside.left_out} drawings left out in turn and asked about.` : "Give a class a second drawing, and each is left out in turn and asked about."];
  if (held) said.push(`<b class="second">Printed characters: ${(100 * at(held)).toFixed(1)} %</b> of ${inside.held.answers} answers in ${inside.held.episodes} tasks of ${inside.held.ways} characters that it never saw, learned from ${inside.held.shots} drawing${inside.held.shots > 1 ? "s" : ""} each.`);
  $("accuracy-said").innerHTML = said.join(" ");
}

// -- classes ----------------------------------------------------------------------------------------------------------

// Names that differ, whatever was typed.
function unique() {
  const taken = new Set();
  return classes.map((c, i) => {
    const own = c.name.trim() || `class ${i + 1}`;
    let found = own;
    for (let k = 2; taken.has(found); k++) found = `${own.slice(0, 34)} (${k})`;
    taken.add(found);
    return found;
  });
}

function addClass(name) {
  const letters = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
  const own = { name: name ?? letters.find((l) => classes.every((c) => c.name !== l)), drawings: [blank()], at: 0 };
  const card = (own.card = $("class-card").content.firstElementChild.cloneNode(true));
  const find = (selector) => card.querySelector(selector);
  own.pad = new Pad(find(".pad-frame"), "draw", (done) => done && learn());
  const box = find(".name input");
  box.addEventListener("input", () => { own.name = box.value; title(own); learn(); });
  find(".remove").addEventListener("click", () => removeClass(own));
  find(".clear").addEventListener("click", () => {
    if (own.drawings.length > 1) own.drawings.splice(own.at, 1);
    else own.drawings = [blank()];
    pick(own, Math.min(own.at, own.drawings.length - 1));
    learn();
  });
  find(".more").addEventListener("click", () => { own.drawings.push(blank()); pick(own, own.drawings.length - 1); own.pad.canvas.focus(); });
  takesFiles(card, find("input[type=file]"), (drawings) => {
    own.drawings = [...own.drawings.filter(filled), ...drawings].slice(0, about.most.drawings);
    pick(own, own.drawings.length - 1);
    learn();
  });
  classes.push(own);
  $("classes").insertBefore(card, $("classes").lastElementChild);
  title(own);
  pick(own, 0);
  counted();
  return own;
}

function title(own) {
  const [box, name] = [own.card.querySelector(".name input"), own.name.trim() || "unnamed class"];
  if (box.value !== own.name) box.value = own.name;
  box.setAttribute("aria-label", `Name of class ${name}`);
  own.pad.name(`Drawing pad for ${name}`);
  for (const [selector, text] of [[".remove", "Remove"], [".clear", "Clear the drawing of"], [".more", "More drawings of"]])
    own.card.querySelector(selector).setAttribute("aria-label", `${text} ${name}`);
  own.card.querySelector("input[type=file]").setAttribute("aria-label", `Upload pictures of ${name}`);
}

function removeClass(own) {
  const place = classes.indexOf(own);
  classes.splice(place, 1);
  own.card.remove();
  (classes[place] ?? classes[place - 1]).card.querySelector(".name input").focus();
  counted();
  learn();
}

function counted() {
  $("add").parentElement.hidden = classes.length >= about.most.classes;
  for (const c of classes) c.card.querySelector(".remove").disabled = classes.length <= 2;
}

function pick(own, place) {
  own.at = place;
  own.pad.show(own.drawings[place]);
  thumbnails(own);
}

// The drawings of a class as the model sees them; each is a button that shows it on the pad.
function thumbnails(own) {
  const rows = own.drawings.map((drawing, i) => {
    const button = element("button", { ariaLabel: `Drawing ${i + 1}${filled(drawing) ? ", as the model sees it" : ", empty"}`, ariaPressed: String(i === own.at) });
    button.classList.toggle("empty", !filled(drawing));
    if (filled(drawing) && drawing.seen) button.append(element("img", { src: drawing.seen, alt: "" }));
    button.addEventListener("click", () => pick(own, i));
    return button;
  });
  own.card.querySelector(".drawings").replaceChildren(...(own.drawings.some(filled) ? rows : []));
  own.card.querySelector(".more").disabled = own.drawings.length >= about.most.drawings || !filled(own.drawings.at(-1));
}

function takesFiles(area, input, taken) {
  const take = async (list) => {
    try { taken(await Promise.all([...list].map(read))); complain(null, "file"); } catch (error) { complain(error, "file"); }
    input.value = "";
  };
  input.addEventListener("change", () => input.files.length && take(input.files));
  area.addEventListener("dragover", (e) => { e.preventDefault(); area.classList.add("dropping"); });
  for (const kind of ["dragleave", "drop"]) area.addEventListener(kind, () => area.classList.remove("dropping"));
  area.addEventListener("drop", (e) => { e.preventDefault(); if (e.dataTransfer.files.length) take(e.dataTransfer.files); });
}

// -- an example, for those without a pen ------------------------------------------------------------------------------

const round = (n, x, y, until = 2 * Math.PI) => Array.from({ length: n + 1 }, (_, i) => [x((until * i) / n), y((until * i) / n)]);
const { cos, sin } = Math;
const EXAMPLE = {
  house: [[[0.2, 0.86], [0.2, 0.45], [0.5, 0.14], [0.8, 0.45], [0.8, 0.86], [0.2, 0.86]]],
  lightning: [[[0.6, 0.12], [0.28, 0.54], [0.68, 0.5], [0.4, 0.88]]],
  spiral: [round(60, (t) => 0.5 + 0.027 * t * cos(t), (t) => 0.5 + 0.027 * t * sin(t), 14)],
  knot: [round(60, (t) => 0.5 + 0.36 * sin(t), (t) => 0.5 + 0.26 * sin(2 * t))],
  anchor: [[[0.5, 0.12], [0.5, 0.84]], [[0.32, 0.3], [0.68, 0.3]], round(24, (t) => 0.5 - 0.32 * cos(t), (t) => 0.56 + 0.28 * sin(t), Math.PI)],
};

let showing = 0;
async function example() {
  reset(Object.keys(EXAMPLE));
  const mine = ++showing;
  for (const own of classes) { own.drawings[0].strokes = structuredClone(EXAMPLE[own.name]); pick(own, 0); }
  await learn();
  // The same symbol by another hand: smaller, leaning, and a little uneven.
  const hand = ([x, y]) => [0.2 + 0.6 * x + 0.03 * (1 - y) + 0.01 * sin(7 * y), 0.16 + 0.66 * y - 0.03 * x];
  for (const stroke of EXAMPLE.anchor) {
    const pieces = Math.ceil(24 / (stroke.length - 1));
    query.start(hand(stroke[0]));
    for (let i = 1; i <= pieces * (stroke.length - 1); i++) {
      if (!still.matches) await new Promise((done) => setTimeout(done, 18));
      if (mine !== showing) return; // someone else has taken the pen
      const [[a, b], [c, d], f] = [stroke[Math.ceil(i / pieces) - 1], stroke[Math.ceil(i / pieces)], (((i - 1) % pieces) + 1) / pieces];
      query.stroke.push(hand([a + f * (c - a), b + f * (d - b)]));
      query.grown();
    }
  }
  query.stroke = undefined;
}

function reset(names) {
  showing++;
  for (const own of classes.splice(0)) own.card.remove();
  for (const name of names) addClass(name);
  query.clear();
}

// -- the beginning ----------------------------------------------------------------------------------------------------

const query = new Pad($("query"), "draw one of them here", () => ask());
query.name("Drawing pad for the drawing to recognise");
query.canvas.addEventListener("pointerdown", () => showing++, true);
query.canvas.addEventListener("keydown", (e) => e.key !== "Tab" && showing++, true);
takesFiles($("ask"), $("query-file"), ([drawing]) => { showing++; query.show(Object.assign(query.drawing, drawing)); ask(); });
$("query-clear").addEventListener("click", () => { showing++; query.clear(); });
$("classes").append(element("li", { className: "card add-card" }, element("button", { id: "add", textContent: "Add a class" })));
$("add").addEventListener("click", () => addClass().card.querySelector(".name input").focus());
$("example").addEventListener("click", example);
$("empty").addEventListener("click", () => { reset([..."ABCDE"]); learn(); });
$("steps-row").hidden = about.steps === null;
$("steps").value = Math.min(about.steps ?? 1, about.most.steps);
$("rate-row").hidden = about.lr === null;
$("rate").value = 0;
$("strict").parentElement.hidden = about.threshold === null;
$("strict").addEventListener("change", () => answer(last));
if (about.start.data) $("start").textContent = `The start was trained on ${about.start.data}, in tasks of ${about.start.ways} classes with ${about.start.shots} of each.`;
for (const id of ["steps", "rate"]) $(id).addEventListener("input", () => { figures(); plots(); learn(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [query, ...classes.map((c) => c.pad)].forEach((pad) => pad.paint()));
for (const kind of ["dragover", "drop"]) addEventListener(kind, (e) => e.preventDefault()); // a picture dropped beside a pad does not replace the page
reset([..."ABCDE"]);
learn();
