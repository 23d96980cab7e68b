// The views of a report, one at a time: the address names it, as #classes or #gallery?class=3.
"use strict";

(() => {
  const { el, percent, signed, whole, modelColor, DASHES, table, lineChart, legend, bar, choice } = maskx;
  const KIND_NAMES = { bbox: "Boxes", segm: "Masks", boundary: "Borders" };
  const GROUP_NAMES = { all: "all classes", A: "A, masks in training", B: "B, boxes only", mixed: "mixed, some masks" };
  const APS = { AP: "AP (mean over IoU 0.5 to 0.95)", AP50: "AP50", AP75: "AP75" };
  const TIDE = {
    class: ["Cls", "right place, wrong class"],
    location: ["Loc", "right class, IoU 0.1 to 0.5"],
    both: ["Both", "wrong class and location"],
    duplicate: ["Dupe", "the object has a better detection"],
    background: ["Bkg", "no object there"],
    missed: ["Miss", "objects that no wrong detection stands for"],
  };
  const VIEWS = [
    ["scores", "Scores", scores], ["classes", "Classes", classes], ["curves", "Precision and recall", curves],
    ["errors", "Errors", errors], ["confusion", "Confusion", confusion], ["calibration", "Calibration", calibration],
    ["learning", "Learning", learning], ["gallery", "Gallery", (...given) => maskx.gallery.show(...given)],
  ];
  let summary;
  let kind;
  const chosen = { what: "AP50", who: "groups", model: 0, score: null, sort: "ap", find: "", group: "all" };

  const models = () => summary.models;
  const groups = () => Object.keys(summary.groups);
  const groupName = (group) => GROUP_NAMES[group] ?? group;
  const groupOf = (label) => groups().filter((g) => g !== "all" && summary.groups[g].includes(label));
  const badge = (group) => el("span", { class: `badge badge-${group}`, title: groupName(group) }, group);
  const groupCell = (group) => (group === "all" ? "all" : badge(group));
  const names = () => models().map((model) => model.title);
  const several = () => models().length > 1;
  const modelLegend = () => legend(names().map((name, number) => ({ name, color: modelColor(number) })));
  const within = (interval) => (interval ? `${percent(interval[0])} to ${percent(interval[1])}` : "–");

  maskx.start = (value) => {
    summary = value;
    kind = summary.kinds.at(-1);
    maskx.summary = summary;
    document.title = `Report: ${names().join(", ")}`;
    document.getElementById("subtitle").textContent = names().join(" · ");
    const list = document.getElementById("views");
    for (const [id, title] of VIEWS) list.append(el("li", {}, el("a", { href: `#${id}` }, title)));
    drawKinds();
    document.getElementById("foot").append(
      `${whole(summary.num_images)} images, ${whole(summary.num_objects)} objects, ${whole(summary.classes.length)} classes. ` +
      `AP in percent, of at most ${summary.max_detections} detections an image${summary.federated ? ", by LVIS' rules" : ""}. ` +
      `Intervals hold 95 % of ${whole(summary.num_draws)} bootstrap draws of the images.`);
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    });
    window.addEventListener("hashchange", render);
    render();
  };

  function drawKinds() {
    const box = document.getElementById("kinds");
    if (summary.kinds.length < 2) return;
    box.replaceChildren(...summary.kinds.map((name) =>
      el("button", { type: "button", "aria-pressed": String(name === kind), click: () => { kind = name; drawKinds(); render(); } },
        KIND_NAMES[name])));
  }

  function render() {
    const [id, query] = location.hash.slice(1).split("?");
    const [name, , view] = VIEWS.find(([known]) => known === id) ?? VIEWS[0];
    for (const link of document.querySelectorAll("#views a")) {
      if (link.hash === `#${name}`) {
        link.setAttribute("aria-current", "page");
        // Not scrollIntoView, after which the next Tab would begin there.
        document.getElementById("views").scrollLeft = link.offsetLeft - innerWidth / 3;
      }
      else link.removeAttribute("aria-current");
    }
    document.getElementById("kinds").hidden = name === "gallery" || name === "learning";
    const main = document.getElementById("main");
    // What had the focus gets it back, where the new view has it too.
    const focused = document.activeElement?.getAttribute?.("data-keep");
    main.replaceChildren();
    main.dataset.view = name;
    Promise.resolve(view(main, new URLSearchParams(query ?? ""))).catch((error) => {
      main.append(el("p", { class: "note", role: "alert" }, `This view cannot be shown: ${error.message}`));
    });
    if (focused) main.querySelector(`[data-keep="${focused}"]`)?.focus();
  }

  function title(main, text, ...explanation) {
    main.append(el("h2", {}, text));
    if (explanation.length) main.append(el("p", { class: "lead" }, ...explanation));
  }

  function again(field) {
    return (value) => { chosen[field] = value; render(); };
  }

  function pick(field, label, options) {
    return choice(label, options, chosen[field], again(field), { "data-keep": field });
  }

  const pickModel = () => several() && pick("model", "Model", names().map((name, number) => [number, name]));

  // Scores

  function scores(main) {
    title(main, "Scores", "AP of each group of classes. A: classes with masks in training; B: classes with boxes only.");
    for (const scored of Object.keys(KIND_NAMES).filter((name) => models()[0].measured[name])) main.append(scoreTable(scored));
    const harmonic = models().filter((model) => model.measured.harmonic_mean);
    if (harmonic.length) {
      const kinds = Object.keys(harmonic[0].measured.harmonic_mean);
      main.append(table("Harmonic mean of AP of A and B", ["Model", ...kinds.map((name) => KIND_NAMES[name])],
        harmonic.map((model) => [model.title, ...kinds.map((name) => percent(model.measured.harmonic_mean[name]))])));
    }
    main.append(whiskers());
    if (several()) main.append(differences());
    notes(main);
  }

  function scoreTable(scored) {
    const columns = Object.keys(models()[0].measured[scored].all);
    const rows = [];
    for (const group of Object.keys(models()[0].measured[scored])) {
      for (const model of models()) {
        const interval = model.kinds[scored]?.intervals[group]?.AP;
        const values = columns.map((name) => percent(model.measured[scored][group][name]));
        rows.push([groupCell(group), ...(several() ? [model.title] : []), el("strong", {}, values[0]), within(interval), ...values.slice(1)]);
      }
    }
    const heads = ["Group", ...(several() ? ["Model"] : []), "AP", "95 % interval", ...columns.slice(1)];
    return table(KIND_NAMES[scored], heads, rows, { texts: several() ? 2 : 1 });
  }

  function whiskers() {
    const most = Math.max(0.05, ...models().flatMap((m) => groups().map((g) => m.kinds[kind].intervals[g].AP?.[1] ?? 0)));
    const rows = groups().flatMap((group) => models().map((model, number) => {
      const { [group]: intervals } = model.kinds[kind].intervals;
      const value = model.measured[kind][group]?.AP;
      const text = `${model.title}, ${groupName(group)}: ${percent(value)}, ${within(intervals.AP)}`;
      return [groupCell(group), ...(several() ? [model.title] : []),
        bar(value, { color: several() ? modelColor(number) : `var(--group-${group})`, interval: intervals.AP, most: most * 1.05, label: text })];
    }));
    return table(`AP of ${KIND_NAMES[kind].toLowerCase()} with its interval`, ["Group", ...(several() ? ["Model"] : []), "AP"], rows,
      { texts: several() ? 3 : 2 });
  }

  function differences() {
    const rows = summary.kinds.flatMap((scored) => groups().flatMap((group) => models().slice(1).map((model) => {
      const cells = ["AP", "AP50", "AP75"].flatMap((name) => {
        const [one, first] = [model, models()[0]].map((m) => m.measured[scored][group]?.[name]);
        const interval = model.difference[scored][group][name];
        const known = one !== null && first !== null && one !== undefined && first !== undefined;
        const sure = interval && (interval[0] > 0 || interval[1] < 0);
        const value = el(sure ? "strong" : "span", { class: sure ? (interval[0] > 0 ? "better" : "worse") : null }, known ? signed(one - first) : "–");
        return [value, interval ? `${signed(interval[0])} to ${signed(interval[1])}` : "–"];
      });
      return [KIND_NAMES[scored], groupCell(group), model.title, ...cells];
    })));
    return el("div", {},
      table(`Difference to ${models()[0].title}`, ["Kind", "Group", "Model", "AP", "95 % interval", "AP50", "95 % interval", "AP75", "95 % interval"],
        rows, { texts: 3 }),
      el("p", { class: "hint" }, "Both models are scored on the same draws of the images. Bold: the interval does not hold 0."));
  }

  function notes(main) {
    const { measured } = models()[0];
    const said = [];
    if (measured.num_ignored_without_mask) said.push(`${whole(measured.num_ignored_without_mask)} objects without a mask are ignored for masks.`);
    if (measured.num_areas_replaced) said.push(`${whole(measured.num_areas_replaced)} areas of the annotations cannot be right and were replaced.`);
    if (said.length) main.append(el("p", { class: "hint" }, said.join(" ")));
  }

  // Classes

  function classes(main) {
    title(main, "Classes", `AP of ${KIND_NAMES[kind].toLowerCase()} by class, with its 95 % interval; a class with few objects has a wide one.`);
    const orders = [["ap", "AP, best first"], ["worst", "AP, worst first"], ["name", "name"], ["objects", "objects, most first"]];
    if (several()) orders.push(["gain", `difference to ${models()[0].title}`]);
    const body = el("tbody");
    const find = el("input", { type: "search", value: chosen.find, "data-keep": "find", input: () => { chosen.find = find.value; fill(); } });
    main.append(el("form", { class: "controls", submit: (event) => event.preventDefault() },
      pick("sort", "Order", orders),
      groups().length > 1 && pick("group", "Group", groups().map((g) => [g, groupName(g)])),
      el("label", { class: "field" }, el("span", {}, "Find a class"), find)),
      several() ? modelLegend() : legend(groups().filter((g) => g !== "all").map((g) => ({ name: groupName(g), color: `var(--group-${g})` }))));
    const heads = ["Class", "Objects", "AP", ...(several() ? ["Difference"] : []), "Images"];
    main.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "AP by class" },
      el("table", { class: "classes" }, el("caption", { class: "unseen" }, "AP by class"),
        el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col", class: text === "Objects" ? "number" : null }, text)))), body)));
    function fill() {
      const rows = ordered().filter(({ name }) => name.toLowerCase().includes(chosen.find.toLowerCase()));
      body.replaceChildren(...rows.map(classRow));
      if (!rows.length) body.append(el("tr", {}, el("td", { colspan: heads.length }, "No class matches.")));
    }
    fill();
  }

  function ordered() {
    const group = summary.groups[chosen.group] ?? summary.groups.all;
    const rows = group.map((label) => {
      const name = summary.classes[label];
      const values = models().map((model) => model.measured.per_class[name][kind]);
      return { label, name, values, objects: models()[0].kinds[kind].objects[label], gain: Math.max(...values.slice(1)) - values[0] };
    });
    const last = (value, sign) => (value === null || Number.isNaN(value) ? Infinity : sign * value);
    const orders = {
      ap: (row) => last(row.values[0], -1), worst: (row) => last(row.values[0], 1),
      objects: (row) => -row.objects, gain: (row) => last(row.gain, 1),
    };
    const by = orders[chosen.sort];
    return by ? rows.sort((a, b) => by(a) - by(b)) : rows.sort((a, b) => a.name.localeCompare(b.name));
  }

  function classRow({ label, name, values, objects }) {
    const bars = models().map((model, number) => {
      const interval = model.kinds[kind].intervals.classes[label];
      const color = several() ? modelColor(number) : `var(--group-${groupOf(label)[0] ?? "all"})`;
      return bar(values[number], { color, interval, label: `${model.title}: ${percent(values[number])}, ${within(interval)}` });
    });
    const cells = [el("th", { scope: "row" }, name, " ", groupOf(label).map(badge)), el("td", { class: "number" }, whole(objects)), el("td", { class: "bars" }, bars)];
    if (several()) {
      cells.push(el("td", {}, models().slice(1).map((model, number) => {
        const interval = model.difference[kind].classes[label];
        const known = values[0] !== null && values[number + 1] !== null;
        return el("div", { title: within(interval) }, known ? signed(values[number + 1] - values[0]) : "–",
          interval ? el("small", {}, ` ${signed(interval[0])} to ${signed(interval[1])}`) : "");
      })));
    }
    cells.push(el("td", {}, el("a", { href: `#gallery?class=${label}`, "aria-label": `images with ${name}` }, "show")));
    return el("tr", {}, cells);
  }

  // Precision and recall

  async function curves(main) {
    title(main, "Precision and recall", "How many detections are right (precision) when so many objects are found (recall).");
    const who = [["groups", "groups of classes"], ...summary.classes.map((name, label) => [label, name])];
    main.append(el("div", { class: "controls" }, pick("what", "Overlap", Object.entries({ AP50: "IoU 0.5", AP75: "IoU 0.75", AP: "mean over IoU 0.5 to 0.95" })),
      pick("who", "Classes", who)));
    const data = await Promise.all(models().map((_, number) => maskx.load(`curves-${number}-${kind}`)));
    const series = data.flatMap((curvesOf, number) => {
      const all = curvesOf[chosen.what];
      const sets = chosen.who === "groups" ? groups().map((g) => [groupName(g), summary.groups[g], g]) : [[summary.classes[chosen.who], [+chosen.who], "all"]];
      return sets.map(([name, labels, group], place) => {
        const rows = labels.map((label) => all[label]).filter((row) => row);
        const points = rows.length ? rows[0].map((_, k) => [k / 100, rows.reduce((sum, row) => sum + row[k], 0) / rows.length / 1000]) : [];
        const area = points.reduce((sum, point) => sum + point[1], 0) / 101;
        const color = several() ? modelColor(number) : `var(--group-${group})`;
        return { name: `${several() ? `${names()[number]}, ` : ""}${name}: ${rows.length ? percent(area) : "no objects"}`, points, color, dash: DASHES[several() ? place % 4 : 0] };
      });
    });
    if (main.dataset.view !== "curves") return;
    main.append(legend(series), lineChart({
      label: `Precision by recall, ${APS[chosen.what]}: ${series.map((s) => s.name).join("; ")}`,
      series, x: [0, 1], y: [0, 1], xLabel: "recall", yLabel: "precision" }));
  }

  // Errors

  function errors(main) {
    title(main, "Kinds of error", "AP50 that each kind of error costs: what it would gain if only these errors were set right (TIDE).");
    const group = summary.groups[chosen.group] ? chosen.group : "all";
    const sets = several()
      ? models().map((model, number) => ({ name: model.title, color: modelColor(number), lost: model.kinds[kind].lost[group] }))
      : groups().map((g) => ({ name: groupName(g), color: `var(--group-${g})`, lost: models()[0].kinds[kind].lost[g] }));
    if (several() && groups().length > 1) main.append(el("div", { class: "controls" }, pick("group", "Group", groups().map((g) => [g, groupName(g)]))));
    if (sets.length > 1) main.append(legend(sets));
    const most = Math.max(0.01, ...sets.flatMap(({ lost }) => Object.values(lost)));
    main.append(table("AP50 lost", ["Kind of error", "AP50 lost", ...names().map((n) => (several() ? `Number, ${n}` : "Number"))],
      Object.entries(TIDE).map(([name, [short, meaning]]) => [[name, el("small", {}, meaning)],
        el("div", { class: "bars" }, sets.map((set) => bar(set.lost[name], { color: set.color, most, label: `${set.name}: ${percent(set.lost[name])}` }))),
        ...models().map((m) => whole(m.kinds[kind].errors.counts[short]))]), { texts: 2 }));
    main.append(table("All errors of a side at once", ["Side", "What is set right", ...names()],
      [["FP", "every wrong detection"], ["FN", "every missed object"]].map(([name, text]) =>
        [name, text, ...models().map((m) => percent(m.kinds[kind].errors.sides[name]))]), { texts: 2 }));
    main.append(el("h3", {}, "Detections and objects at IoU 0.5"));
    for (const [number, model] of models().entries()) {
      const outcomes = ["correct", "class", "location", "both", "duplicate", "background", "missed"];
      const inGallery = kind === summary.kind;
      const cell = (group, name, value) => (value && inGallery
        ? el("a", { href: `#gallery?model=${number}&outcome=${name}&group=${group}` }, whole(value)) : whole(value));
      main.append(table(several() ? model.title : "Numbers by group", ["Group", "objects", ...outcomes],
        groups().map((group) => {
          const counts = model.kinds[kind].outcomes[group];
          return [groupCell(group), whole(counts.objects), ...outcomes.map((name) => cell(group, name, counts[name]))];
        })));
    }
    main.append(el("p", { class: "hint" }, "All scores count here, and a group by the class of the detection; missed: objects that no detection of their class found. TIDE's “missed” has only those that no error of class or location stands for."));
  }

  // Confusion

  function confusion(main) {
    title(main, "Confusion of classes", "Which class an object has, and which one its best detection says, at an IoU of 0.5 or more.");
    const model = models()[chosen.model] ?? models()[0];
    const tables = model.kinds[kind].confusion;
    chosen.score ??= telling(tables, model.kinds[kind].outcomes.all.objects);
    main.append(el("div", { class: "controls" }, pickModel(), pick("score", "Score at least", tables.map(({ score }, place) => [place, score]))));
    const { cells } = tables[chosen.score];
    const background = summary.classes.length;
    const name = (label) => (label === background ? "background" : summary.classes[label]);
    const mixed = cells.filter(([row, column]) => row !== column && row !== background && column !== background).sort((a, b) => b[2] - a[2]);
    const total = new Map();
    for (const [row, , count] of cells) total.set(row, (total.get(row) ?? 0) + count);
    const rows = mixed.slice(0, 30).map(([row, column, count]) => [name(row), name(column), whole(count), percent(count / total.get(row)),
      el("a", { href: `#gallery?model=${names().indexOf(model.title)}&class=${column}&outcome=class&min=${tables[chosen.score].score}`, "aria-label": `images where ${name(column)} has the wrong class` }, "show")]);
    main.append(rows.length ? table("Most frequent confusions", ["True class", "Predicted as", "Objects", "% of the true class", "Images"], rows, { texts: 2 })
      : el("p", { class: "note" }, "No object of one class is taken for another."));
    main.append(matrix(cells, mixed, total, background, name));
  }

  // The highest score that leaves half as many detections as there are objects.
  function telling(tables, objects) {
    const made = tables.map(({ cells }) => cells.reduce((sum, [, column, count]) => sum + (column < summary.classes.length ? count : 0), 0));
    return Math.max(0, made.findLastIndex((number) => number >= objects / 2));
  }

  const MOST_IN_MATRIX = 40;

  function matrix(cells, mixed, total, background, name) {
    const weight = new Map(summary.classes.map((_, label) => [label, 0]));
    for (const [row, column, count] of mixed) for (const label of [row, column]) weight.set(label, weight.get(label) + count);
    const kept = [...weight.entries()].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, MOST_IN_MATRIX).map(([label]) => label).sort((a, b) => a - b);
    const labels = [...kept, background];
    const value = new Map(cells.map(([row, column, count]) => [`${row} ${column}`, count]));
    const head = el("tr", {}, el("td", {}), labels.map((label) => el("th", { scope: "col" }, el("span", {}, name(label)))));
    const body = labels.map((row) => el("tr", {}, el("th", { scope: "row" }, name(row)), labels.map((column) => {
      const count = value.get(`${row} ${column}`) ?? 0;
      const share = row === background ? 0 : count / (total.get(row) || 1);
      const shade = row === background ? "none" : `color-mix(in srgb, var(${row === column ? "--right" : "--wrong"}) ${Math.round(100 * Math.sqrt(share) * 0.85)}%, transparent)`;
      return el("td", { style: { background: shade }, title: `${name(row)} as ${name(column)}: ${count}` }, count ? String(count) : "");
    })));
    const left = summary.classes.length - kept.length;
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, el("table", { class: "matrix" },
      el("caption", {}, "Rows: true class; columns: predicted class. “background” as a column: missed; as a row: no object there." +
        (left > 0 ? ` Shown are the ${kept.length} classes with most confusions, of ${summary.classes.length}.` : "")),
      el("thead", {}, head), el("tbody", {}, body)));
  }

  // Calibration

  function calibration(main) {
    title(main, "Calibration", "How often a detection of a score is right (at IoU 0.5). On the diagonal the score is the probability.");
    const of = (model) => model.kinds[kind].calibration;
    main.append(modelLegend(), lineChart({
      label: `Share of right detections by score: ${models().map((m) => `${m.title} with an expected error of ${percent(of(m).ece)}`).join("; ")}`,
      series: models().map((model, number) => ({ color: modelColor(number), marks: true,
        points: of(model).bins.filter((bin) => bin[4]).map(([, , score, right]) => [score, right]) })),
      x: [0, 1], y: [0, 1], xLabel: "mean score", yLabel: "share that is right", diagonal: true, width: 560, height: 420 }));
    main.append(table("Calibration error, percent", ["Model", "Expected", "Largest", "Detections"],
      models().map((model) => [model.title, percent(of(model).ece), percent(of(model).mce), whole(of(model).detections)])));
    for (const model of models()) {
      main.append(table(several() ? model.title : "By score", ["Score", "Detections", "Mean score", "Share that is right"],
        of(model).bins.map(([low, high, score, right, count]) =>
          [`${low.toFixed(1)} to ${high.toFixed(1)}`, whole(count), count ? percent(score) : "–", count ? percent(right) : "–"])));
    }
  }

  // Learning

  function learning(main) {
    const all = [...new Set(summary.learning.flatMap((series) => Object.keys(series)))];
    title(main, "Learning", all.length ? "What the runs logged (metrics.jsonl), by step." : "");
    if (!all.length) {
      main.append(el("p", { class: "note" }, "These models have no metrics.jsonl: results of files have no history."));
      return;
    }
    const parts = new Map();
    for (const name of all) {
      const part = name.includes("/") ? name.slice(0, name.indexOf("/")) : "other";
      parts.set(part, [...(parts.get(part) ?? []), name]);
    }
    if (several()) main.append(modelLegend());
    for (const [part, members] of parts) {
      main.append(el("details", { open: true, class: "part" }, el("summary", {}, part),
        el("div", { class: "small-charts" }, members.map(learningChart))));
    }
  }

  function learningChart(name) {
    const series = summary.learning.map((of, number) => ({ points: of[name] ?? [], color: modelColor(number) }));
    const points = series.flatMap((line) => line.points);
    const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    return el("figure", {}, el("figcaption", {}, name.slice(name.indexOf("/") + 1)), lineChart({
      label: `${name} by step, from ${maskx.short(ys[0])} to ${maskx.short(ys.at(-1))}`, series, width: 340, height: 190,
      x: [Math.min(...xs), Math.max(...xs)], y: [low - room, high + room] }));
  }
})();
