"use strict";
// All data becomes text nodes: nothing here parses markup.

const page = { index: null, layers: new Map(), waiting: new Map(), at: -1, shown: [], query: null, cell: "0 0" };
const choice = { layer: null, language: null, selection: null, sort: 0, map: "count" };
const byId = (id) => document.getElementById(id);
const main = document.querySelector("main");
const dialog = document.querySelector("dialog");

function make(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name in node && name !== "lang") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/* What the page calls its labels: language, or label if one of them is no language. */
const noun = () => page.index.noun;
const within = (which) => (noun() === "language" ? `in ${which} language` : `for ${which} label`);

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

/* In a folder, each layer is a script that calls this. */
window.neuronLayer = (layer, text) => page.waiting.get(layer)?.(text);

function layerText(layer) {
  const inside = byId(`layer-${layer}`);
  if (inside) return Promise.resolve(inside.textContent);
  return new Promise((resolve, reject) => {
    page.waiting.set(layer, resolve);
    const script = make("script", { src: `layer-${layer}.js` });
    script.onerror = () => reject(new Error(`layer-${layer}.js is missing next to this page`));
    document.head.append(script);
  });
}

function layerOf(layer) {
  if (!page.layers.has(layer)) {
    page.layers.set(layer, layerText(layer).then(unpack).then((data) => {
      data.row = new Map(data.neurons.map((neuron, row) => [neuron, row]));
      for (const stretch of data.stretches) {
        let end = 0;
        stretch.ends = stretch[3].map((size) => (end += size)); // where each piece ends
        stretch.starts = new Set(stretch[4]); // pieces with which a document starts
      }
      return data;
    }));
  }
  return page.layers.get(layer);
}

/* Where a neuron is, from its number in the layer: the expert, null if it sees every token, and the number there. */
function addressOf(index, layer, neuron) {
  const [dense, , width] = index.units ? index.units[layer] : [Infinity];
  if (neuron < dense) return { expert: null, within: neuron };
  return { expert: Math.floor((neuron - dense) / width), within: (neuron - dense) % width };
}

function idOf(index, layer, neuron) {
  const { expert, within } = addressOf(index, layer, neuron);
  return `L${layer}${expert === null ? "" : `E${expert}`}N${within}`;
}

function nameOf({ layer, expert, within }) {
  return `Layer ${layer}, ${expert === null ? "" : `expert ${expert}, `}neuron ${within}`;
}

function prepare(index) {
  index.neurons = index.neurons.map(([layer, neuron, rate, low, high, scores, members], number) => ({
    layer, neuron, rate, low, high, scores, members, number,
    ...addressOf(index, layer, neuron),
    id: idOf(index, layer, neuron),
    own: new Set(members.map(([, language]) => language)),
    effect: index.effects ? index.effects[number] : null,
    seen: index.seen ? index.seen[number] : null,
  }));
  index.byId = new Map(index.neurons.map((neuron) => [neuron.id, neuron]));
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
  const neurons = page.index.neurons.filter((neuron) =>
    inSelection(neuron) &&
    (choice.layer === null || neuron.layer === choice.layer) &&
    (choice.language === null || belongs(neuron, choice.language)) &&
    (query === null || query.has(neuron.id)));
  const key = {
    number: (neuron) => neuron.number,
    rate: (neuron) => -Math.max(...neuron.rate),
  }[choice.sort] ?? ((neuron) => neuron.scores[choice.sort] ?? Infinity);
  return neurons.sort((a, b) => key(a) - key(b) || a.number - b.number);
}

