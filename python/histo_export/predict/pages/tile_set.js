// The page of a set of tiles.

const { classes, summary } = data;

// The end of a path, which tells one tile from another.
function endOf(name, most = 14) {
  return name.length > most ? `…${name.slice(1 - most)}` : name;
}

function showSample(sample) {
  const { name, colour } = classes[sample.chosen];
  return element("figure", { className: "sample", title: sample.name },
    element("img", { src: sample.src, alt: `Tile ${sample.name}` }),
    element("figcaption", {},
      element("span", { className: "line" }, swatch(colour), element("span", { className: "name" }, name)),
      element("span", { className: "line" }, percent(sample.probability)),
      element("span", { className: "line note" }, element("span", { className: "name" }, endOf(sample.name)))));
}

byId("home").href = data.home;
byId("name").textContent = data.name;
const lost = summary.failed ? `, ${number(summary.failed)} could not be used` : "";
byId("lead").textContent = `${count(summary.tiles, "tile")}${lost}`;
showWarnings(summary.warnings ?? [], byId("warnings"));
for (const { name, colour, tiles } of classes) {
  const share = summary.tiles ? tiles / summary.tiles : 0;
  byId("classes").append(element("tr", {},
    element("th", { scope: "row", className: "left" }, swatch(colour), name),
    element("td", {}, number(tiles)),
    element("td", {}, percent(share)),
    element("td", { className: "wide" }, meter(share, colour))));
}
for (const [split, report] of Object.entries(summary.splits ?? {})) {
  byId("accuracy-section").hidden = false;
  const [low, high] = report.interval;
  byId("accuracy").append(element("tr", {},
    element("th", { scope: "row", className: "left" }, split),
    element("td", {}, number(report.tiles)),
    element("td", {}, percent(report.accuracy)),
    element("td", {}, `${percent(low)} to ${percent(high)}`)));
}
byId("least-sure").append(...data.leastSure.map(showSample));
for (const samples of data.surest) {
  byId("surest").append(element("div", { className: "strip" }, ...samples.map(showSample)));
}
for (const name of data.pictures) {
  byId("pictures-section").hidden = false;
  byId("pictures").append(element("img", { src: encodeURIComponent(name), alt: name.replace(/\.png$/, ""), loading: "lazy" }));
}
const plain = Object.entries(summary).filter(([, value]) => ["string", "number"].includes(typeof value));
byId("facts").append(factsTable(plain.map(factRow)));
showFiles(data.files, byId("files"));
