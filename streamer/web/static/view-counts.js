/** Counts: events per bucket of time as a chart. */
import { get, queryString, root } from "./api.js";
import { colourOf, day, fill, make, minute, number, plural } from "./dom.js";

const SPANS = { "1 h": [3600e3, 60], "6 h": [21600e3, 300], "24 h": [86400e3, 900], "7 d": [604800e3, 21600], "30 d": [2592000e3, 86400] };
const KINDS = { "match.begin": "matches", "track.begin": "tracks begun", "zone.enter": "zone entered", "zone.exit": "zone left", "line.cross": "line crossed", "zone.dwell": "stayed in a zone", "stream.offline": "camera away" };

export async function countsView(page) {
  const parameters = new URLSearchParams(location.search);
  const streams = (await get("/streams")).items.map((stream) => stream.name);
  const newest = page.server.live ? Date.now() : Date.parse((await get("/events?limit=1")).items[0]?.time ?? new Date().toISOString()) + 1000;
  const stream = pick("Camera", ["", ...streams], parameters.get("stream") ?? "", "all cameras");
  const kind = pick("Count", Object.keys(KINDS), parameters.get("type") ?? "match.begin", "", (value) => KINDS[value]);
  const span = pick("Time", Object.keys(SPANS), parameters.get("span") ?? (page.server.live ? "6 h" : "1 h"));
  const place = make("input", { class: "field", value: parameters.get("of") ?? "", placeholder: "any", maxlength: 200 });
  const query = make("input", { class: "field", value: parameters.get("query") ?? "", placeholder: "any", maxlength: 200 });
  const output = make("div", { class: "stack" });

  async function refresh() {
    const [length, bucket] = SPANS[span.value];
    const until = Math.ceil(newest / (bucket * 1000)) * bucket * 1000;
    const since = until - length;
    const values = { stream: stream.value, type: kind.value, query: query.value, of: place.value, bucket, since: new Date(since).toISOString(), until: new Date(until).toISOString(), tz: Intl.DateTimeFormat().resolvedOptions().timeZone };
    history.replaceState({}, "", `${root}/counts${queryString({ stream: stream.value, type: kind.value, span: span.value, of: place.value, query: query.value })}`);
    const found = await get(`/counts${queryString(values)}`);
    const directions = [...new Set(found.items.map((item) => item.direction ?? ""))].sort();
    const bars = [];
    for (let time = since; time < until; time += bucket * 1000) {
      bars.push({ time, parts: directions.map((direction) => found.items.filter((item) => Math.abs(Date.parse(item.time) - time) < bucket * 500 && (item.direction ?? "") === direction).reduce((sum, item) => sum + item.events, 0)) });
    }
    const total = found.items.reduce((sum, item) => sum + item.events, 0);
    const most = bars.reduce((best, bar) => (sum(bar.parts) > sum(best.parts) ? bar : best), bars[0]);
    fill(output,
      make("div", { class: "figures num" }, figure("in all", number(total), KINDS[kind.value]), figure("busiest", total ? number(sum(most.parts)) : "0", total ? `${day(most.time)} ${minute(most.time)}` : "no events"), figure("average", (total / bars.length).toFixed(1), `in ${bucketName(bucket)}`)),
      make("section", { class: "panel" }, make("h2", {}, KINDS[kind.value], make("span", { class: "dim" }, `${plural(total, "event")}, ${bucketName(bucket)} each bar`)),
        chart(bars, length),
        directions.length > 1 ? make("div", { class: "legend" }, directions.map((direction, at) => make("span", {}, make("i", { class: "dot", style: { "--c": colourOf(at + 1) } }), direction))) : null),
      make("section", { class: "panel" }, make("details", {}, make("summary", {}, "As a table"), make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "from"), make("th", { scope: "col", class: "num" }, "events"))),
        make("tbody", {}, bars.filter((bar) => sum(bar.parts)).map((bar) => make("tr", {}, make("td", {}, `${day(bar.time)} ${minute(bar.time)}`), make("td", { class: "num" }, number(sum(bar.parts)))))))))));
  }

  const show = () => refresh().catch((error) => fill(output, make("p", { class: "notice error", role: "alert" }, error.message)));
  for (const field of [stream, kind, span, place, query]) field.addEventListener("change", show);
  await show();
  return {
    title: "Counts",
    element: make("div", { class: "stack" }, make("h1", {}, "Counts"),
      make("form", { class: "panel filters", onsubmit: (event) => event.preventDefault() }, named("Camera", stream), named("Count", kind), named("Time", span), named("Zone or line", place), named("Query", query)), output),
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const named = (text, field) => make("label", { class: "named" }, text, field);
const figure = (name, value, small) => make("div", { class: "figure" }, make("span", { class: "dim" }, name), make("b", {}, value), make("span", { class: "dim" }, small));
const bucketName = (seconds) => ({ 60: "a minute", 300: "5 minutes", 900: "15 minutes", 21600: "6 hours", 86400: "a day" })[seconds] ?? `${seconds} s`;
const pick = (name, options, value, emptyName = "", nameOf = (option) => option) => make("select", { class: "field" }, options.map((option) => make("option", { value: option, selected: option === value }, option ? nameOf(option) : emptyName)));

function chart(bars, length) {
  const width = Math.max(280, (document.getElementById("main").clientWidth || 1000) - 74);
  const [height, left, bottom, top] = [220, 40, 24, 8];
  const most = Math.max(1, ...bars.map((bar) => sum(bar.parts)));
  const step = niceStep(most);
  const ceiling = Math.ceil(most / step) * step;
  const inner = [width - left - 4, height - bottom - top];
  const wide = inner[0] / bars.length;
  const lines = [];
  for (let value = 0; value <= ceiling; value += step) {
    const y = top + inner[1] * (1 - value / ceiling);
    lines.push(make("line", { class: "axis", x1: left, x2: width - 4, y1: y, y2: y }), make("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, number(value)));
  }
  const shapes = bars.map((bar, at) => {
    let y = top + inner[1];
    return bar.parts.map((part, direction) => {
      const high = (inner[1] * part) / ceiling;
      y -= high;
      return make("rect", { x: left + at * wide + 0.5, y, width: Math.max(1, wide - 1.5), height: high, rx: Math.min(2, wide / 4), fill: colourOf(direction + 1) }, make("title", {}, `${day(bar.time)} ${minute(bar.time)}: ${part}`));
    });
  });
  const marks = [];
  for (let at = 0; at < bars.length; at += Math.max(1, Math.round(bars.length / Math.min(8, width / 90)))) {
    marks.push(make("text", { x: left + at * wide, y: height - 6 }, length > 2 * 86400e3 ? day(bars[at].time) : minute(bars[at].time)));
  }
  return make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Bar chart, at most ${most} in one bar` }, lines, shapes, marks);
}

function niceStep(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough));
}