/* The neurons that a query names, or whose contexts contain it; null: there is no query. */
async function ask(text, stillWanted) {
  const query = text.trim();
  if (query === "") return null;
  const named = /^l\s*(\d+)\s*[.,:/ ]?\s*(?:e\s*(\d+)\s*[.,:/ ]?\s*)?(?:n\s*(\d*))?$/i.exec(query);
  if (named) {
    const [, layer, expert, neuron] = named;
    const where = `L${Number(layer)}${expert ? `E${Number(expert)}` : ""}`;
    return { text: "", has: (id) => neuron ? id.startsWith(`${where}N${neuron}`) : id.startsWith(where) && /[EN]/.test(id[where.length]) };
  }
  const words = query.toLowerCase();
  const matches = new Set();
  const layers = [...new Set(page.index.neurons.map((neuron) => neuron.layer))];
  for (const [done, layer] of layers.entries()) {
    const data = await layerOf(layer);
    if (!stillWanted()) return null;
    if (!byId(`layer-${layer}`)) byId("status").textContent = `reading layer ${done + 1} of ${layers.length} …`;
    const hits = data.stretches.map((stretch) => occurrences(stretch[2].toLowerCase(), words));
    data.contexts.forEach((languages, row) => {
      if (languages.some((contexts) => contexts.some((context) => holds(data, context, hits, words.length)))) {
        matches.add(idOf(page.index, layer, data.neurons[row]));
      }
    });
  }
  return { text: words, has: (id) => matches.has(id) };
}

function occurrences(text, words) {
  const starts = [];
  for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + 1)) starts.push(at);
  return starts;
}

function span(data, [stretch, first, , , shades]) {
  const { ends } = data.stretches[stretch];
  return [first ? ends[first - 1] : 0, ends[first + shades.length - 1]];
}

function holds(data, context, hits, size) {
  const starts = hits[context[0]];
  if (!starts.length) return false;
  const [begin, end] = span(data, context);
  return starts.some((at) => at >= begin && at + size <= end);
}

// ---------------------------------------------------------------- the left side

function drawFilters() {
  const { index } = page;
  const pick = (name, label, options) => {
    const select = make("select", { title: label, ariaLabel: label, className: name });
    for (const [number, [, text]] of options.entries()) select.append(make("option", { value: number, textContent: text }));
    select.value = options.findIndex(([value]) => value === choice[name]);
    select.onchange = () => {
      choice[name] = options[select.value][0];
      refresh();
    };
    return select;
  };
  const selections = index.selections.map((name, number) => [number, name]);
  byId("filters").replaceChildren(
    pick("language", "Belongs to", [[null, `all ${noun()}s`], ...index.languages.map((language, code) => [code, language.name])]),
    pick("map", "The map shows", [["count", "map: neurons"], ["rate", "map: rates, %"]]),
    ...(selections.length > 1 ? [pick("selection", "Selected by", [[null, "all selections"], ...selections])] : []),
    pick("sort", "Order", [...index.scores.map((name, number) => [number, `by ${name}`]), ["number", "by layer"], ["rate", "by highest rate"]]),
  );
}

