// Small helpers shared by all components. Text only ever enters the page as text nodes, never as markup.
const SVG = "http://www.w3.org/2000/svg";

function build(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, css] of Object.entries(value)) key.startsWith("--") ? node.style.setProperty(key, css) : (node.style[key] = css);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);
export const s = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);

export function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  if (size < 0.001) return x.toExponential(1);
  return String(Number(x.toPrecision(digits)));
}
export const percent = (x) => (x === null || x === undefined ? "–" : number(100 * x, 2) + "%");
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");

/** The element of this component, and one tooltip for it. Both survive when new data arrives. */
export function mount(component) {
  const parent = component.parentElement;
  const root = parent.querySelector(".sk");
  let tip = parent.querySelector(".tip");
  if (!tip) {
    tip = h("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
    root.after(tip);
    window.addEventListener("scroll", () => (tip.hidden = true), { capture: true, passive: true });
  }
  tip.className = "tip sk";
  return { root, tip, memory: (root.memory ??= {}) };
}

export function showTip(tip, anchor, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = anchor.getBoundingClientRect ? anchor.getBoundingClientRect() : anchor;
  const mine = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - mine.width / 2), window.innerWidth - mine.width - 8);
  const above = box.top - mine.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
}

/** Tell the server when the browser goes back or forward on this page: Streamlit does not move its widgets then. */
export function followHistory(component, memory) {
  memory.leave?.();
  memory.path ??= location.pathname;
  const moved = () => {
    if (location.pathname === memory.path) component.setTriggerValue("address", Object.fromEntries(new URLSearchParams(location.search)));
  };
  window.addEventListener("popstate", moved);
  memory.leave = () => window.removeEventListener("popstate", moved);
  return memory.leave;
}

/** Put `nodes` into `root`; the element with the same data-focus keeps the keyboard focus. */
export function refill(root, ...nodes) {
  const focused = root.getRootNode().activeElement?.dataset?.focus;
  root.replaceChildren(...nodes.flat(3).filter((node) => node instanceof Node));
  if (focused) root.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

/** A link to a feature's page: a plain click is one small round trip, a modified click opens a tab. */
export function featureLink(component, id, children, props = {}) {
  const list = component.data.list ? `&list=${encodeURIComponent(component.data.list)}` : "";
  return h("a", {
    href: `feature?feature=${id}${list}`,
    ...props,
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      component.setTriggerValue("open", id);
    },
  }, children);
}

/** What to call a feature: the person's label, or what it fires on most, in quieter type. */
export function nameOf(feature) {
  if (feature.label) return h("span", { class: "named" }, feature.label);
  if (feature.top) return h("span", { class: "unnamed", title: "not labelled yet; this is what it fires on most" },
    [feature.top, ...(feature.more ?? [])].map((token) => [h("span", { class: "token" }, visible(token)), " "]));
  return h("span", { class: "muted" }, "–");
}

export function segmented(name, title, options, value, onchange) {
  return h("span", { class: "seg", role: "radiogroup", "aria-label": title }, options.map(([key, text, note]) =>
    h("label", { title: note }, h("input", {
      type: "radio", name, value: key, checked: key === value, "data-focus": `${name}-${key}`,
      onchange: () => onchange(key),
    }), text)));
}

/** Bars over equal bins with a log count axis; `mark` receives a function that draws a line at a value. */
export function histogram(tip, { edges, counts, ticks = [], xlabel, alt, log10 = false, height = 120, width = 400 }) {
  const left = 34, bottom = 30, top = 14;
  const most = Math.max(1, ...counts);
  const scale = (count) => (count ? ((Math.log10(count) + 0.3) / (Math.log10(most) + 0.3)) * (height - top) : 0);
  const lo = edges[0], hi = edges[edges.length - 1];
  const x = (value) => left + ((value - lo) / (hi - lo || 1)) * (width - left - 4);
  const shown = (value) => (log10 ? percent(10 ** value) : number(value, 3));
  // Densities have a label at every power of ten.
  const stops = log10 ? Array.from({ length: hi - lo + 1 }, (_, i) => lo + i) : [lo, (lo + hi) / 2, hi];
  const bars = counts.map((count, i) => {
    const tall = scale(count);
    const bar = s("rect", {
      class: "bar", x: x(edges[i]) + 0.5, width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1),
      y: height - tall, height: tall,
    });
    const area = s("rect", { x: x(edges[i]), width: x(edges[i + 1]) - x(edges[i]), y: 0, height, fill: "transparent" });
    const group = s("g", {
      onmouseenter: () => showTip(tip, group, `${shown(edges[i])} to ${shown(edges[i + 1])}: ${count.toLocaleString("en")}`),
      onmouseleave: () => (tip.hidden = true),
    }, area, bar);
    return group;
  });
  const powers = [];
  for (let p = 0; 10 ** p <= most && powers.length < 8; p += Math.max(1, Math.ceil(Math.log10(most) / 4))) powers.push(p);
  if (powers.length === 1 && most > 1) powers.push(Math.log10(most));
  const cursor = s("line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" });
  const node = s("svg", { viewBox: `0 0 ${width} ${height + bottom}`, role: "img", "aria-label": alt },
    powers.map((p) => [
      s("line", { class: "axis", x1: left, x2: width - 4, y1: height - scale(10 ** p), y2: height - scale(10 ** p) }),
      s("text", { x: left - 5, y: height - scale(10 ** p) + 4, "text-anchor": "end" }, p < 3 ? Math.round(10 ** p) : `1e${p}`),
    ]),
    bars,
    s("line", { class: "axis", x1: left, x2: width - 4, y1: height, y2: height }),
    ticks.map(([value, name]) => [
      s("line", { class: "tick", x1: x(value), x2: x(value), y1: 8, y2: height }),
      s("text", { x: x(value), y: 6, "text-anchor": x(value) < left + 30 ? "start" : x(value) > width - 30 ? "end" : "middle" }, name),
    ]),
    stops.map((value) => s("text", {
      x: x(value), y: height + 13, "text-anchor": value === lo ? "start" : value === hi ? "end" : "middle",
    }, shown(value))),
    s("text", { x: (left + width) / 2, y: height + 27, "text-anchor": "middle" }, xlabel),
    cursor);
  node.mark = (value) => {
    if (value === null || value < lo || value > hi) return cursor.setAttribute("visibility", "hidden");
    cursor.setAttribute("x1", x(value));
    cursor.setAttribute("x2", x(value));
    cursor.setAttribute("visibility", "visible");
  };
  return node;
}

