// An explorer in the page: its controls, its figure, and what state both are in, also when no kernel answers.

const PICTURE_SIDE = 1024; // pixels to which an upload is reduced: more than the kernel looks at
const LARGEST_UPLOAD = 50e6; // bytes
const TICK = 110; // milliseconds between two steps when a slider is played
const LIBRARY = Symbol.for("l2l.plotly");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// plotly's script comes with a model of its own, so that a page gets it once, however many explorers it shows.
function plotly(model) {
  return (globalThis[LIBRARY] ??= (async () => {
    const id = model.get("plotly").replace("IPY_MODEL_", "");
    const source = (await model.widget_manager.get_model(id)).get("source");
    const parts = ["const module = {exports: {}};", source, "\nexport default module.exports;"];
    const address = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
    return (await import(address)).default;
  })());
}

const kinds = {
  slider(send, play) {
    const input = make("input", { type: "range", min: "0", step: "1" });
    const track = make("span", { class: "l2l-track" }, input);
    const output = make("span", { class: "l2l-value" });
    const buttons = ["‹", "▶", "›"].map((text) => make("button", { type: "button" }, text));
    let spec, timer;
    const go = (index) => {
      input.value = index;
      input.dispatchEvent(new Event("input"));
    };
    const stop = () => {
      clearInterval(timer);
      timer = undefined;
      buttons[1].textContent = "▶";
      buttons[1].setAttribute("aria-label", `Play ${spec.label}`);
    };
    const step = (by) => go(Math.max(0, Math.min(Number(input.max), Number(input.value) + by)));
    buttons[0].onclick = () => step(-1);
    buttons[2].onclick = () => step(1);
    buttons[1].onclick = () => {
      if (timer) return stop();
      if (input.value === input.max) go(0);
      buttons[1].textContent = "❚❚";
      buttons[1].setAttribute("aria-label", `Pause ${spec.label}`);
      timer = setInterval(() => {
        if (input.value === input.max || input.disabled || !input.isConnected) stop();
        else if (play()) step(1);
      }, TICK);
    };
    const tell = (index) => {
      const value = spec.values[index];
      output.textContent = String(value) + (spec.marks.includes(value) ? " ◆" : "");
      input.setAttribute("aria-valuetext", spec.marks.includes(value) ? `${value}, tuned` : String(value));
    };
    input.oninput = () => {
      tell(input.value);
      send(spec.values[input.value]);
    };
    return {
      nodes: [track, output],
      input,
      show(next, value) {
        spec = next;
        input.max = spec.values.length - 1;
        const put = Number(input.value) !== spec.values.indexOf(value);
        if (put) input.value = spec.values.indexOf(value);
        tell(input.value);
        track.querySelectorAll(".l2l-mark").forEach((mark) => mark.remove());
        for (const mark of spec.marks) {
          const share = spec.values.indexOf(mark) / Math.max(1, spec.values.length - 1);
          const at = make("span", { class: "l2l-mark" });
          at.style.left = `calc(8px + ${share} * (100% - 16px))`; // the handle is 16 pixels wide
          track.append(at);
        }
        if (spec.kind === "player" && !buttons[0].isConnected) {
          ["Step back", "Play", "Step on"].forEach((text, k) => buttons[k].setAttribute("aria-label", `${text} ${spec.label}`));
          track.parentNode.append(make("span", { class: "l2l-steps" }, ...buttons));
        }
        if (put && spec.more === "auto" && input.value === "0" && !timer) buttons[1].onclick();
      },
    };
  },

  choice(send) {
    const holder = make("span", { class: "l2l-options", role: "radiogroup" });
    let shown = "", spec;
    return {
      nodes: [holder],
      show(next, value, name) {
        spec = next;
        const listed = JSON.stringify([spec.values]);
        if (listed !== shown) {
          shown = listed;
          holder.setAttribute("aria-label", spec.label);
          if (spec.kind === "menu") {
            const select = make("select", { "aria-label": spec.label }, ...spec.values.map((each) => make("option", {}, each)));
            select.onchange = () => send(select.value);
            holder.removeAttribute("role");
            holder.replaceChildren(select);
          } else {
            holder.replaceChildren(
              ...spec.values.map((each, k) => {
                const input = make("input", { type: "radio", name, value: each });
                input.onchange = () => send(each);
                return make("label", { title: spec.help[k] ?? "" }, input, make("span", {}, each));
              }),
            );
          }
        }
        for (const input of holder.querySelectorAll("input")) {
          input.checked = input.value === value;
          input.disabled = spec.off;
        }
        const select = holder.querySelector("select");
        if (select) [select.value, select.title, select.disabled] = [value, value, spec.off];
      },
    };
  },

  number(send) {
    const input = make("input", { type: "number", step: "1", required: "" });
    const next = make("button", { type: "button" });
    input.onchange = () => {
      if (input.checkValidity()) send(Number(input.value));
      else input.reportValidity();
    };
    next.onclick = () => {
      input.value = Math.min(Number(input.max), Math.floor(Number(input.value)) + 1);
      input.onchange();
    };
    return {
      nodes: [input],
      input,
      show(spec, value) {
        [input.min, input.max] = spec.values;
        if (document.activeElement !== input || input.checkValidity()) input.value = value;
        if (spec.more && !next.isConnected) {
          next.textContent = spec.more;
          input.after(next);
        }
      },
    };
  },

  check(send) {
    const input = make("input", { type: "checkbox" });
    input.onchange = () => send(input.checked);
    return { nodes: [], before: [input], input, show: (spec, value) => (input.checked = value) };
  },

  button(_, __, act) {
    const button = make("button", { type: "button" });
    return {
      nodes: [button],
      input: button,
      bare: true,
      show(spec, _, name, working) {
        button.textContent = spec.label;
        button.classList.toggle("l2l-first", spec.more === "first");
        button.title = spec.help;
        button.onclick = () => act({ press: spec.name });
        button.disabled = spec.off || (spec.more === "working") !== working;
      },
    };
  },

  upload(_, __, act, complain) {
    const input = make("input", { type: "file", accept: "image/*" });
    const text = make("span");
    let spec;
    input.onchange = async () => {
      const [file] = input.files;
      input.value = ""; // so that the same file can be chosen again
      try {
        if (file) act({ upload: spec.name, name: file.name }, await smaller(file));
      } catch (error) {
        complain(error.message);
      }
    };
    return {
      nodes: [make("label", { class: "l2l-file" }, input, text)],
      input,
      bare: true,
      show(next) {
        spec = next;
        text.textContent = spec.label;
      },
    };
  },
};

