// The gallery: images that hold what the filters ask for, ground truth beside prediction.
"use strict";

maskx.gallery = (() => {
  const { el, percent, whole, choice } = maskx;
  const SIZES = ["small", "medium", "large"];
  const STATES = ["found", "missed", "not counted"];
  const MISSED = 1;
  const PER_PAGE = 24;
  const MEANINGS = {
    correct: "correct", class: "wrong class", location: "wrong location", both: "wrong class and location",
    duplicate: "duplicate", background: "background", ignored: "not counted", missed: "missed objects",
  };
  // Red, green, blue of what an object is; a wrong one has a dashed box too.
  const COLORS = {
    correct: [46, 160, 90], class: [214, 69, 65], location: [232, 142, 36], both: [171, 71, 188], duplicate: [38, 132, 214],
    background: [120, 90, 70], ignored: [140, 140, 140], found: [46, 160, 90], missed: [226, 29, 110], "not counted": [140, 140, 140],
  };
  const ORDERS = { worst: "worst image first", best: "best image first", id: "image id", matches: "most matches first" };
  const DEFAULTS = { model: "0", class: "", group: "all", min: "0", max: "1", outcome: "", size: "", order: "worst", page: "0" };
  const shows = { masks: true, boxes: true, names: false, color: "outcome" };
  let index = null;
  let summary;
  let state;
  let found = [];
  let parts;
  let observer;

  // Columns come as little-endian bytes in base64.
  function column(text, Type) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Type(bytes.buffer);
  }

  function offsets(counts) {
    const starts = new Uint32Array(counts.length + 1);
    counts.forEach((count, place) => { starts[place + 1] = starts[place] + count; });
    return starts;
  }

  async function open() {
    if (index) return;
    const read = await maskx.load("index");
    const shared = (part) => ({ start: offsets(column(part.count, Uint16Array)), label: column(part.label, Uint16Array), size: column(part.size, Uint8Array) });
    const models = read.models.map((part) => ({ ...shared(part), score: column(part.score, Uint16Array), outcome: column(part.outcome, Uint8Array),
      state: column(part.state, Uint8Array), quality: part.quality }));
    index = { ...read, truth: { ...shared(read.truth), crowd: column(read.truth.crowd, Uint8Array) }, models };
    summary = maskx.summary;
    DEFAULTS.min = usualScore(models[0]);
  }

  // The score above which there are as many detections as objects, as text.
  function usualScore(model) {
    const wanted = model.state.filter((value) => value < 2).length;
    const sorted = model.score.slice().sort();
    const best = sorted[Math.max(0, sorted.length - wanted)] ?? 0;
    return String(Math.min(0.5, Math.floor((best / 65535) * 20) / 20));
  }

  async function show(main, query) {
    main.append(el("h2", {}, "Gallery"), el("p", { class: "note", id: "gallery-waiting" }, "Reading the index of the images …"));
    await open();
    if (main.dataset.view !== "gallery") return;
    document.getElementById("gallery-waiting").remove();
    state = { ...DEFAULTS, ...Object.fromEntries(query) };
    if (state.outcome && !query.has("min")) state.min = "0";
    if (!index.models[state.model]) state.model = "0";
    main.append(el("p", { class: "lead" }, "Ground truth on the left, prediction on the right. The prediction shows what matches; objects of the ground truth that do not match are pale.",
      ` Detections with scores below ${summary.min_score} are not in the gallery.`, summary.pictures ? "" : " There are no pictures: the report was made without --images."));
    main.append(controls(), toggles(), el("p", { id: "count", role: "status", "aria-live": "polite" }), el("div", { id: "cards", class: "cards" }), pager());
    parts = { cards: main.querySelector("#cards"), count: main.querySelector("#count") };
    observer?.disconnect();
    observer = new IntersectionObserver(seen, { rootMargin: "300px" });
    update();
  }

  function changed(field) {
    return (value) => {
      state[field] = value;
      if (field !== "page") state.page = "0";
      update();
    };
  }

  function controls() {
    const groups = Object.keys(summary.groups);
    const groupText = { all: "all classes", A: "A (masks in training)", B: "B (boxes only)" };
    const names = summary.classes.map((name, label) => [label, name]).sort((a, b) => a[1].localeCompare(b[1]));
    const outcomes = [...summary.outcomes, "missed"].map((name) => [name, MEANINGS[name]]);
    return el("form", { class: "controls", id: "filters", submit: (event) => event.preventDefault() },
      index.models.length > 1 && choice("Model", summary.models.map((m, number) => [number, m.title]), state.model, changed("model"), { name: "model" }),
      choice("Class", [["", "any class"], ...names], state.class, changed("class"), { name: "class" }),
      groups.length > 1 && choice("Group", groups.map((g) => [g, groupText[g] ?? g]), state.group, changed("group"), { name: "group" }),
      choice("Kind of error", [["", "any"], ...outcomes], state.outcome, changed("outcome"), { name: "outcome" }),
      choice("Size", [["", "any size"], ...SIZES.map((text, place) => [place, text])], state.size, changed("size"), { name: "size" }),
      scoreField("min", "Score from"), scoreField("max", "Score to"),
      choice("Order", Object.entries(ORDERS), state.order, changed("order"), { name: "order" }),
      el("button", { type: "button", id: "reset", click: reset }, "Reset"));
  }

  function scoreField(field, label) {
    const input = el("input", { type: "number", name: field, min: 0, max: 1, step: 0.05, value: state[field], inputmode: "decimal",
      change: () => { if (input.checkValidity() || input.validity.stepMismatch) changed(field)(input.value || DEFAULTS[field]); } });
    return el("label", { class: "field narrow" }, el("span", {}, label), input);
  }

  function reset() {
    location.hash = "#gallery";
    if (!location.hash.includes("?")) window.dispatchEvent(new HashChangeEvent("hashchange"));
  }

  function toggles() {
    const box = (name, text, key) => {
      const input = el("input", { type: "checkbox", name: `show-${name}`, checked: shows[name], change: () => { shows[name] = input.checked; redraw(); } });
      return el("label", { class: "toggle" }, input, `${text} `, el("kbd", {}, key));
    };
    return el("fieldset", { class: "toggles" }, el("legend", {}, "Show"), box("masks", "masks", "m"), box("boxes", "boxes", "b"), box("names", "names", "l"),
      choice("Colour by", [["outcome", "kind of error"], ["class", "class"]], shows.color, (value) => { shows.color = value; redraw(); }, { name: "color" }),
      el("ul", { class: "legend outcome-legend" }, [...summary.outcomes, "missed"].map((name) =>
        el("li", {}, el("span", { class: "swatch", "aria-hidden": "true", style: { background: `rgb(${COLORS[name].join(" ")})` } }), MEANINGS[name]))));
  }

  function pager() {
    const button = (step, text, key) => el("button", { type: "button", "data-step": step, click: () => turn(step) }, text, " ", el("kbd", {}, key));
    return el("div", { class: "pager", role: "group", "aria-label": "Pages of the gallery" }, button(-1, "Previous", "p"), el("span", { id: "page-number" }), button(1, "Next", "n"));
  }

  function turn(step) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const page = Math.min(pages - 1, Math.max(0, +state.page + step));
    if (page === +state.page) return;
    state.page = String(page);
    update();
    document.getElementById("filters").scrollIntoView({ block: "start" });
  }

  // Which objects of an image match: their places in the columns.

  function matcher(number = state.model) {
    const model = index.models[number];
    const labels = new Set(summary.groups[state.group] ?? summary.groups.all);
    const [low, high] = [Math.round(65535 * state.min), Math.round(65535 * state.max)];
    const outcome = summary.outcomes.indexOf(state.outcome);
    const fits = (part, at) => (state.class === "" || part.label[at] === +state.class) && labels.has(part.label[at]) && (state.size === "" || part.size[at] === +state.size);
    return {
      detection: (at) => state.outcome !== "missed" && model.score[at] >= low && model.score[at] <= high && (outcome < 0 || model.outcome[at] === outcome) && fits(model, at),
      object: (at) => (state.outcome === "" || (state.outcome === "missed" && model.state[at] === MISSED)) && fits(index.truth, at),
    };
  }

  function filter() {
    const model = index.models[state.model];
    const match = matcher();
    found = [];
    let objects = 0;
    index.images.forEach((_, image) => {
      let number = 0;
      for (let at = model.start[image]; at < model.start[image + 1]; at++) number += match.detection(at);
      for (let at = index.truth.start[image]; at < index.truth.start[image + 1]; at++) number += match.object(at);
      if (number) found.push([image, number]);
      objects += number;
    });
    const quality = (image, none) => model.quality[image] ?? none;
    const orders = {
      worst: (a, b) => quality(a[0], 2000) - quality(b[0], 2000), best: (a, b) => quality(b[0], -1) - quality(a[0], -1),
      matches: (a, b) => b[1] - a[1],
    };
    if (orders[state.order]) found.sort(orders[state.order]);
    return objects;
  }

  function update() {
    const objects = filter();
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    state.page = String(Math.min(+state.page, pages - 1));
    const said = Object.entries(state).filter(([name, value]) => name in DEFAULTS && value !== DEFAULTS[name]);
    history.replaceState(null, "", `#gallery${said.length ? `?${new URLSearchParams(said)}` : ""}`);
    parts.count.textContent = found.length ? `${whole(found.length)} of ${whole(index.images.length)} images, with ${whole(objects)} matching objects and detections` : "No image matches. Widen a filter.";
    document.getElementById("page-number").textContent = `Page ${+state.page + 1} of ${pages}`;
    document.querySelector('.pager [data-step="-1"]').disabled = state.page === "0";
    document.querySelector('.pager [data-step="1"]').disabled = +state.page >= pages - 1;
    observer.disconnect();
    const first = +state.page * PER_PAGE;
    parts.cards.replaceChildren(...found.slice(first, first + PER_PAGE).map(([image], place) => card(image, first + place)));
    for (const figure of parts.cards.querySelectorAll("article")) observer.observe(figure);
  }

  function described(image) {
    const model = index.models[state.model];
    const missed = count(index.truth.start, image, (at) => model.state[at] === MISSED);
    const objects = index.truth.start[image + 1] - index.truth.start[image];
    const quality = model.quality[image];
    return `${quality === null ? "nothing to find" : `F1 ${percent(quality / 1000)}`} · ${objects} object${objects === 1 ? "" : "s"}, ${missed} missed`;
  }

  function count(start, image, test) {
    let number = 0;
    for (let at = start[image]; at < start[image + 1]; at++) number += test(at);
    return number;
  }

  function card(image, place) {
    const [id, , , file] = index.images[image];
    return el("article", { class: "card", "data-image": image },
      el("h3", {}, el("button", { type: "button", class: "open", click: () => enlarge(place) }, `Image ${id}`), el("small", {}, file)),
      el("div", { class: "pair" }, panel(image, "truth"), panel(image, "prediction")),
      el("p", { class: "hint" }, described(image)));
  }

  function panel(image, side) {
    const [id, width, height] = index.images[image];
    const text = `image ${id}, ${side === "truth" ? "ground truth" : `prediction${side === "prediction" ? "" : ` ${side}`}`}`;
    return el("div", { class: "panel", "data-side": side, style: { aspectRatio: `${width} / ${height}` } },
      summary.pictures ? el("img", { src: `pictures/${image}.jpg`, loading: "lazy", decoding: "async", alt: text }) : null,
      el("canvas", { role: "img", "aria-label": text }));
  }

  // Of one image, large: the ground truth, the model that is chosen, and what the others predict.
  function largePanels(image) {
    const [, width, height] = index.images[image];
    const titled = (title, made) => {
      // As wide as it can be without becoming higher than the window.
      made.style.width = `min(100%, ${(68 * width) / height}vh)`;
      return el("figure", {}, el("figcaption", {}, title), made);
    };
    const others = index.models.map((_, number) => number).filter((number) => number !== +state.model);
    return [titled("Ground truth", panel(image, "truth")), titled(summary.models[state.model].title, panel(image, "prediction")),
      ...others.map((number) => {
        const made = panel(image, `of ${summary.models[number].title}`);
        made.dataset.model = number;
        return titled(summary.models[number].title, made);
      })];
  }

  function seen(entries) {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        entry.target.dataset.seen = "yes";
        drawPair(entry.target);
      }
    }
  }

  function redraw() {
    for (const figure of document.querySelectorAll("article[data-seen], dialog[open] .large")) drawPair(figure);
  }

  function classColor(label) {
    const hue = (label * 137.508) % 360;
    const part = (n) => { const k = (n + hue / 30) % 12; return Math.round(255 * (0.5 - 0.38 * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
    return [part(0), part(8), part(4)];
  }

  async function objectsOf(image, number = state.model) {
    const page = Math.floor(image / index.page);
    const [truth, prediction] = await Promise.all([maskx.load(`truth/${page}`), maskx.load(`model-${number}/${page}`)]);
    const model = index.models[number];
    const match = matcher(number);
    const begin = index.truth.start[image];
    const name = (label) => summary.classes[label];
    const color = (what, label) => (shows.color === "class" ? classColor(label) : COLORS[what]);
    // Where detections with an error are asked for, no object can match: all of them are context.
    const pale = (at) => !match.object(at) && ["", "missed"].includes(state.outcome);
    const objects = truth[image % index.page].map((shape, place) => {
      const at = begin + place;
      const what = STATES[model.state[at]];
      const label = index.truth.label[at];
      return { shape, what, label, size: SIZES[index.truth.size[at]], name: name(label) + (index.truth.crowd[at] ? " (crowd)" : ""), color: color(what, label), dashed: what === "missed", dim: pale(at) };
    });
    const detections = prediction[image % index.page].map((shape, place) => {
      const at = model.start[image] + place;
      const what = summary.outcomes[model.outcome[at]];
      const label = model.label[at];
      const score = model.score[at] / 65535;
      return { shape, what, label, score, size: SIZES[model.size[at]], shown: match.detection(at), name: `${name(label)} ${score.toFixed(2)}`, color: color(what, label), dashed: what !== "correct" };
    });
    return { objects, detections };
  }

  async function drawPair(figure, strong = null) {
    const image = +figure.dataset.image;
    const [, width, height] = index.images[image];
    try {
      const { objects, detections } = await objectsOf(image);
      // The best goes last, on top of the others.
      const predicted = detections.filter((d) => d.shown).reverse();
      objects.sort((a, b) => b.dim - a.dim);
      const drawn = { truth: objects, prediction: predicted };
      for (const { dataset } of figure.querySelectorAll("[data-model]")) {
        drawn[dataset.side] = (await objectsOf(image, dataset.model)).detections.filter((d) => d.shown).reverse();
      }
      for (const canvas of figure.querySelectorAll("canvas")) {
        const ratio = Math.min(2, window.devicePixelRatio || 1);
        canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
        canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
        const side = canvas.parentElement.dataset.side;
        if (strong && strong.side === side) drawn[side].find((o) => o.shape === strong.shape).strong = true;
        maskx.masks.draw(canvas, [width, height], drawn[side], { ...shows, names: shows.names || figure.classList.contains("large"), ratio });
      }
      figure.dataset.drawn = "yes";
    } catch (error) {
      figure.append(el("p", { class: "note", role: "alert" }, error.message));
    }
  }

  // One image, large.

  function enlarge(place) {
    const dialog = document.getElementById("large") ?? document.body.appendChild(el("dialog", { id: "large", "aria-label": "One image", close: closed, keydown: step }));
    dialog.dataset.place = place;
    fill(dialog);
    if (!dialog.open) dialog.showModal();
  }

  function step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const dialog = document.getElementById("large");
    if (!move || !found[+dialog.dataset.place + move]) return;
    event.preventDefault();
    dialog.dataset.place = +dialog.dataset.place + move;
    fill(dialog);
  }

  function closed() {
    const place = +document.getElementById("large").dataset.place;
    const page = String(Math.floor(place / PER_PAGE));
    if (page !== state.page) { state.page = page; update(); }
    parts.cards.querySelector(`[data-image="${found[place][0]}"] .open`)?.focus();
  }

  async function fill(dialog) {
    const place = +dialog.dataset.place;
    const [image] = found[place];
    const [id, width, height, file] = index.images[image];
    const figure = el("div", { class: "large", "data-image": image }, el("div", { class: "pair" }, largePanels(image)));
    const move = (step_, text) => el("button", { type: "button", disabled: !found[place + step_], click: () => { dialog.dataset.place = place + step_; fill(dialog); } }, text);
    const lists = el("div", { class: "lists" });
    dialog.replaceChildren(el("header", {}, el("h2", {}, `Image ${id}`),
      el("button", { type: "button", class: "close", autofocus: true, click: () => dialog.close() }, "Close"),
      el("span", { class: "hint" }, `${file ? `${file} · ` : ""}${width} × ${height} · ${described(image)}`),
      el("span", { class: "hint" }, `${place + 1} of ${found.length}`), move(-1, "← Previous"), move(1, "Next →")), figure, lists);
    await drawPair(figure);
    const { objects, detections } = await objectsOf(image);
    if (+dialog.dataset.place !== place) return;
    const row = (side) => (object) => el("li", {}, el("button", { type: "button", class: "object",
      focus: () => drawPair(figure, { side, shape: object.shape }), mouseenter: () => drawPair(figure, { side, shape: object.shape }),
      blur: () => drawPair(figure), mouseleave: () => drawPair(figure) },
    el("span", { class: "swatch", "aria-hidden": "true", style: { background: `rgb(${object.color.join(" ")})` } }), object.name, el("small", {}, ` ${object.what === "missed" ? "missed" : MEANINGS[object.what] ?? object.what}, ${object.size}`)));
    const list = (text, side, listed) => el("section", {}, el("h3", {}, `${text}: ${listed.length}`), el("ul", {}, listed.map(row(side))));
    lists.append(list("Ground truth", "truth", objects), list("Prediction", "prediction", detections.filter((d) => d.shown)));
  }

  // Keys, where no field takes them.
  document.addEventListener("keydown", (event) => {
    if (document.getElementById("main").dataset.view !== "gallery" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const toggle = { m: "masks", b: "boxes", l: "names" }[event.key];
    if (toggle) document.querySelector(`[name="show-${toggle}"]`)?.click();
    else if (["n", "p"].includes(event.key) && !document.querySelector("dialog[open]")) turn(event.key === "n" ? 1 : -1);
  });

  return { show };
})();
