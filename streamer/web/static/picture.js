/** A live picture: canvas with the frame and its own boxes, age and clock. */
import { clock, colourOf, duration, inkOn, make, score } from "./dom.js";
import { live } from "./live.js";

const LATE_MS = 2000;

/**
 * Returns `{element, stop, ...}` of a live picture.
 * @param {string} stream
 * @param {{width?: number, fps?: number, small?: boolean, places?: () => any[]}} [options]
 */
export function livePicture(stream, { width = 1280, fps = 12, small = false, places = () => [] } = {}) {
  const canvas = make("canvas", { role: "img", "aria-label": `Live picture of ${stream}`, width: 640, height: 384 });
  const state = make("span", { class: "chip" }, "connecting");
  const time = make("span", { class: "chip num" }, "");
  const bar = make("div", { class: "bar" }, state, small ? null : time);
  const empty = make("div", { class: "empty" }, "Waiting for the first picture");
  const element = make("div", { class: "view" }, canvas, empty, bar);
  time.hidden = true;
  const picture = { element, canvas, header: null, boxes: true, frames: 0 };
  let shape = 0;
  let chips = []; // where the words over the picture are: x, y, width, height in CSS pixels

  function draw(header, bitmap) {
    const ratio = header.width / header.height;
    if (!small && shape !== ratio) element.style.aspectRatio = String(shape = ratio);
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const wide = Math.max(160, Math.round(element.clientWidth * scale) || bitmap.width);
    if (canvas.width !== wide || canvas.height !== Math.round(wide / ratio)) {
      canvas.width = wide;
      canvas.height = Math.round(wide / ratio);
    }
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, bitmap.width, bitmap.height, 0, 0, canvas.width, canvas.height);
    if (picture.boxes) {
      const taken = chips.map((rectangle) => rectangle.map((value) => value * scale));
      drawPlaces(context, canvas, places(), scale, small, taken);
      drawTracks(context, canvas, header.tracks, scale, small, taken);
    }
    picture.header = header;
    picture.frames += 1;
    empty.hidden = true;
    showAge();
  }

  function showAge() {
    const header = picture.header;
    const known = live.health.streams.find((item) => item.name === stream);
    const age = header ? header.age_ms + performance.now() - header.received : Infinity;
    const isLate = age > LATE_MS || !live.connected;
    element.classList.toggle("stale", isLate && Boolean(header));
    const isDown = known && !["live", "connecting"].includes(known.state);
    const words = !live.connected ? "no connection" : isDown ? known.state : isLate ? (header ? "late" : "connecting") : "live";
    const mark = make("i", { class: `mark ${words === "live" ? "live" : words === "late" || words === "connecting" ? "late" : "down"}` });
    state.replaceChildren(mark, header ? `${words} · ${duration(Math.max(0, age))} old` : words);
    if (header) {
      const uncertainty = header.clock.uncertainty_ms;
      const basis = { rtcp_sr: "camera clock", arrival: "arrival time", file_pts: "file time" }[header.clock.basis] ?? header.clock.basis;
      time.textContent = `${clock(header.time)}.${String(Math.floor(header.time % 1000)).padStart(3, "0")} · ${basis}${uncertainty ? ` ±${Math.round(uncertainty)} ms` : ""}`;
      time.hidden = false;
    } else if (known?.cause) empty.textContent = known.cause;
    chips = [state, time].filter((chip) => chip.offsetWidth).map((chip) => [chip.offsetLeft + bar.offsetLeft, chip.offsetTop + bar.offsetTop, chip.offsetWidth, chip.offsetHeight]);
  }

  const view = { width, fps, draw };
  const unwatch = live.watch(stream, view);
  const timer = setInterval(showAge, 500);
  picture.stop = () => {
    unwatch();
    clearInterval(timer);
  };
  picture.view = view;
  return picture;
}