kinds.player = kinds.slider;
kinds.menu = kinds.choice;

// A picture in the few pixels that are looked at; a photograph of 50 MB would not get to the kernel.
async function smaller(file) {
  if (file.size > LARGEST_UPLOAD) {
    throw Error(`${file.name}: ${(file.size / 1e6).toFixed(0)} MB are too many. A picture may have ${LARGEST_UPLOAD / 1e6} MB.`);
  }
  const bitmap = await createImageBitmap(file).catch(() => undefined);
  if (bitmap === undefined) return file.arrayBuffer(); // the kernel says what is wrong with it, or knows the format
  const scale = Math.min(1, PICTURE_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)) });
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob.arrayBuffer()), "image/png"));
}

// Calls back with what is known of the kernel: the cell that it runs, and whether it is gone. Elsewhere than in
// JupyterLab and Notebook 7 nothing may be known; then it never calls.
function watch(model, el, changed) {
  const kernel = model.widget_manager?.kernel;
  const know = { busy: kernel?.status === "busy", cell: undefined, gone: false };
  const say = () => changed(know);
  const message = (_, { header, parent_header: parent, content }) => {
    if (header.msg_type === "execute_input") [know.busy, know.cell] = [true, content.execution_count];
    else if (header.msg_type === "status" && content.execution_state === "idle" && parent.msg_type === "execute_request")
      [know.busy, know.cell] = [false, undefined];
    else return;
    say();
  };
  const status = (_, now) => {
    if (["restarting", "autorestarting", "dead", "terminating"].includes(now)) know.gone = true;
    else if (now === "idle") [know.busy, know.cell] = [false, undefined];
    say();
  };
  const live = () =>
    setTimeout(() => {
      know.gone ||= el.classList.contains("jupyter-widgets-disconnected");
      say();
    });
  const end = () => status(kernel, "dead");
  kernel?.iopubMessage?.connect(message);
  kernel?.disposed?.connect(end);
  kernel?.statusChanged?.connect(status);
  model.on("comm_live_update", live);
  return () => {
    kernel?.iopubMessage?.disconnect(message);
    kernel?.disposed?.disconnect(end);
    kernel?.statusChanged?.disconnect(status);
    model.off("comm_live_update", live);
  };
}

