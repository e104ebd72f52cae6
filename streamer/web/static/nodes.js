/** Nodes that share the cameras: who watches what, and links to the pages of the others. */
import { get, root } from "./api.js";
import { fill, make, plural } from "./dom.js";

const EVERY_MS = 5000;
const NUMBERS = new Set(["cameras", "configuration", "renewed", "epoch"]);
const STATES = { ready: ["good", "● ready"], joining: ["warn", "◔ joining"], draining: ["warn", "◔ draining"], drained: ["dim", "■ drained"], behind: ["warn", "▲ old configuration"], silent: ["bad", "▲ silent"] };

/** Returns a link to a camera, wherever it is watched. */
function cameraLink(camera, node) {
  const address = camera.holder === node ? `${root}/camera/${encodeURIComponent(camera.name)}` : camera.page;
  return address ? make("a", { href: address }, camera.name) : camera.name;
}

/** Calls `show` with the answer of the API now and every few seconds; returns a function that ends it. */
async function follow(show) {
  show(await get("/cluster"));
  const timer = setInterval(async () => {
    try {
      show(await get("/cluster"));
    } catch {
      // The banner says that the connection is lost.
    }
  }, EVERY_MS);
  return () => clearInterval(timer);
}

/** Returns the address of a camera that another node watches, empty where it is this one or has no page. */
export async function pageElsewhere(name) {
  const cluster = await get("/cluster");
  const camera = cluster.cameras.find((one) => one.name === name);
  return camera && camera.holder !== cluster.node ? camera.page : "";
}

/** The cameras of the other nodes, for the grid. Returns `{element, stop}`. */
export async function otherCameras() {
  const list = make("div", { class: "grid" });
  const head = make("h2", {});
  const element = make("section", {}, make("div", { class: "page-head" }, head), list);
  const stop = await follow((cluster) => {
    const others = cluster.cameras.filter((camera) => camera.holder !== cluster.node);
    element.hidden = !others.length;
    head.textContent = `${plural(others.length, "camera")} of other nodes`;
    fill(list, others.map((camera) => make("div", { class: "panel" }, make("b", { class: "clip" }, cameraLink(camera, cluster.node)),
      make("div", { class: camera.holder ? "dim" : "bad" }, camera.holder ? `watched by ${camera.holder}${camera.page ? "" : ", whose page is not open to other machines"}` : "watched by no node"))));
  });
  return { element, stop };
}

/** The nodes and their cameras as tables, for the health view. Returns `{element, stop}`. */
export async function nodeTables() {
  const nodes = make("tbody");
  const cameras = make("tbody");
  const stop = await follow((cluster) => {
    fill(nodes, cluster.nodes.map((node) => make("tr", {},
      make("td", {}, node.page && node.name !== cluster.node ? make("a", { href: `${node.page}health` }, node.name) : node.name, node.name === cluster.node ? make("span", { class: "dim" }, " (this one)") : null),
      make("td", {}, make("span", { class: (STATES[node.state] ?? ["dim"])[0] }, (STATES[node.state] ?? ["", node.state])[1])),
      make("td", { class: "num" }, `${node.cameras}${node.capacity === null ? "" : ` of ${node.capacity}`}`),
      make("td", { class: "num" }, node.revision), make("td", { class: "num" }, `${node.renewed_s.toFixed(1)} s`))));
    fill(cameras, cluster.cameras.map((camera) => make("tr", {},
      make("td", {}, cameraLink(camera, cluster.node)),
      make("td", {}, camera.holder ?? make("span", { class: "bad" }, "none"), camera.moving_to ? make("span", { class: "dim" }, ` → ${camera.moving_to}`) : null),
      make("td", { class: "num" }, camera.epoch))));
  });
  const table = (name, heads, body) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, make("table", {},
    make("thead", {}, make("tr", {}, heads.map((text) => make("th", { scope: "col", class: NUMBERS.has(text) ? "num" : null }, text)))), body));
  return { element: make("section", { class: "panel" }, make("h2", {}, "Nodes"), table("Nodes", ["node", "state", "cameras", "configuration", "renewed"], nodes), table("Cameras of all nodes", ["camera", "watched by", "epoch"], cameras)), stop };
}
