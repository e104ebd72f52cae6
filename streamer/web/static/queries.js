/** The queries of a camera: colours, histogram over the threshold, and trying new words on the past. */
import { address, call, get, queryString } from "./api.js";
import { ask, clock, colourOf, fill, make, number, plural, score } from "./dom.js";
import { learnColour } from "./event-text.js";
import { live } from "./live.js";

const REFRESH_MS = 5000;
const COUNT_MS = 30000;

/** Returns `{element, leave}` of the panel. */
export async function queryPanel(context) {
  const { page, path } = context;
  const list = make("div", {});
  const notice = make("p", { class: "notice error", role: "alert", hidden: true });
  const hint = make("span", { class: "dim" }, "applied to the next frame, ids kept");
  let current = { items: [] };
  let etag = null;
  let dragging = false;

  const today = new Map(); // tracks that matched since midnight, by query
  let counted = -Infinity;

  async function load() {
    ({ body: current, etag } = await call("GET", `${path}/queries`));
    show();
    if (performance.now() - counted < COUNT_MS) return;
    counted = performance.now();
    await countToday();
    show();
  }
  async function countToday() {
    const since = new Date(new Date().toDateString()).toISOString();
    await Promise.all(current.items.slice(0, 16).map(async ({ id }) => {
      const { items } = await get(`/counts${queryString({ stream: context.name, type: "match.begin", query: id, since, bucket: 86400, tz: Intl.DateTimeFormat().resolvedOptions().timeZone })}`);
      today.set(id, items.reduce((sum, item) => sum + item.tracks, 0));
    }));
  }
  function show() {
    for (const query of current.items) learnColour(query.id, query.number);
    fill(list, current.items.map((query) => queryRow(query)));
    hint.textContent = current.overridden ? "kept by this page, not in the file" : current.shared ? "shared by all cameras" : "applied to the next frame, ids kept";
  }
  async function change(method, target, body) {
    notice.hidden = true;
    try {
      ({ body: current, etag } = await call(method, target, { body, etag }));
      show();
      return true;
    } catch (error) {
      notice.textContent = error.status === 412 ? "The queries have changed in the meantime: here is the list that is in force. Repeat your change." : error.message;
      notice.hidden = false;
      if (error.status === 412) await load();
      return false;
    }
  }

  function queryRow(query) {
    const target = `${path}/queries/${encodeURIComponent(query.id)}`;
    const colour = colourOf(query.number);
    const now = query.effective_threshold || query.threshold || 0;
    const bars = histogram(query.histogram, now);
    const value = make("span", { class: "num dim" }, `from ${score(now)}`);
    const slider = make("input", { type: "range", min: "0.01", max: "0.99", step: "0.01", value: String(now), disabled: !page.server.editable, "aria-label": `Threshold for ${query.text}` });
    slider.addEventListener("input", () => {
      dragging = true;
      value.textContent = `from ${score(Number(slider.value))}`;
      bars.setThreshold(Number(slider.value));
    });
    slider.addEventListener("change", async () => {
      dragging = false;
      await change("PATCH", target, { threshold: Number(slider.value) });
    });
    const suggested = query.suggested_threshold;
    return make("div", { class: `query${query.paused ? " paused" : ""}`, style: { "--c": colour } }, make("i", { class: "dot" }), make("span", { class: "words" }, query.text),
      make("span", { class: "dim num" }, [query.paused ? "paused" : `${query.tracks} now`, today.has(query.id) ? `${number(today.get(query.id))} today` : null].filter(Boolean).join(" · ")),
      make("div", { class: "body" }, bars.element, slider,
        make("div", { class: "actions" }, value,
          suggested !== null && Math.abs(suggested - now) > 0.03 && page.server.editable ? make("button", { class: "link-button", type: "button", title: "The gap between what is there and what is not, by the last hour's tracks", onclick: () => change("PATCH", target, { threshold: suggested }) }, `suggested ${score(suggested)}`) : null,
          make("span", { class: "grow" }),
          page.server.editable ? [
            make("button", { class: "link-button", type: "button", onclick: () => change("PATCH", target, { paused: !query.paused }) }, query.paused ? "Resume" : "Pause"),
            make("button", { class: "link-button", type: "button", onclick: async () => {
              const values = await ask("Change the query", [{ name: "text", label: "Words", value: query.text }, { name: "unless", label: "Unless (comma separated)", value: query.unless.join(", "), required: false }]);
              if (values) await change("PATCH", target, { text: values.text, unless: values.unless.split(",").map((text) => text.trim()).filter(Boolean) });
            } }, "Edit"),
            make("button", { class: "link-button", type: "button", "aria-label": `Remove ${query.text}`, onclick: () => change("DELETE", target) }, "Remove")] : null)));
  }

  await load();
  const stopQueries = live.on("queries", (message) => message.stream === context.name && message.etag !== etag && load());
  const timer = setInterval(() => {
    if (!dragging && !document.hidden && !list.contains(document.activeElement)) load().catch(() => {});
  }, REFRESH_MS);
  const trial = page.server.editable ? newTrial(context, async (text, threshold) => change("PUT", `${path}/queries/${encodeURIComponent(slug(text))}`, { text, threshold })) : null;
  return {
    element: make("section", { class: "panel" }, make("h2", {}, "Queries", hint), notice, list, trial?.element),
    leave: () => {
      clearInterval(timer);
      stopQueries();
      trial?.cancel();
    },
  };
}

