/** One camera: live picture, queries, timeline, figures, events, zones and lines. */
import { address, call, get, queryString, root } from "./api.js";
import { ask, clock, colourOf, duration, fill, make, minute, number, plural } from "./dom.js";
import { placeEditor } from "./editor.js";
import { colourNumber, eventLine, isOutage, kindOf } from "./event-text.js";
import { live } from "./live.js";
import { pageElsewhere } from "./nodes.js";
import { livePicture } from "./picture.js";
import { queryPanel } from "./queries.js";

const HOUR = 3600e3;
const MOST_EVENTS = 8;
const LIST_KINDS = ["match.begin", "zone.enter", "zone.dwell", "line.cross", "stream.offline", "stream.online", "enrich"];

export async function cameraView(page, name) {
  const elsewhere = page.server.node ? await pageElsewhere(name) : "";
  if (elsewhere) {
    location.replace(elsewhere);
    return new Promise(() => {}); // the browser leaves this page
  }
  const path = `/streams/${encodeURIComponent(name)}`;
  const [{ body: status }, zones, lines] = await Promise.all([call("GET", path), get(`${path}/zones`), get(`${path}/lines`)]);
  const context = { page, name, path, status, zones, lines, inside: new Map() };
  const picture = page.server.live ? livePicture(name, { width: 1280, fps: 15, places: () => places(context) }) : recordedVideo(status);
  context.seek = picture.seek;
  const leavers = [() => picture.stop()];
  const queries = page.server.live ? await queryPanel(context) : null;
  if (queries) leavers.push(queries.leave);
  const span = page.server.live ? HOUR : Math.max(1000, (status.seconds ?? 60) * 1000);
  const timeline = await timelinePanel(context, span);
  leavers.push(timeline.leave);
  const figures = make("div", { class: "figures num" });
  const camera = page.server.editable ? cameraPanel(context) : null;
  let outages = page.server.live ? await outagesOfToday(name) : null;
  const showFigures = (health) => {
    const now = health.streams.find((stream) => stream.name === name);
    if (!now) return;
    fill(figures, streamFigures(now, health.sinks, page, outages));
    camera?.update(now);
  };
  showFigures({ streams: [status], sinks: (await get("/sinks")).items });
  const outageTimer = page.server.live ? setInterval(async () => { outages = await outagesOfToday(name).catch(() => outages); }, 30e3) : 0;
  leavers.push(() => clearInterval(outageTimer));
  leavers.push(live.on("health", showFigures));
  const events = await eventPanel(context);
  leavers.push(events.leave);
  const editorPlace = make("div", {});
  const stage = make("div", { class: "stage" }, picture.element);
  const pictureColumn = make("div", { class: "stack" }, stage, editorPlace, timeline.element, figures);
  if (page.server.live) addTools(context, picture, stage, editorPlace);
  const reload = async (section) => { context[section] = await get(`${path}/${section}`); };
  for (const section of ["zones", "lines"]) leavers.push(live.on(section, (message) => message.stream === name && reload(section).catch(() => {})));
  return {
    title: name,
    element: [make("h1", { class: "hidden-text" }, `Camera ${name}`), make("div", { class: "camera-layout" }, pictureColumn, make("div", { class: "stack" }, queries?.element, events.element, camera?.element))],
    leave: () => leavers.forEach((leave) => leave()),
  };
}

/** Zones and lines with how many tracks stand in each zone now. */
function places(context) {
  const tracks = context.picture?.header?.tracks ?? [];
  return [...context.zones.map((zone) => ({ ...zone, label: `${zone.id} · ${tracks.filter((track) => isInside([(track.box[0] + track.box[2]) / 2, track.box[3]], zone.polygon)).length} inside` })), ...context.lines];
}

