// Examples of a feature. Everything here (group, context, threshold, line breaks, hover) happens in the browser; the
// choices are told to the server afterwards, only so that the address of the page remembers them.
import { h, number, visible, mount, showTip, refill, segmented, heatImage, roving, textLine } from "./common.js";

export default function (component) {
  const { data, setStateValue } = component;
  const { root, tip, memory } = mount(component);
  if (memory.stamp !== data.stamp) { memory.view = { ...data.view }; memory.stamp = data.stamp; }
  const view = memory.view;
  const isText = data.kind === "text";
  const tell = () => {
    clearTimeout(memory.timer);
    memory.timer = setTimeout(() => setStateValue("view", { ...view }), 350);
  };
  const set = (key, value) => { view[key] = value; tell(); draw(); };
  const hover = (value) => document.dispatchEvent(new CustomEvent("saekit:value", { detail: value }));

  function textExample(example) {
    const words = example.tokens.map((i) => data.tokens[i]);
    const acts = new Map(example.acts);
    const floor = (view.threshold / 100) * data.max;
    const reach = view.context === "all" ? Infinity : Number(view.context);
    const from = Math.max(0, example.peak - reach), to = Math.min(words.length, example.peak + reach + 1);
    const line = h("p", { class: "text", lang: "" });
    const marks = [];
    if (from > 0 || example.cut_left) line.append(h("span", { class: "muted", "aria-hidden": "true" }, "… "));
    for (let i = from; i < to; i++) {
      const value = acts.get(i) ?? 0;
      const shown = view.breaks ? words[i].replaceAll("\n", "↵\n") : textLine(words[i]);
      if (value <= 0 || (value < floor && i !== example.peak)) { line.append(shown); continue; }
      const lead = shown.trim() ? shown.match(/^ */)[0] : "";
      line.append(lead);
      const mark = h("mark", {
        class: i === example.peak ? "peak" : "", style: { "--share": `${Math.round(8 + 42 * Math.min(1, value / data.max))}%` },
        "aria-label": `${words[i].trim() || visible(words[i])}, activation ${number(value)}${i === example.peak ? ", the peak" : ""}`,
        "data-value": value, "data-token": words[i],
      }, shown.slice(lead.length) || "·");
      marks.push(mark);
      line.append(mark);
    }
    if (to < words.length || example.cut_right) line.append(h("span", { class: "muted", "aria-hidden": "true" }, " …"));
    roving(line, marks);
    const prompt = words.slice(from, to).join("").slice(0, 1500);
    return h("li", {},
      h("div", { class: "meta" },
        h("span", { class: "value", title: `quantile ${number(example.quantile, 3)} of the active values` }, number(example.value)),
        example.label ? h("span", { class: "chip" }, example.label) : null,
        h("span", { class: "muted small doc", title: example.document }, example.document)),
      h("div", {}, line, h("a", { class: "small try", href: `input?text=${encodeURIComponent(prompt)}`, target: "_blank" }, "Run this text")));
  }

  function imageExample(example) {
    const name = example.caption || example.label || example.document;
    const value = number(example.value);
    return h("li", { class: "tile" },
      heatImage(tip, example, example.acts, {
        scale: data.max, threshold: (view.threshold / 100) * data.max, smooth: view.smooth, name, onhover: hover,
      }),
      h("div", { class: "meta" },
        h("span", { class: "value", title: `quantile ${number(example.quantile, 3)} of the active values` }, value),
        example.label ? h("span", { class: "chip" }, example.label) : null,
        h("a", { class: "small try", href: `input?example=${example.example}`, title: "All features of this image", target: "_blank" }, "try")),
      h("p", { class: "muted small doc", title: example.document }, example.caption || example.document));
  }

  function draw() {
    const group = data.groups.find((each) => each.key === view.examples) ?? data.groups[0];
    const range = h("input", {
      type: "range", min: 0, max: 90, step: 5, value: view.threshold, "data-focus": "threshold",
      "aria-label": "Hide activations below this share of the feature's maximum",
      oninput: (event) => set("threshold", Number(event.target.value)),
    });
    const toolbar = h("div", { class: "toolbar", role: "group", "aria-label": "Examples shown" },
      segmented("examples", "Which examples", data.groups.map((each) => [each.key, each.name, each.note]), group.key, (key) => set("examples", key)),
      isText ? h("span", { class: "control" }, h("span", { class: "muted small" }, "Context"),
        segmented("context", "Tokens each side of the peak", [["8", "8"], ["16", "16"], ["32", "32"], ["64", "64"], ["all", "all"]],
          String(view.context), (key) => set("context", key))) : null,
      h("label", { class: "control" }, h("span", { class: "muted small" }, "Hide below"), range,
        h("output", { class: "small" }, `${view.threshold}%`)),
      isText
        ? h("label", { class: "control small" }, h("input", { type: "checkbox", checked: view.breaks, "data-focus": "breaks",
            onchange: (event) => set("breaks", event.target.checked) }), "Line breaks")
        : h("label", { class: "control small" }, h("input", { type: "checkbox", checked: view.smooth, "data-focus": "smooth",
            onchange: (event) => set("smooth", event.target.checked) }), "Smooth"));
    const items = group.examples.map(isText ? textExample : imageExample);
    refill(root, 
      h("h2", {}, "Examples"),
      toolbar,
      h("p", { class: "muted small note" }, group.note, isText ? null : ` One colour scale for all: 0 to ${number(data.max)}.`),
      items.length ? h("ol", { class: isText ? "texts" : "tiles" }, items)
        : h("p", { class: "empty" }, data.n_active ? "No examples in this band." : "This feature is silent on every token of the index."));
  }

  if (!memory.wired) {
    memory.wired = true;
    const enter = (event) => {
      const mark = event.target.closest?.("mark");
      if (!mark) return;
      showTip(tip, mark, `${visible(mark.dataset.token)}  ${number(Number(mark.dataset.value), 4)}`);
      hover(Number(mark.dataset.value));
    };
    const leave = () => { tip.hidden = true; hover(null); };
    root.addEventListener("mouseover", enter);
    root.addEventListener("focusin", enter);
    root.addEventListener("mouseout", leave);
    root.addEventListener("focusout", leave);
  }
  draw();
}