const slug = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}_]+/gu, "-").replace(/^-+|-+$/g, "") || "query";

/** Returns a histogram of scores whose bars from the threshold on are coloured. */
export function histogram(counts, threshold) {
  const most = Math.max(1, ...counts);
  const bars = counts.map((count, at) => {
    const high = count ? Math.max(2, (count / most) * 34) : 0;
    return make("rect", { x: at * 10 + 0.5, y: 34 - high, width: 9, height: high, rx: 1 }, make("title", {}, `${plural(count, "track")} from ${score(at / counts.length)}`));
  });
  const line = make("line", { y1: 0, y2: 34 });
  const element = make("svg", { class: "histogram", viewBox: `0 0 ${counts.length * 10} 34`, preserveAspectRatio: "none", role: "img", "aria-label": `Scores of ${plural(counts.reduce((sum, count) => sum + count, 0), "track")} in the last hour` }, bars, line);
  const setThreshold = (value) => {
    bars.forEach((bar, at) => bar.classList.toggle("on", (at + 0.5) / counts.length >= value));
    line.setAttribute("x1", value * counts.length * 10);
    line.setAttribute("x2", value * counts.length * 10);
  };
  setThreshold(threshold);
  return { element, setThreshold };
}

/** Trying words on the last minute before they are switched on. */
function newTrial(context, watchFor) {
  const { path } = context;
  const words = make("input", { class: "field", placeholder: "person with an umbrella", "aria-label": "New query", maxlength: 500, autocomplete: "off" });
  const button = make("button", { class: "button primary" }, "Try");
  const output = make("div", { class: "stack", style: { gap: "10px", "margin-top": "10px" }, hidden: true });
  let source = null;
  let ticket = null;

  function cancel() {
    source?.close();
    source = null;
    if (ticket) call("DELETE", `${path}/queries/preview/${ticket}`).catch(() => {});
    ticket = null;
  }
  function discard() {
    cancel();
    output.hidden = true;
    output.replaceChildren();
    button.disabled = false;
  }

  async function begin(event) {
    event.preventDefault();
    const text = words.value.trim();
    if (!text) return words.focus();
    cancel();
    output.hidden = false;
    const bar = make("progress", { "aria-label": "Progress of the trial", max: 1, value: 0 });
    const sentence = make("p", { class: "dim", role: "status" }, "Looking at the last minute …");
    const shots = make("div", { class: "past" });
    const slider = make("input", { type: "range", min: "0.05", max: "0.95", step: "0.01", value: "0.3", "aria-label": "Threshold for the new query" });
    const bars = make("div", {});
    const results = [];
    let summary = null;
    let touched = false;
    fill(output, bar, sentence, bars, slider, shots, make("div", { class: "row right" }, make("button", { class: "button", type: "button", onclick: discard }, "Discard"), make("button", { class: "button primary", type: "button", onclick: async () => {
      if (await watchFor(text, Number(slider.value))) {
        words.value = "";
        discard();
      }
    } }, "Watch for it")));

    function show() {
      const threshold = Number(slider.value);
      const best = results.filter((result) => result.detections.length).map((result) => ({ ...result, best: Math.max(...result.detections.map((item) => item.score)) })).sort((one, other) => other.best - one.best);
      const objects = summary ? summary.objects.filter((value) => value >= threshold).length : null;
      const frames = best.filter((result) => result.best >= threshold).length;
      fill(sentence, summary ? ["In the last minute: ", make("b", {}, plural(objects, "object")), ` at ${score(threshold)} or higher, in ${plural(frames, "picture")} of ${summary.frames}. `,
        summary.suggested_threshold === null ? "No clear gap between what is there and what is not: choose a threshold by the pictures." : `Suggested threshold ${score(summary.suggested_threshold)}.`] : `Looking at the last minute: ${plural(results.length, "picture")}, matches in ${frames}.`);
      const histogramNow = histogram(summary?.histogram ?? histogramOf(results), threshold);
      fill(bars, histogramNow.element);
      fill(shots, best.slice(0, 6).map((result) => make("figure", { class: result.best < threshold ? "below" : null }, make("img", { alt: "", src: address(`${path}/memory/${result.index}.jpg${queryString({ width: 320 })}`) }),
        make("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }, result.detections.filter((item) => item.score >= Math.min(threshold, result.best)).map((item) => make("rect", { x: item.box[0], y: item.box[1], width: item.box[2] - item.box[0], height: item.box[3] - item.box[1], fill: "none", stroke: "#ffffff", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }))),
        make("figcaption", { class: "num" }, `${clock(result.time)} · ${score(result.best)}`))));
    }
    slider.addEventListener("input", () => {
      touched = true;
      show();
    });
    const fail = (message) => {
      bar.hidden = true;
      fill(sentence, message);
      sentence.className = "notice error";
      button.disabled = false;
    };
    button.disabled = true;
    try {
      const { body } = await call("POST", `${path}/queries/preview`, { body: { text } });
      ticket = body.id;
      source = new EventSource(address(`${path}/queries/preview/${body.id}`));
      source.addEventListener("frame", (message) => {
        results.push(JSON.parse(message.data));
        bar.value = results.length / body.frames;
        if (results.length % 3 === 1 || results.length === body.frames) show();
      });
      source.addEventListener("end", (message) => {
        summary = JSON.parse(message.data);
        source.close();
        ticket = null;
        bar.hidden = true;
        button.disabled = false;
        if (summary.suggested_threshold !== null && !touched) slider.value = String(summary.suggested_threshold);
        show();
      });
      source.addEventListener("error", (message) => {
        if (summary) return;
        source.close();
        fail(message.data ? JSON.parse(message.data).detail : "The connection was lost: try again.");
      });
    } catch (error) {
      fail(error.message);
    }
  }
  return { element: make("div", { style: { "border-top": "1px solid var(--line)", "padding-top": "12px", "margin-top": "4px" } }, make("form", { class: "row", onsubmit: begin }, words, button), output), cancel };
}

function histogramOf(results) {
  const counts = Array(20).fill(0);
  for (const result of results) for (const item of result.detections) counts[Math.min(19, Math.floor(item.score * 20))] += 1;
  return counts;
}
