"use strict";
// Everything from the data becomes a text node: nothing here reads markup.

const page = { index: null, layers: new Map(), waiting: new Map(), at: -1, shown: [], query: null, cell: "0 0" };
const choice = { layer: null, language: null, selection: null, sort: 0, map: "count" };
const byId = (id) => document.getElementById(id);
const main = document.querySelector("main");
const dialog = document.querySelector("dialog");

function make(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "style") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else if (name in node && name !== "lang") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((each) => each !== null));
  return node;
}

/* A node in the color of a language. */
function inColour(code, tag, settings = {}, ...children) {
  const language = page.index.languages[code];
  const style = { ...settings.style, "--color": language.color };
  return make(tag, { ...settings, "data-language": language.code, style }, ...children);
}

// ---------------------------------------------------------------- data

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/* Layers of a folder come as programs that call this. */
window.neuronLayer = (layer, text) => page.waiting.get(layer)?.(text);

function layerText(layer) {
  const inside = byId(`layer-${layer}`);
  if (inside) return Promise.resolve(inside.textContent);
  return new Promise((resolve, reject) => {
    page.waiting.set(layer, resolve);
    const script = make("script", { src: `layer-${layer}.js` });
    script.onerror = () => reject(new Error(`layer-${layer}.js is missing beside this page`));
    document.head.append(script);
  });
}

function layerOf(layer) {
  if (!page.layers.has(layer)) {
    page.layers.set(layer, layerText(layer).then(unpack).then((data) => {
      data.place = new Map(data.neurons.map((neuron, place) => [neuron, place]));
      for (const stretch of data.stretches) {
        let end = 0;
        stretch.ends = stretch[3].map((size) => (end += size)); // where each piece ends
      }
      return data;
    }));
  }
  return page.layers.get(layer);
}

function prepare(index) {
  index.neurons = index.neurons.map(([layer, neuron, rate, low, high, scores, members], place) => ({
    layer, neuron, rate, low, high, scores, members, place,
    id: `L${layer}N${neuron}`,
    own: new Set(members.map(([, language]) => language)),
    effect: index.effects ? index.effects[place] : null,
  }));
  index.byId = new Map(index.neurons.map((each) => [each.id, each]));
  return index;
}

// ---------------------------------------------------------------- which neurons are listed

function inSelection(neuron) {
  return choice.selection === null || neuron.members.some(([name]) => name === choice.selection);
}

function belongs(neuron, language) {
  return neuron.members.some(
    ([name, code]) => code === language && (choice.selection === null || name === choice.selection),
  );
}

function filtered() {
  const { query } = page;
  const kept = page.index.neurons.filter((neuron) =>
    inSelection(neuron) &&
    (choice.layer === null || neuron.layer === choice.layer) &&
    (choice.language === null || belongs(neuron, choice.language)) &&
    (query === null || query.has(neuron.id)));
  const key = {
    place: (neuron) => neuron.place,
    rate: (neuron) => -Math.max(...neuron.rate),
  }[choice.sort] ?? ((neuron) => neuron.scores[choice.sort] ?? Infinity);
  return kept.sort((one, other) => key(one) - key(other) || one.place - other.place);
}

/* The neurons that a query names, or in whose contexts it stands; null: there is no query. */
async function ask(text, stillWanted) {
  const query = text.trim();
  if (query === "") return null;
  const named = /^l\s*(\d+)\s*[.,:/ ]?\s*(?:n\s*(\d*))?$/i.exec(query);
  if (named) {
    const [, layer, neuron] = named;
    return { text: "", has: (id) => neuron ? id.startsWith(`L${Number(layer)}N${neuron}`) : id.startsWith(`L${Number(layer)}N`) };
  }
  const words = query.toLowerCase();
  const found = new Set();
  const layers = [...new Set(page.index.neurons.map((each) => each.layer))];
  for (const [done, layer] of layers.entries()) {
    const data = await layerOf(layer);
    if (!stillWanted()) return null;
    if (!byId(`layer-${layer}`)) byId("found").textContent = `reading layer ${done + 1} of ${layers.length} …`;
    const places = data.stretches.map((stretch) => occurrences(stretch[2].toLowerCase(), words));
    data.contexts.forEach((languages, place) => {
      if (languages.some((contexts) => contexts.some((context) => holds(data, context, places, words.length)))) {
        found.add(`L${layer}N${data.neurons[place]}`);
      }
    });
  }
  return { text: words, has: (id) => found.has(id) };
}

function occurrences(text, words) {
  const found = [];
  for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + 1)) found.push(at);
  return found;
}

