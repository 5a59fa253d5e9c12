// The page of a slide. It paints what predict/pictures.py paints in heatmap.png: the tissue of each cell in the colour
// of the square's class, the stronger, the higher the probability; hatched where there is tissue in no cell.

const classes = data.classes;
const [width, height] = data.picture.size;
const [perX, perY] = data.downsample; // pixels of level 0 for one of the picture
const tiles = {
  column: numbers(data.column, Int32Array),
  row: numbers(data.row, Int32Array),
  probability: numbers(data.probabilities, Uint16Array), // of 65535, tile after tile
  chosen: numbers(data.chosen, Uint16Array),
  area: numbers(data.area, Float32Array),
};
const n = tiles.chosen.length;
const NONE = -1;
const state = { mode: NONE, threshold: 0, off: new Set(), smooth: data.smooth, zoom: 1, tile: NONE, kept: false };

const probabilityOf = (tile, k) => tiles.probability[tile * classes.length + k] / 65535;

function tissueMask() {
  const mask = new Uint8Array(width * height);
  let place = 0, value = 0;
  for (const length of numbers(data.tissue, Uint32Array)) {
    mask.fill(value, place, place + length);
    place += length;
    value = 1 - value;
  }
  return mask;
}

// The first pixel whose centre is at or after a position in pixels of level 0.
const pixelAt = (position, step, most) => Math.min(most, Math.max(0, Math.ceil(position / step - 0.5)));

// What each pixel of the picture shows: `index` into `chosen` and `probability`, or NONE.
function cellLayer() {
  const index = new Int32Array(width * height).fill(NONE);
  const edges = (axis, step, most) => [axis.low, axis.high].map((all) => all.map((edge) => pixelAt(edge, step, most)));
  const [left, right] = edges(data.columns, perX, width);
  const [top, bottom] = edges(data.rows, perY, height);
  for (let i = 0; i < n; i++) {
    const c = tiles.column[i], r = tiles.row[i];
    for (let y = top[r]; y < bottom[r]; y++) index.fill(i, y * width + left[c], y * width + right[c]);
  }
  return { index, chosen: tiles.chosen, probability: (i, k) => probabilityOf(i, k), length: n };
}

// The stretches of an axis on which the same squares contain a point: [{first, last}], and the stretch of each pixel.
function stretches(axis, side, step, pixels) {
  const found = [], of = new Int32Array(pixels);
  let first = 0, last = 0;
  for (let pixel = 0; pixel < pixels; pixel++) {
    const at = (pixel + 0.5) * step;
    while (first < axis.start.length && axis.start[first] + side <= at) first++;
    while (last < axis.start.length && axis.start[last] <= at) last++;
    const before = found[found.length - 1];
    if (!before || before.first !== first || before.last !== last) found.push({ first, last });
    of[pixel] = found.length - 1;
  }
  return { found, of };
}

// The mean of all squares that contain a point (predict/smooth.py), by sums over all squares above and left of a corner.
function smoothLayer() {
  const across = stretches(data.columns, data.square[0], perX, width);
  const down = stretches(data.rows, data.square[1], perY, height);
  const C = data.columns.start.length + 1, R = data.rows.start.length + 1;
  const cells = across.found.length * down.found.length;
  const sums = (value) => {
    const table = new Float64Array(C * R), result = new Float64Array(cells);
    for (let i = 0; i < n; i++) table[(tiles.row[i] + 1) * C + tiles.column[i] + 1] = value(i);
    for (let p = 0; p < table.length; p++) if (p % C) table[p] += table[p - 1];
    for (let p = C; p < table.length; p++) table[p] += table[p - C];
    let p = 0;
    for (const row of down.found) {
      const a = row.first * C, b = row.last * C;
      for (const column of across.found) {
        result[p++] = table[b + column.last] - table[b + column.first] - table[a + column.last] + table[a + column.first];
      }
    }
    return result;
  };
  const counts = sums(() => 1);
  const means = classes.map((_, k) => sums((i) => probabilityOf(i, k)).map((sum, p) => (counts[p] > 0.5 ? sum / counts[p] : 0)));
  const chosen = new Uint16Array(cells);
  for (let p = 0; p < cells; p++) for (let k = 1; k < classes.length; k++) if (means[k][p] > means[chosen[p]][p]) chosen[p] = k;
  const index = new Int32Array(width * height);
  for (let y = 0, p = 0; y < height; y++) {
    const start = down.of[y] * across.found.length;
    for (let x = 0; x < width; x++, p++) index[p] = counts[start + across.of[x]] > 0.5 ? start + across.of[x] : NONE;
  }
  return { index, chosen, probability: (i, k) => means[k][i], length: cells };
}

