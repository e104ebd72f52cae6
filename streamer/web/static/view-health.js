/** Health: every stream and sink in words. */
import { call, get, root } from "./api.js";
import { ask, duration, fill, make, moment, number, plural } from "./dom.js";
import { live } from "./live.js";
import { nodeTables } from "./nodes.js";

const STATES = { live: ["good", "● live"], connecting: ["warn", "◔ connecting"], stalled: ["warn", "◔ no pictures come"], waiting: ["bad", "▲ away"], closed: ["dim", "■ ended"], paused: ["dim", "Ⅱ paused"] };
const REASONS = { stale: "newer frame waited", not_sampled: "not sampled", corrupt: "damaged", detector_error: "detector failed", backlog: "backlog" };

export async function healthView(page) {
  const figures = make("div", { class: "figures num" });
  const streams = make("tbody");
  const sinks = make("tbody");

  function refresh(health) {
    const well = health.streams.filter((stream) => stream.state === "live").length;
    const analysed = health.streams.reduce((sum, stream) => sum + stream.fps_analysed, 0);
    const ages = health.streams.map((stream) => stream.age_ms).filter((age) => age !== null);
    const backlog = health.sinks.reduce((sum, sink) => sum + sink.backlog, 0);
    fill(figures,
      figure("cameras", `${well} of ${health.streams.length} live`, well === health.streams.length ? "all well" : "see below", well === health.streams.length ? "good" : "warn"),
      figure("analysed", `${analysed.toFixed(1)} / s`, `${health.streams.reduce((sum, stream) => sum + stream.fps_received, 0).toFixed(1)} / s received`),
      figure("oldest frame", ages.length ? duration(Math.max(...ages)) : "no frame", "when it was asked"),
      figure("waiting for sinks", number(backlog), plural(health.sinks.filter((sink) => sink.state === "up").length, "sink") + " up", backlog > 1000 ? "warn" : ""));
    fill(streams, health.streams.map((stream) => make("tr", {},
      make("td", {}, make("a", { href: `${root}/camera/${encodeURIComponent(stream.name)}` }, stream.name), make("br"), make("span", { class: "dim" }, stream.source)),
      make("td", {}, make("span", { class: (STATES[stream.state] ?? ["dim"])[0] }, (STATES[stream.state] ?? ["", stream.state])[1]), stream.cause ? [make("br"), make("span", { class: "dim" }, stream.cause)] : null),
      make("td", { class: "num", "data-name": "received" }, number(stream.received)),
      make("td", { class: "num", "data-name": "analysed" }, number(stream.analysed), " ", make("span", { class: "dim under" }, `${stream.fps_analysed.toFixed(1)} / s`)),
      make("td", { "data-name": "dropped" }, Object.entries(stream.dropped).map(([reason, count]) => make("div", {}, `${number(count)} ${REASONS[reason] ?? reason}`)), Object.keys(stream.dropped).length ? null : "none"),
      make("td", { class: "num", "data-name": "age" }, stream.age_ms === null ? "–" : duration(stream.age_ms)),
      make("td", { "data-name": "clock" }, stream.clock ? `${stream.clock.basis}${stream.clock.uncertainty_ms ? ` ±${stream.clock.uncertainty_ms.toFixed(0)} ms` : ""}` : "–"))));
    fill(sinks, health.sinks.map((sink) => make("tr", {},
      make("td", {}, sink.name === "web" ? "web (this page's store)" : sink.name),
      make("td", {}, make("span", { class: sink.state === "up" ? "good" : "bad" }, sink.state === "up" ? "● up" : "▲ down"), ` since ${moment(sink.since)}`, sink.error ? [make("br"), make("span", { class: "dim" }, sink.error)] : null),
      [["waiting", sink.backlog], ["delivered", sink.delivered], ["refused", sink.dead], ["failures", sink.failures]].map(([name, value]) => make("td", { class: "num", "data-name": name }, number(value))),
      make("td", {}, page.server.editable && sink.name.includes(":") ? make("button", { class: "button small danger", type: "button", onclick: () => removeSink(page, sink.name) }, "Remove") : null))));
  }

  const [streamList, sinkList] = await Promise.all([get("/streams"), get("/sinks")]);
  refresh({ streams: streamList.items, sinks: sinkList.items });
  const stop = live.on("health", refresh);
  const nodes = page.server.node ? await nodeTables() : null;
  const config = page.server.editable ? await configPanel() : null;
  return {
    title: "Health",
    element: make("div", { class: "stack" }, make("h1", {}, "Health"), figures,
      make("section", { class: "panel" }, make("h2", {}, page.server.live ? "Cameras" : "Recordings"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cameras" }, make("table", { class: "cards" },
        make("thead", {}, make("tr", {}, head("name"), head("state"), head("received", true), head("analysed", true), head("dropped"), head("age", true), head("clock"))), streams))),
      page.server.live ? make("section", { class: "panel" }, make("h2", {}, "Sinks", make("span", { class: "grow" }), page.server.editable ? make("button", { class: "button small", type: "button", onclick: () => addSink(page) }, "Add a sink") : null),
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sinks" }, make("table", { class: "cards" },
          make("thead", {}, make("tr", {}, head("address"), head("state"), head("waiting", true), head("delivered", true), head("refused", true), head("failures", true), make("th", {}, make("span", { class: "hidden-text" }, "actions")))), sinks))) : null,
      nodes?.element, config),
    leave: () => {
      stop();
      nodes?.stop();
    },
  };
}

const head = (text, isNumber = false) => make("th", { class: isNumber ? "num" : null, scope: "col" }, text);
const figure = (name, value, small, tone = "") => make("div", { class: "figure" }, make("span", { class: "dim" }, name), make("b", { class: tone }, value), make("span", { class: "dim" }, small));

async function configPanel() {
  const found = await get("/config");
  const where = found.file && found.writable
    ? `Changes made here are written to ${found.file}; its comments stay.`
    : `Changes made here are kept in the monitor's state folder: ${found.reason}.`;
  return make("section", { class: "panel" }, make("h2", {}, "Configuration", make("span", { class: "dim" }, where)),
    found.overridden.length ? make("p", { class: "notice" }, `From this page: ${found.overridden.join(", ")}`) : null,
    make("details", {}, make("summary", {}, "Effective configuration"), make("pre", { tabindex: "0" }, found.yaml || JSON.stringify(found.config, null, 2))));
}

async function addSink(page) {
  let address = "";
  let note = "";
  for (;;) {
    const values = await ask("Add a sink", [{ name: "address", label: "Address", value: address, placeholder: "kafka://host:9092/events" }], { confirm: "Add", note });
    if (!values) return;
    try {
      await call("POST", "/sinks", { body: { address: values.address.trim() } });
      page.go("/health", { replace: true });
      return;
    } catch (error) {
      address = values.address;
      note = error.message;
    }
  }
}

async function removeSink(page, name) {
  if (!(await ask(`Remove ${name}?`, [], { confirm: "Remove", note: "Events that it has not taken yet are dropped." }))) return;
  try {
    await call("DELETE", `/sinks/${encodeURIComponent(name)}`);
    page.go("/health", { replace: true });
  } catch (error) {
    page.show(error.message);
  }
}