/** Draws zones and lines with their names. */
export function drawPlaces(context, canvas, places, scale, small, taken = []) {
  const { width, height } = canvas;
  context.save();
  context.lineWidth = 2 * scale;
  context.font = `600 ${13 * scale}px system-ui, sans-serif`;
  for (const place of places) {
    const points = (place.polygon ?? place.points).map(([x, y]) => [x * width, y * height]);
    context.beginPath();
    points.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.strokeStyle = place.polygon ? "#f2c94c" : "#40d0ff";
    if (place.polygon) {
      context.closePath();
      context.fillStyle = "rgb(242 201 76 / .12)";
      context.fill();
      context.setLineDash([7 * scale, 5 * scale]);
    } else context.setLineDash([]);
    context.stroke();
    if (place.points) drawArrow(context, points, scale);
    if (!small) {
      const size = (width / scale < 460 ? 10 : 12) * scale;
      const [left, top] = place.polygon ? highestCorner(points) : [(points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2];
      const wanted = [[left + 4 * scale, top + 4 * scale], [left + 4 * scale, top - 2 * size]];
      drawLabel(context, canvas, [place.label ?? place.id, place.id], wanted, "#0b0f14", place.polygon ? "#f2c94c" : "#40d0ff", scale, size, taken);
    }
  }
  context.restore();
}

/** Draws the direction `in` of a line: to the right of its walker. */
function drawArrow(context, [[x1, y1], [x2, y2]], scale) {
  const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const length = Math.hypot(x2 - x1, y2 - y1) || 1;
  const [nx, ny] = [-(y2 - y1) / length, (x2 - x1) / length];
  const reach = 22 * scale;
  const tip = [mx + nx * reach, my + ny * reach];
  context.setLineDash([]);
  context.beginPath();
  context.moveTo(mx, my);
  context.lineTo(...tip);
  const [tx, ty] = [ny, -nx];
  context.moveTo(tip[0] - nx * 8 * scale + tx * 5 * scale, tip[1] - ny * 8 * scale + ty * 5 * scale);
  context.lineTo(...tip);
  context.lineTo(tip[0] - nx * 8 * scale - tx * 5 * scale, tip[1] - ny * 8 * scale - ty * 5 * scale);
  context.stroke();
}

/** Returns the highest corner of a shape, the leftmost of several. */
const highestCorner = (points) => points.reduce((best, point) => (point[1] < best[1] || (point[1] === best[1] && point[0] < best[0]) ? point : best));

/**
 * Draws boxes with labels that stay inside the picture, fit their text and keep clear of one another.
 * @param {number[][]} taken places where no label goes: x, y, width, height in pixels of the canvas
 */
export function drawTracks(context, canvas, tracks, scale, small, taken = []) {
  const { width, height } = canvas;
  context.save();
  context.lineWidth = (small ? 1.5 : 2.5) * scale;
  const boxes = tracks.map((track) => [track, track.box.map((value, at) => value * (at % 2 ? height : width))]);
  for (const [track, [x1, y1, x2, y2]] of boxes) {
    const colour = colourOf(track.matches[0]?.number ?? 0);
    context.setLineDash(track.state === "confirmed" ? [] : [6 * scale, 4 * scale]);
    context.strokeStyle = colour;
    context.beginPath();
    context.roundRect(x1, y1, x2 - x1, y2 - y1, 3 * scale);
    context.stroke();
  }
  const isNarrow = width / scale < 460;
  const size = (isNarrow ? 10 : small || width / scale < 560 ? 10.5 : 12.5) * scale;
  const edge = context.lineWidth / 2;
  // The nearest first: theirs are the labels that must stay readable.
  for (const [track, [x1, y1, x2, y2]] of boxes.sort((one, other) => other[1][3] - one[1][3])) {
    const match = track.matches[0];
    const colour = colourOf(match?.number ?? 0);
    const short = isNarrow && match ? match.text : `#${track.number}`;
    const texts = isNarrow || !match ? [short] : [`#${track.number} ${match.text} ${score(match.score)}`, `#${track.number} ${match.text}`, short];
    const high = size + 7 * scale;
    const wanted = [[x1 - edge, y1 - high], [x2 + edge, y1 - high, "right"], [x1 - edge, y2], [x2 + edge, y2, "right"], [x1 - edge, y1]];
    drawLabel(context, canvas, texts, wanted, inkOn(colour), colour, scale, size, taken);
  }
  context.restore();
}

/**
 * Writes the longest of some texts for which there is room on a plate at one of the wanted places (left or right edge,
 * top), else the shortest one where it covers least.
 */
function drawLabel(context, canvas, texts, wanted, ink, plate, scale, size, taken) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  const padding = 5 * scale;
  const high = size + 7 * scale;
  let best = null;
  search: for (const text of texts) {
    const wide = context.measureText(text).width + 2 * padding;
    for (const [edge, top, side] of wanted) {
      const x = Math.max(0, Math.min(side === "right" ? edge - wide : edge, canvas.width - wide));
      const y = Math.max(0, Math.min(top, canvas.height - high));
      const covered = taken.reduce((sum, other) => sum + overlap([x, y, wide, high], other), 0);
      if (!best || covered < best.covered) best = { text, x, y, wide, covered };
      if (!covered) break search;
    }
  }
  const { text, x, y, wide } = best;
  taken.push([x, y, wide, high]);
  context.fillStyle = plate;
  context.beginPath();
  context.roundRect(x, y, wide, high, 3 * scale);
  context.fill();
  context.fillStyle = ink;
  context.textBaseline = "middle";
  context.fillText(text, x + padding, y + high / 2 + 0.5 * scale);
}

/** Returns the area that two rectangles (x, y, width, height) share. */
function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
  return Math.max(0, Math.min(ax + aw, bx + bw) - Math.max(ax, bx)) * Math.max(0, Math.min(ay + ah, by + bh) - Math.max(ay, by));
}