const layers = { cells: cellLayer(), mean: null };
const tissue = tissueMask();

// The probability that counts for a tile, or NONE where it is not shown.
function shownProbability(layer, i) {
  const k = state.mode === NONE ? layer.chosen[i] : state.mode;
  const p = layer.probability(i, k);
  return p < state.threshold || (state.mode === NONE && state.off.has(k)) ? NONE : p;
}

const rgbOf = classes.map(({ colour }) => parseInt(colour.slice(1), 16));

// Red, green, blue and opacity as the 32 bits of a canvas' pixel.
function paintOf(layer, i) {
  const p = shownProbability(layer, i);
  if (p === NONE) return 0;
  const [weakest, strongest] = data.strength, chance = 1 / classes.length;
  const share = state.mode === NONE ? weakest + ((strongest - weakest) * (p - chance)) / (1 - chance) : strongest * p;
  const rgb = rgbOf[state.mode === NONE ? layer.chosen[i] : state.mode];
  const bgr = ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
  return ((Math.round(255 * Math.max(0, share)) << 24) | bgr) >>> 0;
}

function paint() {
  if (state.smooth && !layers.mean) layers.mean = smoothLayer();
  const layer = state.smooth ? layers.mean : layers.cells;
  const paints = new Uint32Array(layer.length);
  for (let i = 0; i < layer.length; i++) paints[i] = paintOf(layer, i);
  const context = byId("heat").getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const period = Math.max(4, Math.floor(Math.max(width, height) / 200)), stripe = Math.max(1, Math.floor(period / 4));
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0; x < width; x++, p++) {
      if (!tissue[p]) continue;
      const i = layer.index[p];
      pixels[p] = i >= 0 ? paints[i] : (x + y) % period < stripe ? 0xff000000 : 0;
    }
  }
  context.putImageData(image, 0, 0);
  showCounts();
}

function showCounts() {
  const shown = classes.map(() => ({ tiles: 0, area: 0 }));
  for (let i = 0; i < n; i++) {
    if (shownProbability(layers.cells, i) === NONE) continue;
    const k = state.mode === NONE ? tiles.chosen[i] : state.mode;
    shown[k].tiles += 1;
    shown[k].area += tiles.area[i];
  }
  const all = shown.reduce((sum, { tiles, area }) => ({ tiles: sum.tiles + tiles, area: sum.area + area }), { tiles: 0, area: 0 });
  byId("shown").textContent = `${number(all.tiles)} of ${count(n, "tile")} shown, ${mm2(all.area)} of tissue`;
  for (const [k, { tiles, area }] of shown.entries()) {
    const row = byId("classes").rows[k];
    row.cells[1].textContent = number(tiles);
    row.cells[2].textContent = number(area, 3);
    row.cells[3].textContent = data.summary.tissue_mm2 ? percent(area / data.summary.tissue_mm2) : "";
  }
}

// The tiles

function select(tile, { keep = false, reveal = false } = {}) {
  state.tile = tile;
  state.kept = keep && tile !== NONE;
  const ring = byId("ring");
  ring.hidden = tile === NONE;
  ring.classList.toggle("kept", state.kept);
  if (tile !== NONE) {
    const place = { left: data.columns.start[tiles.column[tile]] / perX / width, top: data.rows.start[tiles.row[tile]] / perY / height };
    const size = { width: data.square[0] / perX / width, height: data.square[1] / perY / height };
    for (const [name, share] of Object.entries({ ...place, ...size })) ring.style[name] = `${100 * share}%`;
    if (reveal) ring.scrollIntoView({ block: "center", inline: "center" });
  }
  showTile();
}

