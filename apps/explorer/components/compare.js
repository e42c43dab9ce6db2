// Dictionaries side by side: a plot of what one number costs in another, and the table of everything measured.
import { h, s, number, percent, mount, showTip, refill, segmented } from "./common.js";

export default function (component) {
  const { data, setStateValue } = component;
  const { root, tip, memory } = mount(component);
  if (memory.stamp !== data.stamp) { memory.view = { ...data.view }; memory.stamp = data.stamp; }
  const view = memory.view;
  const set = (changes) => {
    Object.assign(view, changes);
    clearTimeout(memory.timer);
    memory.timer = setTimeout(() => setStateValue("view", { ...view }), 250);
    draw();
  };
  const measure = new Map(data.measures.map((each) => [each.key, each]));
  const shown = (each, value) => value === null || value === undefined ? "–"
    : each.format === "percent" ? number(100 * value, 3) + "%"
    : each.format === "count" ? value.toLocaleString("en") : number(value, 3);
  const colour = (i) => `var(--c${i % 6})`;
  const shapes = ["circle", "square", "diamond", "triangle", "cross", "bar"];

  function mark(i, x, y, size = 6) {
    const at = { fill: colour(i), class: "mark" };
    const shape = shapes[Math.floor(i) % shapes.length];
    if (shape === "circle") return s("circle", { ...at, cx: x, cy: y, r: size });
    if (shape === "square") return s("rect", { ...at, x: x - size, y: y - size, width: 2 * size, height: 2 * size });
    if (shape === "bar") return s("rect", { ...at, x: x - size, y: y - size / 2, width: 2 * size, height: size });
    const path = { diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], triangle: [[0, -1.25], [1.2, 1], [-1.2, 1]],
      cross: [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]] }[shape];
    return s("polygon", { ...at, points: path.map(([dx, dy]) => `${x + dx * size},${y + dy * size}`).join(" ") });
  }

  /** Round steps over a range, in powers of ten where it spans more than a decade and a half. */
  function scale(values, from, to) {
    let lo = Math.min(...values), hi = Math.max(...values);
    const log = lo > 0 && hi / lo > 30;
    const f = log ? Math.log10 : (x) => x;
    let a = f(lo), b = f(hi);
    const pad = (b - a || Math.abs(a) * 0.2 || 1) * 0.12;
    a -= pad; b += pad;
    if (!log && lo >= 0 && a < 0) a = 0;
    const position = (x) => from + ((f(x) - a) / (b - a)) * (to - from);
    const ticks = [];
    if (log) for (let p = Math.floor(a); p <= b; p++) for (const m of [1, 2, 5]) { const t = m * 10 ** p; if (f(t) >= a && f(t) <= b) ticks.push(t); }
    else {
      const rough = (b - a) / 5, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough);
      for (let t = Math.ceil(a / step) * step; t <= b + 1e-12; t += step) ticks.push(Number(t.toPrecision(10)));
    }
    return { position, ticks };
  }

  function pareto(xKey, yKey) {
    const X = measure.get(xKey), Y = measure.get(yKey);
    const points = data.entries.map((entry, i) => ({ i, name: entry.name, x: entry.values[xKey], y: entry.values[yKey], interval: entry.intervals[yKey] }))
      .filter((p) => typeof p.x === "number" && typeof p.y === "number");
    const width = 660, height = 380, left = 58, right = 16, top = 12, bottom = 46;
    if (!points.length) return h("p", { class: "muted" }, "No dictionary here has both numbers. Evaluations have them; an index alone has no error.");
    const others = xKey === "l0" && view.baselines
      ? data.entries.flatMap((entry) => entry.baselines.map((b) => ({ name: b.name, x: b.k, y: b.values[yKey] })))
          .filter((p) => typeof p.y === "number" && p.x > 0) : [];
    const all = [...points, ...others];
    const ends = points.flatMap((p) => p.interval ?? []);
    const sx = scale(all.map((p) => p.x), left, width - right);
    const sy = scale([...all.map((p) => p.y), ...ends], height - bottom, top);
    // On the front: no other dictionary is at least as good in both and better in one.
    const towards = (m) => (m.better === 0 ? -1 : m.better);
    const beats = (a, b) => {
      const dx = towards(X) * (a.x - b.x), dy = towards(Y) * (a.y - b.y);
      return dx >= 0 && dy >= 0 && dx + dy > 0;
    };
    const front = points.filter((p) => !points.some((q) => beats(q, p))).sort((a, b) => a.x - b.x);
    const place = (p) => `${sx.position(p.x)},${sy.position(p.y)}`;
    // Names that would cover another one move up by a line.
    const taken = [];
    const label = (p, cls, away, above) => {
      const x = sx.position(p.x), wide = 7 * p.name.length + 12, atRight = x + wide > width;
      const from = atRight ? x - wide : x;
      let y = sy.position(p.y) - above;
      while (taken.some((other) => Math.abs(other.y - y) < 13 && from < other.to && other.from < from + wide)) y -= 13;
      taken.push({ y, from, to: from + wide });
      return s("text", { x: x + (atRight ? -away : away), y, "text-anchor": atRight ? "end" : "start", class: cls }, p.name);
    };
    const say = (p) => `${p.name}\n${X.title} ${shown(X, p.x)}\n${Y.title} ${shown(Y, p.y)}${p.interval ? `\n95% ${shown(Y, p.interval[0])} to ${shown(Y, p.interval[1])}` : ""}`;
    // Their names are placed first: those of baselines give way.
    const drawn = points.map((p) => s("g", { tabindex: 0, role: "img", "aria-label": say(p).replaceAll("\n", ", "), "data-tip": say(p), "data-focus": `point-${p.i}` },
      p.interval ? s("line", { class: "interval", stroke: colour(p.i), x1: sx.position(p.x), x2: sx.position(p.x), y1: sy.position(p.interval[0]), y2: sy.position(p.interval[1]) }) : null,
      mark(p.i, sx.position(p.x), sy.position(p.y)), label(p, "name", 11, 8)));
    const beside = others.map((p) => s("g", { class: "other", "data-tip": say(p) },
      s("circle", { cx: sx.position(p.x), cy: sy.position(p.y), r: 4 }), label(p, null, 8, -4)));
    const better = Y.better > 0 ? "higher is better" : "lower is better";
    return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", class: "pareto",
      "aria-label": `${Y.title} against ${X.title} of ${points.length} dictionaries; on the front: ${front.map((p) => p.name).join(", ")}. The table below has the numbers.` },
      sx.ticks.map((t) => [s("line", { class: "axis", x1: sx.position(t), x2: sx.position(t), y1: top, y2: height - bottom }),
        s("text", { x: sx.position(t), y: height - bottom + 16, "text-anchor": "middle" }, shown(X, t))]),
      sy.ticks.map((t) => [s("line", { class: "axis", x1: left, x2: width - right, y1: sy.position(t), y2: sy.position(t) }),
        s("text", { x: left - 7, y: sy.position(t) + 4, "text-anchor": "end" }, shown(Y, t))]),
      s("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle", class: "title" }, `${X.title} (${X.help})`),
      s("text", { x: 0, y: 0, transform: `translate(13 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title" }, `${Y.title}, ${better}`),
      front.length > 1 ? s("polyline", { class: "front", points: front.map(place).join(" ") }) : null,
      beside, drawn);
  }

  function densities() {
    const drawn = data.entries.map((entry, i) => ({ i, entry })).filter(({ entry }) => entry.density && entry.density.counts.some((n) => n));
    if (!drawn.length) return null;
    const width = 660, height = 210, left = 58, right = 16, top = 10, bottom = 40;
    const lo = Math.min(...drawn.map(({ entry }) => entry.density.log10_edges[Math.max(0, entry.density.counts.findIndex((n) => n) - 1)]));
    const x = (v) => left + ((v - lo) / (0 - lo)) * (width - left - right);
    const shares = drawn.map(({ i, entry }) => ({ i, name: entry.name, edges: entry.density.log10_edges, shares: entry.density.counts.map((n) => n / (entry.values.d_sae || 1)) }));
    const most = Math.max(...shares.flatMap((each) => each.shares), 1e-9);
    const y = (v) => height - bottom - (v / most) * (height - top - bottom);
    const powers = []; for (let p = Math.ceil(lo); p <= 0; p++) powers.push(p);
    return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Share of latents by how often they fire, for ${shares.map((each) => each.name).join(", ")}` },
      powers.map((p) => [s("line", { class: "axis", x1: x(p), x2: x(p), y1: top, y2: height - bottom }), s("text", { x: x(p), y: height - bottom + 16, "text-anchor": "middle" }, percent(10 ** p))]),
      s("line", { class: "axis", x1: left, x2: width - right, y1: y(0), y2: y(0) }),
      [0.5, 1].map((part) => s("text", { x: left - 7, y: y(part * most) + 4, "text-anchor": "end" }, percent(part * most))),
      s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "title" }, "share of tokens on which a latent fires"),
      shares.map((each) => s("polyline", { class: "density", stroke: colour(each.i), "data-tip": each.name,
        points: each.shares.flatMap((share, j) => (each.edges[j] < lo ? [] : [[each.edges[j], share], [each.edges[j + 1], share]])).map(([e, v]) => `${x(e)},${y(v)}`).join(" ") })));
  }

  function table() {
    const groups = [...new Set(data.measures.map((each) => each.group))];
    const key = (i) => s("svg", { viewBox: "0 0 16 16", class: "key", "aria-hidden": "true" }, mark(i, 8, 8, 5));
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All measures" }, h("table", { style: { maxWidth: `${18 + 15 * data.entries.length}rem` } },
      h("caption", { class: "visually-hidden" }, "Measures of each dictionary; the best of a row is bold"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Measure"), data.entries.map((entry, i) => h("th", { scope: "col", class: "num", title: entry.path },
        h("span", { class: "entry" }, key(i), entry.name), h("span", { class: "about" }, entry.about), entry.mine ? h("span", { class: "chip" }, "this index") : null)))),
      groups.map((group) => h("tbody", {}, h("tr", { class: "group" }, h("th", { colspan: data.entries.length + 1, scope: "colgroup" }, group)),
        data.measures.filter((each) => each.group === group).map((each) => h("tr", {},
          h("th", { scope: "row", title: each.help }, each.title, each.better ? h("span", { class: "muted", title: each.better > 0 ? "higher is better" : "lower is better" }, each.better > 0 ? " ↑" : " ↓") : null),
          data.entries.map((entry, i) => {
            const interval = entry.intervals[each.key];
            const is = each.best.includes(i);
            return h("td", { class: `num${is ? " best" : ""}` }, is ? h("b", {}, shown(each, entry.values[each.key])) : shown(each, entry.values[each.key]),
              interval ? h("span", { class: "between" }, `${shown(each, interval[0])} – ${shown(each, interval[1])}`) : null);
          })))))));
  }

  function draw() {
    const y = data.y.includes(view.y) ? view.y : data.y[0];
    const x = data.x.includes(view.x) ? view.x : data.x[0];
    const choice = (name, title, keys, value, key) => keys.length > 1
      ? h("span", { class: "axis-choice" }, h("span", { class: "muted small" }, title), segmented(name, title, keys.map((each) => [each, measure.get(each).title, measure.get(each).help]), value, (chosen) => set({ [key]: chosen }))) : null;
    const alone = data.entries.length < 2;
    refill(root,
      h("header", {}, h("h1", {}, "Compare"), alone
        ? h("p", { class: "muted" }, "Only this index is open. Name others when you start the explorer: ", h("code", {}, "saekit explore INDEX --compare RUN [RUN …]"), ". A run is shown once it was evaluated: ", h("code", {}, "saekit eval"), ".")
        : h("p", { class: "muted" }, `${data.entries.length} dictionaries, by their evaluations.`)),
      data.different_data ? h("p", { class: "warn", role: "note" }, "They were measured on different activations: compare with care.") : null,
      y && x ? h("section", {}, h("h2", {}, "What it costs"), h("div", { class: "toolbar" },
        choice("y", "Up", data.y, y, "y"), choice("x", "Across", data.x, x, "x"),
        x === "l0" && data.entries.some((entry) => entry.baselines.length) ? h("label", { class: "small" }, h("input", { type: "checkbox", checked: view.baselines, "data-focus": "baselines",
          onchange: (event) => set({ baselines: event.target.checked }) }), " Baselines") : null),
        pareto(x, y)) : null,
      h("div", { class: "side" }, h("section", {}, h("h2", {}, "How often latents fire"), densities() ?? h("p", { class: "muted" }, "Not measured."))),
      h("section", { class: "all" }, h("h2", {}, "Everything measured"), table()));
  }
  if (!memory.wired) {
    memory.wired = true;
    const enter = (event) => { const mark = event.target.closest?.("[data-tip]"); if (mark) showTip(tip, mark, mark.dataset.tip); };
    const leave = () => (tip.hidden = true);
    for (const name of ["mouseover", "focusin"]) root.addEventListener(name, enter);
    for (const name of ["mouseout", "focusout"]) root.addEventListener(name, leave);
  }
  draw();
}
