/** Events: filters, search, list and the page of one event, which says why it exists. */
import { address, get, queryString, root } from "./api.js";
import { colourOf, day, duration, fill, isRelative, make, moment, number, plural, score } from "./dom.js";
import { colourNumber, describeEvent, eventLine, eventPicture, eventWords, kindOf, learnColour, storedPicture } from "./event-text.js";
import { live } from "./live.js";

const KINDS = { "": "notable events", "match.*": "matches", "track.*": "tracks", "zone.*": "zones", "line.cross": "lines crossed", "stream.*": "cameras away and back", "query": "changes of queries", "count": "counts", "enrich": "descriptions", all: "everything" };
const ASKED_FOR = ["match.begin", "zone.enter", "zone.dwell", "line.cross", "stream.offline", "stream.online", "enrich", "query"];
const DAYS = { "": "any time", "today": "today", "yesterday": "yesterday", "7": "last 7 days" };

/** Learns the colours of the queries of streams, so that events have those of the live pictures. */
async function learnColours(page, streams) {
  if (!page.server.live) return;
  const lists = await Promise.all(streams.map((stream) => get(`/streams/${encodeURIComponent(stream)}/queries`).catch(() => ({ items: [] }))));
  for (const query of lists.flatMap((list) => list.items)) learnColour(query.id, query.number);
}

export async function eventsView(page) {
  const parameters = new URLSearchParams(location.search);
  const streams = (await get("/streams")).items.map((stream) => stream.name);
  await learnColours(page, streams.slice(0, 16));
  const fields = {
    q: make("input", { class: "field", type: "search", value: parameters.get("q") ?? "", placeholder: "red car yard", maxlength: 200 }),
    stream: pick(["", ...streams], parameters.get("stream") ?? "", (name) => name || "all cameras"),
    type: pick(Object.keys(KINDS), parameters.get("type") ?? "", (kind) => KINDS[kind]),
    days: pick(Object.keys(DAYS), parameters.get("days") ?? "", (days) => DAYS[days]),
    from: make("input", { class: "field", type: "time", value: parameters.get("from") ?? "" }),
    to: make("input", { class: "field", type: "time", value: parameters.get("to") ?? "" }),
  };
  const list = make("div", {});
  const more = make("button", { class: "button", type: "button", hidden: true }, "Show more");
  const summary = make("span", { class: "dim", role: "status" });
  const fresh = make("button", { class: "button small", type: "button", hidden: true });
  let next = null;
  let waiting = 0;
  let shown = 0;

  function choice() {
    const start = new Date(new Date().toDateString());
    const days = { today: [start], yesterday: [new Date(start - 86400e3), start], 7: [new Date(start - 6 * 86400e3)] }[fields.days.value] ?? [];
    const type = fields.type.value;
    return {
      q: fields.q.value.trim(), stream: fields.stream.value, type: type === "all" ? "" : type || ASKED_FOR,
      since: days[0]?.toISOString() ?? parameters.get("since"), until: days[1]?.toISOString() ?? parameters.get("until"), subject: parameters.get("subject"),
      time_of_day: fields.from.value && fields.to.value && fields.from.value !== fields.to.value ? `${fields.from.value}-${fields.to.value}` : "",
      tz: Intl.DateTimeFormat().resolvedOptions().timeZone,
    };
  }

  async function load(isMore = false) {
    const found = await get(`/events${queryString({ ...choice(), limit: 50, after: isMore ? next : null })}`);
    if (!isMore) {
      shown = 0;
      list.replaceChildren();
    }
    shown += found.items.length;
    let lastDay = isMore ? list.dataset.day : "";
    for (const event of found.items) {
      const today = day(event.time);
      if (today !== lastDay) list.append(make("h2", { style: { "margin-top": lastDay ? "16px" : "0" } }, isRelative(event.time) ? "Time in the recording" : today));
      lastDay = today;
      list.append(eventLine(event, { withStream: true, memoryS: page.server.live ? page.server.memory_s : 0 }));
    }
    list.dataset.day = lastDay;
    next = found.next;
    more.hidden = !next;
    waiting = 0;
    fresh.hidden = true;
    summary.textContent = `${plural(shown, "event")}${next ? " and more" : ""}`;
    if (!shown) fill(list, make("div", { class: "empty-state" }, make("b", {}, "No events"), "Nothing matches these filters. Fewer words or a longer time find more."));
  }

  function changed() {
    const values = { q: fields.q.value.trim(), stream: fields.stream.value, type: fields.type.value, days: fields.days.value, from: fields.from.value, to: fields.to.value };
    history.replaceState({}, "", `${root}/events${queryString(values)}`);
    for (const name of ["since", "until", "subject"]) parameters.delete(name);
    return load().catch(showError);
  }
  const showError = (error) => fill(list, make("p", { class: "notice error", role: "alert" }, error.message));
  let timer = 0;
  for (const [name, field] of Object.entries(fields)) {
    field.addEventListener(name === "q" ? "input" : "change", () => {
      clearTimeout(timer);
      timer = setTimeout(changed, name === "q" ? 250 : 0);
    });
  }
  more.addEventListener("click", () => load(true).catch(showError));
  fresh.addEventListener("click", () => load().catch(showError));
  const stop = live.on("event", ({ event }) => {
    if (fields.type.value === "" && !ASKED_FOR.includes(kindOf(event))) return;
    if (fields.stream.value && event.data.stream !== fields.stream.value) return;
    waiting += 1;
    fresh.textContent = `${plural(waiting, "new event")}: show`;
    fresh.hidden = false;
  });
  const stopConnection = live.on("connection", () => live.connected && load().catch(showError));
  await load().catch(showError);
  return {
    title: "Events",
    element: make("div", { class: "stack" }, make("div", { class: "page-head" }, make("h1", {}, "Events"), summary, make("span", { class: "grow" }), fresh),
      make("form", { class: "panel filters", role: "search", "aria-label": "Filter events", onsubmit: (event) => event.preventDefault() },
        named("Words", fields.q), named("Camera", fields.stream), named("Kind", fields.type), named("Day", fields.days), named("Time of day from", fields.from), named("to", fields.to)),
      make("section", { class: "panel", "aria-label": "List of events" }, list, make("div", { class: "row right" }, more))),
    leave: () => {
      stop();
      stopConnection();
      clearTimeout(timer);
    },
  };
}

