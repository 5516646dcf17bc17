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
    const views = await Bokeh.embed.embed_item(coloured(plots[figure.id].item), canvas);
    const model = [...views][0].model;
    drawn.set(figure, model);
    for (const key of figure.querySelectorAll(".key")) show(figure, key);
  }

  function show(figure, key) {
    for (const line of drawn.get(figure)?.renderers ?? []) {
      if (line.name === "line" + key.dataset.line) line.visible = key.getAttribute("aria-pressed") === "true";
    }
  }

  const number = value => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
  const share = value => (100 * value).toFixed(1) + "%";

  function reader(figure) {
    const { across, shares, rows, lines } = plots[figure.id].told;
    const out = figure.querySelector(".values");
    const say = shares || rows.length ? share : number;
    const range = point => (point.length === 4 ? ` (${say(point[2])} to ${say(point[3])})` : "");
    const stops = rows.length
      ? rows.map((row, place) => `${row}: ${say(lines[0].points[place][1])}${range(lines[0].points[place])}`).reverse()
      : [...new Set(lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b).map(x =>
        `${across} ${number(x)}: ` + lines.flatMap(line => {
          const point = line.points.find(point => point[0] === x);
          return point ? [`${lines.length > 1 ? line.name + " " : ""}${say(point[1])}${range(point)}`] : [];
        }).join(", "));
    let at = rows.length ? 0 : stops.length - 1;
    const tell = () => { out.textContent = stops[at]; };
    const canvas = figure.querySelector(".canvas");
    canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) tell(); });
    canvas.addEventListener("blur", () => { out.textContent = ""; });
    canvas.addEventListener("keydown", event => {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: stops.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      at = Math.max(0, Math.min(stops.length - 1, moves[event.key]));
      tell();
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
