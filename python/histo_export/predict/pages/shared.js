"use strict";

// What all pages share. Names come from users: they only ever become text, never HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// An element with properties, data attributes (`data`), ARIA attributes and children; strings become text.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name.startsWith("aria-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function percent(share) {
  return `${number(100 * share, 1)} %`;
}

function mm2(area) {
  return `${number(area, area < 100 ? 3 : 1)} mm²`;
}

function count(n, one, many = `${one}s`) {
  return `${number(n)} ${n === 1 ? one : many}`;
}

function swatch(colour) {
  const made = element("span", { className: "swatch", "aria-hidden": "true" });
  made.style.background = colour;
  return made;
}

// Parts of a whole as one bar: [{name, colour, share}]. The text says the same for those who don't see it.
function stackedBar(parts, rest = 0) {
  const shown = parts.filter((part) => part.share > 0);
  const text = shown.map((part) => `${part.name} ${percent(part.share)}`);
  if (rest > 0.0005) text.push(`not analysed ${percent(rest)}`);
  const bar = element("div", { className: "bar", role: "img", "aria-label": text.join(", ") });
  for (const part of shown) {
    const piece = element("span", { title: `${part.name} ${percent(part.share)}` });
    piece.style.width = `${100 * part.share}%`;
    piece.style.background = part.colour;
    bar.append(piece);
  }
  return bar;
}

// One value from 0 to 1 as a bar.
function meter(share, colour) {
  const fill = element("span");
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  fill.style.background = colour;
  return element("div", { className: "bar meter", "aria-hidden": "true" }, fill);
}

function showWarnings(warnings, place) {
  for (const text of warnings) place.append(element("p", { className: "warning" }, text));
}

// Rows of a heading and a value.
function factsTable(rows) {
  const made = rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row", className: "left" }, name), element("td", {}, value)));
  return element("table", { className: "facts" }, element("tbody", {}, ...made));
}

// A key of summary.json and its value, for people.
function factRow([key, value]) {
  const name = key.replace(/_um$/, " (µm)").replace(/_pixels$/, " (pixels)").replace(/_mm2$/, " (mm²)").replaceAll("_", " ");
  return [name, pairText(value)];
}

// Values of x and y; one of them where both are equal.
function pairText(values) {
  return [...new Set([values].flat().map(String))].length === 1 ? String([values].flat()[0]) : values.join(" × ");
}

// Links to files that lie beside the page.
function showFiles(files, place) {
  for (const name of files) {
    place.append(element("li", {}, element("a", { href: encodeURIComponent(name) }, name)));
  }
}

// The array of little-endian numbers in a base64 text.
function numbers(text, Kind) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Kind(bytes.buffer);
}
