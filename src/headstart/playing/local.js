// What answers a page that stands alone: the start, which is in the page too, run by onnxruntime-web. Call by call it says what the
// server of `headstart playground` says (app.py, task.py, held_out.py); what is refused has a status, as there.

const KEPT = 32; // tasks
const own = JSON.parse(document.getElementById("start-data").textContent);
const tasks = new Map();

// What was packed into the page: base64 of gzip.
async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

// -- the start --------------------------------------------------------------------------------------------------------

// One thread and no worker, and both of its files at hand: it has nothing to fetch.
async function started() {
  const module = URL.createObjectURL(new Blob([await unpacked("runtime-module")], { type: "text/javascript" }));
  const ort = await import(module);
  URL.revokeObjectURL(module);
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: await unpacked("runtime-binary") });
  const session = async (id) => ort.InferenceSession.create(await unpacked(id), { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { ort, body: await session("body"), adaptation: await session("adaptation") };
}

const ready = started().catch((error) => {
  console.error(error);
  throw refusal(500, `This browser cannot run the model (${error.message ?? error}). A newer one can, or headstart playground without --page.`);
});
ready.catch(() => {}); // whoever asks is told

function refusal(status, message) {
  return Object.assign(new Error(message), { status });
}

// (n, D) features of pictures in bytes.
async function features(pictures) {
  const { ort, body } = await ready;
  const { size, centre, spread } = own.preprocessing;
  const x = new Float32Array(pictures.length * size * size);
  pictures.forEach((pixels, i) => pixels.forEach((v, j) => { x[i * size * size + j] = (v / 255 - centre) / spread; }));
  const found = (await body.run({ x: new ort.Tensor("float32", x, [pictures.length, 1, size, size]) })).features;
  const width = found.dims[1];
  return pictures.map((_, i) => found.data.slice(i * width, (i + 1) * width));
}

// What a head that learns from support features says of query features: log-probabilities [step][query][row of the head].
async function path(support, y, query, ways, steps, lr) {
  const { ort, adaptation } = await ready;
  const rows = [...support, ...query];
  const z = new Float32Array(rows.length * rows[0].length);
  rows.forEach((row, i) => z.set(row, i * row.length));
  const whole = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const given = { features: new ort.Tensor("float32", z, [rows.length, rows[0].length]), support_y: whole(y, [y.length]), ways: whole([ways], []) };
  if (own.about.steps !== null) Object.assign(given, { steps: whole([steps], []), lr: new ort.Tensor("float32", [lr ?? own.lr], []) });
  const { data, dims: [times, asked, columns] } = (await adaptation.run(given)).log_probabilities;
  const at = (m, q) => data.subarray((m * asked + q) * columns, (m * asked + q + 1) * columns);
  return Array.from({ length: times }, (_, m) => Array.from({ length: asked }, (_, q) => at(m, q)));
}

const finite = (values) => values.every(Number.isFinite);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => sum(values) / values.length;
const best = (values) => values.reduce((most, v, i) => (v > values[most] ? i : most), 0);
const breathe = () => new Promise((done) => setTimeout(done)); // the pen comes first

function softmax(values, temperature) {
  const most = Math.max(...values);
  const parts = Array.from(values, (v) => Math.exp((v - most) / temperature));
  const all = sum(parts);
  return parts.map((v) => v / all);
}

// -- pictures, as Pillow and using/preprocessing.py make them: to the pixel ---------------------------------------------

const even = (v) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v)); // as Python rounds
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bicubic: [2, (x, a = Math.abs(x)) => (a < 1 ? (1.5 * a - 2.5) * a * a + 1 : a < 2 ? ((-0.5 * a + 2.5) * a - 4) * a + 2 : 0)],
};

// Of each new pixel of a row of them: where its old ones begin, and their weights in units of 2^-22.
function weights(length, wanted, [reach, filter]) {
  const scale = length / wanted, wide = Math.max(scale, 1), support = reach * wide;
  return Array.from({ length: wanted }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5)), until = Math.min(length, Math.trunc(centre + support + 0.5));
    const parts = Array.from({ length: until - from }, (_, k) => filter((k + from - centre + 0.5) * (1 / wide)));
    const all = sum(parts);
    return [from, parts.map((v) => Math.trunc((v / all) * 2 ** 22 + (v < 0 ? -0.5 : 0.5)))];
  });
}

