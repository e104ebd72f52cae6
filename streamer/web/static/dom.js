/** Building blocks of the page: elements, icons, text in human terms. */

/**
 * Returns a new element. Attributes starting with `on` are listeners; `null` and `false` children are left out.
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...any} children
 */
export function make(name, attributes = {}, ...children) {
  const isSvg = SVG_NAMES.has(name);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else if (key === "class") element.setAttribute("class", value);
    else if (key in element && !isSvg && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  fill(element, ...children);
  return element;
}

const SVG_NAMES = new Set(["svg", "path", "rect", "line", "circle", "polygon", "polyline", "g", "text", "defs", "pattern", "title"]);

/** Replaces the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  logo: "M8 12V8h4M20 8h4v4M24 20v4h-4M12 24H8v-4",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9Z",
  leave: "M10 4H5v16h5M14 8l4 4-4 4M8 12h10",
  close: "M6 6l12 12M18 6 6 18",
};

/** Returns an icon; it is decoration, its button carries the name. */
export function icon(name) {
  if (name === "logo") {
    return make("svg", { viewBox: "0 0 32 32", "aria-hidden": "true" },
      make("rect", { width: 32, height: 32, rx: 8, fill: "#0b62d6" }),
      make("path", { d: PATHS.logo, fill: "none", stroke: "#fff", "stroke-width": 2.4, "stroke-linecap": "round", "stroke-linejoin": "round" }),
      make("circle", { cx: 16, cy: 16, r: 3.2, fill: "#fff" }));
  }
  return make("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
    make("path", { d: PATHS[name], fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round" }));
}

/** Colours of queries by their number: strong enough on pictures, with dark or light ink on them. */
const COLOURS = ["#8b98a8", "#2f9bff", "#ff8a1f", "#22b573", "#e0529c", "#a78bfa", "#facc15", "#14b8c4", "#f87171", "#84cc16"];
export const colourOf = (number) => COLOURS[number % COLOURS.length || (number ? COLOURS.length - 1 : 0)];

/** Returns black or white, whichever is easier to read on a colour. */
export function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#0b0f14" : "#ffffff";
}

const clockFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const minuteFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hour12: false });
const dayFormat = new Intl.DateTimeFormat([], { weekday: "short", day: "numeric", month: "short" });

export const clock = (time) => (isRelative(time) ? position(time) : clockFormat.format(new Date(time)));
export const minute = (time) => minuteFormat.format(new Date(time));
export const day = (time) => dayFormat.format(new Date(time));

/** Returns whether a time counts from the beginning of a recording instead of naming a time of day. */
export const isRelative = (time) => new Date(time).getFullYear() < 1980;

/** Returns a time in a recording as minutes and seconds. */
const position = (time) => {
  const seconds = Math.max(0, new Date(time).getTime() / 1000);
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
};

/** Returns a time of today as clock, of another day with its date, of a recording as its position. */
export function moment(time) {
  const date = new Date(time);
  if (isRelative(time)) return position(time);
  return date.toDateString() === new Date().toDateString() ? clock(date) : `${day(date)} ${minute(date)}`;
}

/** Returns a length of time in words. */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min${seconds % 60 ? ` ${seconds % 60} s` : ""}`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const number = (value) => new Intl.NumberFormat("en").format(value);
export const score = (value) => (value === null || value === undefined ? "" : value.toFixed(2).replace(/^0/, ""));
export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

/** Shows a dialog with a form; returns the values of its fields, or null when it is cancelled. */
export function ask(title, fields, { confirm = "Save", danger = false, note = "" } = {}) {
  return new Promise((resolve) => {
    const inputs = fields.map((field) => [field.name, make(field.options ? "select" : "input", {
      class: "field", name: field.name, type: field.options ? null : field.type ?? "text", value: field.value ?? "",
      required: field.required !== false, placeholder: field.placeholder ?? null, maxlength: 2000, autocomplete: "off", step: field.step ?? null,
    }, (field.options ?? []).map((option) => make("option", { value: option, selected: option === field.value }, option)))]);
    const dialog = make("dialog", { "aria-labelledby": "dialog-title" },
      make("form", { method: "dialog", class: "form" },
        make("h2", { id: "dialog-title" }, title),
        note ? make("p", { class: "dim" }, note) : null,
        fields.map((field, at) => make("label", { class: "named" }, field.label, inputs[at][1])),
        make("div", { class: "row right" },
          make("button", { class: "button", type: "button", onclick: () => dialog.close("cancel") }, "Cancel"),
          make("button", { class: `button primary${danger ? " danger-fill" : ""}`, value: "ok" }, confirm))));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? Object.fromEntries(inputs.map(([name, input]) => [name, input.value])) : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
