// The page of histo serve. Names of files and classes only ever become text, and nothing is kept after the page closes.

const RETRIES = 30; // of a request that met a full queue
const SHOWN = 12; // classes of a card; a model may have hundreds

let models = [];
let model = null;
let token = "";
let running = null; // AbortController of the requests that run
let counts = new Map();
const waiting = [];

const say = (text) => { byId("status").textContent = text; };

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

async function errorOf(answer) {
  try {
    return (await answer.json()).error ?? `The server answered ${answer.status}.`;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

// What to say of an error; fetch itself throws TypeErrors alone.
function reason(error) {
  return error instanceof TypeError ? "The server can't be reached. Start it again, then reload this page." : error.message;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

// --- the model ---------------------------------------------------------------------------------------------

async function start() {
  const answer = await ask("v2/repository/index", { method: "POST" });
  const refused = answer.status === 401;
  byId("token-form").hidden = !refused;
  if (refused) {
    byId("lead").textContent = token ? "This is not the server's token." : "";
    byId("token").focus();
    return;
  }
  if (!answer.ok) throw new Error(await errorOf(answer));
  models = await answer.json();
  byId("model").replaceChildren(...models.map(({ name, version }, i) =>
    element("option", { value: String(i) }, `${name} (version ${version})`)));
  byId("model-choice").hidden = models.length < 2;
  byId("work").hidden = false;
  await choose(models[0]);
}

async function choose({ name, version }) {
  const answer = await ask(`v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`);
  if (!answer.ok) throw new Error(await errorOf(answer));
  model = { name, version, ...(await answer.json()).parameters };
  const scale = model.mpp === null ? "" : ` of ${model.mpp} µm per pixel`;
  byId("lead").textContent = `${name}: ${count(model.classes.length, "class", "classes")}. `
    + (model.calibration ? `Calibrated: ${model.calibration.description}.` : "The probabilities are not calibrated.");
  byId("wanted").textContent = `JPEG, PNG, TIFF or WebP, ${model.tile_size} × ${model.tile_size} pixels${scale}. `
    + "They are sent to this server and kept nowhere.";
  byId("warnings").replaceChildren();
  const warnings = model.synthetic ? ["This model was trained on made tiles, as a demonstration. Its answers mean nothing for real tissue."] : [];
  showWarnings(warnings, byId("warnings"));
  clear();
}

// --- images ------------------------------------------------------------------------------------------------

async function classify(files, signal) {
  const query = new URLSearchParams({ model: model.name, version: model.version, seen: "1" });
  for (let attempt = 0; ; attempt++) {
    const form = new FormData();
    for (const file of files) form.append("image", file, file.name);
    const answer = await ask(`classify?${query}`, { method: "POST", body: form, signal });
    if (answer.status === 503 && attempt < RETRIES) {
      say("The server is busy, waiting …");
      await pause(Number(answer.headers.get("retry-after") ?? 1), signal);
      continue;
    }
    if (answer.status === 413 && files.length > 1) { // together they are too large
      const results = [];
      for (const file of files) results.push(...await classify([file], signal));
      return results;
    }
    if (!answer.ok && answer.status !== 422) throw new Error(await errorOf(answer));
    return (await answer.json()).results;
  }
}

async function run() {
  running = new AbortController();
  byId("stop").hidden = false;
  let done = 0;
  try {
    while (waiting.length) {
      say(`${count(done, "image")} classified, ${number(waiting.length)} to go …`);
      const files = waiting.splice(0, data.at_a_time);
      const results = await classify(files, running.signal);
      results.forEach((result, i) => show(files[i].name, result));
      done += results.length;
    }
    say(`${count(done, "image")} done.`);
  } catch (error) {
    waiting.length = 0;
    say(error.name === "AbortError" ? `Stopped after ${count(done, "image")}.` : reason(error));
  } finally {
    running = null;
    byId("stop").hidden = true;
  }
}

function take(files) {
  if (!model || !files.length) return;
  waiting.push(...files);
  byId("clear").disabled = false;
  if (!running) run();
}

function colourOf(name) {
  return data.colours[model.classes.indexOf(name) % data.colours.length];
}

function show(name, result) {
  byId("results-section").hidden = false;
  byId("results").append(result.error ? badCard(name, result.error) : card(name, result));
  if (result.error) return;
  counts.set(result.class, (counts.get(result.class) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  byId("summary").hidden = false;
  byId("counts").replaceChildren(...sorted.map(([label, n]) =>
    element("li", {}, swatch(colourOf(label)), `${label}: ${number(n)}`)));
}

function card(name, result) {
  const sorted = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]);
  const rows = sorted.slice(0, SHOWN).map(([label, probability]) => element("tr", {},
    element("th", { scope: "row", title: label }, label),
    element("td", {}, percent(probability)),
    element("td", { className: "wide" }, meter(probability, colourOf(label)))));
  const size = `${result.size.join(" × ")} pixels${result.resized ? ", resampled" : ""}`;
  return element("li", { className: "card" },
    element("img", { src: `data:image/png;base64,${result.seen_png}`, alt: `What the network saw of ${name}` }),
    element("div", {},
      element("h3", {}, swatch(colourOf(result.class)), element("span", { className: "name" }, result.class)),
      element("p", { className: "note name", title: name }, name),
      element("p", { className: "note" }, size),
      element("table", {}, element("tbody", {}, ...rows))));
}

function badCard(name, error) {
  return element("li", { className: "card bad" },
    element("h3", {}, element("span", { className: "name", title: name }, name)),
    element("p", { className: "warning small" }, error));
}

function clear() {
  waiting.length = 0;
  running?.abort();
  counts = new Map();
  byId("results").replaceChildren();
  for (const id of ["summary", "results-section"]) byId(id).hidden = true;
  byId("clear").disabled = true;
  say("");
}

// --- what the user does ------------------------------------------------------------------------------------

const failed = (error) => { byId("lead").textContent = reason(error); };
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  start().catch(failed);
});
byId("model").addEventListener("change", (event) => choose(models[Number(event.target.value)]).catch(failed));
byId("files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = "";
});
byId("stop").addEventListener("click", () => { waiting.length = 0; running?.abort(); });
byId("clear").addEventListener("click", clear);
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // a file that misses the field must not replace the page
    byId("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") take([...event.dataTransfer.files]);
  });
}
start().catch(failed);
