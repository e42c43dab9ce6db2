// One input through the model: its tokens or patches, what fires on each, and how well the dictionary rebuilds it.
import { h, number, percent, visible, mount, showTip, refill, featureLink, nameOf, segmented, heatImage, roving, textLine, followHistory } from "./common.js";

export default function (component) {
  const { data, setStateValue } = component;
  const { root, tip, memory } = mount(component);
  if (memory.stamp !== data.stamp) { memory.view = { ...data.view }; memory.stamp = data.stamp; }
  const view = memory.view;
  const isText = data.kind === "text";
  const set = (changes) => {
    Object.assign(view, changes);
    clearTimeout(memory.timer);
    memory.timer = setTimeout(() => setStateValue("view", { ...view }), 350);
    draw();
  };
  if (memory.codes !== data.codes) {
    memory.codes = data.codes;
    memory.byId = new Map(data.codes.map((code) => [String(code.id), { ...code, highest: Math.max(...code.acts.map(([, x]) => x)) }]));
    memory.byPlace = data.read.map(() => []);
    for (const code of memory.byId.values()) for (const [place, value, direct] of code.acts) memory.byPlace[place].push({ id: code.id, value, direct });
    for (const list of memory.byPlace) list.sort((a, b) => b.value - a.value);
  }
  const known = (id) => memory.byId.get(String(id));
  const unit = isText ? "token" : "patch";
  const place = (i) => isText ? `token ${i + 1}` : `patch at row ${Math.floor(i / data.image.grid[1]) + 1}, column ${(i % data.image.grid[1]) + 1}`;

  /** Per position the value of what is painted: a feature's activation, or the reconstruction error. */
  function painted() {
    if (view.paint === "error" && data.error) return { values: data.error.map((x, i) => [i, x]), scale: Math.max(...data.error.filter((x) => x !== null), 0.01), name: "error (FVU)", show: percent };
    const shown = known(view.paint);
    if (shown) return { values: shown.acts, scale: shown.highest, name: `feature ${shown.id}`, show: number };
    const strongest = memory.byPlace.flatMap((list, i) => (list.length ? [[i, list[0].value]] : []));
    return { values: strongest, scale: Math.max(...strongest.map(([, x]) => x), 1e-9), name: "strongest feature", show: number };
  }

  function strip(paint) {
    const values = new Map(paint.values);
    const line = h("p", { class: "strip", "aria-label": "The tokens of the text" });
    const buttons = data.tokens.map((token, i) => {
      const value = values.get(i) ?? 0;
      const on = view.at === i;
      const kept = data.read[i];
      return h("button", {
        class: `tok${on ? " on" : ""}${kept ? "" : " dropped"}`, "data-focus": `tok-${i}`, "aria-pressed": String(on),
        style: { "--share": `${Math.round(50 * Math.max(0, Math.min(1, (value ?? 0) / paint.scale)))}%` },
        "aria-label": `${token.trim() || visible(token)}, ${paint.name} ${paint.show(value ?? 0)}`,
        "data-tip": `${visible(token)}  ${kept ? `${paint.name} ${paint.show(value ?? 0)}` : "not read by the dictionary"}${kept && data.error && view.paint !== "error" ? `\nerror (FVU) ${percent(data.error[i])}` : ""}`,
        onclick: () => set({ at: on ? null : i }),
      }, textLine(token) || "·");
    });
    line.append(...buttons);
    roving(line, buttons);
    return line;
  }

  const withDirect = (withPlaces) => !withPlaces && data.predicted?.length > 0;

  /** The panel that shows the change is at the top of the page. */
  function change(id) {
    component.setTriggerValue("change", id);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.querySelector('[data-testid="stMain"]')?.scrollTo({ top: 0, behavior: calm ? "auto" : "smooth" });
  }

  function rows(list, valueTitle, withPlaces) {
    const most = Math.max(...list.map((row) => row.value), 1e-9);
    return h("table", { class: "features" }, h("thead", {}, h("tr", {},
      h("th", { scope: "col" }, "Feature"), h("th", { scope: "col" }, valueTitle),
      withPlaces ? h("th", { scope: "col", class: "num", title: `${unit === "token" ? "tokens" : "patches"} of this input where it fires` }, isText ? "Tokens" : "Patches") : null,
      h("th", { scope: "col", class: "num", title: "share of the feature's highest activation in the index" }, "Of max"),
      withDirect(withPlaces) ? h("th", { scope: "col", class: "num", title: "logits that it adds to the token predicted next, on the direct path to the output" }, "Direct") : null,
      h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Show")))),
    h("tbody", {}, list.map((row) => h("tr", { class: String(row.id) === String(view.paint) ? "on" : "" },
      h("td", { class: "who" }, featureLink(component, row.id, row.id), " ", nameOf(known(row.id))),
      h("td", { class: "amount" }, h("i", { style: { width: `${Math.round((100 * row.value) / most)}%` } }), h("b", {}, number(row.value))),
      withPlaces ? h("td", { class: "num" }, row.n) : null,
      h("td", { class: "num" }, known(row.id).max ? percent(row.value / known(row.id).max) : "–"),
      withDirect(withPlaces) ? h("td", { class: "num" }, `${row.direct > 0 ? "+" : ""}${number(row.direct, 2)}`) : null,
      h("td", { class: "num" }, h("button", {
        class: "small", "data-focus": `paint-${withPlaces ? "all" : "at"}-${row.id}`, "aria-pressed": String(String(row.id) === String(view.paint)),
        onclick: () => set({ paint: String(row.id) === String(view.paint) ? "strongest" : row.id }),
      }, String(row.id) === String(view.paint) ? "shown" : "show"), " ", h("button", {
        class: "small", "data-focus": `change-${withPlaces ? "all" : "at"}-${row.id}`, "aria-label": `change feature ${row.id}`,
        title: "see what the model predicts without it", onclick: () => change(row.id),
      }, "change"))))));
  }

  function draw() {
    const paint = painted();
    const chosen = known(view.paint) ? String(view.paint) : null;
    const bar = h("div", { class: "toolbar" },
      !chosen && !data.error ? null : segmented("paint", "What the colour shows", [
        ["strongest", "Strongest feature", `the highest activation of any feature on each ${unit}`],
        ...(chosen ? [[chosen, `Feature ${chosen}`, "this feature's activation"]] : []),
        ...(data.error ? [["error", "Error", `share of each ${unit}'s variance that the dictionary misses (FVU)`]] : []),
      ], chosen ?? (view.paint === "error" && data.error ? "error" : "strongest"), (key) => set({ paint: key })),
      isText ? null : h("label", { class: "small" }, h("input", { type: "checkbox", checked: view.smooth, "data-focus": "smooth",
        onchange: (event) => set({ smooth: event.target.checked }) }), " Smooth"),
      h("span", { class: "muted small" }, `colour: ${paint.name}, 0 to ${paint.show(paint.scale)}`));
    const summary = h("dl", {}, data.facts.map(([name, value, help]) => h("div", { title: help }, h("dt", {}, name), h("dd", {}, value))));
    const picture = isText ? strip(paint) : h("div", { class: "picture" }, heatImage(tip, data.image, paint.values.filter(([, x]) => x !== null), {
      scale: paint.scale, smooth: view.smooth, name: data.image.name, chosen: view.at, onpatch: (i) => set({ at: view.at === i ? null : i }),
    }));
    const here = memory.byPlace[view.at] ?? null;
    const detail = h("section", {},
      here === null
        ? [h("h2", {}, "At one place"), h("p", { class: "muted" }, `Choose a ${unit} to see what fires there.`)]
        : [h("h2", {}, isText ? ["At ", h("span", { class: "token" }, visible(data.tokens[view.at])), ` (${place(view.at)})`] : `At the ${place(view.at)}`),
           !data.read[view.at]
             ? h("p", { class: "muted" }, "The dictionary was not trained on this position (start of text), so nothing is encoded here.")
             : [h("p", { class: "muted small" }, `${here.length < data.counts[view.at] ? `${here.length} strongest of ` : ""}${data.counts[view.at]} features${data.error ? `, error (FVU) ${percent(data.error[view.at])}` : ""}`,
                  data.predicted?.length ? [". Predicted next: ", h("span", { class: "token" }, visible(data.predicted[view.at]))] : null),
                rows(here.slice(0, 40), "Activation", false)]]);
    const orders = { telling: (each) => each.telling, value: (each) => each.highest, share: (each) => each.highest / (each.max || Infinity) };
    const by = orders[view.order] ?? orders.telling;
    const all = h("section", {}, h("h2", {}, "Over the whole input"),
      h("p", { class: "order" }, segmented("order", "Order of the features", [
        ["telling", "Telling", "activation times rarity (minus log density): what sets this input apart"],
        ["value", "Highest", "highest activation"],
        ["share", "Of max", "share of the feature's highest activation in the index"],
      ], view.order in orders ? view.order : "telling", (key) => set({ order: key }))),
      rows([...memory.byId.values()].sort((a, b) => by(b) - by(a)).slice(0, 60)
        .map((each) => ({ id: each.id, value: each.highest, n: each.acts.length })), "Highest", true));
    refill(root, summary, bar, isText
      ? [picture, h("div", { class: "beside even" }, detail, all)]
      : h("div", { class: "beside" }, picture, h("div", {}, detail, all)));
  }
  if (!memory.wired) {
    memory.wired = true;
    const enter = (event) => { const mark = event.target.closest?.("[data-tip]"); if (mark) showTip(tip, mark, mark.dataset.tip); };
    const leave = () => (tip.hidden = true);
    for (const name of ["mouseover", "focusin"]) root.addEventListener(name, enter);
    for (const name of ["mouseout", "focusout"]) root.addEventListener(name, leave);
  }
  draw();
  return followHistory(component, memory);
}