function span(data, [stretch, first, , , shades]) {
  const { ends } = data.stretches[stretch];
  return [first ? ends[first - 1] : 0, ends[first + shades.length - 1]];
}

function holds(data, context, places, size) {
  const here = places[context[0]];
  if (!here.length) return false;
  const [begin, end] = span(data, context);
  return here.some((at) => at >= begin && at + size <= end);
}

// ---------------------------------------------------------------- the left side

function drawFilters() {
  const { index } = page;
  const pick = (name, label, options) => {
    const select = make("select", { title: label, ariaLabel: label, className: name });
    for (const [place, [, text]] of options.entries()) select.append(make("option", { value: place, textContent: text }));
    select.value = options.findIndex(([value]) => value === choice[name]);
    select.onchange = () => {
      choice[name] = options[select.value][0];
      refresh();
    };
    return select;
  };
  const selections = index.selections.map((name, place) => [place, name]);
  byId("filters").replaceChildren(
    pick("language", "Belongs to", [[null, "all languages"], ...index.languages.map((each, code) => [code, each.name])]),
    pick("map", "The map shows", [["count", "map: neurons"], ["rate", "map: rates, %"]]),
    ...(selections.length > 1 ? [pick("selection", "Selected by", [[null, "all selections"], ...selections])] : []),
    pick("sort", "Order", [...index.scores.map((name, place) => [place, `by ${name}`]), ["place", "by layer"], ["rate", "by highest rate"]]),
  );
}

function drawMap() {
  const { index } = page;
  const wanted = index.neurons.filter(inSelection);
  const cells = new Map();
  let most = 0;
  for (let layer = 0; layer < index.layers; layer++) {
    const here = wanted.filter((each) => each.layer === layer);
    index.languages.forEach((_, code) => {
      const value = choice.map === "count"
        ? here.filter((each) => belongs(each, code)).length
        : here.reduce((sum, each) => sum + each.rate[code], 0) / (here.length || 1);
      most = Math.max(most, value);
      cells.set(`${layer} ${code}`, value);
    });
  }
  const press = (layer, code) => () => {
    const same = choice.layer === layer && choice.language === code;
    choice.layer = same ? null : layer;
    choice.language = same ? null : code;
    drawFilters();
    refresh();
  };
  const place = (row, code) => ({ "data-cell": `${row} ${code}`, tabIndex: page.cell === `${row} ${code}` ? 0 : -1 });
  const head = make("tr", {}, make("th", { textContent: "" }), ...index.languages.map((each, code) =>
    make("th", { scope: "col" }, inColour(code, "button", {
      type: "button", textContent: each.code, title: each.name, onclick: press(null, code), ...place(0, code),
      ariaPressed: String(choice.language === code && choice.layer === null),
    }))));
  const rows = [];
  for (let layer = index.layers - 1; layer >= 0; layer--) {
    rows.push(make("tr", {}, make("th", { scope: "row", textContent: layer, title: `layer ${layer}` }),
      ...index.languages.map((each, code) => {
        const value = cells.get(`${layer} ${code}`);
        const share = most ? value / most : 0;
        const said = choice.map === "count" ? `${value}` : percent(value);
        return make("td", {}, inColour(code, "button", {
          type: "button", style: { "--share": share }, onclick: press(layer, code), ...place(index.layers - layer, code),
          textContent: choice.map === "count" ? value || "" : value ? Math.round(100 * value) : "",
          title: `layer ${layer}, ${each.name}: ${said}`,
          ariaLabel: `layer ${layer}, ${each.name}: ${said}`,
          ariaPressed: String(choice.layer === layer && choice.language === code),
        }));
      })));
  }
  const held = document.activeElement?.dataset.cell; // where the keyboard was, before all is new
  byId("map").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  if (held) cellAt(held)?.focus();
}

const cellAt = (cell) => byId("map").querySelector(`[data-cell="${cell}"]`);

/* The map is one stop of the tab key; inside it arrows lead from cell to cell. */
function moveInMap(event) {
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!by) return false;
  const cell = event.target.dataset.cell.split(" ").map((each, axis) => Number(each) + by[axis]).join(" ");
  cellAt(cell)?.focus();
  return true;
}

const PORTION = 100;
let watcher = null;

