// What the model writes without and with a change to a feature, and how the first written token moves.
import { h, number, percent, visible, mount, refill } from "./common.js";

export default function (component) {
  const { data } = component;
  const { root } = mount(component);
  let same = 0;
  while (same < Math.min(data.without.length, data.with.length) && data.without[same] === data.with[same]) same++;
  // Back to the beginning of the word that differs.
  while (same > 0 && same < data.with.length && /\S/.test(data.with[same - 1])) same--;
  const written = (title, text, cls) => h("section", { "aria-label": title }, h("h3", {}, title), h("p", { class: `written ${cls}` },
    h("span", { class: "muted" }, data.prompt), h("span", {}, text.slice(0, same)), h("mark", {}, text.slice(same)), text ? null : h("span", { class: "muted" }, " (ends at once)")));
  refill(root,
    h("div", { class: "two" }, written("Without", data.without, "plain"), written("With", data.with, "changed")),
    data.without === data.with ? h("p", { class: "muted" }, "Not a word differs. Try a larger amount.") : null,
    h("table", { class: "movers" }, h("caption", {}, `Next token after the prompt, KL ${number(data.kl)} nats`),
      h("thead", {}, h("tr", {}, ["Token", "Without", "With"].map((title, i) => h("th", { scope: "col", class: i ? "num" : "" }, title)))),
      h("tbody", {}, data.movers.slice(0, 5).map(([token, before, after]) => h("tr", {}, h("td", {}, h("span", { class: "token" }, visible(token))),
        h("td", { class: "num" }, percent(before)), h("td", { class: `num ${after > before ? "up" : "down"}` }, percent(after), h("span", { "aria-hidden": "true" }, after > before ? " ↑" : " ↓")))))));
}
