// How training went: curves over tokens, and every setting of the run.
import { h, s, number, percent, mount, showTip, refill } from "./common.js";

export default function (component) {
  const { data } = component;
  const { root, tip } = mount(component);
  const short = (n) => (n >= 1e9 ? `${number(n / 1e9)}B` : n >= 1e6 ? `${number(n / 1e6)}M` : n >= 1e3 ? `${number(n / 1e3)}k` : number(n));

  /** One curve over tokens; the pointer and the arrow keys read its points. */
  function line(curve) {
    const width = 520, height = 190, left = 52, bottom = 26, top = 8, right = 10;
    const { x: xs, y: ys } = curve;
    const shown = curve.percent ? percent : number;
    const scaled = curve.log ? ys.map(Math.log10) : ys;
    let lo = Math.min(...scaled), hi = Math.max(...scaled);
    if (!curve.log && lo > 0 && lo < 0.6 * hi) lo = 0;
    if (hi === lo) { hi += Math.abs(hi) * 0.05 || 1; lo -= curve.percent || lo === 0 ? 0 : Math.abs(lo) * 0.05; }
    const last = xs[xs.length - 1];
    const px = (x) => left + (x / last) * (width - left - right);
    const py = (y) => height - ((y - lo) / (hi - lo)) * (height - top);
    const stops = [0, 1, 2, 3].map((i) => lo + ((hi - lo) * i) / 3);
    const dot = s("circle", { class: "dot", r: 4, visibility: "hidden" });
    const path = scaled.map((y, i) => `${i ? "L" : "M"}${px(xs[i]).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    let here = xs.length - 1;
    const read = (i) => {
      here = i;
      dot.setAttribute("cx", px(xs[i])); dot.setAttribute("cy", py(scaled[i])); dot.setAttribute("visibility", "visible");
      showTip(tip, dot, `${short(xs[i])} tokens\n${curve.title} ${shown(ys[i])}`);
      node.setAttribute("aria-label", `${alt} At ${short(xs[i])} tokens: ${shown(ys[i])}.`);
    };
    const leave = () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); };
    const alt = `${curve.title} over tokens${curve.log ? ", logarithmic scale" : ""}: from ${shown(ys[0])} to ${shown(ys[ys.length - 1])}.`;
    const node = s("svg", {
      viewBox: `0 0 ${width} ${height + bottom}`, role: "img", "aria-label": alt, tabindex: 0, class: "curve",
      onmousemove: (event) => {
        const box = node.getBoundingClientRect();
        const at = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * last;
        let best = 0;
        xs.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(xs[best] - at)) best = i; });
        read(best);
      },
      onmouseleave: leave, onblur: leave,
      onfocus: () => { if (node.matches(":focus-visible")) read(here); },
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        read(Math.min(xs.length - 1, Math.max(0, here + step)));
      },
    },
      stops.map((y) => [
        s("line", { class: "axis", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
        s("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, shown(curve.log ? 10 ** y : y)),
      ]),
      [0, last / 2, last].map((x, i) => s("text", { x: px(x), y: height + 17, "text-anchor": ["start", "middle", "end"][i] }, short(x))),
      s("path", { class: "line", d: path }), dot);
    return node;
  }

  if (data.missing) return refill(root, h("header", {}, h("h1", {}, "Run")), h("p", { class: "empty" }, data.missing));
  refill(root,
    h("header", {}, h("h1", {}, "Run"), h("p", { class: "muted", title: data.path }, data.folder)),
    h("dl", {}, data.facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    data.curves.length
      ? h("div", { class: "curves" }, data.curves.map((curve) => h("section", {}, h("h2", {}, curve.title), h("p", { class: "muted small" }, curve.note), line(curve))))
      : h("p", { class: "empty" }, "The log has fewer than two lines; there is no curve to draw yet."),
    h("h2", { class: "apart" }, "Settings"),
    h("table", { class: "settings" }, h("tbody", {}, data.settings.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))))));
}