function drawList() {
  const list = byId("list");
  watcher?.disconnect();
  list.replaceChildren();
  list.scrollTop = 0;
  let drawn = 0;
  const more = () => {
    const some = page.shown.slice(drawn, drawn + PORTION).map(entry);
    drawn += some.length;
    list.append(...some);
    if (drawn < page.shown.length) watcher.observe(list.lastElementChild);
  };
  watcher = new IntersectionObserver((entries) => {
    if (!entries.some((each) => each.isIntersecting)) return;
    watcher.disconnect();
    more();
  }, { root: list, rootMargin: "200px" });
  more();
  const place = page.shown.findIndex((each) => each.place === page.at);
  while (drawn <= place && drawn < page.shown.length) more();
}

function entry(neuron) {
  const most = Math.max(...neuron.rate) || 1;
  return make("a", { href: `#${neuron.id}`, "data-id": neuron.id, tabIndex: -1 },
    make("span", { textContent: neuron.id }),
    make("span", { className: "dots" }, ...[...neuron.own].sort((a, b) => a - b).map((code) =>
      inColour(code, "i", { title: page.index.languages[code].name }))),
    make("span", { className: "spark" }, ...neuron.rate.map((rate, code) =>
      inColour(code, "i", { style: { "--share": rate / most } }))));
}

function mark() {
  const { index, at } = page;
  const id = index.neurons[at]?.id;
  const list = byId("list");
  for (const link of list.querySelectorAll("[tabindex='0']")) {
    link.removeAttribute("aria-current");
    link.tabIndex = -1;
  }
  const link = list.querySelector(`[data-id="${id}"]`);
  link?.setAttribute("aria-current", "true");
  link?.scrollIntoView({ block: "nearest" });
  const stop = link ?? list.firstElementChild; // of the tab key
  if (stop) stop.tabIndex = 0;
}

function refresh() {
  page.shown = filtered();
  const total = page.index.neurons.length;
  const n = page.shown.length;
  const many = (count) => count.toLocaleString("en") + (count === 1 ? " neuron" : " neurons");
  byId("found").textContent = n === total ? many(n) : `${n.toLocaleString("en")} of ${many(total)}`;
  drawMap();
  drawList();
  if (n && !page.shown.some((each) => each.place === page.at)) return open(page.shown[0]);
  mark();
  return draw();
}

// ---------------------------------------------------------------- one neuron

const percent = (share) => {
  const number = 100 * share;
  return `${number >= 10 ? number.toFixed(1) : number >= 0.1 ? number.toFixed(2) : number.toPrecision(1)} %`;
};
const signed = (number) => `${number > 0 ? "+" : number < 0 ? "−" : ""}${Math.abs(number).toPrecision(2)}`;

function bars(values, say) {
  const { languages } = page.index;
  const ends = values.flatMap((each) => (each ? each.filter((end) => end !== null) : []));
  const from = Math.min(0, ...ends);
  const size = Math.max(0, ...ends) - from || 1;
  const rows = languages.flatMap((language, code) => {
    const name = inColour(code, "span", { className: "name", textContent: language.name });
    if (!values[code]) return [name, make("span", { className: "track" }), make("span", { className: "number soft", textContent: "not measured" })];
    const [value, low, high] = values[code];
    const place = (a, b) => ({ "--from": (Math.min(a, b) - from) / size, "--size": Math.abs(b - a) / size });
    const track = inColour(code, "span", { className: "track" }, make("span", { className: "bar", style: place(0, value) }));
    if (from < 0) track.append(make("span", { className: "zero", style: place(0, 0) }));
    if (low !== null) track.append(make("span", { className: "range", style: place(low, high) }));
    const number = make("span", { className: "number", textContent: say(value), title: low === null ? "" : `${say(low)} to ${say(high)}` });
    return [name, track, number];
  });
  return make("div", { className: "bars" }, ...rows);
}

function tokens(list) {
  return make("ol", { className: "tokens" }, ...list.map((token) => {
    const visible = token.replaceAll("\n", "↵").replaceAll("\t", "⇥");
    const lead = /^ */.exec(visible)[0].length;
    const item = make("li", { dir: "auto", title: JSON.stringify(token) });
    if (lead) item.append(make("span", { className: "gap", textContent: "·".repeat(lead) }));
    item.append(visible.slice(lead));
    return item;
  }));
}

