// Draws each plot when it comes into view, in the colours of the scheme; arrow keys read its values.
"use strict";
{
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const palette = JSON.parse(document.getElementById("palette").textContent);
  const drawn = new Map();

  function coloured(item) {
    const style = getComputedStyle(document.documentElement);
    let text = JSON.stringify(item);
    for (const [light, name] of Object.entries(palette)) text = text.replaceAll(light, style.getPropertyValue(name).trim());
    return JSON.parse(text);
  }

  async function draw(figure) {
    const canvas = figure.querySelector(".canvas");
    canvas.replaceChildren();
    const [view] = await Bokeh.embed.embed_item(coloured(plots[figure.id].item), canvas);
    if (matchMedia("(pointer: coarse)").matches) view.model.toolbar.active_drag = null;  // a finger scrolls the page
    Object.assign(view.canvas_view.events_el, { tabIndex: -1, style: "outline: none" });  // one stop for Tab, ours
    drawn.set(figure, view);
    for (const key of figure.querySelectorAll(".key")) show(figure, key);
  }

  function show(figure, key) {
    for (const line of drawn.get(figure)?.model.renderers ?? []) {
      if (line.name === "line" + key.dataset.line) line.visible = key.getAttribute("aria-pressed") === "true";
    }
  }

  const number = value => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
  const share = value => (100 * value).toFixed(1) + "%";

  // A cursor over a plot's values, for the pointer and for the keys: stops from left to right, or from the top row down.
  function reader(figure) {
    const { across, shares, rows, lines } = plots[figure.id].told;
    const stage = figure.querySelector(".stage"), canvas = figure.querySelector(".canvas");
    const cursor = figure.querySelector(".cursor"), out = figure.querySelector(".values");
    const say = shares || rows.length ? share : number;
    const range = point => (point.length === 4 ? ` (${say(point[2])} to ${say(point[3])})` : "");
    const stops = rows.length ? rows.map((_, place) => place).reverse() : [...new Set(lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
    let at = rows.length ? 0 : stops.length - 1;

    function shown(place) {
      return figure.querySelector(`.key[data-line="${place}"]`)?.getAttribute("aria-pressed") !== "false";
    }

    function tell(place) {
      const view = drawn.get(figure);
      if (!view) return;
      at = Math.max(0, Math.min(stops.length - 1, place));
      const { bbox, x_scale } = view.frame;
      const stop = stops[at];
      const x = x_scale.compute(rows.length ? lines[0].points[stop][1] : stop);
      put(out, ...(rows.length
        ? [rows[stop], make("br"), `${say(lines[0].points[stop][1])}${range(lines[0].points[stop])}`]
        : [make("span", {}, `${across} ${number(stop)}`), ...lines.flatMap((line, place) => {
          const point = line.points.find(point => point[0] === stop);
          return point && shown(place) ? [make("br"), make("i", { "--k": `var(--c${place % 6 + 1})` }), `${lines.length > 1 ? line.name + " " : ""}${say(point[1])}${range(point)}`] : [];
        })]));
      Object.assign(cursor.style, { left: `${x}px`, top: `${bbox.top}px`, height: `${bbox.bottom - bbox.top}px`, visibility: rows.length || x < bbox.left || x > bbox.right ? "hidden" : "" });
      const right = x < canvas.clientWidth / 2;
      Object.assign(out.style, right ? { left: `${x + 8}px`, right: "" } : { right: `${canvas.clientWidth - x + 8}px`, left: "" });
      stage.classList.add("reading");
    }

    const leave = () => stage.classList.remove("reading");
    canvas.addEventListener("pointerdown", leave, true);
    canvas.addEventListener("pointermove", event => {
      const view = drawn.get(figure);
      if (!view || event.buttons) return leave();
      const box = canvas.getBoundingClientRect();
      const wanted = rows.length ? view.frame.y_scale.invert(event.clientY - box.top) : view.frame.x_scale.invert(event.clientX - box.left);
      tell(stops.reduce((best, stop, place) => (Math.abs(stop - wanted) < Math.abs(stops[best] - wanted) ? place : best), 0));
    }, true);
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) tell(at); });
    canvas.addEventListener("blur", leave);
    canvas.addEventListener("dblclick", () => drawn.get(figure)?.reset());
    canvas.addEventListener("keydown", event => {
      const moves = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: stops.length - 1 };
      if (event.key === "Escape") leave();
      if (!(event.key in moves)) return;
      event.preventDefault();
      tell(moves[event.key]);
    });
  }

  const figures = [...document.querySelectorAll("figure.plot")].filter(figure => figure.id in plots);
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "400px" });
  for (const figure of figures) {
    reader(figure);
    watch.observe(figure);
    for (const key of figure.querySelectorAll(".key")) {
      key.addEventListener("click", () => {
        key.setAttribute("aria-pressed", String(key.getAttribute("aria-pressed") !== "true"));
        show(figure, key);
      });
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
  addEventListener("beforeprint", () => figures.filter(figure => !drawn.has(figure)).forEach(draw));
}
