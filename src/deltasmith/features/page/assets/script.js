
"use strict";
(function () {
  const root = document.documentElement;
  let errors = 0;
  const blame = () => { root.dataset.errors = String(++errors); };
  root.dataset.errors = "0";
  window.addEventListener("error", blame);
  document.addEventListener("securitypolicyviolation", blame);

  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));
  const SVG = "http://www.w3.org/2000/svg";

  // Text only ever becomes a text node.
  function make(tag, kind, content) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (content !== undefined) made.textContent = content;
    return made;
  }
  function shape(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const name in attributes) made.setAttribute(name, attributes[name]);
    return made;
  }
  const percent = (share) => (100 * share).toFixed(share < 0.1 ? 2 : 1) + " %";
  const decimals = (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(2);

  // Tabs: the parts are one long page without the script.
  const tabs = all("nav.tabs a");
  const panels = tabs.map((tab) => byId(tab.hash.slice(1)));
  function select(name, focus) {
    tabs.forEach((tab, at) => {
      const on = panels[at].id === name;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panels[at].hidden = !on;
      if (on && focus) tab.focus();
    });
  }
  function tabulate() {
    const list = document.querySelector("nav.tabs");
    list.setAttribute("role", "tablist");
    tabs.forEach((tab, at) => {
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panels[at].id);
      panels[at].setAttribute("role", "tabpanel");
      tab.addEventListener("click", (event) => { event.preventDefault(); go(tab.hash); });
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const to = event.key === "Home" ? 0 : event.key === "End" ? tabs.length - 1 : at + (step || 0);
        if (to === at && !step) return;
        event.preventDefault();
        const next = (to + tabs.length) % tabs.length;
        go(tabs[next].hash);
        tabs[next].focus();
      });
    });
  }
  function go(hash) {
    history.pushState(null, "", hash);
    route();
    rise();
  }
  function rise() {
    // A new part, or gallery, begins under the tabs, which stay in sight.
    const top = document.querySelector("main").offsetTop - document.querySelector("nav.tabs").offsetHeight;
    if (window.scrollY > top) window.scrollTo(0, top);
  }
  function route() {
    const name = decodeURIComponent(location.hash.slice(1));
    const gallery = /^g(\d+)$/.exec(name);
    if (gallery && data.galleries[gallery[1]]) {
      byId("search").value = "";
      current = Number(gallery[1]);
      select("features");
      list();
      rise();
    } else {
      const inside = byId(name);
      const panel = panels.find((one) => inside && one.contains(inside)) || panels[0];
      select(panel.id);
      if (inside && inside !== panel) inside.scrollIntoView();
    }
  }

  function land() {
    // A link to a part: with the title in sight where the part begins on the first screen, else under the tabs.
    const visits = performance.getEntriesByType("navigation");
    const part = panels.some((panel) => "#" + panel.id === location.hash) || /^#g\d+$/.test(location.hash);
    if (!part || (visits[0] && visits[0].type !== "navigate")) return;
    const tabsAt = document.querySelector("main").offsetTop - document.querySelector("nav.tabs").offsetHeight;
    window.scrollTo(0, tabsAt < 0.7 * window.innerHeight ? 0 : tabsAt);
  }

  // The lineage map shows only the statuses that are pressed; all where none is.
  function filterMap() {
    const wanted = all("[data-band][aria-pressed=true]").map((chip) => chip.dataset.band);
    const map = document.querySelector(".map");
    map.classList.toggle("filtered", wanted.length > 0);
    all(".band", map).forEach((band) => band.classList.toggle("on", wanted.includes(band.dataset.status)));
  }
  function pressable(chip, then) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      then();
    });
  }

  // What a model's column says of the feature: from the edge that leads there, if there is one.
  function standing(card, model) {
    if (model === card.model) return "here";
    const column = card.columns[model];
    if (!column) return "absent";
    const label = data.models[model];
    const touching = card.edges.filter((e) => {
      const edge = data.edges[e.edge];
      const other = edge.parent === label ? edge.child : edge.child === label ? edge.parent : null;
      return other !== null && card.columns[data.models.indexOf(other)].linked;
    });
    const anchor = data.models[card.model];
    const nearest = touching.find((e) => [data.edges[e.edge].parent, data.edges[e.edge].child].includes(anchor)) || touching[0];
    if (!nearest) return "absent";
    const below = data.edges[nearest.edge].child === label;
    return below ? nearest.fate : nearest.descent;
  }
  const NAMES = { here: "this feature", absent: "not followed" };
  const named = (status) => NAMES[status] || status;

  function token(number, kind) { return make("span", kind, words[number]); }

  function summary(card) {
    const made = make("summary");
    const title = make("span", "title", data.models[card.model] + " · " + card.feature);
    title.append(make("small", "", percent(card.columns[card.model].fires / data.tokens)));
    const types = make("span", "types");
    for (const [word, part] of data.redacted ? [] : card.types) {
      const one = token(word, "type");
      one.style.setProperty("--a", part);
      if (part >= 0.01) one.append(make("i", "", Math.round(100 * part) + " %"));
      types.append(one);
    }
    const dots = make("span", "dots");
    data.models.forEach((label, model) => {
      const status = standing(card, model);
      const dot = make("span", "dot-model is-" + status, label + ": " + named(status));
      dot.title = dot.textContent;
      dots.append(dot);
    });
    made.append(title, types, dots);
    return made;
  }

  function track(link) {
    const [weak, strong] = data.thresholds;
    const x = (r) => (6 + 164 * Math.max(0, Math.min(1, r))).toFixed(1);
    const made = shape("svg", { class: "track", viewBox: "0 0 176 16", role: "img" });
    made.setAttribute("aria-label", "correlation " + decimals(link.r) + ", next " + decimals(link.next_r));
    made.append(shape("line", { class: "axis", x1: 6, x2: 170, y1: 8, y2: 8 }));
    for (const at of [weak, strong]) made.append(shape("line", { class: "tickmark", x1: x(at), x2: x(at), y1: 2, y2: 14 }));
    if (link.next >= 0) made.append(shape("circle", { class: "next-mark", cx: x(link.next_r), cy: 8, r: 3.5 }));
    made.append(shape("circle", { class: "r-mark is-" + link.status, cx: x(link.r), cy: 8, r: 5 }));
    return made;
  }
  function links(card) {
    const made = make("div", "edges");
    for (const link of card.edges) {
      const edge = data.edges[link.edge];
      const badge = make("span");
      badge.append(make("span", "badge is-" + link.status, link.status));
      const next = link.next < 0 ? "no other partner"
        : (link.best ? "runner-up #" : "its own best is #") + link.next + ", r " + decimals(link.next_r);
      made.append(make("span", "who", edge.parent + " → " + edge.child), badge, track(link),
        make("span", "", "r " + decimals(link.r) + " · cos " + decimals(link.cosine)), make("span", "next", next));
    }
    return made;
  }

  function histogram(counts) {
    const top = Math.max(1, ...counts.map(Math.sqrt));
    const made = shape("svg", { class: "histogram", viewBox: "0 0 160 34", preserveAspectRatio: "none", role: "img" });
    made.setAttribute("aria-label", "activations from 0 to the maximum: " + counts.join(", "));
    counts.forEach((count, at) => {
      const height = (32 * Math.sqrt(count)) / top;
      made.append(shape("rect", { x: at * 10 + 0.5, y: (34 - height).toFixed(1), width: 9, height: height.toFixed(1) }));
    });
    return made;
  }
  function effects(column) {
    const made = make("dl", "effects");
    for (const [name, found] of [["raises", column.raised], ["lowers", column.lowered]]) {
      if (!found.length) continue;
      const listed = make("dd");
      for (const [word, by] of found) {
        const one = token(word, "word");
        one.title = decimals(by);
        listed.append(one, " ");
      }
      made.append(make("dt", "", name), listed);
    }
    return made;
  }
  function head(card, model) {
    const column = card.columns[model];
    const status = standing(card, model);
    const made = make("div", "cell head" + (column && column.linked ? "" : " far"));
    const title = make("h4", "", data.models[model]);
    if (column) title.append(make("span", "", "#" + column.feature));
    title.append(make("span", "badge is-" + status, named(status)));
    made.append(title);
    if (!column) { made.append(make("p", "facts-line", "no way leads here: the feature ends before")); return made; }
    const near = column.linked ? "" : "the nearest, not the same: ";
    made.append(make("p", "facts-line", near + "fires on " + percent(column.fires / data.tokens) + ", at most " + column.maximum));
    made.append(histogram(column.histogram), effects(column));
    return made;
  }
  function sentence(card, window, at, model) {
    const column = card.columns[model];
    const made = make("div", "cell" + (column && column.linked ? "" : " far"));
    const line = make("p", "sentence");
    line.append(make("span", "model-name", data.models[model]));
    const levels = new Map();
    const flat = column ? column.levels[at] : [];
    for (let i = 0; i < flat.length; i += 2) levels.set(flat[i], flat[i + 1]);
    window.tokens.forEach((word, place) => {
      const one = token(word, "tok");
      if (levels.has(place)) {
        const level = levels.get(place) / 99;
        one.classList.add("hot");
        one.style.setProperty("--a", level.toFixed(3));
        one.title = Math.round(100 * level) + " % of the maximum";
      }
      if (place === window.peak) one.classList.add("peak");
      line.append(one);
    });
    made.append(line);
    return made;
  }
  function body(card) {
    const made = make("div", "body");
    for (const name of new Set(card.patterns.map((found) => found.pattern))) {
      const line = make("p", "found");
      line.append(make("b", "", name), ", precision / recall: ");
      for (const found of card.patterns) {
        if (found.pattern !== name) continue;
        line.append(make("span", "", data.models[found.model] + " " + percent(found.precision) + " / " + percent(found.recall)));
      }
      made.append(line);
    }
    made.append(links(card));
    const columns = make("div", "columns");
    const grid = make("div", "grid-models");
    grid.style.setProperty("--n", data.models.length);
    data.models.forEach((_, model) => grid.append(head(card, model)));
    card.windows.forEach((window, at) => {
      const domain = data.domains[window.domain];
      grid.append(make("div", "group", data.groups[window.group] + (domain ? " · " + domain : "")));
      data.models.forEach((_, model) => grid.append(sentence(card, window, at, model)));
    });
    columns.append(grid);
    made.append(columns);
    return made;
  }

  // Cards are filled when they are opened.
  const built = new Map();
  function cardOf(number) {
    if (built.has(number)) return built.get(number);
    const card = data.cards[number];
    const made = make("details", "card");
    made.dataset.card = String(number);
    made.append(summary(card));
    made.addEventListener("toggle", () => { if (made.open) fill(made, card); });
    built.set(number, made);
    return made;
  }
  function fill(made, card) {
    if (made.children.length < 2) made.append(body(card));
  }
  const searched = new Map();
  function searchable(number) {
    if (!searched.has(number)) {
      const card = data.cards[number];
      const numbers = card.columns.map((c, model) => (c ? data.models[model] + " " + c.feature + " " + data.models[model] + " · " + c.feature : ""));
      const told = card.columns.flatMap((c) => (c ? c.raised.concat(c.lowered).map(([word]) => words[word]) : []));
      const read = card.windows.map((w) => w.tokens.map((word) => words[word]).join(""));
      const status = card.edges.map((e) => e.status);
      const patterns = card.patterns.map((p) => p.pattern);
      searched.set(number, numbers.concat(told, read, status, patterns).join("\n").toLowerCase());
    }
    return searched.get(number);
  }

  let current = 0;
  function list() {
    const query = byId("search").value.trim().toLowerCase();
    const wanted = all("[data-filter][aria-pressed=true]").map((chip) => chip.dataset.filter);
    const gallery = data.galleries[current];
    const from = query ? data.cards.map((_, at) => at) : gallery ? gallery.cards : [];
    const shown = from.filter((number) => (!query || searchable(number).includes(query))
      && (!wanted.length || data.cards[number].edges.some((e) => wanted.includes(e.status))));
    all("[data-gallery]").forEach((link) => {
      if (!query && Number(link.dataset.gallery) === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    const about = byId("about");
    const count = query ? shown.length + " of the " + data.cards.length + " features on this page"
      : shown.length === 0 && gallery && gallery.total === 0 ? "There are none."
      : shown.length + " of " + (gallery ? gallery.total : 0) + " shown";
    about.replaceChildren(make("p", "kicker", query || !gallery ? "" : gallery.group),
      make("h3", "", query ? "Found" : gallery ? gallery.title : ""), make("p", "", (query || !gallery ? "" : gallery.about + " ") + count));
    byId("cards").replaceChildren(...shown.map(cardOf));
    if (shown.length && !shown.some((number) => cardOf(number).open)) {
      const first = cardOf(shown[0]);
      fill(first, data.cards[shown[0]]);
      first.open = true;
    }
  }

  // j and k go through the cards, / to the search.
  function keys(event) {
    if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey || byId("features").hidden) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); return; }
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const heads = all(".card > summary");
    const at = heads.indexOf(document.activeElement);
    const next = heads[at < 0 ? 0 : Math.max(0, Math.min(heads.length - 1, at + step))];
    if (next) next.focus();
  }
  function save() {
    const blob = new Blob([byId("data").textContent], { type: "application/json" });
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = "features-page.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  root.classList.toggle("redacted", data.redacted);
  tabulate();
  all("[data-band]").forEach((chip) => pressable(chip, filterMap));
  all("[data-filter]").forEach((chip) => pressable(chip, list));
  all("[data-gallery]").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    go(link.hash);
  }));
  all(".map a").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    go(link.getAttribute("href"));
  }));
  byId("search").addEventListener("input", list);
  byId("export").addEventListener("click", save);
  document.addEventListener("keydown", keys);
  window.addEventListener("popstate", route);
  window.addEventListener("hashchange", route);
  current = Math.max(0, data.galleries.findIndex((one) => one.cards.length > 0));
  list();
  route();
  land();
  window.addEventListener("load", () => requestAnimationFrame(land)); // after the browser's own way to the part
  root.dataset.ready = "1";
})();