function contextNode(data, context, peakGate) {
  const [number, first, strongest, gate, shades] = context;
  const stretch = data.stretches[number];
  const [code, source, text] = stretch;
  const { ends } = stretch;
  const size = page.query?.text.length ?? 0;
  const hits = size ? occurrences(text.toLowerCase(), page.query.text) : [];
  const language = page.index.languages[code];
  const line = make("p", { lang: language.code, dir: language.direction });
  [...shades].forEach((shade, place) => {
    const piece = first + place;
    const begin = piece ? ends[piece - 1] : 0;
    const letters = text.slice(begin, ends[piece]) || (piece === strongest ? "▯" : "");
    const level = parseInt(shade, 36) / 35;
    const hit = hits.some((at) => at < ends[piece] && at + size > begin);
    if (!level && !hit && piece !== strongest) return line.append(letters);
    const classes = [piece === strongest ? "peak" : "", hit ? "hit" : ""].filter(Boolean).join(" ");
    line.append(make("span", {
      textContent: letters, className: classes, style: { "--heat-share": level.toFixed(3) },
      title: level ? `gate ≈ ${(level * peakGate).toPrecision(2)}` : "",
    }));
    return undefined;
  });
  return make("div", { className: "context" }, line,
    make("small", { className: "soft" }, make("span", { textContent: source, title: `the row of text that begins at ${source}` }), make("b", { textContent: gate.toPrecision(3), title: "gate at the underlined token" })));
}

const highest = (here) => Math.max(0, ...here.flat().map((context) => context[3]));

function contextColumns(neuron, data, here) {
  const peakGate = highest(here);
  return make("div", { className: "columns", tabIndex: 0, role: "region", ariaLabel: "Contexts in each language" }, ...page.index.languages.map((language, code) =>
    inColour(code, "section", { className: neuron.own.has(code) ? "column member" : "column" },
      make("h4", {}, `${language.name} `, make("span", { lang: language.code, dir: "auto", textContent: language.endonym === language.name ? "" : language.endonym })),
      ...(here[code].length
        ? here[code].map((context) => contextNode(data, context, peakGate))
        : [make("p", { className: "soft", textContent: "Never fires here." })]))));
}

let drawing = 0;

async function draw() {
  const { index } = page;
  const neuron = index.neurons[page.at];
  if (!neuron) return;
  const turn = ++drawing;
  let data;
  try {
    data = await layerOf(neuron.layer);
  } catch (error) {
    main.replaceChildren(make("p", { textContent: `${error.message}.` }));
    return;
  }
  if (turn !== drawing) return;
  const place = data.place.get(neuron.neuron);
  const at = page.shown.findIndex((each) => each.place === page.at);
  const head = make("div", { className: "head" },
    make("h2", { textContent: `Layer ${neuron.layer}, neuron ${neuron.neuron}` }),
    ...neuron.members.map(([name, code]) => inColour(code, "span", {
      className: "badge", textContent: index.languages[code].name + (index.selections.length > 1 ? ` · ${index.selections[name]}` : ""),
      title: `selected by ${index.selections[name]}`,
    })),
    ...index.scores.map((name, n) => make("span", { className: "score" }, `${name} `, make("b", { textContent: neuron.scores[n] === null ? "–" : neuron.scores[n].toPrecision(3) }))),
    make("span", { className: "turn" },
      make("button", { type: "button", textContent: "←", ariaLabel: "previous neuron", onclick: () => step(-1) }),
      at < 0 ? "not in this list" : `${(at + 1).toLocaleString("en")} of ${page.shown.length.toLocaleString("en")}`,
      make("button", { type: "button", textContent: "→", ariaLabel: "next neuron", onclick: () => step(1) })));
  const interval = neuron.low[0] === null ? "" : `, 95 % intervals (${index.shards} groups of documents)`;
  const rates = neuron.rate.map((value, code) => [value, neuron.low[code], neuron.high[code]]);
  const facts = make("div", { className: "facts" },
    make("section", {}, make("h3", {}, "Firing rate", make("small", { textContent: `share of tokens${interval}` })), bars(rates, percent)),
    make("section", {}, make("h3", {}, "Makes likelier", make("small", { textContent: index.gated ? "where its output is above zero" : "" })), tokens(data.up[place]),
      make("h3", { textContent: "Makes less likely" }), tokens(data.down[place])),
    neuron.effect
      ? make("section", {}, make("h3", {}, "When it is off", make("small", { textContent: "rise of the loss, nats per token" })), bars(neuron.effect, signed))
      : null);
  main.replaceChildren(head, facts,
    make("h3", {}, "Where it fires most", make("small", {}, "gate 0 ", make("i", { className: "scale" }), `${highest(data.contexts[place]).toPrecision(3)}, this neuron’s highest in any language`)),
    contextColumns(neuron, data, data.contexts[place]));
  byId("told").textContent = `Layer ${neuron.layer}, neuron ${neuron.neuron}`;
  document.documentElement.dataset.shows = neuron.id;
}

