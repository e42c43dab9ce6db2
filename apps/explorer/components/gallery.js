// A few images of the index to start from.
import { h, mount, refill } from "./common.js";

export default function (component) {
  const { data, setTriggerValue } = component;
  const { root } = mount(component);
  refill(root, h("ul", { class: "gallery", "aria-label": "Images of the index" }, data.images.map((image) => h("li", {},
    h("a", { href: `input?example=${image.example}`, title: image.name, onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      setTriggerValue("pick", image.example);
    } }, h("img", { src: image.src, alt: `${image.name} (example ${image.example})`, loading: "lazy" }))))));
}