/** Returns whether a point is inside a polygon, by the even-odd rule. */
export function isInside([x, y], polygon) {
  let inside = false;
  for (let at = 0, before = polygon.length - 1; at < polygon.length; before = at++) {
    const [x1, y1] = polygon[at];
    const [x2, y2] = polygon[before];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}

function addTools(context, picture, stage, editorPlace) {
  context.picture = picture;
  const { page, name, path } = context;
  const boxes = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
    picture.boxes = !picture.boxes;
    boxes.setAttribute("aria-pressed", String(picture.boxes));
  } }, "Boxes");
  const edit = page.server.editable ? make("button", { type: "button", onclick: async () => {
    if (editorPlace.firstChild) return;
    stage.hidden = true;
    const editor = await placeEditor(context, () => {
      stage.hidden = false;
      editorPlace.replaceChildren();
      edit.focus();
    });
    fill(editorPlace, editor);
    editor.querySelector("button")?.focus();
  } }, "Edit zones") : null;
  stage.append(make("div", { class: "tools" }, edit,
    make("a", { href: address(`${path}/snapshot.jpg?width=1920&boxes=true`), download: `${name}.jpg` }, "Snapshot"), boxes,
    make("button", { type: "button", onclick: () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()) }, "Full screen")));
}

function recordedVideo(status) {
  const view = make("div", { class: "view" });
  if (status.video) view.append(make("video", { src: address(`/streams/${encodeURIComponent(status.name)}/video.mp4`), controls: true, preload: "metadata", "aria-label": `Annotated video of ${status.name}` }));
  else view.append(make("div", { class: "empty" }, "No video was written: run the job without --no-video to get one"));
  return { element: view, stop: () => {}, seek: (seconds) => { const video = view.querySelector("video"); if (video) video.currentTime = Math.max(0, seconds); } };
}

/** Returns how often and for how long (ms) the camera was away since midnight. */
async function outagesOfToday(name) {
  const since = new Date(new Date().toDateString());
  const { items } = await get(`/events${queryString({ stream: name, type: ["stream.offline", "stream.online"], since: since.toISOString(), limit: 500 })}`);
  const spans = items.filter((event) => kindOf(event) === "stream.online" && isOutage(event)).map(({ data: { outage } }) => (outage.until_ns - outage.since_ns) / 1e6);
  const newest = items[0];
  const open = newest && kindOf(newest) === "stream.offline" && isOutage(newest) ? Date.now() - newest.data.outage.since_ns / 1e6 : 0;
  return { count: spans.length + (open ? 1 : 0), ms: spans.reduce((sum, span) => sum + span, open), cause: items.find(isOutage)?.data.outage.cause };
}

function streamFigures(now, sinks, page, outages) {
  const dropped = Object.entries(now.dropped).filter(([, count]) => count);
  const items = [
    ["analysed", page.server.live ? `${now.fps_analysed.toFixed(1)} / s` : number(now.analysed), page.server.live ? `${now.fps_received.toFixed(1)} / s received` : `of ${plural(now.received, "frame")}`],
    page.server.live ? ["frame age", now.age_ms === null ? "no frame" : duration(now.age_ms), now.clock?.uncertainty_ms ? `±${now.clock.uncertainty_ms.toFixed(0)} ms` : "since its capture", now.age_ms > 2000 ? "warn" : ""] : ["length", duration((now.seconds ?? 0) * 1000), "of the recording"],
    ["tracks", number(now.tracks), page.server.live ? "open now" : "in all"],
    ["not analysed", number(dropped.reduce((sum, [, count]) => sum + count, 0)), dropped.map(([reason, count]) => `${number(count)} ${reason.replace("_", " ")}`).join(", ") || "nothing was dropped"],
  ];
  const sink = sinks.find((item) => item.state === "down") ?? sinks.find((item) => item.name !== "web");
  if (sink) items.push([sink.name.split(":")[0], sink.state === "up" ? `up · ${number(sink.backlog)} waiting` : "down", sink.error || `${number(sink.delivered)} delivered`, sink.state === "up" ? "good" : "bad"]);
  if (outages) items.push(["outages today", outages.count ? `${outages.count} · ${duration(outages.ms)}` : "none", outages.cause ?? "pictures came all day", outages.count ? "warn" : ""]);
  return items.map(([title, value, small, tone]) => make("div", { class: "figure" }, make("span", { class: "dim" }, title), make("b", { class: tone || null }, value), make("span", { class: "dim" }, small)));
}

