/** The page: login, header, and the view that belongs to the address. */
import { ApiError, call, get, root, whenLoggedOut } from "./api.js";
import { fill, icon, make } from "./dom.js";
import { live } from "./live.js";
import { describeEvent } from "./event-text.js";
import { cameraView } from "./view-camera.js";
import { countsView } from "./view-counts.js";
import { eventView, eventsView } from "./view-events.js";
import { gridView } from "./view-grid.js";
import { healthView } from "./view-health.js";

const main = document.getElementById("main");
const header = document.getElementById("header");
const banner = document.getElementById("banner");
const news = document.getElementById("news");

/** What all views share: the server's offer and the way to other addresses. */
const page = { server: null, go, show: showBanner };
let leave = () => {};
let turn = 0;

const ROUTES = [
  [/^\/$/, () => gridView(page)],
  [/^\/camera\/([^/]+)$/, (name) => cameraView(page, name)],
  [/^\/events$/, () => eventsView(page)],
  [/^\/events\/([^/]+)$/, (id) => eventView(page, id)],
  [/^\/counts$/, () => countsView(page)],
  [/^\/health$/, () => healthView(page)],
];

/** Opens an address of the page. */
function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"]({}, "", root + path);
  open();
}

async function open() {
  const mine = ++turn;
  leave();
  leave = () => {};
  const path = location.pathname.slice(root.length) || "/";
  showHeader(path);
  for (const [pattern, build] of ROUTES) {
    const found = pattern.exec(path);
    if (!found) continue;
    try {
      const view = await build(...found.slice(1).map(decodeURIComponent));
      if (mine !== turn) return view.leave?.();
      leave = view.leave ?? (() => {});
      document.title = `${view.title} · groundstream`;
      fill(main, view.element);
    } catch (error) {
      if (mine !== turn || error.status === 401) return;
      fill(main, make("div", { class: "panel empty-state" }, make("b", {}, "This view cannot be shown"), error.message,
        make("p", {}, make("a", { href: `${root}/` }, "Go to the cameras"))));
      if (!(error instanceof ApiError)) throw error;
    }
    return;
  }
  fill(main, make("div", { class: "panel empty-state" }, make("b", {}, "There is no such page"), make("a", { href: `${root}/` }, "Go to the cameras")));
}

function showHeader(path) {
  const items = [["/", page.server.live ? "Live" : "Results"], ["/events", "Events"], ["/counts", "Counts"], ["/health", "Health"]];
  const camera = /^\/camera\/([^/]+)$/.exec(path);
  if (camera) items.splice(1, 0, [path, decodeURIComponent(camera[1])]);
  const words = make("input", { class: "field", type: "search", name: "q", placeholder: "Search events", "aria-label": "Search events", maxlength: 200, value: path === "/events" ? new URLSearchParams(location.search).get("q") ?? "" : "" });
  const search = make("form", { role: "search", onsubmit: (event) => {
    event.preventDefault();
    go(`/events${words.value.trim() ? `?q=${encodeURIComponent(words.value.trim())}` : ""}`);
  } }, words);
  fill(header,
    make("a", { class: "brand", href: `${root}/` }, icon("logo"), "groundstream"),
    make("nav", { "aria-label": "Views" }, items.map(([target, name]) => make("a", { href: root + target, "aria-current": target === path || (target === "/events" && path.startsWith("/events/")) ? "page" : null }, name))),
    search,
    make("button", { class: "icon-button", type: "button", title: "Dark or light", "aria-label": "Switch between dark and light", onclick: switchTheme }, icon("theme")),
    make("button", { class: "icon-button", type: "button", title: `Log out (${page.server.role})`, "aria-label": "Log out", onclick: logOut }, icon("leave")));
  header.hidden = false;
}

function switchTheme() {
  const isDark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("groundstream-theme", document.documentElement.dataset.theme);
}

async function logOut() {
  await call("DELETE", "/session");
  live.stop();
  location.assign(`${root}/login`);
}

/** Shows a sentence under the header; an empty one hides it. */
function showBanner(text) {
  banner.textContent = text;
  banner.hidden = !text;
}

function showLogin(message = "") {
  turn += 1;
  leave();
  leave = () => {};
  live.stop();
  header.hidden = true;
  showBanner("");
  document.title = "Log in · groundstream";
  const token = make("input", { class: "field", type: "password", name: "token", autocomplete: "current-password", required: true, maxlength: 256 });
  const sentence = make("p", { class: "notice error", role: "alert", hidden: !message }, message);
  const button = make("button", { class: "button primary" }, "Log in");
  const form = make("form", { class: "form", onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await call("POST", "/session", { body: { token: token.value } });
      await begin();
    } catch (error) {
      sentence.textContent = error.message;
      sentence.hidden = false;
    } finally {
      button.disabled = false;
    }
  } }, make("label", { class: "named" }, "Access token", token), sentence, button);
  const logo = icon("logo");
  logo.setAttribute("class", "mark-icon");
  fill(main, make("div", { class: "login" }, make("div", { class: "panel" }, logo, make("h1", {}, "groundstream"),
    make("p", { class: "dim" }, "Log in with a token. The monitor printed one for viewers and one for operators at its first start, and prints a login link at every start."),
    make("div", { style: { height: "16px" } }), form)));
  token.focus();
}

async function begin() {
  page.server = await get("/server");
  if (location.pathname === `${root}/login`) history.replaceState({}, "", `${root}/`);
  live.start();
  await open();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || link.target || link.hasAttribute("download") || link.classList.contains("skip")) return;
  const url = new URL(link.href);
  const path = url.pathname.slice(root.length) || "/";
  if (url.origin !== location.origin || !ROUTES.some(([pattern]) => pattern.test(path))) return;
  event.preventDefault();
  go(path + url.search);
  window.scrollTo(0, 0);
  main.focus({ preventScroll: true });
});
window.addEventListener("popstate", () => page.server && open());
window.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    header.querySelector("input[type=search]")?.focus();
  }
});
whenLoggedOut(() => showLogin("Your session has ended: log in again."));
live.on("connection", () => showBanner(live.connected || !page.server ? "" : "The connection to the monitor is lost. What you see is old; trying again."));
live.on("refused", () => get("/server").catch(() => {})); // an ended session leads to the login
let announced = 0;
live.on("event", ({ event }) => {
  if (Date.now() - announced < 5000) return;
  announced = Date.now();
  news.textContent = `${event.data.stream}: ${describeEvent(event).plain}`;
});

const theme = localStorage.getItem("groundstream-theme");
if (theme) document.documentElement.dataset.theme = theme;
const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
if (code) history.replaceState({}, "", location.pathname + location.search);
(async () => {
  if (code) {
    try {
      await call("POST", "/session", { body: { code } });
    } catch (error) {
      return showLogin(`The login link does not work: ${error.message}.`);
    }
  }
  if (!code && location.pathname === `${root}/login`) return showLogin();
  try {
    await begin();
  } catch (error) {
    if (error.status === 401) return showLogin();
    fill(main, make("div", { class: "panel empty-state" }, make("b", {}, "The page cannot be shown"), error.message));
  }
})();
