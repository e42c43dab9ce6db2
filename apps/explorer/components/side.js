// Beside the examples: how strongly it fires, what it does to the output, what it fires on, and its neighbours.
import { h, number, percent, visible, mount, refill, featureLink, nameOf, histogram } from "./common.js";

export default function (component) {
  const { data } = component;
  const { root, tip, memory } = mount(component);
  const panel = (title, ...body) => h("section", {}, h("h2", {}, title), body);
  const tokens = (title, rows, cls) => h("div", {}, h("h3", {}, title), h("table", { class: "bars" },
    h("caption", { class: "visually-hidden" }, title),
    h("tbody", {}, rows.map(([token, value]) => h("tr", {},
      h("td", {}, h("span", { class: "token" }, visible(token))),
      h("td", { class: "num" }, h("i", { class: cls, style: { width: `${Math.round(60 * Math.abs(value) / data.logit_scale)}%` } }), number(value, 3)))))));
  const others = (rows, columns, note) => rows.length
    ? h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Feature"), columns.map(([title, help]) => h("th", { scope: "col", class: "num", title: help }, title)))),
        h("tbody", {}, rows.map((row) => h("tr", {},
          h("td", { class: "who" }, featureLink(component, row.id, row.id), " ", nameOf(row)),
          row.values.map((value) => h("td", { class: "num" }, number(value, 2)))))))
    : h("p", { class: "muted small" }, note);
  const chart = data.histogram ? histogram(tip, data.histogram) : null;
  refill(root, 
    chart ? panel("Activations", chart) : null,
    data.promoted ? panel("Effect on the next token", h("div", { class: "two" },
      tokens("Promoted", data.promoted, "up"), tokens("Suppressed", data.suppressed, "down"))) : null,
    data.tokens?.length ? panel("Fires on", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Token"),
      data.token_columns.map((title) => h("th", { scope: "col", class: "num" }, title)))),
      h("tbody", {}, data.tokens.map(([token, ...values]) => h("tr", {}, h("td", {}, h("span", { class: "token" }, visible(token))),
        values.map((value) => h("td", { class: "num" }, number(value, 3)))))))) : null,
    data.labels?.length ? panel("Classes", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"),
      h("th", { scope: "col", class: "num", title: "share of this feature's examples that have the class" }, "Share"),
      h("th", { scope: "col", class: "num", title: "share of all examples that have the class" }, "Base"),
      h("th", { scope: "col", class: "num", title: "share divided by base" }, "Lift"))),
      h("tbody", {}, data.labels.map((row) => h("tr", {}, h("td", {}, row.label), h("td", { class: "num" }, percent(row.share)),
        h("td", { class: "num" }, percent(row.base)), h("td", { class: "num" }, `${number(row.lift, 2)}×`)))))) : null,
    panel("Similar direction", others(data.similar, [["Cosine", "cosine of the two decoder directions"]], "No neighbours stored.")),
    panel("Fires together", others(data.together, [
      ["P(it | this)", "how often it fires where this feature fires"],
      ["P(this | it)", "how often this feature fires where it fires"],
    ], "Fires alone.")));
  memory.chart = chart;
  memory.off?.();
  const mark = (event) => memory.chart?.mark(event.detail);
  document.addEventListener("saekit:value", mark);
  memory.off = () => document.removeEventListener("saekit:value", mark);
  return memory.off;
}
