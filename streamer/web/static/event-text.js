/** Events in words, with their pictures. */
import { address, root } from "./api.js";
import { colourOf, duration, isRelative, make, moment, score } from "./dom.js";

export const kindOf = (event) => event.type.replace(/^groundstream\./, "").replace(/\.v\d+$/, "");

const END_REASONS = { left_view: "left the view", lost: "was lost", stream_down: "ended with the stream", query_removed: "ended with its query", merged: "went on under another number", shutdown: "ended with the monitor", crashed: "ended in a crash" };

/** Ends of a stream that were wanted, by the cause in the event. */
const ENDINGS = { shutdown: "monitor ended", paused: "camera was paused", removed: "camera was removed" };
/** Returns whether an event begins or ends an outage that was not wanted. */
export const isOutage = (event) => Boolean(event.data.outage) && !(event.data.outage.cause in ENDINGS);

/**
 * Returns an event in words: `parts` (strings, or `{b: text}` for names), `small`, `tone` and `plain`.
 * @param {any} event
 */
export function describeEvent(event) {
  const data = event.data;
  const kind = kindOf(event);
  const match = data.matches?.[0];
  const who = { b: match?.text ?? (data.track ? `track ${data.track.number}` : data.stream) };
  let parts = [kind];
  let small = [];
  let tone = "";
  if (data.track) small.push(`#${data.track.number}`);
  if (match) small.push(`score ${score(match.score)} of ${score(match.threshold)}`);
  switch (kind) {
    case "track.begin": parts = [who, " began"]; break;
    case "track.update": parts = [who, data.track.stationary ? " stands still" : data.track.state === "lost" ? " is out of sight" : " goes on"]; break;
    case "track.end": parts = [who, ` ${END_REASONS[data.track.end_reason] ?? "ended"}`]; small.push(`seen for ${duration((data.track.last_seen_ns - data.track.first_seen_ns) / 1e6)}`); break;
    case "track.merge": parts = [who, " is an earlier track again"]; break;
    case "match.begin": parts = [{ b: match?.text ?? "query" }, " appeared"]; break;
    case "match.end": parts = [{ b: match?.text ?? "query" }, " no longer matches"]; break;
    case "zone.enter": parts = [who, " entered ", { b: data.zone.id }]; break;
    case "zone.exit": parts = [who, " left ", { b: data.zone.id }]; if (data.zone.dwell_s) small.push(`after ${duration(data.zone.dwell_s * 1000)}`); break;
    case "zone.dwell": parts = [who, ` stayed ${duration(data.zone.dwell_s * 1000)} in `, { b: data.zone.id }]; break;
    case "line.cross": parts = [who, " crossed ", { b: data.line.id }, `, ${data.line.direction}`]; break;
    case "count": parts = [{ b: String(data.count.occupancy) }, " in ", { b: data.count.id }]; small = [`${data.count.entered} in, ${data.count.left} out`]; break;
    case "enrich": parts = ["described: ", data.description?.text ?? "mask"]; break;
    case "stream.online": parts = [{ b: "camera is back" }, data.outage ? ` after ${duration((data.outage.until_ns - data.outage.since_ns) / 1e6)}` : ""]; if (!data.outage) parts = [{ b: isRelative(event.time) ? "recording began" : "camera came online" }]; small = data.outage ? [data.outage.cause] : []; break;
    case "stream.offline": {
      const ended = isRelative(event.time) ? "recording ended" : ENDINGS[data.outage?.cause];
      parts = [{ b: ended ?? "camera is away" }];
      tone = ended ? "" : "warn";
      small = ended ? [] : [data.outage?.cause ?? ""];
      break;
    }
    case "coverage": parts = [data.coverage.state, ` ${data.coverage.analysed} of ${data.coverage.received} frames analysed`]; tone = data.coverage.state === "blind" ? "warn" : ""; break;
    case "query": parts = ["query ", { b: data.query.text }, ` ${data.query.change}`]; small = [`revision ${data.query.rev}`, `threshold ${score(data.query.threshold)}`]; break;
    case "media": parts = ["picture or clip of ", who, " is ready"]; break;
    default: parts = [who, ` ${kind}`];
  }
  return { parts, small: small.filter(Boolean).join(" · "), tone, plain: parts.map((part) => part.b ?? part).join("") };
}