const named = (text, field) => make("label", { class: "named" }, text, field);
const pick = (options, value, nameOf) => make("select", { class: "field" }, options.map((option) => make("option", { value: option, selected: option === value }, nameOf(option))));

export async function eventView(page, id) {
  const event = await get(`/events/${encodeURIComponent(id)}`);
  const data = event.data;
  if ((await get("/streams")).items.some((stream) => stream.name === data.stream)) await learnColours(page, [data.stream]);
  const track = data.track ? await get(`/tracks/${encodeURIComponent(event.subject)}`).catch(() => null) : null;
  const kind = kindOf(event);
  const when = new Date(event.time);
  const words = describeEvent(event);
  const complete = withStoredMedia(event, track);
  const clip = complete.data.media?.find((medium) => medium.kind === "clip");
  const still = bigPicture(complete, track, page);
  const picture = clip ? clipOrPicture(clip, still, words.plain) : still;
  return {
    title: words.plain,
    element: make("div", { class: "stack" },
      make("div", { class: "page-head" }, make("h1", {}, eventWords(event)), make("span", { class: "dim num" }, `${data.stream} · ${moment(event.time)}`), make("span", { class: "grow" }),
        clip ? make("a", { class: "button", href: address(`/media/${clip.sha256}`), download: "" }, "Download the clip") : null,
        make("a", { class: "button", href: `${root}/camera/${encodeURIComponent(data.stream)}` }, "Go to the camera")),
      make("div", { class: "detail" },
        make("div", { class: "stack" }, picture, track ? trackPanel(track, event, page) : null),
        make("div", { class: "stack" }, whyPanel(event, kind), make("section", { class: "panel" }, make("h2", {}, "Facts"), make("dl", { class: "facts" },
          fact("Camera", make("a", { href: `${root}/camera/${encodeURIComponent(data.stream)}` }, data.stream)),
          fact(isRelative(event.time) ? "Position" : "Captured", isRelative(event.time) ? moment(event.time) : `${when.toLocaleString()}.${String(when.getMilliseconds()).padStart(3, "0")}`),
          fact("Clock", `${{ rtcp_sr: "of the camera", arrival: "time of arrival", file_pts: "of the file" }[data.clock.basis]}${data.clock.uncertainty_ms ? `, ±${data.clock.uncertainty_ms.toFixed(0)} ms` : ""}`),
          data.clock.emitted_ns ? fact("Delay", `${duration((data.clock.emitted_ns - data.clock.captured_ns) / 1e6)} from capture to event`) : null,
          data.frame ? fact("Frame", `number ${number(data.frame.index)}, ${data.frame.width} × ${data.frame.height}`) : null,
          data.producer ? fact("Made by", `groundstream ${data.producer.version}, ${data.producer.detector}, ${data.producer.tracker}`) : null,
          fact("Id", event.id))),
          make("section", { class: "panel" }, make("details", {}, make("summary", {}, "The event as it was sent"), make("pre", { tabindex: "0" }, JSON.stringify(event, null, 2))))))),
  };
}