function showTile() {
  const place = byId("tile"), tile = state.tile;
  place.replaceChildren();
  if (tile === NONE) {
    place.append(element("p", { className: "note" }, "Point at the slide to see the tile there."));
    return;
  }
  const x = Math.round(data.columns.start[tiles.column[tile]]), y = Math.round(data.rows.start[tiles.row[tile]]);
  const chosen = classes[tiles.chosen[tile]];
  place.append(
    element("p", { className: "strong" }, swatch(chosen.colour), `${chosen.name} ${percent(probabilityOf(tile, tiles.chosen[tile]))}`),
    element("p", { className: "note" }, `x ${number(x)}, y ${number(y)}; ${data.size.join(" × ")} pixels of level 0`));
  const order = classes.map((_, k) => k).sort((a, b) => probabilityOf(tile, b) - probabilityOf(tile, a));
  const rows = order.map((k) =>
    element("tr", {},
      element("th", { scope: "row", className: "left name" }, classes[k].name),
      element("td", { className: "wide" }, meter(probabilityOf(tile, k), classes[k].colour)),
      element("td", {}, percent(probabilityOf(tile, k)))));
  place.append(element("table", { className: "tile" }, element("tbody", {}, ...rows)));
}

function tileUnder(event) {
  const box = byId("frame").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  return x < 0 || y < 0 || x >= width || y >= height ? NONE : layers.cells.index[y * width + x];
}

// The nearest tile in a direction; steps aside count double.
function neighbour(tile, dx, dy) {
  const place = (i) => [data.columns.start[tiles.column[i]], data.rows.start[tiles.row[i]]];
  if (tile === NONE) return n ? 0 : NONE;
  const [x, y] = place(tile);
  let best = tile, least = Infinity;
  for (let i = 0; i < n; i++) {
    const [ox, oy] = place(i);
    const ahead = dx * (ox - x) + dy * (oy - y), aside = Math.abs(dy * (ox - x)) + Math.abs(dx * (oy - y));
    if (ahead <= 0 || aside > ahead) continue;
    if (ahead + 2 * aside < least) [best, least] = [i, ahead + 2 * aside];
  }
  return best;
}

function showSample(sample) {
  const k = tiles.chosen[sample.index], p = percent(probabilityOf(sample.index, k));
  const button = element("button", { type: "button", className: "sample", data: { tile: sample.index } },
    element("img", { src: sample.src, alt: "" }),
    element("span", {}, swatch(classes[k].colour), element("span", { className: "name" }, classes[k].name)), element("span", {}, p));
  button.setAttribute("aria-label", `${classes[k].name} ${p}: show on the slide`);
  button.addEventListener("click", () => {
    select(sample.index, { keep: true, reveal: true });
    byId("frame").focus({ preventScroll: true });
  });
  return button;
}

// The parts of the page

function showHead() {
  const facts = data.summary;
  byId("name").textContent = data.name;
  byId("lead").textContent = `${mm2(facts.tissue_mm2)} of tissue, ${count(n, "tile")}, ${pairText(facts.mpp.map((um) => Number(um.toPrecision(4))))} µm per pixel, ${number(facts.width)} × ${number(facts.height)} pixels`;
  showWarnings(facts.warnings, byId("warnings"));
  if (data.home) Object.assign(byId("home"), { href: data.home, hidden: false });
  const left = new Set(["warnings", "classes"]);
  const rows = Object.entries(facts).filter(([key, value]) => !left.has(key) && value !== null);
  byId("facts").append(factsTable(rows.map(factRow)));
  showFiles(data.files, byId("files"));
}

function showClasses() {
  for (const [k, { name, colour }] of classes.entries()) {
    const box = element("input", { type: "checkbox", checked: true, data: { class: k } });
    box.addEventListener("change", () => {
      if (box.checked) state.off.delete(k);
      else state.off.add(k);
      paint();
    });
    const label = element("label", { className: "check" }, box, swatch(colour), element("span", { className: "name", title: name }, name));
    byId("classes").append(element("tr", {}, element("th", { scope: "row", className: "left" }, label), element("td"), element("td"), element("td")));
    byId("colour-by").append(element("option", { value: k }, `probability of ${name}`));
  }
  byId("colour-by").prepend(element("option", { value: NONE, selected: true }, "the most probable class"));
}

