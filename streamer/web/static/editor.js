/**
 * Editor of zones, lines and masks over a still frame: mouse, touch, pen and keyboard.
 * Click adds a corner, a click on an edge inserts one, dragging moves a corner or the whole shape; Delete, right click or
 * a long press removes a corner; Ctrl+Z and Ctrl+Y undo and redo; arrows move the focused corner by half a percent.
 */
import { address, call } from "./api.js";
import { ask, fill, make, plural } from "./dom.js";

const SNAP_PX = 10;
const STEP = 0.005;
const LONG_PRESS_MS = 600;
const COLOURS = { zone: "#f2c94c", line: "#40d0ff", mask: "#c9b8ff" };
const KINDS = { zones: "zone", lines: "line", masks: "mask" };
const SECTIONS = Object.keys(KINDS);

const rounded = (points) => points.map(([x, y]) => [Math.round(x * 1e4) / 1e4, Math.round(y * 1e4) / 1e4]);

/** Returns the editor; `done` is called when it closes. */
export async function placeEditor(context, done) {
  const { path } = context;
  const found = await Promise.all(SECTIONS.map((section) => call("GET", `${path}/${section}`)));
  const etags = Object.fromEntries(SECTIONS.map((section, at) => [section, found[at].etag]));
  let shapes = SECTIONS.flatMap((section, at) => found[at].body.map(({ id, polygon, points, ...rest }) => ({ kind: KINDS[section], id, points: polygon ?? points, rest })));
  const before = shapesBySection();
  let selected = shapes.length ? 0 : -1;
  let drawing = null;
  let past = [];
  let future = [];
  let focusCorner = null;

  const image = make("img", { alt: `Still picture of ${context.name}` });
  const svg = make("svg", { class: "overlay editor", viewBox: "0 0 1000 600", preserveAspectRatio: "none", role: "group", "aria-label": "Zones and lines: drag corners, or use the table below" });
  const view = make("div", { class: "view", tabindex: "-1" }, image, svg);
  const side = make("div", {});
  const sentence = make("p", { class: "notice error", role: "alert", hidden: true });
  const trial = make("p", { class: "dim", role: "status" });
  const ratio = context.status.width ? context.status.width / context.status.height : 5 / 3;
  view.style.aspectRatio = String(ratio);
  svg.setAttribute("viewBox", `0 0 ${1000} ${1000 / ratio}`);
  const height = 1000 / ratio;
  const fetchPicture = () => { image.src = address(`${path}/snapshot.jpg?width=1280&now=${Date.now()}`); };
  fetchPicture();

  /** Returns what the API takes, by section. */
  function shapesBySection() {
    return Object.fromEntries(SECTIONS.map((section) => [section, shapes.filter((shape) => shape.kind === KINDS[section]).map((shape) => ({ id: shape.id, [section === "lines" ? "points" : "polygon"]: rounded(shape.points), ...shape.rest }))]));
  }
  const copy = () => shapes.map((shape) => ({ ...shape, points: shape.points.map((point) => [...point]) }));
  function remember() {
    past = [...past.slice(-99), copy()];
    future = [];
  }
  function undo(from, to) {
    if (!from.length) return;
    to.push(copy());
    shapes = from.pop();
    selected = Math.min(selected, shapes.length - 1);
    draw();
    tryShape();
  }
  const say = (text) => {
    sentence.textContent = text;
    sentence.hidden = !text;
  };

  function pointAt(event) {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((value) => Math.min(1, Math.max(0, value)));
  }
  /** Moves a point onto a corner of another shape or the frame's edge within ten pixels, unless Alt is held. */
  function snapped([x, y], event, own) {
    if (event.altKey) return [x, y];
    const box = svg.getBoundingClientRect();
    for (const shape of shapes) {
      if (shape === own) continue;
      for (const [cx, cy] of shape.points) if (Math.hypot((cx - x) * box.width, (cy - y) * box.height) < SNAP_PX) return [cx, cy];
    }
    const edge = (value, length) => (value * length < SNAP_PX ? 0 : (1 - value) * length < SNAP_PX ? 1 : value);
    return [edge(x, box.width), edge(y, box.height)];
  }
  function removeCorner(shape, at) {
    if (shape.kind === "line") return say("A line has two ends: remove the line instead.");
    if (shape.points.length <= 3) return say("Three corners stay: remove the whole shape instead.");
    remember();
    shape.points.splice(at, 1);
    focusCorner = Math.min(at, shape.points.length - 1);
    draw();
    tryShape();
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.button === 2) return;
    say("");
    const corner = event.target.closest("[data-corner]");
    const edge = event.target.closest("[data-edge]");
    const body = event.target.closest("[data-shape]");
    if (drawing) return addPoint(event);
    if (!body) {
      selected = -1;
      return draw();
    }
    selected = Number(body.dataset.shape);
    const shape = shapes[selected];
    const before = copy();
    const start = pointAt(event);
    const original = shape.points.map((point) => [...point]);
    let at = corner ? Number(corner.dataset.corner) : -1;
    if (edge && shape.kind !== "line") {
      at = Number(edge.dataset.edge) + 1;
      shape.points.splice(at, 0, start);
      original.splice(at, 0, start);
    }
    let moved = Boolean(edge && shape.kind !== "line");
    focusCorner = at >= 0 ? at : null;
    const press = at >= 0 && event.pointerType === "touch" ? setTimeout(() => {
      stop();
      removeCorner(shape, at);
    }, LONG_PRESS_MS) : 0;
    const move = (now) => {
      const [x, y] = pointAt(now);
      if (Math.hypot(x - start[0], y - start[1]) < 0.004 && !moved) return;
      clearTimeout(press);
      moved = true;
      if (at >= 0) shape.points[at] = snapped([x, y], now, shape);
      else {
        const [dx, dy] = [x - start[0], y - start[1]];
        const limit = (delta, axis) => Math.min(1 - Math.max(...original.map((point) => point[axis])), Math.max(-Math.min(...original.map((point) => point[axis])), delta));
        const [lx, ly] = [limit(dx, 0), limit(dy, 1)];
        shape.points = original.map(([px, py]) => [px + lx, py + ly]);
      }
      draw();
    };
    const stop = () => {
      clearTimeout(press);
      svg.removeEventListener("pointermove", move);
      svg.removeEventListener("pointerup", end);
      svg.removeEventListener("pointercancel", stop);
    };
    const end = () => {
      stop();
      if (moved) {
        past = [...past.slice(-99), before];
        future = [];
        tryShape();
      }
      draw();
    };
    svg.setPointerCapture(event.pointerId);
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", stop);
    draw();
  });
  svg.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    const corner = event.target.closest("[data-corner]");
    if (corner) removeCorner(shapes[Number(corner.dataset.shape)], Number(corner.dataset.corner));
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    drawing.next = snapped(pointAt(event), event, drawing);
    draw();
  });

  function addPoint(event) {
    const point = snapped(pointAt(event), event, drawing);
    const box = svg.getBoundingClientRect();
    const first = drawing.points[0];
    if (first && drawing.points.length >= 3 && Math.hypot((first[0] - point[0]) * box.width, (first[1] - point[1]) * box.height) < 2 * SNAP_PX) return finish();
    drawing.points.push(point);
    if (drawing.kind === "line" && drawing.points.length === 2) return finish();
    draw();
  }
  function finish() {
    const shape = drawing;
    if (shape.points.length < (shape.kind === "line" ? 2 : 3)) return say(shape.kind !== "line" ? `A ${shape.kind} needs at least three corners.` : "A line needs two ends.");
    if (shape.kind !== "line" && crossesItself(shape.points)) return say("The edges must not cross one another: move the last corner.");
    drawing = null;
    delete shape.next;
    remember();
    shapes.push(shape);
    selected = shapes.length - 1;
    draw();
    tryShape();
  }
  async function begin(kind) {
    const used = new Set(shapes.map((shape) => shape.id));
    const suggestion = [kind, ...Array.from({ length: 50 }, (_, at) => `${kind} ${at + 2}`)].find((id) => !used.has(id));
    const values = await ask(`New ${kind}`, [{ name: "id", label: "Name", value: suggestion }], { confirm: "Draw it", note: kind !== "line" ? "Then click its corners in the picture; Enter closes it." : "Then click its two ends; the arrow shows the direction in." });
    if (!values) return;
    if (used.has(values.id.trim())) return say(`The name ${values.id.trim()} is taken: choose another one.`);
    drawing = { kind, id: values.id.trim(), points: [], rest: {} };
    selected = -1;
    say("");
    view.focus();
    draw();
  }

  const keys = (event) => {
    if (event.target.closest("input, dialog")) return;
    const corner = document.activeElement?.closest?.("[data-corner]");
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") undo(event.shiftKey ? future : past, event.shiftKey ? past : future);
    else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "y") undo(future, past);
    else if (event.key === "Escape" && drawing) {
      drawing = null;
      draw();
    } else if (event.key === "Enter" && drawing) finish();
    else if (corner && ["Delete", "Backspace"].includes(event.key)) removeCorner(shapes[Number(corner.dataset.shape)], Number(corner.dataset.corner));
    else if (corner && event.key.startsWith("Arrow")) {
      const shape = shapes[Number(corner.dataset.shape)];
      const at = Number(corner.dataset.corner);
      const [dx, dy] = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
      remember();
      shape.points[at] = [Math.min(1, Math.max(0, shape.points[at][0] + dx)), Math.min(1, Math.max(0, shape.points[at][1] + dy))];
      focusCorner = at;
      draw();
      tryShape();
    } else return;
    event.preventDefault();
  };

  let trialTimer = 0;
  function tryShape() {
    clearTimeout(trialTimer);
    trialTimer = setTimeout(async () => {
      const shape = shapes[selected];
      if (!shape) return fill(trial);
      if (shape.kind !== "line" && crossesItself(shape.points)) return fill(trial, "The edges must not cross one another.");
      if (shape.kind === "mask") return fill(trial, `Detections inside ${shape.id} are ignored.`);
      try {
        const { body } = await call("POST", `${path}/zones/try`, { body: shape.kind === "zone" ? { polygon: rounded(shape.points) } : { points: rounded(shape.points) } });
        fill(trial, `In the last hour ${plural(body.tracks, "track")} would have ${shape.kind === "zone" ? "entered" : "crossed"} ${shape.id}.`);
      } catch (error) {
        fill(trial, error.message);
      }
    }, 400);
  }

  function draw() {
    const scaled = ([x, y]) => [x * 1000, y * height];
    const wide = svg.getBoundingClientRect().width || 800;
    const unit = 1000 / wide;
    fill(svg, [...shapes, drawing].filter(Boolean).map((shape) => {
      const at = shapes.indexOf(shape);
      const points = [...shape.points, ...(shape.next ? [shape.next] : [])].map(scaled);
      const text = points.map((point) => point.join(",")).join(" ");
      const colour = COLOURS[shape.kind];
      const isSelected = at === selected || shape === drawing;
      const closed = shape.kind !== "line" && shape !== drawing;
      const attributes = { class: "shape", points: text, stroke: colour, fill: shape.kind === "line" ? "none" : colour, "fill-opacity": shape.kind === "mask" ? 0.5 : isSelected ? 0.22 : 0.1 };
      const edges = isSelected && closed ? points.map((point, edge) => {
        const next = points[(edge + 1) % points.length];
        return make("line", { class: "edge", x1: point[0], y1: point[1], x2: next[0], y2: next[1], "data-shape": at, "data-edge": edge });
      }) : [];
      const handles = isSelected && shape !== drawing ? points.map((point, corner) => make("g", { class: "handle-group", "data-shape": at, "data-corner": corner, tabindex: "0", role: "button", "aria-label": `Corner ${corner + 1} of ${shape.id}` },
        make("circle", { class: "hit", cx: point[0], cy: point[1], r: 22 * unit }), make("circle", { class: "handle", cx: point[0], cy: point[1], r: 6.5 * unit }))) : [];
      const name = points.length ? make("text", { x: points[0][0] + 10 * unit, y: points[0][1] + 20 * unit, "font-size": 14 * unit, "pointer-events": "none" }, shape.id) : null;
      return make("g", { "data-shape": at >= 0 ? at : null }, make(closed ? "polygon" : "polyline", attributes), shape.kind === "line" && points.length === 2 ? arrow(points, colour, unit) : null, edges, name, handles);
    }));
    if (focusCorner !== null && selected >= 0) svg.querySelector(`[data-shape="${selected}"][data-corner="${focusCorner}"]`)?.focus({ preventScroll: true });
    focusCorner = null;
    drawSide();
  }

  function drawSide() {
    const shape = shapes[selected];
    fill(side,
      make("ul", { class: "places" }, shapes.map((item, at) => make("li", {}, make("i", { class: "dot", style: { "--c": COLOURS[item.kind] } }),
        make("button", { class: "link-button", type: "button", "aria-pressed": String(at === selected), onclick: () => {
          selected = at;
          draw();
          tryShape();
        } }, item.id), make("span", { class: "dim" }, item.kind === "line" ? "line" : `${item.kind}, ${plural(item.points.length, "corner")}`), make("span", { class: "grow" }),
        make("button", { class: "button small danger", type: "button", "aria-label": `Remove ${item.id}`, onclick: () => {
          remember();
          shapes.splice(at, 1);
          selected = -1;
          draw();
          fill(trial);
        } }, "Remove")))),
      shapes.length ? null : make("p", { class: "dim" }, "No zones or lines yet."),
      shape ? make("details", {}, make("summary", {}, `Corners of ${shape.id} as numbers`), make("table", { class: "corners" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "corner"), make("th", { scope: "col" }, "x %"), make("th", { scope: "col" }, "y %"), make("th", {}, make("span", { class: "hidden-text" }, "remove")))),
        make("tbody", {}, shape.points.map((point, corner) => make("tr", {}, make("td", {}, String(corner + 1)), [0, 1].map((axis) => make("td", {}, make("input", { class: "field", type: "number", min: "0", max: "100", step: "0.5", value: (point[axis] * 100).toFixed(1), "aria-label": `Corner ${corner + 1} ${"xy"[axis]} in percent`, onchange: (event) => {
          remember();
          point[axis] = Math.min(1, Math.max(0, Number(event.target.value) / 100));
          draw();
          tryShape();
        } }))), make("td", {}, shape.kind !== "line" && shape.points.length > 3 ? make("button", { class: "link-button", type: "button", "aria-label": `Remove corner ${corner + 1}`, onclick: () => removeCorner(shape, corner) }, "remove") : null)))))) : null,
      shape?.kind === "zone" ? make("label", { class: "named", style: { "margin-top": "10px" } }, "Report who stays for (seconds, comma separated)", make("input", { class: "field", value: (shape.rest.dwell_s ?? []).join(", "), placeholder: "30, 120", onchange: (event) => {
        const seconds = event.target.value.split(",").map((text) => Number(text.trim())).filter((value) => value > 0);
        remember();
        shape.rest = { ...shape.rest, dwell_s: seconds };
      } })) : null,
      shape?.kind === "line" ? make("button", { class: "button small", type: "button", style: { "margin-top": "10px" }, onclick: () => {
        remember();
        shape.points.reverse();
        draw();
      } }, "Turn the direction round") : null);
  }

  async function save() {
    say("");
    const wrong = shapes.find((shape) => shape.kind !== "line" && crossesItself(shape.points));
    if (wrong) return say(`The edges of ${wrong.id} cross one another: move a corner.`);
    const wanted = shapesBySection();
    try {
      for (const section of SECTIONS) {
        if (JSON.stringify(wanted[section]) === JSON.stringify(before[section])) continue;
        const { body, etag } = await call("PUT", `${path}/${section}`, { body: wanted[section], etag: etags[section] });
        etags[section] = etag;
        context[section] = body;
      }
      close();
    } catch (error) {
      say(error.status === 412 ? "Zones, lines or masks have changed in the meantime: close the editor and open it again." : error.message);
    }
  }
  function close() {
    document.removeEventListener("keydown", keys);
    clearTimeout(trialTimer);
    done();
  }
  document.addEventListener("keydown", keys);
  const button = (name, action, extra = "") => make("button", { class: `button small ${extra}`, type: "button", onclick: action }, name);
  const element = make("section", { class: "stack", style: { gap: "12px" }, "aria-label": "Editor of zones and lines" },
    make("div", { class: "row wrap" }, button("New zone", () => begin("zone")), button("New line", () => begin("line")), button("New mask", () => begin("mask")), button("Undo", () => undo(past, future)), button("Redo", () => undo(future, past)), button("Newest picture", fetchPicture), make("span", { class: "grow" }), button("Cancel", close), button("Save", save, "primary")),
    view, sentence, make("div", { class: "panel" }, side, trial));
  requestAnimationFrame(() => {
    draw();
    if (selected >= 0) tryShape();
  });
  return element;
}

