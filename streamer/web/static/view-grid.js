/** The grid: all cameras at once. */
import { call, root } from "./api.js";
import { ask, fill, make, plural } from "./dom.js";
import { live } from "./live.js";
import { livePicture } from "./picture.js";
import { address } from "./api.js";
import { get } from "./api.js";
import { otherCameras } from "./nodes.js";

export async function gridView(page) {
  const tiles = new Map();
  const grid = make("div", { class: "grid" });
  const summary = make("span", { class: "dim" });
  let streams = (await get("/streams")).items;

  function refresh() {
    for (const [name, tile] of tiles) {
      if (streams.some((stream) => stream.name === name)) continue;
      tile.picture?.stop();
      tiles.delete(name);
    }
    for (const stream of streams) {
      if (!tiles.has(stream.name)) tiles.set(stream.name, newTile(stream, page));
      tiles.get(stream.name).update(stream);
    }
    fill(grid, streams.map((stream) => tiles.get(stream.name).element));
    const well = streams.filter((stream) => stream.state === "live").length;
    summary.textContent = page.server.live ? `${well} of ${plural(streams.length, "camera")} live` : plural(streams.length, "recording");
  }

  refresh();
  const stop = live.on("health", (health) => {
    const names = (items) => items.map((item) => item.name).join("\n");
    const isSame = names(health.streams) === names(streams);
    streams = health.streams;
    if (isSame) for (const stream of streams) tiles.get(stream.name).update(stream);
    else refresh();
  });
  const others = page.server.node ? await otherCameras() : null;
  const add = page.server.editable ? make("button", { class: "button", type: "button", onclick: () => addCamera(page) }, "Add a camera") : null;
  return {
    title: page.server.live ? "Live" : "Results",
    element: [make("div", { class: "page-head" }, make("h1", {}, page.server.live ? "Cameras" : "Results"), summary, make("span", { class: "grow" }), add), grid, others?.element],
    leave: () => {
      stop();
      others?.stop();
      for (const tile of tiles.values()) tile.picture?.stop();
    },
  };
}

function newTile(stream, page) {
  const picture = page.server.live ? livePicture(stream.name, { width: 640, fps: 8, small: true }) : null;
  const info = make("span", { class: "dim num clip" });
  const view = picture?.element ?? videoPoster(stream);
  const element = make("a", { class: "tile", href: `${root}/camera/${encodeURIComponent(stream.name)}` }, view,
    make("div", { class: "foot" }, make("b", { class: "clip" }, stream.name), make("span", { class: "grow" }), info));
  return {
    element,
    picture,
    update: (now) => {
      info.textContent = page.server.live
        ? now.state === "live" ? `${plural(now.tracks, "track")} · ${now.fps_analysed.toFixed(1)} / s` : now.cause || now.state
        : `${plural(now.tracks, "track")} · ${(now.seconds ?? 0).toFixed(0)} s`;
    },
  };
}

function videoPoster(stream) {
  const view = make("div", { class: "view" });
  if (stream.video) view.append(make("video", { src: `${address(`/streams/${encodeURIComponent(stream.name)}/video.mp4`)}#t=0.1`, preload: "metadata", muted: true, tabindex: "-1" }));
  else view.append(make("div", { class: "empty" }, "no video was written"));
  return view;
}

async function addCamera(page) {
  let values = { source: "", name: "" };
  let note = "";
  for (;;) {
    values = await ask("Add a camera", [
      { name: "name", label: "Name", value: values.name, placeholder: "gate" },
      { name: "source", label: "Address", value: values.source, placeholder: "rtsp://camera/stream" },
    ], { confirm: "Add", note });
    if (!values) return;
    try {
      await call("POST", "/streams", { body: { name: values.name.trim(), source: values.source.trim() } });
      page.go(`/camera/${encodeURIComponent(values.name.trim())}`);
      return;
    } catch (error) {
      note = error.message;
    }
  }
}