function switchClasses(on) {
  state.off = new Set(on ? [] : classes.keys());
  for (const box of document.querySelectorAll("[data-class]")) box.checked = on;
  paint();
}

function zoomTo(zoom) {
  const scroll = byId("scroll");
  const middle = [(scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth, (scroll.scrollTop + scroll.clientHeight / 2) / scroll.scrollHeight];
  state.zoom = Math.min(16, Math.max(1, zoom));
  byId("frame").style.setProperty("--zoom", state.zoom);
  byId("zoom").textContent = `${number(100 * state.zoom)} %`;
  scroll.scrollTo(middle[0] * scroll.scrollWidth - scroll.clientWidth / 2, middle[1] * scroll.scrollHeight - scroll.clientHeight / 2);
  byId("out").disabled = state.zoom === 1;
  byId("in").disabled = state.zoom === 16;
  showScale();
}

function showScale() {
  const across = (byId("scroll").clientWidth / byId("frame").clientWidth) * width * perX * data.mpp[0]; // µm
  const power = 10 ** Math.floor(Math.log10(across / 4));
  const length = Math.max(...[1, 2, 5].map((step) => step * power).filter((step) => step <= across / 4));
  byId("scale-bar").style.width = `${(length / (width * perX * data.mpp[0])) * byId("frame").clientWidth}px`;
  byId("scale-text").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
}

function listen() {
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("opacity", "input", () => {
    byId("opacity-value").textContent = `${byId("opacity").value} %`;
    byId("heat").style.opacity = byId("opacity").value / 100;
  });
  on("threshold", "input", () => {
    byId("threshold-value").textContent = `${byId("threshold").value} %`;
    state.threshold = byId("threshold").value / 100;
    paint();
  });
  on("colour-by", "change", () => {
    state.mode = Number(byId("colour-by").value);
    for (const box of document.querySelectorAll("[data-class], #all, #none")) box.disabled = state.mode !== NONE;
    paint();
  });
  on("smooth", "change", () => {
    state.smooth = byId("smooth").checked;
    paint();
  });
  on("grey", "change", () => byId("slide").classList.toggle("grey", byId("grey").checked));
  on("all", "click", () => switchClasses(true));
  on("none", "click", () => switchClasses(false));
  on("in", "click", () => zoomTo(state.zoom * 2));
  on("out", "click", () => zoomTo(state.zoom / 2));
  on("fit", "click", () => zoomTo(1));
  on("frame", "pointermove", (event) => {
    if (state.kept) return;
    const tile = tileUnder(event);
    if (tile !== state.tile) select(tile);
  });
  on("frame", "pointerleave", () => {
    if (!state.kept) select(NONE);
  });
  on("frame", "click", (event) => {
    const tile = tileUnder(event);
    select(tile, { keep: tile !== state.tile || !state.kept });
  });
  on("frame", "keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) select(neighbour(state.tile, ...step), { keep: true, reveal: state.zoom > 1 });
    else if (event.key === "Enter" && state.tile !== NONE) select(state.tile, { keep: true });
    else if (event.key === "Escape") select(NONE);
    else return;
    event.preventDefault();
  });
  window.addEventListener("resize", showScale);
}

byId("slide").src = data.picture.src;
byId("frame").style.setProperty("--aspect", width / height);
Object.assign(byId("heat"), { width, height });
byId("smooth-label").hidden = !data.overlap;
byId("smooth").checked = data.smooth;
showHead();
showClasses();
byId("least-sure").append(...data.leastSure.map(showSample));
for (const samples of data.surest) {
  byId("surest").append(element("div", { className: "strip" }, ...samples.map(showSample)));
}
listen();
paint();
select(NONE);
zoomTo(1);
byId("opacity").dispatchEvent(new Event("input"));
byId("threshold-value").textContent = "0 %";