/** An image with its patches' heat over the part the model saw. `acts` is [[content token, value], ...]. */
export function heatImage(tip, image, acts, { scale, threshold = 0, smooth = false, name, onpatch, chosen, onhover }) {
  const [left, top, right, bottom] = image.crop, [rows, columns] = image.grid;
  const values = new Map(acts);
  const frame = h("div", { class: "heat", style: { aspectRatio: `${image.width} / ${image.height}` } });
  frame.append(h("img", { src: image.src, alt: name, loading: "lazy", draggable: "false" }));
  const place = {
    left: `${(100 * left) / image.width}%`, top: `${(100 * top) / image.height}%`,
    width: `${(100 * (right - left)) / image.width}%`, height: `${(100 * (bottom - top)) / image.height}%`,
  };
  const canvas = h("canvas", { width: columns, height: rows, class: smooth ? "smooth" : "sharp", style: place, "aria-hidden": "true" });
  const ink = canvas.getContext("2d");
  const pixels = ink.createImageData(columns, rows);
  let peak = -1;
  for (const [token, value] of values) {
    if (peak < 0 || value > values.get(peak)) peak = token;
    if (value < threshold || value <= 0) continue;
    const share = Math.min(1, value / (scale || 1));
    pixels.data.set([255, Math.round(190 - 150 * share), 0, Math.round(60 + 160 * share)], 4 * token);
  }
  ink.putImageData(pixels, 0, 0);
  frame.append(canvas);
  const box = (token, cls) => h("div", { class: cls, style: {
    left: `${(100 * (left + ((token % columns) * (right - left)) / columns)) / image.width}%`,
    top: `${(100 * (top + (Math.floor(token / columns) * (bottom - top)) / rows)) / image.height}%`,
    width: `${(100 * (right - left)) / columns / image.width}%`,
    height: `${(100 * (bottom - top)) / rows / image.height}%`,
  } });
  if (peak >= 0) frame.append(box(peak, "peak"));
  if (chosen !== null && chosen !== undefined) frame.append(box(chosen, "chosen"));
  if (right - left < image.width - 1 || bottom - top < image.height - 1) frame.append(h("div", { class: "crop", style: place }));
  const describe = (token) =>
    `row ${Math.floor(token / columns) + 1}, column ${(token % columns) + 1}: ${number(values.get(token) ?? 0)}`;
  let cursor = null;
  const point = (token, anchor) => {
    showTip(tip, anchor, describe(token));
    frame.setAttribute("aria-label", `${name}; ${describe(token)}`);
    onhover?.(values.get(token) ?? 0);
  };
  const at = (event) => {
    const area = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left) / area.width) * columns);
    const row = Math.floor(((event.clientY - area.top) / area.height) * rows);
    return column < 0 || row < 0 || column >= columns || row >= rows ? null : row * columns + column;
  };
  const leave = () => { tip.hidden = true; cursor?.remove(); cursor = null; onhover?.(null); };
  frame.tabIndex = 0;
  frame.setAttribute("role", onpatch ? "application" : "img");
  frame.setAttribute("aria-label", `${name}${peak >= 0 ? `; strongest at ${describe(peak)}` : "; silent"}`);
  frame.addEventListener("mousemove", (event) => {
    const token = at(event);
    if (token === null) return leave();
    point(token, { left: event.clientX, top: event.clientY, width: 0, height: 0, bottom: event.clientY + 14 });
  });
  frame.addEventListener("mouseleave", leave);
  frame.addEventListener("blur", leave);
  let here = chosen ?? (peak >= 0 ? peak : 0);
  const move = (token) => {
    here = token;
    cursor?.remove();
    frame.append((cursor = box(here, "cursor")));
    point(here, cursor);
  };
  frame.addEventListener("focus", () => { if (frame.matches(":focus-visible")) move(here); });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step !== undefined && here + step >= 0 && here + step < rows * columns) {
      event.preventDefault();
      move(here + step);
    } else if ((event.key === "Enter" || event.key === " ") && onpatch) {
      event.preventDefault();
      onpatch(here);
    }
  });
  if (onpatch) frame.addEventListener("click", (event) => { const token = at(event); if (token !== null) onpatch(token); });
  return frame;
}

/** Tokens with several stops need one Tab stop and arrow keys: move the focus among `items` of `row`. */
export function roving(row, items) {
  items.forEach((item, i) => (item.tabIndex = i ? -1 : 0));
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const i = items.indexOf(event.target);
    if (!step || i < 0 || !items[i + step]) return;
    event.preventDefault();
    items[i].tabIndex = -1;
    items[i + step].tabIndex = 0;
    items[i + step].focus();
  });
}

export function textLine(token) {
  return token.replaceAll("\r", "").replaceAll("\n", "↵");
}