function drawMap() {
  const { index } = page;
  const wanted = index.neurons.filter(inSelection);
  const cells = new Map();
  let most = 0;
  for (let layer = 0; layer < index.layers; layer++) {
    const neurons = wanted.filter((neuron) => neuron.layer === layer);
    index.languages.forEach((_, code) => {
      const value = choice.map === "count"
        ? neurons.filter((neuron) => belongs(neuron, code)).length
        : neurons.reduce((sum, neuron) => sum + neuron.rate[code], 0) / (neurons.filter((neuron) => neuron.rate[code] !== null).length || 1);
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
  const cell = (row, code) => ({ "data-cell": `${row} ${code}`, tabIndex: page.cell === `${row} ${code}` ? 0 : -1 });
  /* Headings that do not fit beside each other stand upright. */
  const widest = Math.max(...index.languages.map(({ code }) => code.length));
  const look = widest * index.languages.length > 24 ? { className: "upright" } : {};
  const head = make("tr", look, make("th", { textContent: "" }), ...index.languages.map((language, code) =>
    make("th", { scope: "col" }, inColour(code, "button", {
      type: "button", textContent: language.code, title: language.name, onclick: press(null, code), ...cell(0, code),
      ariaPressed: String(choice.language === code && choice.layer === null),
    }))));
  const rows = [];
  for (let layer = index.layers - 1; layer >= 0; layer--) {
    rows.push(make("tr", {}, make("th", { scope: "row", textContent: layer, title: `layer ${layer}` }),
      ...index.languages.map((language, code) => {
        const value = cells.get(`${layer} ${code}`);
        const share = most ? value / most : 0;
        const text = choice.map === "count" ? `${value}` : percent(value);
        return make("td", {}, inColour(code, "button", {
          type: "button", style: { "--share": share }, onclick: press(layer, code), ...cell(index.layers - layer, code),
          textContent: choice.map === "count" ? value || "" : value ? Math.round(100 * value) : "",
          title: `layer ${layer}, ${language.name}: ${text}`,
          ariaLabel: `layer ${layer}, ${language.name}: ${text}`,
          ariaPressed: String(choice.layer === layer && choice.language === code),
        }));
      })));
  }
  const focused = document.activeElement?.dataset.cell; // to restore after everything is redrawn
  byId("map").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  byId("meaning").textContent = `A row for each layer: ${choice.map === "count"
    ? `how many of the neurons on this page belong to each ${noun()}`
    : `the mean firing rate of its neurons on this page, in % of ${index.units ? `the tokens of each ${noun()} that they see` : `each ${noun()}’s tokens`}`
  }. Press a cell to list its neurons.`;
  if (focused) cellAt(focused)?.focus();
}

const cellAt = (cell) => byId("map").querySelector(`[data-cell="${cell}"]`);

/* The map is one stop of the tab key; inside it, arrow keys move from cell to cell. */
function moveInMap(event) {
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!by) return false;
  const cell = event.target.dataset.cell.split(" ").map((coordinate, axis) => Number(coordinate) + by[axis]).join(" ");
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
    const links = page.shown.slice(drawn, drawn + PORTION).map(entry);
    drawn += links.length;
    list.append(...links);
    if (drawn < page.shown.length) watcher.observe(list.lastElementChild);
  };
  watcher = new IntersectionObserver((entries) => {
    if (!entries.some((item) => item.isIntersecting)) return;
    watcher.disconnect();
    more();
  }, { root: list, rootMargin: "200px" });
  more();
  const at = page.shown.findIndex((neuron) => neuron.number === page.at);
  while (drawn <= at && drawn < page.shown.length) more();
}

function entry(neuron) {
  const most = Math.max(...neuron.rate) || 1;
  return make("a", { href: `#${neuron.id}`, "data-id": neuron.id, tabIndex: -1 },
    make("span", { textContent: neuron.expert === null ? neuron.id : neuron.id.replace(/[EN]/g, " $&") }),
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
  const stop = link ?? list.firstElementChild; // tab stop
  if (stop) stop.tabIndex = 0;
}

function refresh() {
  page.shown = filtered();
  const total = page.index.neurons.length;
  const n = page.shown.length;
  const many = (count) => count.toLocaleString("en") + (count === 1 ? " neuron" : " neurons");
  byId("status").textContent = n === total ? many(n) : `${n.toLocaleString("en")} of ${many(total)}`;
  drawMap();
  drawList();
  if (n && !page.shown.some((neuron) => neuron.number === page.at)) return open(page.shown[0]);
  mark();
  return draw();
}

// ---------------------------------------------------------------- one neuron

const percent = (share) => {
  const number = 100 * share;
  return `${number >= 10 ? number.toFixed(1) : number >= 0.1 ? number.toFixed(2) : number.toPrecision(1)} %`;
};
const signed = (number) => `${number > 0 ? "+" : number < 0 ? "−" : ""}${Math.abs(number).toPrecision(2)}`;

function bars(values, say, unknown = "not measured") {
  const { languages } = page.index;
  const ends = values.flatMap((value) => (value ? value.filter((end) => end !== null) : []));
  const from = Math.min(0, ...ends);
  const size = Math.max(0, ...ends) - from || 1;
  const rows = languages.flatMap((language, code) => {
    const name = inColour(code, "span", { className: "name", textContent: language.name });
    if (!values[code]) return [name, make("span", { className: "track" }), make("span", { className: "number soft", textContent: unknown })];
    const [value, low, high] = values[code];
    const extent = (a, b) => ({ "--from": (Math.min(a, b) - from) / size, "--size": Math.abs(b - a) / size });
    const track = inColour(code, "span", { className: "track" }, make("span", { className: "bar", style: extent(0, value) }));
    if (from < 0) track.append(make("span", { className: "zero", style: extent(0, 0) }));
    if (low !== null) track.append(make("span", { className: "range", style: extent(low, high) }));
    const number = make("span", { className: "number", textContent: say(value, code), title: low === null ? "" : `${say(low)} to ${say(high)}` });
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
  const line = make("p", { lang: language.lang, dir: language.direction });
  [...shades].forEach((shade, number) => {
    const piece = first + number;
    if (stretch.starts.has(piece) && line.textContent) {
      line.append(make("i", { className: "start", textContent: "¶", title: "another document starts here" }));
    }
    const begin = piece ? ends[piece - 1] : 0;
    const letters = text.slice(begin, ends[piece]) || (piece === strongest ? "▯" : "");
    const unseen = shade === "-";
    const level = unseen ? 0 : parseInt(shade, 36) / 35;
    const hit = hits.some((at) => at < ends[piece] && at + size > begin);
    if (!level && !hit && !unseen && piece !== strongest) return line.append(letters);
    const classes = [piece === strongest ? "peak" : "", hit ? "hit" : "", unseen ? "unseen" : ""].filter(Boolean).join(" ");
    line.append(make("span", {
      textContent: letters, className: classes, style: { "--heat-share": level.toFixed(3) },
      title: level ? `gate ≈ ${(level * peakGate).toPrecision(2)}` : unseen ? "not routed to this expert" : "",
    }));
    return undefined;
  });
  return make("div", { className: "context" }, line,
    make("small", { className: "soft" }, make("span", { textContent: source, title: `the row of text that starts at ${source}` }), make("b", { textContent: gate.toPrecision(3), title: "gate at the underlined token" })));
}

const highest = (contexts) => Math.max(0, ...contexts.flat().map((context) => context[3]));

function contextColumns(neuron, data, contexts) {
  const peakGate = highest(contexts);
  const codes = page.index.languages.map((_, code) => code); // the neuron's own languages first
  codes.sort((a, b) => neuron.own.has(b) - neuron.own.has(a) || a - b);
  return make("div", { className: "columns", tabIndex: 0, role: "region", ariaLabel: `Contexts ${within("each")}` }, ...codes.map((code) => [page.index.languages[code], code]).map(([language, code]) =>
    inColour(code, "section", { className: neuron.own.has(code) ? "column member" : "column" },
      make("h4", {}, `${language.name} `, make("span", { lang: language.lang, dir: "auto", textContent: language.endonym === language.name ? "" : language.endonym })),
      ...(contexts[code].length
        ? contexts[code].map((context) => contextNode(data, context, peakGate))
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
  const row = data.row.get(neuron.neuron);
  const at = page.shown.findIndex((shown) => shown.number === page.at);
  const head = make("div", { className: "head" },
    make("h2", { textContent: nameOf(neuron) }),
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
  const rates = neuron.rate.map((value, code) => value === null ? null : [value, neuron.low[code], neuron.high[code]]);
  const routed = neuron.expert !== null;
  const facts = make("div", { className: "facts" },
    make("section", {}, make("h3", {}, "Firing rate", make("small", { textContent: `share of ${routed ? "its expert’s tokens" : "tokens"}${interval}` })), bars(rates, percent, "too few tokens")),
    routed
      ? make("section", {}, make("h3", {}, `Routed to expert ${neuron.expert}`, make("small", { textContent: `tokens, and their share of the ${noun()}` })),
        bars(neuron.seen.map((n, code) => [n / index.languages[code].tokens, null, null]), (share, code) => `${neuron.seen[code].toLocaleString("en")} (${percent(share)})`))
      : null,
    data.up[row].length
      ? make("section", {}, make("h3", {}, "Promotes", make("small", { textContent: index.gated ? "when its output is above zero" : "" })), tokens(data.up[row]),
        make("h3", { textContent: "Suppresses" }), tokens(data.down[row]))
      : null,
    neuron.effect
      ? make("section", {}, make("h3", {}, "When it is off", make("small", { textContent: "increase in loss, nats per token" })), bars(neuron.effect, signed))
      : null);
  main.replaceChildren(head, facts,
    make("h3", {}, "Where it fires most", make("small", {}, "gate 0 ", make("i", { className: "scale" }), `${highest(data.contexts[row]).toPrecision(3)}, this neuron’s highest ${within("any")}`)),
    contextColumns(neuron, data, data.contexts[row]));
  byId("announcement").textContent = nameOf(neuron);
  document.documentElement.dataset.shows = neuron.id;
}

function open(neuron) {
  const before = page.at;
  page.at = neuron.number;
  // A notebook's iframe has no address to write to.
  try { if (location.hash !== `#${neuron.id}`) history.replaceState(null, "", `#${neuron.id}`); } catch { /* stays */ }
  if (before !== page.at) main.scrollTop = 0;
  mark();
  return draw();
}

function step(by) {
  const at = page.shown.findIndex((neuron) => neuron.number === page.at);
  const next = page.shown[at < 0 ? 0 : at + by];
  if (next) open(next);
}

// ---------------------------------------------------------------- keys, and start

function drawHelp() {
  const { index } = page;
  const [before, after] = index.window;
  const keys = [["← →", "previous and next neuron of the list"], ["↑ ↓", "the same, when the list has focus"], ["← → ↑ ↓", "in the map, from cell to cell"], ["/", "search"], ["Esc", "clear and leave the search"], ["?", "this help"]];
  dialog.replaceChildren(...[
    make("h3", { textContent: "How to read this page" }),
    make("p", { textContent: "A neuron fires on a token if its " + index.fires_by + " is above zero. Shading shows the gate, from zero to this neuron’s highest " + within("any") + `, so ${noun()}s can be compared. The underlined token has the highest gate in its row of text; each row gives only one context.` }),
    make("p", { textContent: `Contexts show up to ${before} tokens before and ${after} after, from the longer text that the model read. Characters that span several tokens are shaded as one. ¶ marks where another document starts.` }),
    make("p", { textContent: "Promoted and suppressed tokens come from the neuron’s output vector alone, by the direct path to the logits; effects through later layers are not included." + (index.gated ? " In this model a neuron’s output may also be below zero, which swaps the two lists." : "") }),
    index.units ? make("p", { textContent: "A neuron of an expert, such as L3 E12 N45, sees only the tokens that are routed to the expert: rates are shares of these, and the other tokens of a context are gray. It has no rate where the expert got fewer than 100 tokens of some " + noun() + "." }) : null,
    make("dl", {}, ...keys.flatMap(([key, what]) => [make("dt", {}, make("kbd", { textContent: key })), make("dd", { textContent: what })])),
    make("form", { method: "dialog" }, make("button", { textContent: "Close" })),
  ].filter(Boolean));
}

function listen() {
  const query = byId("query");
  let asked = 0;
  const search = async () => {
    const turn = ++asked;
    byId("status").textContent = "…";
    let matches;
    try {
      matches = await ask(query.value, () => turn === asked);
    } catch (error) {
      byId("status").textContent = `${error.message}.`;
      return;
    }
    if (turn !== asked) return;
    page.query = matches;
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
  const least = Math.min(...index.languages.map((language) => language.tokens));
  byId("about").textContent = `${index.layers} layers of ${index.units ? `up to ${Math.max(...index.units.map(([, experts]) => experts))} experts` : `${index.width.toLocaleString("en")} neurons`} · ${index.selections.join(", ")} · at least ${least.toLocaleString("en")} tokens per ${noun()}`;
  if (index.units) byId("query").placeholder = "L3E12N45, or text";
  drawFilters();
  drawHelp();
  listen();
  const asked = index.byId.get(decodeURIComponent(location.hash.slice(1)));
  page.at = (asked ?? filtered()[0]).number;
  await refresh();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

begin();
