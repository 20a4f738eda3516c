"use strict";
(() => {
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
  const section = document.getElementById("scenes");
  if (!section) return;
  const pages = document.querySelectorAll("script.page");
  const gallery = section.querySelector(".gallery"), pager = section.querySelector(".pager");
  const viewer = document.querySelector("dialog.viewer");
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const open = (image, scene) => {
    viewer.querySelector("img").src = image[0];
    viewer.querySelector("img").alt = image[3];
    viewer.querySelector(".caption").textContent = image[4] || scene.prompt;
    viewer.showModal();
  };
  const drawScene = (scene) => {
    const row = make("div", { className: "row" });
    for (const image of scene.images) {
      const picture = make("img", { src: image[0], width: image[1], height: image[2], alt: image[3], loading: "lazy", decoding: "async" });
      const button = make("button", { type: "button", className: "image" }, picture);
      button.addEventListener("click", () => open(image, scene));
      row.append(button);
    }
    const children = [row, make("p", { textContent: scene.prompt || scene.ref }), make("p", { className: "note", textContent: scene.ref })];
    if (scene.command) children.push(make("p", { className: "command" }, make("code", { textContent: scene.command }), " ", make("button", { type: "button", className: "copy", textContent: "Copy" })));
    return make("article", { className: "scene" }, ...children);
  };
  let current = 0;
  const show = (number) => {
    current = Math.max(0, Math.min(pages.length - 1, number));
    gallery.replaceChildren(...JSON.parse(pages[current].textContent).map(drawScene));
    pager.querySelector(".place").textContent = `page ${current + 1} of ${pages.length}`;
    pager.querySelector(".previous").disabled = current === 0;
    pager.querySelector(".next").disabled = current === pages.length - 1;
  };
  pager.hidden = pages.length < 2;
  pager.querySelector(".previous").addEventListener("click", () => show(current - 1));
  pager.querySelector(".next").addEventListener("click", () => show(current + 1));
  show(0);
})();
