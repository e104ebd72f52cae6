/** Calls of the HTTP API. */

export const root = document.querySelector('meta[name="groundstream-root"]').content;

/** An answer that is an error, with its sentence. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let onLoggedOut = () => {};
export const whenLoggedOut = (callback) => { onLoggedOut = callback; };

export const address = (path) => `${root}/api/v1${path}`;

/**
 * Calls the API. Returns `{body, etag}`.
 * @param {string} method
 * @param {string} path
 * @param {{body?: any, etag?: string, signal?: AbortSignal}} [options]
 */
export async function call(method, path, { body, etag, signal } = {}) {
  const headers = {};
  if (method !== "GET") headers["X-Groundstream"] = "1";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (etag) headers["If-Match"] = etag;
  let response;
  try {
    response = await fetch(address(path), { method, headers, signal, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server does not answer: is the monitor running?");
  }
  const text = await response.text();
  const parsed = parse(text, response.headers.get("Content-Type") ?? "");
  if (!response.ok) {
    if (response.status === 401 && path !== "/session") onLoggedOut();
    throw new ApiError(response.status, parsed?.detail ?? `the server answers ${response.status} ${response.statusText}: is the monitor running?`);
  }
  return { body: parsed, etag: response.headers.get("ETag") };
}

/** Returns the value of a JSON text; null for anything else, such as the error page of a proxy. */
function parse(text, type) {
  if (!text || !type.includes("json")) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export const get = async (path, options) => (await call("GET", path, options)).body;

/** Returns a query string of what is set; lists repeat their name. */
export function queryString(values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") parameters.append(name, item);
    }
  }
  const text = parameters.toString();
  return text ? `?${text}` : "";
}