/** The clip of an event, and its picture with box and path, one of them shown. */
function clipOrPicture(clip, still, words) {
  const video = make("video", { src: address(`/media/${clip.sha256}`), controls: true, preload: "metadata", "aria-label": `Clip: ${words}` });
  const view = make("div", { class: "view" }, video);
  const buttons = ["Clip", "Picture with box and path"].map((name, at) => make("button", { class: "button small", type: "button", "aria-pressed": String(!at), onclick: () => choose(at) }, name));
  still.hidden = true;
  function choose(chosen) {
    view.hidden = Boolean(chosen);
    still.hidden = !chosen;
    if (chosen) video.pause();
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === chosen)));
  }
  return make("div", { class: "stack", style: { gap: "10px" } }, view, still, make("div", { class: "row wrap", role: "group", "aria-label": "What is shown" }, buttons));
}

const fact = (name, value) => [make("dt", {}, name), make("dd", {}, value)];

/** Why the event exists: rule, query with revision, score against threshold. */
function whyPanel(event, kind) {
  const data = event.data;
  const rules = {
    "zone.enter": () => `The foot point of the track moved into the zone ${data.zone.id} and stayed.`,
    "zone.exit": () => `The foot point of the track left the zone ${data.zone.id}${data.zone.dwell_s ? ` after ${duration(data.zone.dwell_s * 1000)}` : ""}.`,
    "zone.dwell": () => `The track stayed in the zone ${data.zone.id} for ${duration(data.zone.dwell_s * 1000)}, a limit that was set for it.`,
    "line.cross": () => `The foot point of the track crossed the line ${data.line.id} ${data.line.direction === "in" ? "from its left to its right" : "from its right to its left"}.`,
    "track.begin": () => "A new object was seen often enough in a row to be confirmed as a track.",
    "track.end": () => "The track was given up.",
    "match.begin": () => "The track answered the query for long enough, by the vote over its frames.",
    "match.end": () => "The track no longer answered the query.",
    "stream.offline": () => `No picture came: ${data.outage?.cause ?? "the cause is unknown"}.`,
    "stream.online": () => (data.outage ? `The outage lasted ${duration((data.outage.until_ns - data.outage.since_ns) / 1e6)}: ${data.outage.cause}.` : "The first picture came."),
    query: () => `An operator or the configuration file changed the query: ${data.query.change}.`,
    count: () => `A counting window of ${duration((data.count.to_ns - data.count.from_ns) / 1e6)} ended.`,
  };
  const matches = data.matches ?? [];
  return make("section", { class: "panel stack", style: { gap: "12px" } }, make("h2", { style: { "margin-bottom": "0" } }, "Why this event exists"),
    make("p", {}, rules[kind]?.() ?? `A ${kind} event of this stream.`),
    matches.map((match) => {
      const colour = colourOf(colourNumber({ data: { matches: [match] }, type: "" }));
      return make("div", { style: { "--c": colour } },
        make("div", { class: "row spread" }, make("span", { class: "row" }, make("i", { class: "dot" }), make("b", {}, match.text), make("span", { class: "dim" }, `revision ${match.query_rev}`)), make("span", { class: "num" }, `${score(match.score)} of ${score(match.threshold)}`)),
        make("div", { class: "meter", style: { "margin-top": "7px" }, role: "img", "aria-label": `Score ${score(match.score)}, threshold ${score(match.threshold)}` }, make("i", { style: { width: `${match.score * 100}%` } }), make("em", { style: { left: `${match.threshold * 100}%` } })));
    }),
    data.track && !matches.length ? make("p", { class: "dim" }, "No query was matched when this was decided.") : null);
}

