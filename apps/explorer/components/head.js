// Top of a feature's page: its number and name, what is worth knowing at a glance, and the way to its neighbours in the list.
import { h, visible, mount, refill, featureLink, followHistory } from "./common.js";

export default function (component) {
  const { data, setTriggerValue } = component;
  const { root, memory } = mount(component);
  const step = (id, text, key) => id === null
    ? h("span", { class: "step off", "aria-disabled": "true" }, text)
    : featureLink(component, id, text, { class: "step", "data-focus": key, rel: key });
  const copy = h("button", {
    "data-focus": "copy",
    onclick: async () => {
      await navigator.clipboard.writeText(location.href);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy link"), 1500);
    },
  }, "Copy link");
  refill(root, 
    h("header", {},
      h("div", { class: "title" },
        h("h1", {}, `Feature ${data.id}`),
        h("p", { class: data.label ? "label" : "label unnamed" }, data.label || (data.top
          ? ["fires most on ", h("span", { class: "token" }, visible(data.top))] : "not labelled yet")),
        data.flags.map(([text, why, id]) => h("span", { class: "chip strong", title: why },
          id === null || id === undefined ? text : featureLink(component, id, text))),
        data.tags.map((tag) => h("span", { class: "chip" }, tag))),
      h("nav", { class: "steps", "aria-label": "Other features of this list" },
        step(data.previous, "← Previous", "prev"), h("span", { class: "muted small" }, data.place), step(data.next, "Next →", "next"), copy)),
    h("dl", {}, data.facts.map(([name, value, help]) => h("div", { title: help }, h("dt", {}, name), h("dd", {}, value)))));
  return followHistory(component, memory);
}