/** Returns the words of an event as elements. */
export const eventWords = (event) => {
  const { parts, tone } = describeEvent(event);
  return make("span", { class: `what ${tone}` }, parts.map((part) => (typeof part === "string" ? part : make("b", {}, part.b))));
};

const MEMORY_MARGIN_MS = 3000;

/** Returns the stored picture of a kind, else of the other one; without a drawn box where there is one. */
export function storedPicture(media, kind) {
  const pictures = (media ?? []).filter((medium) => medium.kind !== "clip");
  const weight = (medium) => (medium.kind === kind ? 0 : 2) + (medium.boxed ? 1 : 0);
  return pictures.sort((one, other) => weight(one) - weight(other))[0];
}

/** Returns the picture of an event: its snapshot, else a frame that is still in memory, else a sketch of its box. */
export function eventPicture(event, memoryS = 0) {
  const medium = storedPicture(event.data.media, "crop");
  const age = Date.now() - new Date(event.time).getTime();
  if (!medium && !(event.data.frame && age >= 0 && age < memoryS * 1000 - MEMORY_MARGIN_MS)) return sketch(event);
  const source = medium
    ? address(`/media/${medium.sha256}`)
    : address(`/streams/${encodeURIComponent(event.data.stream)}/memory.jpg?time=${encodeURIComponent(event.time)}&width=320${cropOf(event)}`);
  const image = make("img", { class: "thumb", alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(sketch(event)), { once: true });
  image.src = source;
  return image;
}

/** Returns the parameter that cuts the track out of a remembered frame. */
const cropOf = ({ data: { track } }) => (track ? `&crop=${[track.box.x1, track.box.y1, track.box.x2, track.box.y2].join(",")}` : "");

/** Returns a small drawing of where in the frame an event was. */
export function sketch(event) {
  const box = event.data.track?.box;
  const frame = event.data.frame ?? { width: 5, height: 3 };
  const colour = colourOf(colourNumber(event));
  return make("span", { class: "thumb", "aria-hidden": "true" }, make("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, preserveAspectRatio: "none" },
    box ? make("rect", { x: box.x1 * frame.width, y: box.y1 * frame.height, width: (box.x2 - box.x1) * frame.width, height: (box.y2 - box.y1) * frame.height, rx: frame.width / 100, fill: colour, "fill-opacity": 0.75 })
      : make("circle", { cx: frame.width / 2, cy: frame.height / 2, r: frame.height / 6, fill: colour, "fill-opacity": 0.6 })));
}

const numbers = new Map();
/** Remembers the colour number of a query, so that events have the colours of the live picture. */
export const learnColour = (query, number) => numbers.set(query, number);
/** Returns the colour number of an event's query; words that are not known get one by their letters. */
export function colourNumber(event) {
  const match = event.data.matches?.[0];
  const id = match?.query_id ?? event.data.query?.id;
  if (!id) return event.type.includes("stream.") ? 2 : 0;
  return numbers.get(id) ?? 1 + ([...id].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 9);
}

/** Returns the line of an event in a list. */
export function eventLine(event, { memoryS = 0, withStream = false } = {}) {
  const { small } = describeEvent(event);
  return make("a", { class: "event", href: `${root}/events/${encodeURIComponent(event.id)}` },
    eventPicture(event, memoryS),
    make("div", { class: "grow" }, eventWords(event), make("br"), make("small", {}, [withStream ? event.data.stream : null, small].filter(Boolean).join(" · "))),
    make("small", { class: "num" }, make("time", { datetime: event.time }, moment(event.time))));
}
