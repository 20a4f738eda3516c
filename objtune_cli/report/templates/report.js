"use strict";
(() => {
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const draw = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    return element;
  };
  const copy = async (button) => {
    const text = button.parentElement.querySelector("code").textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.createElement("textarea");
      area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
  });
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });

  const compare = document.querySelector(".compare");
  if (compare) {
    const strips = JSON.parse(document.querySelector("script.strips").textContent);
    const field = (name) => compare.querySelector(name);
    const show = () => {
      for (const [side, picture] of [[".left", ".over"], [".right", ".under"]]) {
        const strip = (strips[field(".case").value] || {})[field(side).value];
        const image = field(picture);
        image.hidden = !strip;
        if (strip) Object.assign(image, { src: strip[0], width: strip[1], height: strip[2], alt: `${field(".case").value}, ${field(side).value}` });
      }
    };
    const cut = () => field(".slider").style.setProperty("--cut", `${field("input").value}%`);
    const names = [...field(".right").options].map((option) => option.value);
    field(".left").value = names.includes("objtune") ? "objtune" : names[0];
    field(".right").value = names.find((name) => name === "truth") || names.find((name) => name !== field(".left").value) || names[0];
    for (const name of [".case", ".left", ".right"]) field(name).addEventListener("change", show);
    field("input").addEventListener("input", cut);
    compare.hidden = false;
    show();
  }

  const section = document.getElementById("scenes");
  if (!section) return;
  const gallery = section.querySelector(".gallery"), pager = section.querySelector(".pager"), filter = pager.querySelector("input");
  const viewer = document.querySelector("dialog.viewer"), toggle = viewer.querySelector("input.layout");
  const numPages = Number(section.dataset.pages);
  const index = JSON.parse(document.querySelector("script.index").textContent);
  const parsed = new Map();
  const readPage = (number) => {
    if (!parsed.has(number)) {
      const script = document.querySelectorAll("script.page")[number];
      if (!script) return null;
      if (parsed.size > 8) parsed.delete(parsed.keys().next().value);
      parsed.set(number, JSON.parse(script.textContent));
    }
    return parsed.get(number);
  };
  const overlay = (scene, image) => {
    const [width, height] = [100, 100 * image[2] / image[1]];
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const [name, colour, x0, y0, x1, y1] of scene.boxes) {
      const box = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height, rx: 1 };
      svg.append(draw("rect", { ...box, class: "halo" }), draw("rect", { ...box, stroke: colour }), draw("text", { x: box.x + 2, y: box.y + 2, fill: colour }, name));
    }
    return svg;
  };
  const picture = (scene, image) => {
    const element = make("span", { className: "picture", style: "display: block" }, make("img", { src: image[0], width: image[1], height: image[2], alt: image[3], loading: "lazy", decoding: "async" }));
    if (scene.boxes.length) element.append(overlay(scene, image));
    return element;
  };

  let shown = [], current = 0;
  const open = (number) => {
    current = Math.max(0, Math.min(shown.length - 1, number));
    const [scene, image] = shown[current];
    viewer.querySelector(".picture").replaceChildren(...picture(scene, image).childNodes);
    viewer.querySelector(".caption").textContent = [image[3], image[5] && `missing or mixed: ${image[5]}`, image[4] || scene.prompt].filter(Boolean).join("\n");
    viewer.querySelector(".toggle").hidden = !scene.boxes.length;
    viewer.querySelector(".previous").disabled = current === 0;
    viewer.querySelector(".next").disabled = current === shown.length - 1;
    if (!viewer.open) viewer.showModal();
  };
  viewer.querySelector(".previous").addEventListener("click", () => open(current - 1));
  viewer.querySelector(".next").addEventListener("click", () => open(current + 1));
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(current - 1);
    if (event.key === "ArrowRight") open(current + 1);
  });
  toggle.addEventListener("change", () => viewer.classList.toggle("no-layout", !toggle.checked));

  const drawScene = (scene) => {
    const article = make("article", { className: "card scene", id: scene.ref });
    const row = make("div", { className: "row" });
    for (const image of scene.images) {
      const number = shown.push([scene, image]) - 1;
      const button = make("button", { type: "button", className: "image" }, picture(scene, image));
      button.addEventListener("click", () => open(number));
      const cell = make("div", {}, button);
      if (image[5]) cell.append(make("p", { className: "warning", textContent: `missing or mixed: ${image[5]}` }));
      row.append(cell);
    }
    const info = make("p", { className: "note info" }, scene.ref, ...scene.objects.map((ref) => document.getElementById(ref) ? make("a", { href: `#${ref}`, textContent: ref }) : make("span", { textContent: ref })));
    if (scene.boxes.length) {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => article.classList.toggle("no-layout", !box.checked));
      info.append(make("label", {}, box, " Layout"));
    }
    article.append(row, make("p", { className: "prompt", textContent: scene.prompt || scene.ref }), info);
    if (scene.command) article.append(make("p", { className: "command" }, make("code", { textContent: scene.command, title: scene.command }), make("button", { type: "button", className: "copy", textContent: "Copy" })));
    return article;
  };

  // A view is a list of screens, each a list of [page, place in the page]; a filter makes another view.
  const everything = Array.from({ length: numPages }, () => []);
  const places = index.map(([page]) => [page, everything[page].push(null) - 1]);
  places.forEach((place) => { everything[place[0]][place[1]] = place; });
  let view = everything, screen = 0;
  const show = (number) => {
    screen = Math.max(0, Math.min(view.length - 1, number));
    const wanted = view[screen] || [];
    const pages = wanted.map(([page]) => readPage(page));
    if (pages.includes(null)) {  // the browser still reads the file
      addEventListener("DOMContentLoaded", () => show(number), { once: true });
      return;
    }
    shown = [];
    gallery.replaceChildren(...wanted.map(([, place], i) => drawScene(pages[i][place])));
    if (!wanted.length) gallery.append(make("p", { textContent: "No prompt has these words." }));
    pager.querySelector(".place").textContent = `page ${view.length ? screen + 1 : 0} of ${view.length}`;
    pager.querySelector(".previous").disabled = screen <= 0;
    pager.querySelector(".next").disabled = screen >= view.length - 1;
  };
  const SCENES_PER_SCREEN = 24;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = places.filter((_, i) => words.every((word) => index[i][1].toLowerCase().includes(word)));
    view = words.length ? Array.from({ length: Math.ceil(matches.length / SCENES_PER_SCREEN) }, (_, i) => matches.slice(i * SCENES_PER_SCREEN, (i + 1) * SCENES_PER_SCREEN)) : everything;
    show(0);
  });
  const follow = () => {  // a link to a scene opens its page
    const ref = decodeURIComponent(location.hash.slice(1));
    if (!ref.startsWith("scene/")) return;
    const found = [...document.querySelectorAll("script.page")].findIndex((script) => script.textContent.includes(`"ref":${JSON.stringify(ref)}`));
    if (found < 0) return;
    if (view !== everything || screen !== found || !document.getElementById(ref)) {
      filter.value = "";
      view = everything;
      show(found);
    }
    for (const each of gallery.querySelectorAll(".target")) each.classList.remove("target");
    const article = document.getElementById(ref);
    article.classList.add("target");
    article.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {  // the same link again changes no hash
    const link = event.target.closest("a[href^='#scene/'], a[*|href^='#scene/']");
    if (link) setTimeout(follow);
  });
  pager.hidden = numPages < 2 && index.length <= SCENES_PER_SCREEN;
  pager.querySelector(".previous").addEventListener("click", () => show(screen - 1));
  pager.querySelector(".next").addEventListener("click", () => show(screen + 1));
  show(0);
  addEventListener("DOMContentLoaded", follow);
})();
