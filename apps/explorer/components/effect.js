// What a change to one feature does to this very input: predictions of a text, representation and class of an image.
import { h, number, percent, visible, mount, showTip, refill, heatImage, roving, textLine } from "./common.js";

export default function (component) {
  const { data } = component;
  const { root, tip, memory } = mount(component);
  const movers = (caption, rows, what) => h("table", { class: "movers" }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, [what, "Before", "After"].map((title, i) => h("th", { scope: "col", class: i ? "num" : "" }, title)))),
    h("tbody", {}, rows.map(([name, before, after]) => h("tr", {}, h("td", {}, h("span", { class: "token" }, visible(name))),
      h("td", { class: "num" }, percent(before)), h("td", { class: "num" }, percent(after), h("span", { "aria-hidden": "true" }, after > before ? " ↑" : after < before ? " ↓" : ""))))));
  const facts = (rows) => h("dl", {}, rows.map(([name, value, help]) => h("div", { title: help }, h("dt", {}, name), h("dd", {}, value))));

  function text() {
    const most = Math.max(...data.kl, 1e-9), strongest = data.kl.indexOf(Math.max(...data.kl));
    if (memory.stamp !== data.stamp) { memory.stamp = data.stamp; memory.at = strongest; }
    const at = Math.min(memory.at, data.kl.length - 1);
    const line = h("p", { class: "strip", "aria-label": "The tokens of the text, by how much the prediction after each moves" });
    const buttons = data.words.map((word, i) => h("button", {
      class: `tok${i === at ? " on" : ""}`, "data-focus": `moved-${i}`, "aria-pressed": String(i === at),
      style: { "--share": `${Math.round(60 * Math.min(1, data.kl[i] / most))}%` },
      "aria-label": `after ${word.trim() || visible(word)}, KL ${number(data.kl[i])}`,
      "data-tip": `after ${visible(word)}\nKL ${number(data.kl[i])} nats`,
      onclick: () => { memory.at = i; draw(); },
    }, textLine(word) || "·"));
    line.append(...buttons);
    roving(line, buttons);
    const mean = data.kl.reduce((a, b) => a + b, 0) / data.kl.length;
    return [facts([["Largest KL", number(data.kl[strongest]), `nats, after token ${strongest + 1}`], ["Mean KL", number(mean), "nats, over all predictions of this text"],
        ["Last prediction, KL", number(data.kl[data.kl.length - 1]), "nats, after the whole text"]]),
      h("div", { class: "words" }, h("div", {}, line, h("p", { class: "muted small" }, `colour: change of the prediction after each token, 0 to ${number(most)} nats; choose one`)),
        movers(["Prediction after ", h("span", { class: "token" }, visible(data.words[at])), `, KL ${number(data.kl[at])} nats`], data.movers[at].slice(0, 6), "Next token"))];
  }

  function image() {
    const most = Math.max(...data.by_patch.map(([, x]) => x), 1e-9);
    const rows = [["Representation", percent(data.relative), "|after - before| / |before| of the mean patch of the last layer"],
      ["Cosine", number(data.cosine, 4), "of the mean patch of the last layer before and after"]];
    if (data.class_kl !== null) rows.push(["Class, KL", number(data.class_kl), "nats, of the class probabilities"]);
    return [facts(rows), h("div", { class: "beside" },
      h("div", { class: "picture" }, heatImage(tip, data.image, data.by_patch, { scale: most, name: data.image.name }),
        h("p", { class: "muted small" }, `colour: change of each patch of the last layer, 0 to ${percent(most)}`)),
      data.classes ? movers("Classes that move most", data.classes, "Class") : h("p", { class: "muted small" }, "This model has no classifier, so its representation is what can be compared."))];
  }

  function draw() { refill(root, data.kind === "text" ? text() : image()); }
  if (!memory.wired) {
    memory.wired = true;
    const enter = (event) => { const mark = event.target.closest?.("[data-tip]"); if (mark) showTip(tip, mark, mark.dataset.tip); };
    const leave = () => (tip.hidden = true);
    for (const name of ["mouseover", "focusin"]) root.addEventListener(name, enter);
    for (const name of ["mouseout", "focusout"]) root.addEventListener(name, leave);
  }
  draw();
}
