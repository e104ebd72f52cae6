/**
 * The live socket: one connection for all pictures, states and events.
 * Each drawn picture is acknowledged, so that a slow page gets fewer pictures instead of old ones.
 */
import { root } from "./api.js";

const decoder = new TextDecoder();
const RETRY_MS = [500, 10000];
const REFUSED = 1008;

class LiveConnection extends EventTarget {
  constructor() {
    super();
    this.socket = null;
    this.views = new Map();
    this.health = { streams: [], sinks: [] };
    this.connected = false;
    this.retry = RETRY_MS[0];
    this.received = 0;
    document.addEventListener("visibilitychange", () => this.sendState());
  }

  /** Opens the connection and keeps it open. */
  start() {
    if (this.socket) return;
    this.wanted = true;
    const url = new URL(`${root}/api/v1/live`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.connected = true;
      this.retry = RETRY_MS[0];
      this.sendWatch();
      this.sendState();
      this.announce("connection");
    };
    socket.onmessage = (message) => (typeof message.data === "string" ? this.readText(message.data) : this.readPicture(message.data));
    socket.onclose = ({ code }) => {
      const isRefused = !this.connected || code === REFUSED;
      this.socket = null;
      this.connected = false;
      if (isRefused && this.wanted) this.announce("refused");
      this.announce("connection");
      if (this.wanted) setTimeout(() => this.wanted && this.start(), this.retry);
      this.retry = Math.min(this.retry * 2, RETRY_MS[1]);
    };
  }

  /** Ends the connection for good. */
  stop() {
    this.wanted = false;
    this.socket?.close();
  }

  /**
   * Draws a stream until the returned function is called.
   * @param {string} stream
   * @param {{width: number, fps: number, draw: (header: any, bitmap: ImageBitmap) => void}} view
   */
  watch(stream, view) {
    this.views.set(view, stream);
    this.sendWatch();
    return () => {
      this.views.delete(view);
      this.sendWatch();
    };
  }

  sendWatch() {
    if (!this.connected) return;
    const streams = {};
    for (const [view, stream] of this.views) {
      const before = streams[stream] ?? { width: 16, fps: 0.1 };
      streams[stream] = { width: Math.max(before.width, view.width), fps: Math.max(before.fps, view.fps) };
    }
    this.send({ op: "watch", streams });
  }

  sendState() {
    this.send({ op: document.hidden ? "pause" : "resume" });
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  async readPicture(data) {
    try {
      const length = new DataView(data).getUint32(0, true);
      const header = JSON.parse(decoder.decode(new Uint8Array(data, 4, length)));
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
      header.received = performance.now();
      for (const [view, stream] of this.views) if (stream === header.stream) view.draw(header, bitmap);
      bitmap.close();
      this.received += 1;
    } finally {
      this.send({ op: "ack", count: 1 });
    }
  }

  readText(text) {
    const message = JSON.parse(text);
    if (message.type === "health") this.health = message;
    this.announce(message.type, message);
  }

  announce(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Calls back on messages of a type until the returned function is called. */
  on(type, callback) {
    const listener = (event) => callback(event.detail);
    this.addEventListener(type, listener);
    return () => this.removeEventListener(type, listener);
  }
}

export const live = new LiveConnection();
window.groundstreamLive = live;