/** Returns the event with the pictures and the clip that later events of its track have stored for it. */
function withStoredMedia(event, track) {
  const later = (track?.events ?? []).filter((other) => other.data.cause === event.id).flatMap((other) => other.data.media ?? []);
  const media = [...(event.data.media ?? []), ...later];
  return media.length ? { ...event, data: { ...event.data, media } } : event;
}

/** The frame of the event, or a drawing of its geometry, with box and path. */
function bigPicture(event, track, page) {
  const data = event.data;
  const frame = data.frame ?? { width: 1000, height: 600 };
  const view = make("div", { class: "view", style: { "aspect-ratio": `${frame.width} / ${frame.height}` } });
  const picture = eventPicture(event, page.server.live ? page.server.memory_s : 0);
  const size = Math.max(frame.width, frame.height);
  const colour = colourOf(colourNumber(event));
  if (picture.tagName === "IMG") {
    picture.className = "";
    const stored = storedPicture(data.media, "snapshot");
    picture.src = stored ? address(`/media/${stored.sha256}`) : picture.src.replace("width=320", "width=960").replace(/&crop=[^&]*/, "");
    view.append(picture);
  } else view.append(make("div", { class: "empty" }, data.frame ? "" : "This event has no picture"));
  const shown = storedPicture(data.media, "snapshot");
  const full = shown?.kind === "snapshot" ? shown : null;
  const isCut = shown && !full; // the part around the track: places of the full frame do not fit it
  const box = isCut ? null : full?.box ?? data.track?.box;
  const path = isCut ? null : track?.path.map(([x, y]) => `${x * frame.width},${y * frame.height}`).join(" ");
  view.append(make("svg", { class: "overlay", viewBox: `0 0 ${frame.width} ${frame.height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    path ? make("polyline", { points: path, fill: "none", stroke: "#ffffff", "stroke-opacity": 0.85, "stroke-width": size / 260, "stroke-dasharray": `${size / 90} ${size / 130}`, "stroke-linecap": "round" }) : null,
    box ? make("rect", { x: box.x1 * frame.width, y: box.y1 * frame.height, width: (box.x2 - box.x1) * frame.width, height: (box.y2 - box.y1) * frame.height, rx: size / 250, fill: picture.tagName === "IMG" ? "none" : colour, "fill-opacity": 0.25, stroke: colour, "stroke-width": size / 260 }) : null));
  if (picture.tagName !== "IMG" && data.frame) view.append(make("div", { class: "bar" }, make("span", { class: "chip" }, "no picture is stored: box and path only")));
  return view;
}

function trackPanel(track, event, page) {
  const first = Date.parse(track.first_seen);
  const length = Math.max(1, Date.parse(track.last_seen) - first);
  return make("section", { class: "panel" }, make("h2", {}, `Track #${track.number}`, make("span", { class: "dim" }, `${track.queries.join(", ") || "no query"} · seen for ${duration(length)}`)),
    track.descriptions.map((text) => make("p", { class: "notice" }, text)),
    make("div", {}, track.events.filter((item) => !["track.update", "media"].includes(kindOf(item)) || item.id === event.id).map((item) => withStoredMedia(item, track)).map((item) => {
      const line = eventLine(item, { memoryS: page.server.live ? page.server.memory_s : 0 });
      if (item.id === event.id) line.setAttribute("aria-current", "true");
      return line;
    })));
}

