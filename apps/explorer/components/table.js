// The table of features: one page of rows in the current order. Sorting and paging are round trips, never the whole table.
import { h, number, percent, mount, refill, featureLink, nameOf, followHistory } from "./common.js";

export default function (component) {
  const { data, setTriggerValue } = component;
  const { root, memory } = mount(component);
  const bar = (value, share) => h("span", { class: "meter" },
    h("i", { style: { width: `${Math.round(100 * Math.max(0, Math.min(1, share)))}%` } }), h("b", {}, value));
  const cells = {
    number: (row) => h("td", { class: "num id" }, featureLink(component, row.id, row.id, { "aria-label": `Feature ${row.id}` })),
    label: (row) => h("td", { class: "what" }, featureLink(component, row.id, nameOf(row), { class: "quiet", tabindex: -1 }),
      row.dead ? h("span", { class: "chip" }, "dead") : null),
    density: (row) => h("td", {}, bar(percent(row.density), row.density ? 1 + Math.log10(row.density) / 6 : 0)),
    tags: (row) => h("td", {}, row.tags.map((tag) => [h("span", { class: "chip" }, tag), " "])),
    note: (row) => h("td", { class: "note", title: row.note }, row.note),
  };
  const plain = (key) => (row) => h("td", { class: "num" }, number(row[key]));
  const head = data.columns.map(([key, title, help, sortable]) => {
    const mine = data.sort === key;
    const numeric = !["label", "tags", "note", "density"].includes(key);
    return h("th", {
      scope: "col", class: numeric ? "num" : "", "aria-sort": mine ? (data.ascending ? "ascending" : "descending") : null,
    }, sortable
      ? h("button", {
          title: help, "data-focus": `sort-${key}`, class: mine ? "sorted" : "",
          onclick: () => setTriggerValue("sort", { key, ascending: mine ? !data.ascending : ["number", "label"].includes(key) }),
        }, title, h("span", { class: "arrow", "aria-hidden": "true" }, mine ? (data.ascending ? " ↑" : " ↓") : ""))
      : h("span", { title: help }, title));
  });
  const last = Math.max(1, Math.ceil(data.total / data.page_size));
  const pager = (where) => h("nav", { class: "pager", "aria-label": `Pages of the table, ${where}` },
    h("button", { disabled: data.page <= 1, "data-focus": `prev-${where}`, onclick: () => setTriggerValue("page", data.page - 1) }, "← Previous"),
    h("span", { class: "muted small" }, data.total
      ? `${(data.first + 1).toLocaleString("en")}–${(data.first + data.rows.length).toLocaleString("en")} of ${data.total.toLocaleString("en")}`
      : "no features"),
    h("button", { disabled: data.page >= last, "data-focus": `next-${where}`, onclick: () => setTriggerValue("page", data.page + 1) }, "Next →"));
  refill(root, 
    data.rows.length
      ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Features" }, h("table", {},
          h("caption", { class: "visually-hidden" }, data.caption),
          h("thead", {}, h("tr", {}, head)),
          h("tbody", {}, data.rows.map((row) => h("tr", {
            onclick: (event) => { if (!event.target.closest("a") && !String(getSelection())) setTriggerValue("open", row.id); },
          }, data.columns.map(([key]) => (cells[key] ?? plain(key))(row)))))))
      : h("p", { class: "empty" }, "No feature matches. Loosen the filters, or clear the search."),
    pager("below"));
  return followHistory(component, memory);
}
