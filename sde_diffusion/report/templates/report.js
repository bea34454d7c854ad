"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const announce = (text) => { byId("announcement").textContent = text; };

  // --- what is shown ---------------------------------------------------------------------------------------------
  const state = { shown: new Set(data.labels), variants: new Set(data.variants), metric: byId("metric")?.value, cost: "nfe" };

  function visible(element) {
    return state.shown.has(element.dataset.label) && state.variants.has(element.dataset.variant ?? data.variants[0]);
  }

  function show() {
    for (const chip of all(".chip[data-label]")) chip.setAttribute("aria-pressed", state.shown.has(chip.dataset.label));
    for (const chip of all(".chip[data-variant]")) chip.setAttribute("aria-pressed", state.variants.has(chip.dataset.variant));
    for (const element of all(".row, .walk, #runs tbody tr")) element.hidden = !visible(element);
    for (const id of Object.keys(charts)) signals(id);
    fitAll();
  }

  function toggle(set, name) {
    if (!set.delete(name)) set.add(name);
    show();
  }

  // --- charts ----------------------------------------------------------------------------------------------------
  const charts = {};
  const wanted = { "quality-chart": () => `${state.metric}/${state.cost}`, "agreement-chart": () => "flow_distance" };
  const darkPaper = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (darkPaper.matches ? "dark" : "light");

  // Of several requests for one chart only the last is to stay, whichever is ready first.
  async function draw(id) {
    const holder = byId(id);
    const spec = data.specs[wanted[id]()];
    if (!holder || !spec) return;
    const turn = (charts[id]?.turn ?? 0) + 1;
    charts[id] = { ...charts[id], turn };
    const options = { mode: "vega-lite", renderer: "svg", actions: false, config: data.themes[theme()] };
    const room = document.createElement("div");
    room.style.cssText = "width: 100%; height: 100%";
    holder.append(room);
    const result = await vegaEmbed(room, { ...spec, datasets: data.datasets }, options);
    if (charts[id].turn !== turn) {
      result.finalize();
      room.remove();
      return;
    }
    charts[id].result?.finalize();
    for (const old of [...holder.children]) if (old !== room) old.remove();
    charts[id].result = result;
    signals(id);
  }

  function signals(id) {
    const view = charts[id]?.result?.view;
    view?.signal("shown", [...state.shown]).signal("variants", [...state.variants]).run();
  }

  function focus(label) {
    for (const { result } of Object.values(charts)) result?.view.signal("focus", label).run();
  }

  // The widths of the charts' holders are read when a chart is laid out, and again when the window changes.
  const redraw = () => Object.keys(wanted).forEach(draw);

  for (const chip of all(".chip[data-label]")) {
    const { label } = chip.dataset;
    chip.addEventListener("click", () => toggle(state.shown, label));
    for (const event of ["mouseenter", "focus"]) chip.addEventListener(event, () => focus(state.shown.has(label) ? label : ""));
    for (const event of ["mouseleave", "blur"]) chip.addEventListener(event, () => focus(""));
  }
  for (const chip of all(".chip[data-variant]")) chip.addEventListener("click", () => toggle(state.variants, chip.dataset.variant));
  byId("all").addEventListener("click", () => { state.shown = new Set(data.labels); state.variants = new Set(data.variants); show(); });
  byId("none").addEventListener("click", () => { state.shown.clear(); show(); });

  byId("metric")?.addEventListener("change", (event) => { state.metric = event.target.value; choose(state.cost); });
  for (const button of all("[data-cost]")) button.addEventListener("click", () => choose(button.dataset.cost));

  function choose(cost) {
    state.cost = `${state.metric}/${cost}` in data.specs ? cost : "nfe";
    for (const button of all("[data-cost]")) button.setAttribute("aria-pressed", button.dataset.cost === state.cost);
    draw("quality-chart");
  }

  for (const button of all(".save")) {
    button.addEventListener("click", async () => {
      const svg = await charts[button.dataset.chart].result.view.toSVG();
      const link = document.createElement("a");
      link.href = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
      link.download = `${wanted[button.dataset.chart]().replace("/", "-")}.svg`;
      link.click();
    });
  }

  // --- light and dark --------------------------------------------------------------------------------------------
  function paper() {
    byId("theme").setAttribute("aria-pressed", theme() === "dark");
    redraw();
  }
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* no storage for files */ }
    paper();
  });
  darkPaper.addEventListener("change", () => { if (!root.dataset.theme) paper(); });

  // --- pictures --------------------------------------------------------------------------------------------------
  const TALLEST = 56; // CSS pixels up to which small pictures are enlarged

  // Enlarged by whole device pixels, so that all pixels of a small picture are equally large.
  function fit(picture) {
    const room = picture.parentElement.parentElement.clientWidth;
    const width = Number(picture.getAttribute("width"));
    if (!room) return;
    const factor = Math.min(room / width, Math.max(1, TALLEST / Number(picture.getAttribute("height"))));
    const whole = Math.floor(factor * devicePixelRatio) / devicePixelRatio;
    picture.style.width = `${width * (whole || factor)}px`;
  }
  const fitAll = () => all(".strip > img, .strip > canvas").forEach(fit);
  new ResizeObserver(fitAll).observe(document.body);

  const budget = byId("budget");
  function within() {
    for (const row of all(".row")) {
      const figures = all("figure", row);
      const affordable = figures.filter((figure) => Number(figure.dataset.nfe) <= Number(budget.value));
      for (const figure of figures) figure.hidden = figure !== affordable.at(-1);
      row.querySelector(".nothing").hidden = affordable.length > 0;
    }
    fitAll();
  }
  budget?.addEventListener("change", within);

  // --- the walk --------------------------------------------------------------------------------------------------
  const walks = all(".walk").map((element) => {
    const trajectory = data.trajectories[element.dataset.trajectory];
    const canvases = all("canvas", element).map((canvas) => {
      const sheet = new Image();
      sheet.src = trajectory[canvas.dataset.kind];
      return { canvas, sheet };
    });
    return { trajectory, canvases, caption: element.querySelector(".frame") };
  });
  const way = byId("way");
  const play = byId("play");

  function step() {
    const part = Number(way.value) / Number(way.max);
    way.setAttribute("aria-valuetext", `${Math.round(100 * part)} % of the way`);
    for (const { trajectory, canvases, caption } of walks) {
      const frame = Math.round(part * (trajectory.frames - 1));
      caption.textContent = trajectory.captions[frame];
      for (const { canvas, sheet } of canvases) {
        const context = canvas.getContext("2d");
        context.clearRect(0, 0, canvas.width, canvas.height); // sheets may have clear pixels
        context.drawImage(sheet, 0, -frame * canvas.height);
      }
    }
  }

  const PASS = 5000; // milliseconds of a whole walk
  let last = null;
  function run(now) {
    if (play.getAttribute("aria-pressed") !== "true") return;
    position = Math.min(Number(way.max), position + (now - (last ?? now)) / PASS * Number(way.max));
    last = now;
    way.value = position;
    step();
    if (position >= Number(way.max)) pause();
    else requestAnimationFrame(run);
  }
  let position = 0;
  function pause() {
    play.setAttribute("aria-pressed", "false");
    play.setAttribute("aria-label", "Play");
  }
  way?.addEventListener("input", () => { pause(); step(); });
  play?.addEventListener("click", () => {
    if (play.getAttribute("aria-pressed") === "true") return pause();
    play.setAttribute("aria-pressed", "true");
    play.setAttribute("aria-label", "Pause");
    position = Number(way.value) >= Number(way.max) ? 0 : Number(way.value);
    last = null;
    requestAnimationFrame(run);
  });

  // --- the table -------------------------------------------------------------------------------------------------
  const table = byId("runs");
  const keys = new Map(all("tbody tr", table).map((row) => [row, JSON.parse(row.dataset.keys)]));

  // What is missing comes last in both directions.
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  }
  all("thead th", table).forEach((header, column, headers) => {
    header.querySelector("button").addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...keys.keys()].sort((a, b) => compare(keys.get(a)[column], keys.get(b)[column], sign));
      table.tBodies[0].append(...rows);
      announce(`sorted by ${header.textContent.trim()}, ${header.getAttribute("aria-sort")}`);
    });
  });

  // --- the beginning ---------------------------------------------------------------------------------------------
  byId("theme").hidden = false;
  document.querySelector(".legend").hidden = false;
  paper();
  if (budget) within();
  if (way) Promise.all(walks.flatMap(({ canvases }) => canvases.map(({ sheet }) => sheet.decode()))).then(step);
})();