// One pass over lines of pixels, along each of which they become as many as are wanted: along rows, or along columns.
function pass(pixels, length, wanted, lines, rows, filter) {
  if (length === wanted) return pixels;
  const found = new Uint8ClampedArray(wanted * lines);
  const [step, line, next] = rows ? [1, length, wanted] : [lines, 1, 1]; // from pixel to pixel; from line to line, before and after
  weights(length, wanted, FILTERS[filter]).forEach(([begin, parts], i) => {
    for (let l = 0; l < lines; l++) {
      const total = parts.reduce((t, w, k) => t + w * pixels[l * line + (begin + k) * step], 2 ** 21);
      found[l * next + i * step] = Math.floor(total / 2 ** 22);
    }
  });
  return found;
}

// A grey picture {width, height, pixels} in another size: first its rows, then its columns, rounded to bytes after each. (Pillow 13
// goes along the columns of tall uploads first, which can be a level of grey; drawings are square.)
function resized(picture, width, height, filter) {
  const across = pass(picture.pixels, picture.width, width, picture.height, true, filter);
  return { width, height, pixels: pass(across, picture.height, height, width, false, filter) };
}

// Part of a picture, which may reach beyond it; there is nothing there.
function cropped({ width, height, pixels }, left, top, right, bottom, beyond = 0) {
  const found = { width: right - left, height: bottom - top, pixels: new Uint8ClampedArray((right - left) * (bottom - top)).fill(beyond) };
  for (let y = Math.max(top, 0); y < Math.min(bottom, height); y++)
    for (let x = Math.max(left, 0); x < Math.min(right, width); x++) found.pixels[(y - top) * found.width + x - left] = pixels[y * width + x];
  return found;
}

function median(values) {
  const sorted = Array.from(values).sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// A picture file in grey, made square with what is in its corners.
async function decoded(content, size) {
  const image = await createImageBitmap(new Blob([content]), { colorSpaceConversion: "none" }).catch(() => {
    throw refusal(422, "not a picture, or of a kind that cannot be read: give a PNG or JPEG");
  });
  const { width, height } = image;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = { width, height, pixels: new Uint8ClampedArray(width * height) };
  grey.pixels.forEach((_, i) => { grey.pixels[i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16; });
  const corners = [0, width - 1].flatMap((x) => [0, height - 1].map((y) => grey.pixels[y * width + x]));
  const [w, h] = width > height ? [size, even((height / width) * size)] : [width < height ? even((width / height) * size) : size, size];
  const small = resized(grey, w, h, "bicubic");
  const [left, top] = [even((size - w) / 2), even((size - h) / 2)];
  return cropped(small, -left, -top, size - left, size - top, Math.trunc(median(corners)));
}

function whitened(picture) {
  const { width, height, pixels } = picture;
  const row = (y) => pixels.subarray(y * width, (y + 1) * width);
  const column = (x) => Array.from({ length: height }, (_, y) => pixels[y * width + x]);
  const found = median([...row(0), ...row(height - 1), ...column(0), ...column(width - 1)]);
  const light = found > 127, paper = light ? 255 - found : found;
  const white = (v) => even((Math.max((light ? 255 - v : v) - paper, 0) * 255) / (255 - paper));
  return { width, height, pixels: pixels.map(white) };
}

function framed(picture, size) {
  const xs = [], ys = [];
  picture.pixels.forEach((v, i) => { if (v > 60) { xs.push(i % picture.width); ys.push(Math.floor(i / picture.width)); } });
  if (!xs.length) return { width: size, height: size, pixels: new Uint8ClampedArray(size * size) };
  const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v + 1)], [Infinity, 0]);
  const [[left, right], [top, bottom]] = [span(xs), span(ys)];
  const side = (Math.max(bottom - top, right - left) * 28) / own.preprocessing.frame;
  const [x, y, half] = [(left + right) / 2, (top + bottom) / 2, side / 2];
  return resized(cropped(picture, even(x - half), even(y - half), even(x + half), even(y + half)), size, size, "box");
}

// The bytes that the model gets of a picture in base64.
async function picture(text) {
  let content;
  try { content = Uint8Array.from(atob(text.slice(text.lastIndexOf(",") + 1)), (c) => c.charCodeAt(0)); } catch { throw refusal(422, "a drawing is not base64"); }
  const { size, ink } = own.preprocessing;
  const frame = ink === "framed";
  const white = whitened(await decoded(content, frame ? 4 * size : size));
  return (frame ? framed(white, size) : white).pixels;
}

