// Loaded before the suite: what a timer of its own aborts, after 0.5 to 10 s, gets twenty times as long.
"use strict";
const start = globalThis.setTimeout;
globalThis.setTimeout = (callback, milliseconds, ...rest) =>
  start(callback, /\.abort\(\)/.test(String(callback)) ? milliseconds * 20 : milliseconds, ...rest);