function render({ model, el }) {
  el.classList.add("l2l");
  const plot = make("div", { class: "l2l-plot", tabindex: "0", role: "img" });
  const pictures = make("div", { class: "l2l-pictures" });
  const tools = make("div", { class: "l2l-tools" });
  const state = make("div", { class: "l2l-state" });
  const lines = make("pre", { class: "l2l-lines", tabindex: "0" });
  const stage = make("div", { class: "l2l-stage" }, plot, lines, pictures, tools, state);
  const panel = make("form", { class: "l2l-controls" });
  el.append(make("div", { class: "l2l-body" }, stage, panel));
  panel.onsubmit = (event) => event.preventDefault();
  // Who comes by keyboard is to see the figure that a control moves.
  panel.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && plot.scrollIntoView({ block: "nearest" }));
  const unique = Math.random().toString(36).slice(2);
  const controls = new Map();
  let kernel = { busy: false, gone: false };
  let complaint = "", moved = 0, late;

  const waits = () => model.get("answered") < model.get("moves");
  function send(moves) {
    complaint = "";
    model.set("values", { ...model.get("values"), ...moves });
    model.set("moves", model.get("moves") + 1);
    model.save_changes();
    moved = performance.now();
    clearTimeout(late);
    late = setTimeout(tell, 400);
  }
  function act(content, buffer) {
    complaint = "";
    model.send(content, undefined, buffer ? [buffer] : undefined);
    tell();
  }

  function showControls() {
    const working = Boolean(model.get("state").working);
    const groups = model.get("groups");
    const names = JSON.stringify(groups.map(({ title, rows }) => [title, rows.map((row) => row.map(({ name }) => name))]));
    const focused = [...controls].find(([, { input }]) => input && input === document.activeElement)?.[0];
    if (panel.dataset.names !== names) {
      panel.dataset.names = names;
      panel.replaceChildren(
        ...groups.map((group) => {
          const rows = group.rows.map((row) => {
            const line = make("div", { class: "l2l-row" });
            for (const spec of row) {
              const control = kinds[spec.kind]((value) => send({ [spec.name]: value }), () => !waits() && !drawing, act, (text) => {
                complaint = text;
                tell();
              });
              const text = make("span", { class: "l2l-label" }, spec.label);
              if (spec.kind === "check" && spec.more) text.style.borderBottom = `3px solid ${spec.more}`; // as letters it is too faint
              const tag = ["slider", "check"].includes(spec.kind) ? "label" : "span";
              if (control.input && spec.kind !== "button") control.input.setAttribute("aria-label", [spec.label, spec.help].filter(Boolean).join(": "));
              line.append(
                make(tag, { class: `l2l-control l2l-${spec.kind}${spec.more === "list" ? " l2l-list" : ""}`, title: typeof spec.help === "string" ? spec.help : "" },
                  ...(control.before ?? []), ...(control.bare ? [] : [text]), ...control.nodes),
              );
              controls.set(spec.name, control);
            }
            return line;
          });
          const fold = make("details", { open: group.title !== "More" }, make("summary", {}, group.title), ...rows);
          return make("fieldset", { "aria-label": group.title }, fold);
        }),
      );
    }
    const values = model.get("values");
    for (const spec of groups.flatMap((group) => group.rows.flat())) {
      const control = controls.get(spec.name);
      const off = spec.off || (working && spec.kind !== "button");
      control.show({ ...spec, off }, values[spec.name], `${unique}-${spec.name}`, working);
      if (control.input && spec.kind !== "button") control.input.disabled = off;
    }
    if (focused && controls.get(focused)?.input !== document.activeElement) controls.get(focused)?.input.focus();
    for (const fieldset of panel.children) fieldset.disabled = kernel.gone;
  }

  function showTools() {
    const { pins, code } = model.get("shown");
    const button = (name, text, title) => {
      const made = make("button", { type: "button", title, value: name }, text);
      made.onclick = () => act({ press: name });
      return made;
    };
    const open = tools.querySelector("details")?.open ?? false;
    const focus = tools.contains(document.activeElement) ? document.activeElement.textContent : "";
    const copy = make("button", { type: "button" }, "Copy");
    copy.onclick = () => navigator.clipboard?.writeText(code).then(() => (copy.textContent = "Copied"));
    const text = make("pre", { tabindex: "0" }, code);
    const compare = [
      button("pin", "Pin", "Keep these curves while the controls are moved"),
      button("unpin", "Unpin", "Remove the pinned curves"),
      button("fit", "Fit axes", "Axes only grow while controls are moved; this fits them to what is shown"),
    ];
    tools.replaceChildren(
      ...(pins === null ? [] : compare),
      button("reset", "Reset", "Everything as it was at first"),
      ...(code ? [make("details", { class: "l2l-code", open }, make("summary", {}, "As code"), copy, text)] : []),
    );
    for (const each of tools.querySelectorAll("button, summary")) if (focus && each.textContent === focus) each.focus();
    tell();
  }

  function tell() {
    const { text, errors = [], progress, working } = model.get("state");
    const lines = [];
    const note = (words) => lines.push(make("div", { class: "l2l-kernel", role: "status" }, words));
    if (kernel.gone) note("The kernel that drew this is gone. Run this cell again.");
    else if (waits() && performance.now() - moved > 300)
      note(kernel.busy && kernel.cell ? `Waits for cell [${kernel.cell}], which is running.` : "Waits for the kernel.");
    for (const error of complaint ? [complaint] : errors) lines.push(make("div", { role: "alert" }, error));
    const line = make("div", { role: "status" });
    if (progress !== null && progress !== undefined && !kernel.gone) {
      line.append(make("progress", { max: 1, value: progress, "aria-label": "Progress" }));
    }
    line.append(text ?? "");
    state.replaceChildren(...lines, line);
    for (const fieldset of panel.children) fieldset.disabled = kernel.gone;
    for (const each of tools.querySelectorAll(":scope > button"))
      each.disabled = kernel.gone || (each.value === "unpin" && !model.get("shown").pins) || (each.value === "reset" && working);
  }

  const addresses = new Map();
  function showPictures() {
    lines.textContent = model.get("shown").lines ?? "";
    const shown = model.get("shown").pictures ?? [];
    while (pictures.childElementCount > shown.length) pictures.lastChild.remove();
    shown.forEach(({ name, png, caption, color, side }, k) => {
      const figure = pictures.children[k] ?? pictures.appendChild(
        make("figure", {}, make("figcaption", {}, make("b"), " ", make("a", { title: "Save this picture" }, "↓"), " ", make("span")), make("img")));
      URL.revokeObjectURL(addresses.get(k));
      addresses.set(k, URL.createObjectURL(new Blob([png], { type: "image/png" })));
      const [bold, save, text, image] = figure.querySelectorAll("b, a, span, img");
      [bold.textContent, text.textContent] = [name, caption];
      bold.style.borderBottom = color && `3px solid ${color}`;
      figure.style.flexBasis = `${side}px`;
      [image.src, image.alt] = [addresses.get(k), `${name} ${caption}`];
      [save.href, save.download] = [addresses.get(k), `${name}.png`];
      save.setAttribute("aria-label", `Save ${name}`);
    });
  }

  let drawing, again, drawn, hovered = 0;
  async function draw() {
    if (drawing) return (again = true);
    drawing = true;
    try {
      do {
        again = false;
        const { figure } = model.get("shown");
        const library = await plotly(model);
        const width = plot.clientWidth || el.clientWidth;
        if (!figure || !width || !el.isConnected) continue;
        const dark = document.body.dataset.jpThemeLight === "false";
        el.style.colorScheme = dark ? "dark" : "light";
        const beside = el.clientWidth >= 880;
        const room = (el.closest(".jp-WindowedPanel-outer")?.clientHeight || innerHeight) - (lines.offsetHeight + pictures.offsetHeight + tools.offsetHeight + state.offsetHeight);
        const height = Math.max(220, Math.min(figure.layout.height ?? 420, 0.75 * width, (beside ? 0.95 : 0.62) * room));
        const { color } = getComputedStyle(el);
        const hover = { bgcolor: dark ? "#222" : "#fff", font: { color: dark ? "#eee" : "#333" } };
        const title = figure.layout.title?.text?.split("<br>");
        const legend = { ...figure.layout.legend, y: 1 - (title ? 22 + 14 * title.length : 5) / height };
        const layout = { hovermode: "x unified", uirevision: "kept", ...figure.layout, width, height, legend, hoverlabel: hover, font: { ...figure.layout.font, color } };
        await put(library, figure.data, layout);
        plot.classList.toggle("l2l-drag", Boolean(dragged()));
        plot.setAttribute("role", dragged() ? "application" : "group");
        plot.setAttribute("aria-label", `${figure.layout.title?.text ?? "Figure"}. ${model.get("state").text ?? ""}`.replace(/<[^>]+>/g, " "));
        el.style.setProperty("--l2l-stage", beside ? "0px" : `${stage.offsetHeight}px`);
      } while (again);
    } finally {
      drawing = false;
    }
  }
  // Where points have moved and nothing else has changed, only lines are drawn anew: that takes a quarter of the time.
  async function put(library, data, layout) {
    const still = JSON.stringify([data.map(({ x, y, ...rest }) => [rest, x?.length > 0]), { ...layout, title: "" }]);
    const points = data.map(({ x, y }) => JSON.stringify([x, y]));
    const held = Object.entries(layout).every(([name, axis]) => !/^[xy]axis/.test(name) || axis.range);
    const title = layout.title?.text;
    if (held && drawn?.still === still) {
      if (title !== drawn.title) await library.relayout(plot, { "title.text": title });
      const panels = new Set(data.map(({ yaxis }) => yaxis)).size; // one of which no line is drawn anew would be emptied
      const changed = [...data.keys()].filter((k) => points[k] !== drawn.points[k]);
      const traces = panels > 1 && changed.length ? [...data.keys()] : changed;
      const moved = traces.map((k) => ({ x: data[k].x, y: data[k].y }));
      const at_once = { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: false } };
      if (traces.length) await library.animate(plot, { data: moved, traces }, at_once);
    } else {
      if (layout.dragmode === "drawopenpath") layout.shapes = plot.layout?.shapes ?? []; // what the reader has drawn
      const draws = { drawopenpath: ["drawopenpath", "eraseshape"], false: [] }[layout.dragmode] ?? ["zoom2d", "pan2d", "resetScale2d"];
      await library.react(plot, data, layout, { displaylogo: false, modeBarButtons: [["toImage", ...draws]] });
      if (!drawn) plot.on("plotly_click", ({ points: [point] }) => act({ line: point.data.name, x: point.x }));
    }
    drawn = { still, points, title };
  }
  // Two values may be where a point is in the figure: the pointer drags it, and the arrows move it.
  const dragged = () => model.get("shown").figure?.layout.meta?.drag;
  function drag(x, y) {
    const [across, up] = dragged(), { xaxis, yaxis } = plot._fullLayout;
    const within = (value, [low, high]) => Number(Math.max(low, Math.min(high, value)).toFixed(2));
    send({ [across]: within(x, xaxis.range), [up]: within(y, yaxis.range) });
  }
  const follow = ({ clientX, clientY }) => {
    const { left, top } = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
    drag(xaxis.p2d(clientX - left - xaxis._offset), yaxis.p2d(clientY - top - yaxis._offset));
  };
  plot.addEventListener("pointerdown", (event) => {
    if (!dragged() || kernel.gone || !event.target.closest(".nsewdrag")) return;
    plot.setPointerCapture(event.pointerId);
    follow(event);
  }, true);
  plot.onpointermove = (event) => plot.hasPointerCapture(event.pointerId) && follow(event);
  // Otherwise the arrows walk along the curves as the pointer does.
  plot.onkeydown = async (event) => {
    const to = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (to && dragged()) {
      event.preventDefault();
      if (kernel.gone) return;
      const [low, high] = plot._fullLayout.xaxis.range;
      const [x, y] = dragged().map((name, k) => model.get("values")[name] + (to[k] * (high - low)) / 60);
      return drag(x, y);
    }
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const { figure } = model.get("shown");
    if (!by || !figure?.data.length) return;
    event.preventDefault();
    event.stopPropagation();
    const longest = Math.max(...figure.data.map((trace) => trace.x?.length ?? 0));
    hovered = Math.max(0, Math.min(longest - 1, hovered + by));
    const points = figure.data.flatMap((trace, curveNumber) => (hovered < (trace.x?.length ?? 0) ? [{ curveNumber, pointNumber: hovered }] : []));
    (await plotly(model)).Fx.hover(plot, points);
  };
  // Lab has keys of its own, such as the arrows that go from cell to cell.
  el.addEventListener("keydown", (event) => event.key === "Escape" || event.stopPropagation());

  // What comes in one message changes several of these.
  const once = (show) => {
    let asked;
    return () => (asked ??= Promise.resolve().then(() => ((asked = undefined), show())));
  };
  const [controlsChange, stateChanges] = [once(showControls), once(tell)];
  const listeners = {
    "change:groups": controlsChange,
    "change:values": controlsChange,
    "change:shown": () => (showPictures(), showTools(), draw()),
    "change:state": () => (controlsChange(), stateChanges()),
    "change:answered": stateChanges,
  };
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  showControls(), showPictures(), showTools(), tell();
  const sized = new ResizeObserver(draw);
  sized.observe(el);
  const themed = new MutationObserver(() => (draw(), setTimeout(draw, 1000))); // a theme's colours may come late
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  const unwatch = watch(model, el, (known) => {
    kernel = { ...known };
    tell();
  });
  draw();
  return () => {
    unwatch(), sized.disconnect(), themed.disconnect();
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
