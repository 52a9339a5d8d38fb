"use strict";
(() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A colour by its number: one of the page's own, or of as many hues as there are curves.
  const colour = (number, count) =>
    count <= 8 ? style(`--c${number}`) : `hsl(${(number * 360) / count}, 65%, ${style("--hue-light")})`;

  const axis = (given) => ({
    color: style("--faint"), gridcolor: style("--grid"), linecolor: style("--line"),
    zerolinecolor: style("--grid"), automargin: true, ...given,
  });

  function themed(data, narrow) {
    const traces = data.traces.map(({ colour: number, ...trace }) => {
      if (number === undefined) return trace;
      const shade = colour(number, data.colours);
      return { ...trace, line: { ...trace.line, color: shade }, marker: { ...trace.marker, color: shade } };
    });
    const shapes = (data.layout.shapes || []).map((shape) => ({ ...shape, line: { color: style("--faint"), dash: "dot", width: 1, ...shape.line } }));
    const notes = (data.layout.annotations || []).map((note) => ({ ...note, font: { color: style("--faint"), size: 11 } }));
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: style("--ink"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 10, r: 10, t: 24, b: 10 },
      hoverlabel: { bgcolor: style("--box"), bordercolor: style("--line"), font: { color: style("--ink") } },
      legend: { orientation: "h", y: -0.26, yanchor: "top", font: { size: narrow ? 10 : 12 }, maxheight: 0.35 },
      ...data.layout, shapes, annotations: notes,
      xaxis: axis(data.layout.xaxis), yaxis: axis(data.layout.yaxis),
    };
    return { traces, layout };
  }

  const plain = (text) => new DOMParser().parseFromString(String(text), "text/html").body.textContent;

  // Arrow keys walk over the points of a chart; what is there is shown, and said.
  function walk(plot, live) {
    let curve = 0, point = -1;
    const curves = () => plot.data.map((_, index) => index).filter((index) => plot.data[index].visible !== "legendonly");
    const show = () => {
      const all = curves();
      if (!all.length) return;
      curve = (curve + all.length) % all.length;
      const trace = plot.data[all[curve]], last = trace.x.length - 1;
      point = Math.max(0, Math.min(point, last));
      Plotly.Fx.hover(plot, [{ curveNumber: all[curve], pointNumber: point }]);
      const title = (name) => plain((plot.layout[name].title || {}).text || name[0]);
      live.textContent = `${plain(trace.name || "")}: ${title("xaxis")} ${trace.x[point]}, ${title("yaxis")} ${trace.y[point]}`;
    };
    const zoom = (factor) => {
      const [low, high] = plot._fullLayout.xaxis.range, middle = (low + high) / 2, half = ((high - low) / 2) * factor;
      Plotly.relayout(plot, { "xaxis.range": [middle - half, middle + half] });
    };
    const keys = {
      ArrowRight: () => { point += 1; show(); }, ArrowLeft: () => { point -= 1; show(); },
      ArrowDown: () => { curve += 1; show(); }, ArrowUp: () => { curve -= 1; show(); },
      Home: () => { point = 0; show(); }, End: () => { point = Infinity; show(); },
      "+": () => zoom(0.5), "-": () => zoom(2),
      0: () => Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true }),
    };
    plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  function drawAll() {
    const narrow = matchMedia("(max-width: 40rem)");
    const draw = (element, first) => {
      const plot = document.getElementById(element.dataset.for);
      const { traces, layout } = themed(JSON.parse(element.textContent), narrow.matches);
      const drawn = Plotly.react(plot, traces, layout, config);
      if (first) walk(plot, document.getElementById(`${plot.id}-live`));
      return drawn;
    };
    const elements = [...document.querySelectorAll("script.chart-data")];
    const again = () => elements.forEach((element) => draw(element, false));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    narrow.addEventListener("change", again);
    return Promise.all(elements.map((element) => draw(element, true)));
  }

  async function load() {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    await drawAll();
    document.documentElement.dataset.ready = "yes";
  }

  load().catch((error) => {
    document.getElementById("trouble").textContent = `The charts cannot be shown here (${error.message}); their tables can.`;
    document.querySelectorAll("figure.chart details").forEach((details) => { details.open = true; });
  });
})();