function seen(pixels) {
  const { size } = own.preprocessing;
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const image = new ImageData(size, size);
  pixels.forEach((v, i) => image.data.set([v, v, v, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// -- the calls --------------------------------------------------------------------------------------------------------

function kept(id) {
  const task = tasks.get(id);
  if (!task) throw refusal(404, "this task is no longer kept; teach it again");
  tasks.delete(id);
  tasks.set(id, task); // the latest
  return task;
}

async function adapt({ classes, steps = own.about.steps, lr = null }) {
  const ways = classes.length, count = sum(classes.map((c) => c.drawings.length));
  if (own.outputs !== null && ways > own.outputs) throw refusal(422, `the task has ${ways} classes, but the model has ${own.outputs} outputs; teach it fewer`);
  if (count > own.most) throw refusal(422, `there are more than ${own.most} drawings; teach it fewer`);
  const pictures = await Promise.all(classes.flatMap((c) => c.drawings.map(picture)));
  const y = classes.flatMap((c, i) => c.drawings.map(() => i));
  await ready;
  const begun = performance.now();
  const z = await features(pictures);
  const trained = await path(z, y, z, ways, steps, lr);
  const ms = performance.now() - begun;
  if (!trained.at(-1).every(finite)) throw refusal(422, "adaptation diverged on these examples: take fewer steps, or a smaller step size");
  const means = classes.map((_, c) => z[0].map((_, d) => mean(z.filter((_, i) => y[i] === c).map((row) => row[d]))));
  const id = crypto.getRandomValues(new Uint32Array(3)).join("-");
  tasks.set(id, { names: classes.map((c) => c.name), ways, steps, lr, z, y, means });
  if (tasks.size > KEPT) tasks.delete(tasks.keys().next().value);
  const rest = pictures.map(seen);
  return { id, ms, classes: classes.map((c) => ({ name: c.name, seen: rest.splice(0, c.drawings.length) })) };
}

async function predict({ id, drawing }) {
  const task = kept(id), pixels = await picture(drawing), { calibration } = own;
  await ready;
  const begun = performance.now();
  const [z] = await features([pixels]);
  const [logs] = (await path(task.z, task.y, [z], task.ways, task.steps, task.lr)).at(-1);
  const probabilities = softmax(logs.subarray(0, task.ways), calibration?.temperature ?? 1);
  const ms = performance.now() - begun;
  const distance = (to) => Math.hypot(...z.map((v, d) => v - to[d]));
  const near = calibration?.by === "nearness";
  const score = !calibration ? null : near ? -Math.min(...task.means.map(distance)) : Math.max(...probabilities);
  const whole = finite(probabilities), first = whole ? task.names[best(probabilities)] : null;
  const unknown = calibration && calibration.threshold !== null && score < calibration.threshold;
  return { label: unknown ? null : first, best: first, probabilities: probabilities.map(number), score: score === null ? null : number(score), ms, seen: seen(pixels) };
}

const number = (v) => (Number.isFinite(v) ? v : null);

async function curves(id) {
  const { z, y, ways, lr } = kept(id);
  const steps = own.most_steps;
  const loss = (await path(z, y, z, ways, steps, lr)).map((rows) => number(mean(rows.map((row, i) => -row[y[i]]))));
  const others = y.map((v) => y.filter((w) => w === v).length > 1);
  const out = y.flatMap((_, i) => (others[i] ? [i] : []));
  if (!out.length) return { loss, accuracy: null, left_out: 0, of_classes: 0 };
  const right = loss.map(() => 0);
  for (const i of out) {
    const rest = (values) => values.filter((_, j) => j !== i);
    const said = await path(rest(z), rest(y), [z[i]], ways, steps, lr);
    said.forEach(([row], m) => { const mine = row.subarray(0, ways); right[m] += Number(!mine.some(Number.isNaN) && best(mine) === y[i]); });
    await breathe();
  }
  return { loss, accuracy: right.map((v) => v / out.length), left_out: out.length, of_classes: new Set(out.map((i) => y[i])).size };
}

let episodes = null; // their features, once they were asked for

async function heldOut(lr) {
  if (!own.held) return {};
  const { tasks: all, width, about } = own.held;
  episodes ??= unpacked("held-out-features").then((bytes) => new Float32Array(bytes.buffer));
  const pool = await episodes;
  const row = (i) => pool.subarray(i * width, (i + 1) * width);
  let right = [];
  for (const { support, support_y, query, query_y } of all) {
    const said = await path(support.map(row), support_y, query.map(row), about.ways, own.most_steps, lr);
    said.forEach((rows, m) => { right[m] = (right[m] ?? 0) + sum(rows.map((r, q) => Number(finite(r) && best(r) === query_y[q]))); });
    await breathe();
  }
  return { ...about, accuracy: right.map((v) => v / about.answers) };
}

globalThis.answers = async (asked, body) => {
  const [, name, id, lr] = asked.match(/^([a-z-]+)(?:\/([^?]+))?(?:\?lr=(.+))?$/);
  return { about: () => own.about, adapt, predict, curves: () => curves(id), "held-out": () => heldOut(lr ? Number(lr) : null) }[name](body);
};
