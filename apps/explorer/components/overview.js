// What is in this index, how healthy the dictionary is, and where to start.
import { h, number, percent, mount, showTip, refill, featureLink, nameOf, histogram } from "./common.js";

export default function (component) {
  const { data, setTriggerValue } = component;
  const { root, tip } = mount(component);
  const facts = (rows) => h("dl", {}, rows.map(([name, value, help]) => h("div", { title: help }, h("dt", {}, name), h("dd", {}, value))));

  function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  }

  /** Every live feature as a dot; the nearest one answers to the pointer. The table of all features holds the same. */
  function scatter(plot) {
    const xs = unpack(plot.x), ys = unpack(plot.y), ids = new Uint32Array(Uint8Array.from(atob(plot.ids), (c) => c.charCodeAt(0)).buffer);
    const canvas = h("canvas", { class: "dots", role: "img", "aria-label": plot.alt });
    const pad = { left: 46, right: 8, top: 8, bottom: 36 };
    let near = -1;
    const layout = () => {
      const width = canvas.clientWidth || 560, height = canvas.clientHeight || 300;
      return { width, height, x: (i) => pad.left + (xs[i] / 65535) * (width - pad.left - pad.right), y: (i) => height - pad.bottom - (ys[i] / 65535) * (height - pad.top - pad.bottom) };
    };
    const paint = () => {
      const { width, height, x, y } = layout();
      const ratio = window.devicePixelRatio || 1;
      canvas.width = width * ratio; canvas.height = height * ratio;
      const ink = canvas.getContext("2d");
      const style = getComputedStyle(root);
      const colour = (name) => style.getPropertyValue(name).trim();
      ink.scale(ratio, ratio);
      ink.font = `11px ${colour("--st-font") || "sans-serif"}`;
      const text = colour("--st-text-color"), accent = colour("--st-primary-color");
      ink.strokeStyle = text; ink.fillStyle = text; ink.lineWidth = 1;
      for (const [share, label] of plot.x_ticks) {
        const at = pad.left + share * (width - pad.left - pad.right);
        ink.globalAlpha = 0.14; ink.beginPath(); ink.moveTo(at, pad.top); ink.lineTo(at, height - pad.bottom); ink.stroke();
        ink.globalAlpha = 0.74; ink.textAlign = "center"; ink.fillText(label, at, height - pad.bottom + 14);
      }
      for (const [share, label] of plot.y_ticks) {
        const at = height - pad.bottom - share * (height - pad.top - pad.bottom);
        ink.globalAlpha = 0.14; ink.beginPath(); ink.moveTo(pad.left, at); ink.lineTo(width - pad.right, at); ink.stroke();
        ink.globalAlpha = 0.74; ink.textAlign = "right"; ink.fillText(label, pad.left - 6, at + 4);
      }
      ink.textAlign = "center"; ink.fillText(plot.x_name, (pad.left + width) / 2, height - 4);
      ink.save(); ink.translate(10, (height - pad.bottom) / 2); ink.rotate(-Math.PI / 2); ink.fillText(plot.y_name, 0, 0); ink.restore();
      ink.fillStyle = accent;
      ink.globalAlpha = ids.length > 5000 ? 0.35 : 0.6;
      const size = ids.length > 5000 ? 1.6 : 2.4;
      for (let i = 0; i < ids.length; i++) { ink.beginPath(); ink.arc(x(i), y(i), size, 0, 7); ink.fill(); }
      if (near >= 0) {
        ink.globalAlpha = 1; ink.strokeStyle = text; ink.lineWidth = 2;
        ink.beginPath(); ink.arc(x(near), y(near), 6, 0, 7); ink.stroke();
      }
    };
    const find = (event) => {
      const { x, y } = layout(), box = canvas.getBoundingClientRect();
      let best = -1, distance = 400;
      for (let i = 0; i < ids.length; i++) {
        const d = (x(i) - (event.clientX - box.left)) ** 2 + (y(i) - (event.clientY - box.top)) ** 2;
        if (d < distance) { best = i; distance = d; }
      }
      return best;
    };
    canvas.addEventListener("mousemove", (event) => {
      const found = find(event);
      canvas.style.cursor = found >= 0 ? "pointer" : "default";
      if (found !== near) { near = found; paint(); }
      if (near < 0) return (tip.hidden = true);
      const [xlo, xhi] = plot.x_range, [ylo, yhi] = plot.y_range;
      const density = 10 ** (xlo + (xs[near] / 65535) * (xhi - xlo));
      showTip(tip, { left: event.clientX, top: event.clientY, width: 0, height: 0, bottom: event.clientY + 14 },
        `Feature ${ids[near]}\ndensity ${percent(density)}\n${plot.y_name} ${number(ylo + (ys[near] / 65535) * (yhi - ylo))}`);
    });
    canvas.addEventListener("mouseleave", () => { near = -1; tip.hidden = true; paint(); });
    canvas.addEventListener("click", (event) => { const found = find(event); if (found >= 0) setTriggerValue("open", ids[found]); });
    new ResizeObserver(paint).observe(canvas);
    return canvas;
  }

  refill(root, 
    h("header", {}, h("h1", {}, data.title), h("p", { class: "muted" }, data.subtitle)),
    facts(data.facts),
    h("div", { class: "grid" },
      h("section", {}, h("h2", {}, "A few features to start with"),
        data.starters.length
          ? h("ul", { class: "starters" }, data.starters.map((each) => h("li", {}, featureLink(component, each.id, [
              h("span", { class: "id" }, each.id), h("span", { class: "what" }, nameOf(each)), h("span", { class: "muted small" }, each.note)], { class: "quiet" }))))
          : h("p", { class: "muted" }, "No feature is live enough to suggest.")),
      h("section", {}, h("h2", {}, "How often features fire"), data.density ? histogram(tip, { ...data.density, width: 600, height: 250 }) : h("p", { class: "muted" }, "No feature fires on this data.")),
      h("section", {}, h("h2", {}, data.scatter.title), data.scatter.n ? scatter(data.scatter) : null,
        h("p", { class: "muted small" }, "A dot is a live feature; click one to open it. ", h("a", { href: "features" }, "The same as a table"), ".")),
      h("section", {}, h("h2", {}, "Health"), h("table", {}, h("tbody", {}, data.health.map(([name, value, note, href]) => h("tr", {},
        h("th", { scope: "row" }, href ? h("a", { href }, name) : name), h("td", { class: "num" }, value), h("td", { class: "muted small" }, note)))))),
      h("section", { class: "wide" }, h("h2", {}, "Where it comes from"), facts(data.provenance))));
}
