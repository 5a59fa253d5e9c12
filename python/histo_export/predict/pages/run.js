// The page of a run: a table of its results, which can be sorted and filtered, what failed, and the record.

const state = { sort: "", up: true };

// Totals over all slides

function showTotals() {
  const slides = data.results.filter((result) => result.kind === "slide");
  const tissue = slides.reduce((sum, slide) => sum + slide.tissue, 0);
  byId("totals").closest("section").hidden = tissue === 0;
  const areas = new Map();
  for (const { name, colour, amount } of slides.flatMap((slide) => slide.classes)) {
    areas.set(name, { name, colour, amount: (areas.get(name)?.amount ?? 0) + amount });
  }
  const parts = [...areas.values()].map((part) => ({ ...part, share: tissue ? part.amount / tissue : 0 }));
  const rest = 1 - parts.reduce((sum, part) => sum + part.share, 0);
  byId("totals").append(stackedBar(parts, rest), legend(parts, rest, tissue));
}

function legend(parts, rest, tissue) {
  const items = parts.filter(({ share }) => share > 0).map(({ name, colour, amount, share }) =>
    element("li", {}, swatch(colour), element("span", { className: "name" }, name), ` ${mm2(amount)}, ${percent(share)}`));
  if (rest > 0.0005) items.push(element("li", {}, swatch("transparent"), `not analysed ${mm2(rest * tissue)}, ${percent(rest)}`));
  return element("ul", { className: "legend" }, ...items);
}

// The table

// The class that the last column is about: the one that was chosen, or the result's most frequent one.
function classOf(result) {
  const chosen = byId("class").value;
  if (chosen) return result.classes.find(({ name }) => name === chosen) ?? null;
  return result.classes.reduce((most, each) => (!most || each.share > most.share ? each : most), null);
}

function pictureCell(result) {
  const picture = element("td", { className: "left picture" });
  if (result.thumbnail) {
    const image = element("img", { alt: "", loading: "lazy", decoding: "async", src: result.thumbnail });
    picture.append(element("a", { href: result.page, tabIndex: -1, "aria-hidden": "true" }, image));
  }
  return picture;
}

function nameCell(result) {
  const kind = result.kind === "slide" ? "" : "set of tiles";
  const notes = [kind, result.earlier ? "of an earlier run" : ""].filter(Boolean).join(", ");
  const cell = element("td", { className: "left" }, element("a", { href: result.page, className: "result" }, result.name));
  if (notes) cell.append(element("div", { className: "note" }, notes));
  for (const { split, accuracy, tiles } of result.accuracy ?? []) {
    cell.append(element("div", { className: "note" }, `accuracy ${percent(accuracy)} of ${count(tiles, `${split} tile`)}`));
  }
  for (const warning of result.warnings) cell.append(element("div", { className: "small warning" }, warning));
  return cell;
}

function shareCell(result) {
  const one = classOf(result);
  const cell = element("td", { className: "left shares" }, stackedBar(result.classes, result.rest));
  if (one) {
    const amount = result.kind === "slide" ? mm2(one.amount) : count(one.amount, "tile");
    const text = element("div", { className: "line" }, swatch(one.colour), element("span", { className: "name" }, one.name), `\u00a0${percent(one.share)}, ${amount}`);
    cell.append(text);
  } else cell.append(element("div", { className: "note" }, "has no such class"));
  return cell;
}

function row(result) {
  const tissue = result.tissue === null ? "" : number(result.tissue, 3);
  return element("tr", {}, pictureCell(result), nameCell(result),
    element("td", { data: { label: "mm² of tissue" } }, tissue),
    element("td", { data: { label: "tiles" } }, number(result.tiles)),
    shareCell(result));
}

const keys = {
  name: (result) => result.name,
  tissue: (result) => result.tissue,
  tiles: (result) => result.tiles,
  share: (result) => classOf(result)?.share ?? null,
};

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null); // what has no value comes last, up or down
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return state.up ? order : -order;
}

function showResults() {
  const text = byId("text").value.trim().toLocaleLowerCase(), kind = byId("kind").value;
  const least = Number(byId("least").value) / 100, warned = byId("warned").checked;
  const fits = (result) =>
    (!text || `${result.name}\n${result.source}`.toLocaleLowerCase().includes(text)) &&
    (!kind || result.kind === kind) &&
    (!(least > 0) || (classOf(result)?.share ?? 0) >= least) &&
    (!warned || result.warnings.length > 0);
  const shown = data.results.filter(fits);
  if (state.sort) shown.sort((a, b) => compare(keys[state.sort](a), keys[state.sort](b)));
  byId("results").replaceChildren(...shown.map(row));
  byId("shown").textContent = `${number(shown.length)} of ${number(data.results.length)} shown`;
  byId("nothing").hidden = shown.length > 0 || data.results.length === 0;
  byId("share-head").textContent = byId("class").value || "Most frequent class";
  for (const button of document.querySelectorAll("[data-sort]")) {
    const sorted = button.dataset.sort === state.sort;
    button.parentElement.setAttribute("aria-sort", sorted ? (state.up ? "ascending" : "descending") : "none");
  }
}

function sortBy(key) {
  const first = key === "name"; // names from A on, numbers from the largest on
  state.up = state.sort === key ? !state.up : first;
  state.sort = key;
  showResults();
}

// What failed, and the record

function showFailures() {
  byId("failures").hidden = data.failures.length === 0;
  for (const [path, reason, input] of data.failures) {
    const place = element("td", { className: "left" }, path);
    if (input && input !== path && !path.startsWith(input)) place.append(element("div", { className: "note" }, `in ${input}`));
    byId("failure-rows").append(element("tr", {}, place, element("td", { className: "left" }, reason)));
  }
}

function showRecord() {
  const { record } = data;
  const rows = [
    ["command", record.command],
    ["began", record.began],
    ["seconds", number(record.seconds, 1)],
    ["executed", (record.executed ?? []).join("; ")],
    ["bundle", record.bundle?.path],
    ["versions", Object.entries(record.versions ?? {}).map((pair) => pair.join(" ")).join(", ")],
    ["peak memory", record.peak_memory_mb ? `${number(record.peak_memory_mb)} MB` : ""],
    ["left out", (record.skipped ?? []).map(({ kind, count: n, example }) => `${number(n)} ${kind}, e.g. ${example}`).join("; ")],
    ["notes", (record.notes ?? []).join("; ")],
  ];
  byId("run").append(factsTable(rows.filter(([, value]) => value)));
  byId("record").textContent = JSON.stringify(record, null, 2);
}

function showLead() {
  byId("title").textContent = data.title;
  const of = (kind) => data.results.filter((result) => result.kind === kind).length;
  const parts = [count(of("slide"), "slide"), count(of("set"), "set of tiles", "sets of tiles")].filter((text) => !text.startsWith("0 "));
  byId("lead").textContent = parts.join(", ") || "No results";
  const failed = data.failures.length;
  byId("failed-link").hidden = failed === 0;
  byId("failed-link").firstElementChild.textContent = `${number(failed)} could not be used`;
}

const names = new Set(data.results.flatMap((result) => result.classes.map(({ name }) => name)));
for (const name of names) byId("class").append(element("option", { value: name }, name));
byId("filters").addEventListener("input", showResults);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => sortBy(button.dataset.sort));
}
showLead();
showTotals();
showFailures();
showRecord();
showResults();
