// What the studio of interactive.py looks like in a browser. Nothing is decided here: a click sets
// traits, and Python answers by setting others. No network, no build step.

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  // Arrow keys move a slider; JupyterLab would fold headings by them, unless what has the focus
  // itself (its parents are asked too late) says no.
  element.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};

const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

/** Rebuild an element's children and leave the keyboard's focus on the same one of them. */
const refill = (element, children) => {
  const at = [...element.children].findIndex((child) => child.contains(document.activeElement));
  element.replaceChildren(...children.filter((child) => child != null));
  const again = element.children[at];
  (again?.matches("button, input") ? again : again?.querySelector("button, input"))?.focus();
};

function render({ model, el }) {
  const get = (name) => model.get(name);
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  // A click travels with all that was typed before it, in one message and in order.
  const ask = (name, argument = null) =>
    set({ command: [(get("command")[0] ?? 0) + 1, name, argument] });
  const on = (names, show) => {
    const events = names.map((name) => `change:${name}`).join(" ");
    model.on(events, show);
    forget.push(() => model.off(events, show));
    show();
  };
  const forget = [];

  // Who: pictures, not names.
  const people = make("div", { className: "people", role: "group", ariaLabel: "Who: choose up to three" });
  const choose = (number) => {
    const chosen = get("chosen");
    if (chosen.includes(number)) set({ chosen: chosen.filter((other) => other !== number) });
    else if (chosen.length < get("colors").length) set({ chosen: [...chosen, number] });
  };
  on(["chosen", "faces"], () => {
    const chosen = get("chosen");
    const full = chosen.length >= get("colors").length;
    refill(people, get("faces").map((url, number) => {
      const slot = chosen.indexOf(number);
      const button = make("button", {
        type: "button",
        ariaPressed: String(slot >= 0),
        ariaLabel: `Person ${number + 1} of ${get("faces").length}` + (slot >= 0 ? `, chosen as ${slot + 1}` : ""),
        title: slot < 0 && full ? "Three are chosen: take one of them out first" : "",
        className: slot < 0 && full ? "full" : "",
        onclick: () => choose(number),
      }, make("img", { src: url, alt: "" }));
      if (slot >= 0) {
        button.style.setProperty("--own", get("colors")[slot]);
        button.append(make("span", { className: "slot" }, String(slot + 1)));
      }
      return button;
    }));
  });

  // What.
  const prompt = make("textarea", { rows: 2, ariaLabel: "Prompt", onchange: () => set({ prompt: prompt.value }),
    oninput: () => model.set("prompt", prompt.value) });
  on(["prompt"], () => { if (prompt.value !== get("prompt")) prompt.value = get("prompt"); });
  const suggestions = make("div", { className: "chips" });
  on(["suggestions"], () => suggestions.replaceChildren(...get("suggestions").map((text) =>
    make("button", { type: "button", className: "chip", onclick: () => set({ prompt: text }) }, text))));

  // How strongly.
  const slider = (label, { name, min, max, step, read = () => get(name), write = (value) => set({ [name]: value }) }) => {
    const output = make("output");
    const input = make("input", { type: "range", min, max, step, ariaLabel: label });
    input.addEventListener("input", () => { output.value = input.value; });
    input.addEventListener("change", () => write(Number(input.value)));
    const show = () => { input.value = read(); output.value = String(Number(read().toFixed(2))); };
    return [make("label", { className: "row" }, make("span", {}, label), input, output), show];
  };
  const strengths = make("div");
  on(["chosen", "strengths"], () => refill(strengths, get("chosen").map((number, slot) => {
    const [row, show] = slider(`strength of ${slot + 1}`, {
      min: 0, max: 2, step: 0.05,
      read: () => get("strengths")[slot] ?? 1,
      write: (value) => set({ strengths: get("strengths").map((old, at) => (at === slot ? value : old)) }),
    });
    row.style.setProperty("--own", get("colors")[slot]);
    row.classList.add("own");
    show();
    return row;
  })));
  const [guidance, showGuidance] = slider("guidance", { name: "guidance_scale", min: 0, max: 12, step: 0.5 });
  on(["guidance_scale"], showGuidance);
  const [steps, showSteps] = slider("steps", { name: "steps", min: 1, max: get("max_steps"), step: 1 });
  on(["steps"], showSteps);
  const seed = make("input", { type: "number", min: 0, step: 1, ariaLabel: "seed", onchange: () => {
    const value = Math.floor(Number(seed.value));
    if (seed.value !== "" && value >= 0 && Number.isSafeInteger(value)) set({ seed: value });
    else seed.value = get("seed");
  } });
  on(["seed"], () => { seed.value = get("seed"); });
  const another = make("button", { type: "button", onclick: () => set({ seed: Math.floor(Math.random() * 1e6) }) }, "another");
  const shape = make("select", { ariaLabel: "shape", onchange: () => set({ wide: shape.value === "wide" }) },
    make("option", { value: "square" }, "square"), make("option", { value: "wide" }, "wide"));
  on(["wide"], () => { shape.value = get("wide") ? "wide" : "square"; });

  // Where: one byte for each pixel, as Python keeps them.
  const board = drawingBoard({ get, set, ask, on });

  // Go.
  const go = make("button", { type: "button", className: "go", onclick: () => { ask("paint"); } }, "Generate");
  const bar = make("progress", { max: 1, ariaLabel: "Progress" });
  const message = make("p", { className: "message", role: "status" });
  on(["busy", "progress"], () => {
    go.disabled = get("busy");
    go.textContent = get("busy") ? "Painting …" : "Generate";
    bar.value = get("progress");
    bar.classList.toggle("on", get("busy"));
  });
  on(["message", "failed"], () => {
    message.textContent = get("message");
    message.classList.toggle("failed", get("failed"));
  });

  // What came of it.
  const result = make("div", { className: "result" });
  on(["shown"], () => {
    const shown = get("shown");
    if (!shown.image) {
      result.replaceChildren(make("p", { className: "empty" }, "Choose people, say what to paint, and press Generate."));
      return;
    }
    const tile = (url, text, color) => {
      const figure = make("figure", {}, make("img", { src: url, alt: text }), make("figcaption", {}, text));
      if (color) { figure.classList.add("own"); figure.style.setProperty("--own", color); }
      return figure;
    };
    const copied = make("button", { type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(shown.code);
        copied.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        copied.textContent = "press Ctrl+C";
      }
    } }, "copy");
    const code = make("pre", { tabIndex: 0 }, shown.code);
    const open = result.querySelector("details")?.open ?? false;
    result.replaceChildren(
      make("div", { className: shown.wide ? "shown wide" : "shown" },
        make("img", { className: "picture", src: shown.image, alt: `Painted: ${shown.caption}` }),
        make("div", { className: "inputs" },
          ...shown.references.map((url, n) => {
            const slot = shown.identities[n];
            return tile(url, `reference, person ${slot + 1}`, get("colors")[slot]);
          }),
          shown.places ? tile(shown.places, "places, as drawn") : null,
          ...shown.levels.map((url, n) => tile(url, `as level ${n + 1} of the UNet sees them`)))),
      make("p", { className: "caption" }, shown.caption),
      make("div", { className: "bar" },
        make("button", { type: "button", onclick: () => ask("save") }, "Save with its record"),
        make("button", { type: "button", onclick: () => ask("recall") }, "Back to its settings")),
      make("details", { open }, make("summary", {}, "The same picture in Python"),
        make("div", { className: "code" }, copied, code)));
  });
  const history = make("div", { className: "history", role: "group", ariaLabel: "The last pictures" });
  on(["history", "shown"], () => refill(history, get("history").map(({ image, text }, number) =>
    make("button", {
      type: "button", title: text, ariaLabel: text,
      ariaPressed: String(get("shown").number === number), onclick: () => ask("show", number),
    }, make("img", { src: image, alt: "" })))));

  el.classList.add("fusion-studio");
  el.append(
    people,
    make("div", { className: "desk" },
      make("section", { ariaLabel: "What is asked for" },
        prompt, suggestions, strengths, guidance, steps,
        make("div", { className: "row" }, make("span", {}, "seed"), seed, another, shape),
        board,
        make("div", { className: "bar" }, go, bar), message),
      make("section", { ariaLabel: "What came of it" }, result, history)));
  return () => forget.forEach((each) => each());
}

