// The site's part: explorers that answer from what was recorded, and figures that follow the theme and the width.

globalThis[LIBRARY] = Promise.resolve(Plotly);

function nearest(all, value) {
  const exact = all.indexOf(value);
  if (exact >= 0 || typeof value !== "number") return Math.max(0, exact);
  return all.reduce((best, each, k) => (Math.abs(each - value) < Math.abs(all[best] - value) ? k : best), 0);
}

// What a kernel's model is to an explorer, made of recorded views.
class Recording {
  constructor({ values, start, views, pool }) {
    Object.assign(this, { values, start, views, pool });
    this.listeners = new Map();
    this.send({ press: "reset" });
  }
  static async read(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Recording(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json());
  }
  made(node) {
    if (node === null || typeof node !== "object") return node;
    if (Array.isArray(node)) return node.map((each) => this.made(each));
    if ("$" in node) return this.made(this.pool[node.$]);
    if (typeof node.png === "string") return Uint8Array.from(atob(node.png), (letter) => letter.charCodeAt(0));
    return Object.fromEntries(Object.entries(node).map(([name, value]) => [name, this.made(value)]));
  }
  get(name) {
    return { moves: 0, answered: 0, ...this.traits }[name];
  }
  set(name, value) {
    if (name === "values") for (const each in this.values) if (each in value) this.chosen[each] = value[each];
  }
  save_changes() {
    let at = 0;
    for (const [name, all] of Object.entries(this.values)) at = at * all.length + nearest(all, this.chosen[name]);
    this.traits = this.made({ $: this.views[at] });
    for (const name of Object.keys(this.traits)) this.listeners.get(`change:${name}`)?.();
  }
  send({ press }) {
    if (press !== "reset") return;
    this.chosen = { ...this.start };
    this.save_changes();
  }
  on(event, listener) {
    this.listeners.set(event, listener);
  }
  off(event) {
    this.listeners.delete(event);
  }
}

function follow(change) {
  const tell = () => {
    document.body.dataset.jpThemeLight = String(document.documentElement.dataset.theme !== "dark");
    change();
  };
  new MutationObserver(tell).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  tell();
}

const figures = [...document.querySelectorAll(".l2l-figure")].map((place) => {
  const { data, layout } = JSON.parse(place.firstChild.textContent);
  const title = (layout.title?.text ?? "Figure").replace(/<[^>]+>/g, " ");
  const plot = make("div", { role: "group", "aria-label": title });
  place.append(plot);
  return () => {
    const width = Math.min(layout.width ?? 720, place.clientWidth);
    const { color } = getComputedStyle(place);
    const shown = { ...structuredClone(layout), width, font: { ...layout.font, color }, hoverlabel: {} };
    if (width < 500) {
      if (shown.title?.text) shown.title = { ...shown.title, font: { size: 13 }, text: shown.title.text.replace(/(.{36}\S*) /g, "$1<br>") };
      shown.legend = { ...shown.legend, yref: "container", y: 0, yanchor: "bottom" }; // above, it would meet the title
      shown.xaxis = { ...shown.xaxis, automargin: true, title: { ...shown.xaxis?.title, standoff: 8 } };
      shown.height = 1.15 * (layout.height ?? 420);
    }
    return Plotly.react(plot, structuredClone(data), shown, { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
  };
});
const drawAll = () => figures.forEach((draw) => draw());
follow(drawAll);
addEventListener("resize", drawAll);

for (const el of document.querySelectorAll(".l2l-recorded")) {
  Recording.read(globalThis.l2lRecordings[el.dataset.recording]).then((model) => {
    el.replaceChildren();
    explorer.render({ model, el });
    // The first redraw is the slowest, so the page makes one before a reader moves a slider.
    setTimeout(() => model.save_changes(), 500);
  });
}