/** The strip of the last hour: tracks by query, and the time in which nothing was seen. */
async function timelinePanel(context, span) {
  const { name, page } = context;
  const body = make("div", {});
  const title = make("span", { class: "dim" });
  const preview = make("div", {});

  async function refresh() {
    const newest = page.server.live ? Date.now() : Date.parse((await get(`/events${queryString({ stream: name, limit: 1 })}`)).items[0]?.time ?? 0);
    const since = page.server.live ? newest - span : Math.max(0, newest - span);
    const query = { stream: name, since: new Date(since).toISOString(), limit: 500 };
    const [tracks, blind, counts] = await Promise.all([
      get(`/events${queryString({ ...query, type: ["track.begin", "track.end", "match.begin"] })}`), get(`/events${queryString({ ...query, type: ["coverage", "stream.offline", "stream.online"] })}`),
      get(`/counts${queryString({ stream: name, since: query.since, bucket: 3600 })}`)]);
    const total = counts.items.filter((item) => item.kind !== "coverage" && item.kind !== "track.update").reduce((sum, item) => sum + item.events, 0);
    const blindSpans = blindness(blind.items, newest);
    const blindMs = blindSpans.reduce((sum, [from, to]) => sum + to - Math.max(from, since), 0);
    title.textContent = `${plural(total, "event")}${blindMs > 1000 ? ` · blind for ${duration(blindMs)}` : ""}`;
    const place = (time) => ((time - since) / span) * 1000;
    const lanes = [];
    const shapes = trackSpans(tracks.items, newest).filter((item) => item.to > since).sort((one, other) => one.from - other.from).map((item) => {
      let lane = lanes.findIndex((end) => end < item.from);
      if (lane < 0) lane = lanes.length < 5 ? lanes.length : lanes.indexOf(Math.min(...lanes));
      lanes[lane] = Math.max(lanes[lane] ?? 0, item.to);
      return make("rect", { class: "slot", x: Math.max(0, place(item.from)), width: Math.max(3, place(item.to) - Math.max(0, place(item.from))), y: 3 + lane * 8, height: 7, rx: 2, fill: colourOf(colourNumber(item.event)),
        onclick: () => (page.server.live ? page.go(`/events/${encodeURIComponent(item.event.id)}`) : context.seek?.((item.from - since) / 1000)), onmouseenter: () => fill(preview, eventLine(item.event, { memoryS: page.server.live ? page.server.memory_s : 0 })) }, make("title", {}, `${clock(item.from)} ${item.event.data.matches?.[0]?.text ?? "track"}`));
    });
    fill(body, make("svg", { viewBox: "0 0 1000 46", preserveAspectRatio: "none", role: "img", "aria-label": `${plural(shapes.length, "track")} in this time` },
      make("defs", {}, make("pattern", { id: "blind", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, make("rect", { width: 4, height: 8, fill: "#f0a04b", "fill-opacity": 0.55 }))),
      blindSpans.map(([from, to]) => make("rect", { x: Math.max(0, place(from)), width: Math.max(2, place(to) - Math.max(0, place(from))), y: 0, height: 46, fill: "url(#blind)" }, make("title", {}, `nothing was seen for ${duration(to - from)}`))), shapes),
      make("div", { class: "hours num" }, [0, 0.25, 0.5, 0.75, 1].map((part) => make("span", {}, span >= HOUR ? minute(since + part * span) : clock(since + part * span)))));
  }
  await refresh();
  const timer = page.server.live ? setInterval(() => document.hidden || refresh().catch(() => {}), 10e3) : 0;
  return {
    element: make("section", { class: "panel timeline" }, make("h2", {}, page.server.live ? "Last 60 minutes" : "The recording", title), body, preview),
    leave: () => clearInterval(timer),
  };
}

/** Returns the spans of time in which nothing was seen. */
function blindness(events, newest) {
  const spans = [];
  for (const event of events) {
    const { coverage, outage } = event.data;
    if (coverage?.state === "blind") spans.push([coverage.from_ns / 1e6, coverage.to_ns / 1e6]);
    if (outage) spans.push([outage.since_ns / 1e6, outage.until_ns ? outage.until_ns / 1e6 : Math.min(newest, outage.since_ns / 1e6 + 10e3)]);
  }
  spans.sort((one, other) => one[0] - other[0]);
  const joined = [];
  for (const span of spans) {
    const last = joined.at(-1);
    if (last && span[0] <= last[1] + 1000) last[1] = Math.max(last[1], span[1]);
    else joined.push([...span]);
  }
  return joined;
}

/** Returns from when to when each track was seen, with the event that names its query best. */
function trackSpans(events, newest) {
  const spans = new Map();
  for (const event of events) {
    const known = spans.get(event.subject) ?? { from: event.data.track.first_seen_ns / 1e6, to: newest, event };
    if (kindOf(event) === "track.end") known.to = event.data.track.last_seen_ns / 1e6;
    const worth = (one) => (one.data.media ? 2 : 0) + (one.data.matches?.length ? 1 : 0);
    if (worth(event) > worth(known.event)) known.event = event;
    spans.set(event.subject, known);
  }
  return [...spans.values()];
}

async function eventPanel(context) {
  const { name, page } = context;
  const list = make("div", {});
  const memoryS = page.server.live ? page.server.memory_s : 0;
  const read = () => get(`/events${queryString({ stream: name, type: LIST_KINDS, limit: MOST_EVENTS })}`);
  const show = (events) => fill(list, events.length ? events.map((event) => eventLine(event, { memoryS })) : make("p", { class: "dim" }, "Nothing has happened yet."));
  let events = (await read()).items;
  show(events);
  const stop = live.on("event", ({ event }) => {
    if (event.data.stream !== name || !LIST_KINDS.includes(kindOf(event))) return;
    if (!events.length) list.replaceChildren();
    events = [event, ...events].slice(0, MOST_EVENTS);
    list.prepend(eventLine(event, { memoryS }));
    while (list.children.length > MOST_EVENTS) list.lastChild.remove();
  });
  const stopConnection = live.on("connection", async () => {
    if (!live.connected) return;
    events = (await read()).items; // what came while the connection was lost
    show(events);
  });
  const leave = () => {
    stop();
    stopConnection();
  };
  return { element: make("section", { class: "panel" }, make("h2", {}, "Events", make("span", { class: "grow" }), make("a", { href: `${root}/events${queryString({ stream: name })}` }, "All")), list), leave };
}

/** Pausing, changing and removing the camera. */
function cameraPanel(context) {
  const { name, path, page } = context;
  const notice = make("p", { class: "notice error", role: "alert", hidden: true });
  const run = async (method, body) => {
    try {
      const { etag } = await call("GET", path);
      await call(method, path, { body, etag });
      page.go(method === "DELETE" ? "/" : `/camera/${encodeURIComponent(name)}`, { replace: true });
    } catch (error) {
      notice.textContent = error.message;
      notice.hidden = false;
    }
  };
  let paused = false;
  const source = make("span", { class: "dim" });
  const pause = make("button", { class: "button small", type: "button", onclick: () => run("PATCH", { paused: !paused }) });
  function update(status) {
    paused = status.state === "paused";
    pause.textContent = paused ? "Resume" : "Pause";
    source.textContent = status.source;
  }
  update(context.status);
  const element = make("section", { class: "panel" }, make("h2", {}, "Camera", source), notice,
    make("div", { class: "row wrap" }, pause,
      make("button", { class: "button small", type: "button", onclick: async () => {
        const values = await ask("Change the address", [{ name: "source", label: "Address", placeholder: "rtsp://camera/stream" }]);
        if (values) await run("PATCH", { source: values.source.trim() });
      } }, "Change the address"),
      make("button", { class: "button small danger", type: "button", onclick: async () => {
        if (await ask(`Remove ${name}?`, [], { confirm: "Remove", note: "Its events stay. Its zones, lines and queries are removed from the configuration." })) await run("DELETE");
      } }, "Remove")));
  return { element, update };
}

