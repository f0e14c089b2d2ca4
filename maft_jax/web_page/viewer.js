// The viewer of the page: colours over the picture, names under the pointer, a legend.
// gr.HTML runs this once, with `element`, `props` and `watch`; props.value is what
// viewer.viewer_data makes: classes, or objects with a detail each. Class names enter the document as text, never as markup.

const NOTHING = 0xffff;
const FADED = 60; // alpha of the other classes while the pointer is on one in the legend
const LIGHT = 0.55; // of white in the outlines of objects

let shown = null; // props.value
let labels = null; // Uint16Array: for each pixel a place in shown.classes, or NOTHING
let alone = null; // the place that keeps its full colour while others are faded

const part = (name) => element.querySelector("." + name);

function make(kind, className, text = "") {
  const node = document.createElement(kind);
  node.className = className;
  node.textContent = text;
  return node;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint16Array(await new Response(plain).arrayBuffer());
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : (100 * share).toFixed(1) + " %";
}

function paint() {
  const canvas = part("colours");
  canvas.width = shown.width;
  canvas.height = shown.height;
  const pixels = new ImageData(shown.width, shown.height);
  const colours = new Uint32Array(pixels.data.buffer);
  const palette = shown.classes.map(({ color: [red, green, blue] }, place) => {
    const alpha = alone === null || alone === place ? 255 : FADED;
    return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const light = palette.map(lighter);
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] === NOTHING) continue;
    colours[i] = (shown.outlines && isEdge(i) ? light : palette)[labels[i]];
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function lighter(colour) {
  const shift = [0, 8, 16].map((bits) => {
    const value = (colour >>> bits) & 255;
    return Math.round(value + LIGHT * (255 - value)) << bits;
  });
  return ((colour & 0xff000000) | shift[0] | shift[1] | shift[2]) >>> 0;
}

function isEdge(i) {
  const x = i % shown.width;
  return (
    (x > 0 && labels[i - 1] !== labels[i]) ||
    (x < shown.width - 1 && labels[i + 1] !== labels[i]) ||
    (i >= shown.width && labels[i - shown.width] !== labels[i]) ||
    (i + shown.width < labels.length && labels[i + shown.width] !== labels[i])
  );
}

function mark(place) {
  element.querySelectorAll(".entry").forEach((entry) => {
    entry.classList.toggle("current", entry.dataset.place === String(place));
  });
}

function fadeOthers(place) {
  if (place === alone) return;
  alone = place;
  paint();
}

function describe() {
  const legend = part("legend");
  legend.replaceChildren();
  part("names").replaceChildren();
  shown.classes.forEach(({ name, color, share, detail }, i) => {
    const entry = make("li", "entry");
    const swatch = make("span", "swatch");
    swatch.style.background = `rgb(${color.join(" ")})`;
    entry.append(swatch, make("span", "name", name), make("span", "share", percent(share)));
    entry.title = detail ? `${name} · ${detail}` : name;
    entry.tabIndex = 0;
    entry.dataset.place = i;
    legend.append(entry);
  });
  shown.written.forEach(({ name, x, y }) => {
    const label = make("span", "region-name", name);
    label.dataset.x = x;
    label.dataset.y = y;
    part("names").append(label);
  });
  placeNames();
  if (shown.rest > 0) {
    const entry = make("li", "entry");
    entry.append(
      make("span", "swatch"),
      make("span", "name", "none of these"),
      make("span", "share", percent(shown.rest)),
    );
    entry.dataset.place = NOTHING;
    legend.append(entry);
  }
  part("absent").textContent = shown.absent;
  part("note").textContent = shown.note;
  part("colours").setAttribute("aria-label", shown.classes.map(({ name }) => name).join(", "));
}

function placeNames() {
  const { width, height } = part("stage").getBoundingClientRect();
  for (const label of part("names").children) {
    const [halfWidth, halfHeight] = [label.offsetWidth / 2, label.offsetHeight / 2];
    const x = Math.max(halfWidth, Math.min(label.dataset.x * width, width - halfWidth));
    const y = Math.max(halfHeight, Math.min(label.dataset.y * height, height - halfHeight));
    label.style.left = x + "px";
    label.style.top = y + "px";
  }
}

async function show() {
  if (!props.value) return;
  shown = props.value;
  alone = null;
  labels = null;
  const unpacked = await unpack(shown.labels);
  if (shown !== props.value) return; // a newer one came meanwhile
  labels = unpacked;
  part("picture").src = shown.picture;
  part("empty").hidden = true;
  part("stage").hidden = false;
  describe();
  paint();
}

function placeAt(event) {
  const box = part("colours").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * shown.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * shown.height);
  if (x < 0 || y < 0 || x >= shown.width || y >= shown.height) return NOTHING;
  return labels[y * shown.width + x];
}

function tell(event) {
  const tip = part("tip");
  const place = placeAt(event);
  const nothing = { name: "none of these", share: shown.rest };
  const { name, share, detail } = shown.classes[place] ?? nothing;
  tip.textContent = [name, detail, percent(share)].filter(Boolean).join(" · ");
  tip.hidden = false;
  const stage = part("stage").getBoundingClientRect();
  const x = event.clientX - stage.left + 14;
  const y = event.clientY - stage.top + 16;
  tip.style.left = Math.max(0, Math.min(x, stage.width - tip.offsetWidth)) + "px";
  tip.style.top = Math.max(0, Math.min(y, stage.height - tip.offsetHeight)) + "px";
  mark(place);
}

function look(event) {
  if (labels === null) return;
  if (event.target.closest(".colours")) {
    fadeOthers(null);
    tell(event);
    return;
  }
  part("tip").hidden = true;
  const place = event.target.closest(".entry")?.dataset.place;
  mark(place);
  fadeOthers(place === undefined || Number(place) === NOTHING ? null : Number(place));
}

function lookAway() {
  if (labels === null) return;
  part("tip").hidden = true;
  mark(null);
  fadeOthers(null);
}

for (const kind of ["pointermove", "pointerdown", "focusin"]) {
  element.addEventListener(kind, look);
}
element.addEventListener("pointerleave", lookAway);
element.addEventListener("focusout", lookAway);
new ResizeObserver(placeNames).observe(part("stage"));
watch("value", show);
show();
