/** A live picture: canvas with the frame and its own boxes, age and clock. */
import { clock, colourOf, duration, inkOn, make, score } from "./dom.js";
import { live } from "./live.js";

const LATE_MS = 2000;

/**
 * Returns `{element, stop, ...}` of a live picture.
 * @param {string} stream
 * @param {{width?: number, fps?: number, small?: boolean, places?: () => any[], isHidden?: (id: string) => boolean}} [options]
 */
export function livePicture(stream, { width = 1280, fps = 12, small = false, places = () => [], isHidden = () => false } = {}) {
  const canvas = make("canvas", { role: "img", "aria-label": `Live picture of ${stream}`, width: 640, height: 384 });
  const state = make("span", { class: "chip" }, "connecting");
  const time = make("span", { class: "chip num" }, "");
  const empty = make("div", { class: "empty" }, "Waiting for the first picture");
  const element = make("div", { class: "view" }, canvas, empty, make("div", { class: "bar" }, state, small ? null : time));
  time.hidden = true;
  const picture = { element, canvas, header: null, boxes: true, frames: 0 };
  let bitmapSize = [0, 0];

  function draw(header, bitmap) {
    const ratio = header.width / header.height;
    if (!picture.header || picture.header.width !== header.width) element.style.aspectRatio = String(ratio);
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const wide = Math.max(160, Math.round(element.clientWidth * scale) || bitmap.width);
    if (canvas.width !== wide || canvas.height !== Math.round(wide / ratio)) {
      canvas.width = wide;
      canvas.height = Math.round(wide / ratio);
    }
    bitmapSize = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, bitmapSize[0], bitmapSize[1], 0, 0, canvas.width, canvas.height);
    if (picture.boxes) {
      drawPlaces(context, canvas, places(), scale, small);
      drawTracks(context, canvas, header.tracks, scale, small, isHidden);
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
export function drawPlaces(context, canvas, places, scale, small) {
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
      const left = Math.min(...points.map((point) => point[0]));
      const top = place.polygon ? Math.min(...points.map((point) => point[1])) : (points[0][1] + points[1][1]) / 2;
      label(context, canvas, place.label ?? place.id, left + 6 * scale, top + 22 * scale, "#0b0f14", place.polygon ? "#f2c94c" : "#40d0ff", scale, width / scale < 460 ? 10 : 12);
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

/** Draws boxes with labels that stay inside the picture and fit their text. */
export function drawTracks(context, canvas, tracks, scale, small, isHidden = () => false) {
  const { width, height } = canvas;
  context.save();
  context.lineWidth = (small ? 1.5 : 2.5) * scale;
  for (const track of tracks) {
    const match = track.matches[0];
    if (match && isHidden(match.query)) continue;
    const colour = colourOf(match?.number ?? 0);
    const [x1, y1, x2, y2] = [track.box[0] * width, track.box[1] * height, track.box[2] * width, track.box[3] * height];
    context.setLineDash(track.state === "confirmed" ? [] : [6 * scale, 4 * scale]);
    context.strokeStyle = colour;
    context.beginPath();
    context.roundRect(x1, y1, x2 - x1, y2 - y1, 3 * scale);
    context.stroke();
    const text = width / scale < 460 ? match?.text ?? `#${track.number}` : `#${track.number}${match ? ` ${match.text} ${score(match.score)}` : ""}`;
    label(context, canvas, text, x1 - context.lineWidth / 2, y1, inkOn(colour), colour, scale, width / scale < 460 ? 10 : small || width / scale < 560 ? 10.5 : 12.5);
  }
  context.restore();
}

/** Writes a text on a plate whose lower edge is at `bottom`; the plate is as wide as its text and stays inside. */
function label(context, canvas, text, left, bottom, ink, plate, scale, size) {
  context.font = `600 ${size * scale}px system-ui, sans-serif`;
  const padding = 5 * scale;
  const wide = context.measureText(text).width + 2 * padding;
  const high = (size + 7) * scale;
  const x = Math.max(0, Math.min(left, canvas.width - wide));
  const y = Math.max(0, Math.min(bottom - high, canvas.height - high));
  context.fillStyle = plate;
  context.beginPath();
  context.roundRect(x, y, wide, high, 3 * scale);
  context.fill();
  context.fillStyle = ink;
  context.textBaseline = "middle";
  context.fillText(text, x + padding, y + high / 2 + 0.5 * scale);
}