/** Returns the arrow of the direction `in`: to the right of who walks from the first end to the second. */
function arrow([[x1, y1], [x2, y2]], colour, unit) {
  const length = Math.hypot(x2 - x1, y2 - y1) || 1;
  const [nx, ny] = [-(y2 - y1) / length, (x2 - x1) / length];
  const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const tip = [mx + nx * 30 * unit, my + ny * 30 * unit];
  const wing = (side) => [tip[0] - nx * 10 * unit + side * ny * 7 * unit, tip[1] - ny * 10 * unit - side * nx * 7 * unit];
  return make("g", { "pointer-events": "none" }, make("line", { x1: mx, y1: my, x2: tip[0], y2: tip[1], stroke: colour, "stroke-width": 3 * unit }), make("polyline", { points: [wing(1), tip, wing(-1)].map((point) => point.join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 3 * unit }), make("text", { x: tip[0] + 6 * unit, y: tip[1], "font-size": 13 * unit }, "in"));
}

/** Returns whether two edges of a polygon that are not neighbours cross. */
export function crossesItself(points) {
  const side = ([ax, ay], [bx, by], [cx, cy]) => Math.sign((bx - ax) * (cy - ay) - (by - ay) * (cx - ax));
  const count = points.length;
  for (let one = 0; one < count; one += 1) {
    for (let other = one + 2; other < count; other += 1) {
      if (one === 0 && other === count - 1) continue;
      const [a, b, c, d] = [points[one], points[(one + 1) % count], points[other], points[(other + 1) % count]];
      if (side(a, b, c) !== side(a, b, d) && side(c, d, a) !== side(c, d, b)) return true;
    }
  }
  return false;
}