function open(neuron) {
  const before = page.at;
  page.at = neuron.place;
  // A frame in a notebook has no address of its own to write to.
  try { if (location.hash !== `#${neuron.id}`) history.replaceState(null, "", `#${neuron.id}`); } catch { /* stays */ }
  if (before !== page.at) main.scrollTop = 0;
  mark();
  return draw();
}

function step(by) {
  const at = page.shown.findIndex((each) => each.place === page.at);
  const next = page.shown[at < 0 ? 0 : at + by];
  if (next) open(next);
}

// ---------------------------------------------------------------- keys, and the beginning

function drawHelp() {
  const { index } = page;
  const [before, after] = index.window;
  const keys = [["← →", "previous and next neuron of the list"], ["↑ ↓", "the same, where the list has the focus"], ["← → ↑ ↓", "in the map, from cell to cell"], ["/", "search"], ["Esc", "leave the search, and clear it"], ["?", "this"]];
  dialog.replaceChildren(
    make("h3", { textContent: "How to read this page" }),
    make("p", { textContent: "A neuron fires on a token where its gate, before the activation function, is above zero. Shading is the gate, from zero to the highest that this neuron reaches in any language, so that languages can be compared. The underlined token is where the gate is highest in its row of text; of each row only that one counts." }),
    make("p", { textContent: `Contexts show up to ${before} tokens before and ${after} behind, out of the longer text that the model read. Letters written by several tokens are shaded together.` }),
    make("p", { textContent: "Tokens made likelier are read off the neuron’s output vector alone, by the direct way to the logits; what later layers make of it is not seen." + (index.gated ? " This model’s neurons may give values below zero too, which swap the two lists." : "") }),
    make("dl", {}, ...keys.flatMap(([key, what]) => [make("dt", {}, make("kbd", { textContent: key })), make("dd", { textContent: what })])),
    make("form", { method: "dialog" }, make("button", { textContent: "Close" })));
}

function listen() {
  const query = byId("query");
  let asked = 0;
  const search = async () => {
    const turn = ++asked;
    byId("found").textContent = "…";
    let found;
    try {
      found = await ask(query.value, () => turn === asked);
    } catch (error) {
      byId("found").textContent = `${error.message}.`;
      return;
    }
    if (turn !== asked) return;
    page.query = found;
    await refresh();
    document.documentElement.dataset.searched = query.value;
  };
  let pause = 0;
  query.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(search, 120); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const typing = event.target.matches("input, select");
    if (event.key === "Escape" && event.target === query) { query.value = ""; query.blur(); search(); }
    else if (event.key === "Enter" && event.target === query) { query.blur(); main.focus(); }
    else if (typing) return;
    else if (event.target.closest("#map button") && moveInMap(event)) { /* it has moved */ }
    else if (event.target.closest("#list") && /^Arrow(Up|Down)$/.test(event.key)) {
      step(event.key === "ArrowUp" ? -1 : 1);
      byId("list").querySelector("[aria-current]")?.focus();
    } else if (event.target.matches(".columns") && event.key.startsWith("Arrow")) return; // it scrolls
    else if (event.key === "/") { query.focus(); query.select(); }
    else if (event.key === "?") dialog.showModal();
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  byId("help").onclick = () => dialog.showModal();
  byId("skip").onclick = () => main.focus();
  byId("map").addEventListener("focusin", ({ target }) => {
    const before = cellAt(page.cell);
    if (before) before.tabIndex = -1;
    page.cell = target.dataset.cell;
    target.tabIndex = 0;
  });
  byId("unfold").onclick = () => {
    const open = byId("browse").classList.toggle("open");
    byId("unfold").ariaExpanded = String(open);
  };
  byId("list").onclick = (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    open(page.index.byId.get(link.dataset.id));
  };
  window.addEventListener("hashchange", () => {
    const neuron = page.index.byId.get(decodeURIComponent(location.hash.slice(1)));
    if (neuron) open(neuron);
  });
}

async function begin() {
  page.index = prepare(await unpack(byId("index").textContent));
  const { index } = page;
  document.querySelector("h1").textContent = index.title;
  const least = Math.min(...index.languages.map((each) => each.tokens));
  byId("about").textContent = `${index.layers} layers of ${index.width.toLocaleString("en")} neurons · ${index.selections.join(", ")} · ${least.toLocaleString("en")} tokens or more per language`;
  drawFilters();
  drawHelp();
  listen();
  const asked = index.byId.get(decodeURIComponent(location.hash.slice(1)));
  page.at = (asked ?? filtered()[0]).place;
  await refresh();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

begin();