/** The places of the chosen people: a pen and an eraser over the last picture, or boxes. */
function drawingBoard({ get, set, ask, on }) {
  const canvas = make("canvas", { role: "img", ariaLabel: "Places: draw here, or set boxes below" });
  const under = new Image();
  let labels = new Uint8Array(); // 0 is nobody, n the n-th of the chosen people
  let past = []; // what labels were before each stroke, for undo
  let pen = 1; // whose places are drawn; 0 erases
  let last = null; // where the pen was, while it is down
  const size = () => get("size"); // [height, width]

  const draw = () => {
    const [height, width] = size();
    if (labels.length !== height * width) return;
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d");
    const sheet = new ImageData(width, height);
    const inks = [[235, 235, 235], ...get("colors").map(rgb)].map((ink) => new Uint32Array(new Uint8Array([...ink, 255]).buffer)[0]);
    const pixels = new Uint32Array(sheet.data.buffer);
    for (let at = 0; at < labels.length; at++) pixels[at] = inks[labels[at]];
    context.putImageData(sheet, 0, 0);
    if (under.src && under.complete && under.naturalWidth === width) {
      context.globalAlpha = 0.35;
      context.drawImage(under, 0, 0, width, height);
    }
  };
  under.addEventListener("load", draw);
  on(["shown"], () => { if (get("shown").image) under.src = get("shown").image; });
  on(["places", "size"], () => {
    const bytes = get("places");
    const given = bytes?.buffer ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array();
    if (given.length !== labels.length) past = [];
    if (last === null) labels = given.slice();
    draw();
  });
  const send = () => { const copy = labels.slice(); set({ places: new DataView(copy.buffer) }); };
  const remember = () => { past = [...past.slice(-30), labels.slice()]; };

  const dab = (x, y) => {
    const [height, width] = size();
    const radius = (Number(thickness.value) * height) / 200;
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++)
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++)
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.75)) labels[row * width + column] = pen;
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const stroke = (event) => {
    const [x, y] = place(event);
    const [x0, y0] = last ?? [x, y];
    const dabs = Math.max(1, Math.ceil(Math.hypot(x - x0, y - y0)));
    for (let n = 1; n <= dabs; n++) dab(x0 + ((x - x0) * n) / dabs, y0 + ((y - y0) * n) / dabs);
    last = [x, y];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    remember();
    stroke(event);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) stroke(each);
    draw();
  });
  const lift = () => { if (last) { last = null; send(); } };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);

  const thickness = make("input", { type: "range", min: 2, max: 60, value: 24, ariaLabel: "width of the pen, in hundredths of the height" });
  const pens = make("div", { className: "pens", role: "group", ariaLabel: "Whose place to draw" });
  const button = (text, onclick) => make("button", { type: "button", onclick }, text);
  const undo = () => { if (past.length) { labels = past.pop(); draw(); send(); } };
  const clear = () => { remember(); labels = new Uint8Array(labels.length); draw(); send(); };

  // The same with the keyboard: a box of four sliders for whoever's pen is chosen.
  const edges = [["left", 0], ["top", 10], ["right", 50], ["bottom", 100]].map(([name, value]) =>
    [name, make("input", { type: "range", min: 0, max: 100, value, ariaLabel: `${name} edge, in percent` })]);
  const box = () => {
    const [height, width] = size();
    const [left, top, right, bottom] = edges.map(([, input]) => Number(input.value) / 100);
    remember();
    for (let at = 0; at < labels.length; at++) {
      const x = ((at % width) + 0.5) / width, y = (Math.floor(at / width) + 0.5) / height;
      if (x > left && x < right && y > top && y < bottom) labels[at] = pen;
      else if (labels[at] === pen) labels[at] = 0;
    }
    draw(); send();
  };
  edges.forEach(([, input]) => input.addEventListener("change", box));

  const hint = make("p", { className: "hint" });
  const tools = make("div", { className: "tools" }, pens,
    make("label", { className: "row" }, make("span", {}, "pen"), thickness),
    make("div", { className: "bar" },
      button("Side by side", () => { remember(); ask("share"); }), button("Undo", undo), button("Clear", clear)),
    make("details", {}, make("summary", {}, "A box by sliders"),
      ...edges.map(([name, input]) => make("label", { className: "row" }, make("span", {}, name), input))));
  const board = make("div", { className: "board" }, canvas, tools, hint);
  const choosePen = () => {
    const chosen = get("chosen");
    pen = Math.min(pen, chosen.length);
    board.classList.toggle("off", chosen.length < 2);
    hint.textContent = chosen.length < 2
      ? "Choose two or three people to say who shall be where."
      : "Inside a place only its person is seen; where nothing is drawn, everybody is.";
    refill(pens, [...chosen.map((_, slot) => slot + 1), 0].map((owner) => {
      const each = make("button", { type: "button", ariaPressed: String(owner === pen),
        onclick: () => { pen = owner; choosePen(); } }, owner ? `person ${owner}` : "eraser");
      if (owner) { each.classList.add("own"); each.style.setProperty("--own", get("colors")[owner - 1]); }
      return each;
    }));
  };
  // Places are numbered by who is chosen: what was drawn for others cannot be brought back.
  on(["chosen"], () => { past = []; choosePen(); });
  on(["wide"], () => board.classList.toggle("wide", get("wide")));
  return board;
}

export default { render };
