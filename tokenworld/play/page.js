"use strict";
const $ = (id) => document.getElementById(id), TOKEN = new URLSearchParams(location.search).get("token");
const ARROWS = { ArrowLeft: "LEFT", ArrowRight: "RIGHT", ArrowUp: "UP", ArrowDown: "DOWN", " ": "FIRE" };
const SIGNS = { LEFT: ["←", "ArrowLeft"], RIGHT: ["→", "ArrowRight"], UP: ["↑", "ArrowUp"], DOWN: ["↓", "ArrowDown"], FIRE: ["Space", "Space"] };
const NAMES = { null: "You", policy: "Policy", planner: "Planner" };
const STORE = "tokenworld play";
let world = null, seen = null, script = null, timeline = {};  // from the server: once, with the newest frame, of all steps
let socket = null, waiting = null, queue = [], retry = 500, online = false, closed = "";
let playing = false, fresh = true, armed = false, driver = null, overlay = false, moves = [], next = 0, pressedAt = 0;
let notice = "", shownState = "", busyTimer = 0;
const held = new Set(), tapped = new Set(), latencies = [], frames = [];

// ---- the socket: one request at a time, so that a slow model has no backlog
function connect() {
  const address = new URL(`socket?token=${encodeURIComponent(TOKEN)}`, location.href);  // relative: a tunnel can change the port
  address.protocol = "ws:";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = (event) => {
    waiting = null; queue = []; online = playing = armed = false; closed = event.reason; held.clear(); tapped.clear();
    busy(false); refresh();
    setTimeout(connect, retry); retry = Math.min(3000, retry * 1.5);
  };
}
function ask(op, more = {}, pressed = null) {
  if (!online) return;
  if (waiting) { if (op !== "step") { queue = queue.filter((q) => q[0] !== op); queue.push([op, more, pressed]); } return; }
  waiting = { op, pressed };
  busy(true);
  socket.send(JSON.stringify({ op, ...more }));
}
function receive(data) {
  const asked = waiting; waiting = null;
  busy(false);
  if (typeof data === "string") { playing = armed = false; refused(asked, JSON.parse(data).error); }
  else {
    const size = new DataView(data).getUint32(0, true), body = data.slice(4 + size);
    const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
    if (answer.hello !== undefined) return greet(answer, body);
    if (answer.file) download(answer.file, body); else show(answer, body);
    if (asked && asked.pressed !== null) { latencies.push(performance.now() - asked.pressed); latencies.splice(0, latencies.length - 60); }
  }
  if (queue.length) ask(...queue.shift()); else if (tapped.size && !playing && !armed && seen) step(pressedAt);  // pressed meanwhile
  refresh();
}
function refused(asked, error) {
  if (asked && asked.op === "restore") begin(0);  // the server has another game than this page
  refresh(); say(error);
}
function greet(answer, body) {
  const identity = JSON.stringify([answer.hello, answer.size, answer.starts.map((start) => start.name)]), before = world && world.identity, kept = remembered(identity);
  world = { ...answer, identity }; retry = 500; online = true;
  if (before !== identity) {
    $("temperature").value = $("temperature").max = answer.warmest;
    $("temperature").value = kept?.temperature ?? answer.temperature ?? 1;
    $("fps").max = answer.fastest; $("fps").value = kept?.fps ?? answer.fps;
    if (!answer.drivers.includes(driver)) driver = null;
    makePad(); makeDrivers(); explain();
  }
  makeGallery(body);
  const past = before === identity ? script : kept && kept.script;
  if (past) { fresh = !past.log.length; ask("restore", { script: past }); } else begin(0);
  refresh();
  if (before && before !== identity) say("The server has another model or other start states now: a new game.");
}

// ---- a reload keeps the game: its script lies in the storage of this tab
function remember() {
  if (!world || !script) return;
  const kept = { identity: world.identity, script, temperature: +$("temperature").value, fps: +$("fps").value };
  try { sessionStorage.setItem(STORE, JSON.stringify(kept)); } catch { /* storage is full or off: a reload begins a new game */ }
}
function remembered(identity) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE));
    return kept && kept.identity === identity ? kept : null;
  } catch { return null; }
}

function download(name, body) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([body])); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); say(`Saved ${name}.`);
}

// ---- the display
function show(answer, body) {
  const before = seen, bytes = world.size[0] * world.size[1] * 3; seen = answer;
  if (answer.script.last) {  // one more step: the page has the earlier ones
    script.log.length = answer.t - 1; script.log.push(answer.script.last); script.t = answer.t;
    const b = script.branch; if (b) { if (b[0] >= answer.t - 1) script.branch = null; else b[2] = Math.min(b[2], answer.t - 1); }
    for (const name of ["dream", "branch"]) if (answer[name]) grow(name, answer[name]); else delete timeline[name];
  } else { script = answer.script; timeline = answer.timeline; }
  if (!before || before.panes.join() !== answer.panes.join() || !document.querySelector("figure")) makePanes($("panes"), answer.panes, world.size);
  answer.panes.forEach((name, i) => drawPane(name, answer[name], new Uint8Array(body, i * bytes, bytes), world.size, world.actions, overlay));
  $("t").max = answer.length;
  if (document.activeElement !== $("t") || playing) $("t").value = answer.t;
  $("t").setAttribute("aria-valuetext", $("t-text").textContent = `${answer.t} of ${answer.length}`);
  document.querySelectorAll("#gallery button").forEach((button, i) => button.setAttribute("aria-pressed", i === answer.start));
  drawTimeline($("timeline"), timeline, answer.t, answer.length);
  if (isOver()) playing = false;
  const now = performance.now(); frames.push(now); while (frames[0] < now - 2000) frames.shift();
  const sorted = [...latencies].sort((a, b) => a - b), middle = sorted.length ? sorted[sorted.length >> 1] : null;
  Object.assign(document.body.dataset, { latency: middle ?? "", t: answer.t, frames: +(document.body.dataset.frames || 0) + 1 });
  const speed = `Frames per second: ${(frames.length / 2).toFixed(0)}`, delay = middle === null ? "" : `, ${middle.toFixed(0)} ms from key to frame`;
  $("speed-text").textContent = `${speed}${delay}. Seed: ${answer.seed}`;
}
function grow(name, pane) {
  const line = timeline[name] ??= { bits: [], reward: [], p_end: [] };
  if (pane.t < seen.t) return;
  for (const key of Object.keys(line)) { line[key].length = Math.max(0, pane.t - 1); line[key].push(pane[key]); }
}
const isOver = () => seen.t === seen.length && seen.panes.every((name) => name === "real" || seen[name].ended);
function busy(on) {  // show a planner at once, and without flicker between its steps: its searches are long
  clearTimeout(busyTimer);
  const planner = driver === "planner" && (on ? waiting.op === "step" : playing);
  if (on) $("busy").lastChild.textContent = planner ? "the planner is searching …" : "computing …";
  busyTimer = setTimeout(() => { $("busy").hidden = !on; }, on === planner ? 0 : 400);
  if (!on && !planner) { clearTimeout(busyTimer); $("busy").hidden = true; }
}

// ---- the state, its message, and the enabled controls
function state() {
  if (!online) return "offline";
  if (!seen) return "loading";
  if (armed) return "armed";
  if (isOver()) return "ended";
  return playing ? "playing" : fresh ? "waiting" : "paused";
}
const MESSAGES = {
  offline: () => closed || "The server does not answer. The game continues when it is back.",
  loading: () => "The model sees the first frames …",
  armed: () => `Step ${branching()}: which action instead of ${taken()}? Esc cancels.`,
  ended: () => `The dream ended at step ${seen.length}. Begin again, or rewind.`,
  playing: () => driver ? `The ${driver} plays. An action key takes over.` : "You play. P pauses.",
  waiting: () => driver ? `Play lets the ${driver} begin. An action key takes over.` : `The first action key or button begins the game.${warning()}`,
  paused: () => driver ? `Paused. Play lets the ${driver} continue. An action key takes over.` :
    "Paused. Play continues; an action key takes one step.",
};
const warning = () => world.starts[seen.start].seeds.length ? "" : ` Without keys this model's games end within ${world.idle_steps} steps.`;
function say(text) { notice = text; refresh(); }
function write(element, text) { if (element.textContent !== text) element.textContent = text; }  // a live region speaks on change
function refresh() {
  const now = state(), off = now === "offline" || now === "loading", over = !off && isOver();
  if (now !== shownState) { if (shownState !== "loading") notice = ""; shownState = now; }
  write($("status"), notice || MESSAGES[now]());
  write($("link"), online ? "connected" : world ? "disconnected" : "connecting …");
  $("link").className = online ? "" : "off"; document.body.dataset.link = online ? "on" : "off"; document.body.dataset.state = now;
  write($("name"), world ? world.hello : "");
  write($("play").firstChild, playing ? "Pause" : "Play");
  for (const control of document.querySelectorAll("#stage button, #side button, input")) if (control.id !== "help-open") control.disabled = off;
  for (const button of document.querySelectorAll("#pad button")) button.disabled = off || now === "ended";
  $("play").disabled = $("single").disabled = off || over;
  $("back").disabled = off || seen.t === 0;
  $("branch").disabled = off || !timeline.dream.bits.length;
  for (const id of ["adopt", "unbranch"]) $(id).hidden = !seen || !seen.branch;
  document.body.classList.toggle("armed", armed); $("branch").setAttribute("aria-pressed", armed);
  $("surprise").setAttribute("aria-pressed", overlay);
  document.querySelectorAll("#drivers button").forEach((button) => button.setAttribute("aria-pressed", button.value === `${driver}`));
  $("temperature").setAttribute("aria-valuetext", $("temperature-text").textContent = (+$("temperature").value).toFixed(2));
  $("fps").setAttribute("aria-valuetext", $("fps-text").textContent = `${$("fps").value} steps per second`);
}

// ---- elements made once per model
function makePad() {
  $("pad").replaceChildren();
  moves = world.actions.map((name) => {  // the keys of each action; null: only a digit chooses it
    const parts = name.toUpperCase().match(/UP|DOWN|LEFT|RIGHT|FIRE/g) || [];
    return parts.join("") === name.toUpperCase() || name.toUpperCase() === "NOOP" ? parts : null;
  });
  world.actions.forEach((name, a) => {
    const button = make("button", $("pad")), parts = moves[a] || [], digit = a < 10 ? `${(a + 1) % 10}` : "";
    make("span", button, name.toLowerCase());
    const sign = parts.length ? parts.map((part) => SIGNS[part][0]).join("") : digit;
    if (sign) hint(button, sign);
    const keys = [parts.length === 1 ? SIGNS[parts[0]][1] : "", digit].filter(Boolean).join(" ");
    if (keys) button.setAttribute("aria-keyshortcuts", keys);
    button.onpointerdown = (e) => { if (e.button) return; button.setPointerCapture(e.pointerId); press(`#${a}`); };
    button.onpointerup = button.onpointercancel = () => held.delete(`#${a}`);
    button.onclick = (e) => { if (e.detail === 0) { press(`#${a}`); held.delete(`#${a}`); } };  // by keyboard or screen reader
  });
}
function makeDrivers() {
  $("drivers").replaceChildren();
  for (const name of [null, ...world.drivers]) {
    const button = make("button", $("drivers"), NAMES[name], { value: `${name}` });
    button.setAttribute("aria-keyshortcuts", "M");
    button.onclick = () => drive(name);
  }
}
function makeGallery(body) {
  const [H, W] = world.size; $("gallery").replaceChildren();
  world.starts.forEach((start, i) => {
    const button = make("button", $("gallery"));
    paint(make("canvas", button), new Uint8Array(body, i * H * W * 3, H * W * 3), W, H);
    make("span", button, start.name); button.onclick = () => begin(i);
  });
}
function explain() {
  const real = world.starts.some((start) => start.real), idle = world.actions[world.idle].toLowerCase();
  write($("about-panes"), `A trained model imagines each frame of the dream. ${real ? "The real game gets the same actions." : "No game program runs."}`);
  write($("about-idle"), `The first action key or button begins the game. While none is pressed, the action is ${idle}.`);
  const lasts = world.starts.some((start) => start.seeds.length) ? `From here the dream lasts at least ${world.idle_steps} steps if ` +
    `one action key is pressed and then none, at temperature ${(world.temperature ?? 1).toFixed(2)}. ` : "";
  write($("gallery-note"), lasts + (real ? "" : "Only MinAtar runs of `tokenworld train` have the real game."));
  $("temperature-row").hidden = world.temperature === null;
  drawLegend(world.channels);
}

// ---- actions of the user
const pause = () => { playing = false; };
function play() { playing = true; fresh = armed = false; next = 0; requestAnimationFrame(tick); }
function randomSeed(start) {  // a seed whose dream lasts a while, different from the current one
  const seeds = world.starts[start].seeds, others = seeds.filter((seed) => !seen || seen.start !== start || seed !== seen.seed);
  const from = others.length ? others : seeds;
  return from.length ? from[Math.floor(Math.random() * from.length)] : Math.floor(Math.random() * 1e6);
}
function begin(start, seed = randomSeed(start)) { playing = armed = false; fresh = true; notice = ""; ask("begin", { start, seed }); refresh(); }
function action() {
  const digits = [...held, ...tapped].filter((key) => key[0] === "#"); if (digits.length) return +digits.pop().slice(1);
  const wanted = new Set([...held, ...tapped]); let best = world.idle, score = 0;
  moves.forEach((parts, a) => { if (parts && parts.length > score && parts.every((part) => wanted.has(part))) { best = a; score = parts.length; } });
  return best;
}
function step(pressed = null) {
  if (waiting) return;
  const chosen = driver || action(); tapped.clear();
  ask("step", { action: chosen, temperature: world.temperature === null ? null : +$("temperature").value }, pressed);
}
function tick(now) {
  if (!playing) return;
  if (now >= next && !waiting) { step(tapped.size ? pressedAt : null); next = Math.max(next + 1000 / $("fps").value, now); }
  requestAnimationFrame(tick);
}
function press(key) {
  if (["offline", "loading", "ended"].includes(state())) return;
  notice = ""; held.add(key); tapped.add(key); pressedAt = performance.now();
  if (armed) { const chosen = action(); held.clear(); tapped.clear(); armed = false; fresh = false; ask("branch", { t: branching(), action: chosen }); return refresh(); }
  if (driver) drive(null);
  if (fresh) play();  // the first action begins the game; paused, it takes one step
  if (!waiting) { step(pressedAt); next = performance.now() + 1000 / $("fps").value; }
  refresh();
}
function drive(by) { driver = by; notice = ""; refresh(); }
function turn() { const all = [null, ...world.drivers]; drive(all[(all.indexOf(driver) + 1) % all.length]); }
const branching = () => Math.min(seen.t, timeline.dream.bits.length - 1);
const taken = () => {  // the action of the first future at this step
  const [action] = script.log[Math.min(seen.t, script.log.length - 1)];
  return Array.isArray(action) ? "the repeated one" : typeof action === "string" ? `the ${action}'s` : world.actions[action].toLowerCase();
};
function rewind(t) { if (!online || !seen) return; playing = armed = fresh = false; ask("rewind", { t: Math.max(0, Math.min(seen.length, t)) }); }
const DO = {
  play: () => playing ? pause() : play(), back: () => rewind(seen.t - 1), single: () => { playing = fresh = false; step(); },
  again: (e) => e && e.shiftKey ? begin(seen.start, seen.seed) : begin(seen.start), branch: () => { playing = false; armed = !armed; },
  adopt: () => ask("adopt"), unbranch: () => ask("unbranch"),
  surprise: () => { overlay = !overlay;
    for (const name of seen.panes) drawSurprise(document.querySelectorAll(`figure.${name} canvas`)[1], overlay ? seen[name].surprise : null); },
  gif: () => { notice = "Drawing the gif …"; ask("save", { kind: "gif" }); }, npz: () => ask("save", { kind: "npz" }),
};
const KEYS = { p: "play", ",": "back", ".": "single", r: "again", R: "again", b: "branch", k: "adopt", x: "unbranch", o: "surprise", s: "gif", d: "npz" };
function act(id, event) { if (!$(id).disabled && !$(id).hidden) { notice = ""; DO[id](event); refresh(); } }
function nudge(id, by) { $(id).value = +$(id).value + by; refresh(); }
function help() { if (!$("help").open) { pause(); refresh(); $("help").showModal(); } }

for (const id of Object.keys(DO)) $(id).onclick = (event) => act(id, event);
for (const id of ["temperature", "fps"]) $(id).oninput = refresh;
$("t").oninput = () => rewind(+$("t").value);
$("help-open").onclick = help;
addEventListener("pointerup", () => {  // the keyboard goes back to the game
  const e = document.activeElement; if (e && e !== document.body && !$("help").open) setTimeout(() => e.blur());
});
addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $("help").open) return;
  if (e.key === "?") { e.preventDefault(); return help(); }
  if (!online || !seen) return;
  const on = e.target.tagName, range = on === "INPUT", onButton = on === "BUTTON" && (e.key === " " || e.key === "Enter");
  if (e.key === "Escape") { armed = false; e.target.blur(); return refresh(); }
  if (onButton || (range && e.key.startsWith("Arrow"))) return;
  const digit = /^[0-9]$/.test(e.key) ? (+e.key + 9) % 10 : -1;
  if (ARROWS[e.key] || (digit >= 0 && digit < world.actions.length)) { e.preventDefault(); if (!e.repeat || !playing) press(ARROWS[e.key] || `#${digit}`); }
  else if (e.key === "g") $("gallery").querySelector("button").focus();
  else if (e.key === "m") turn();
  else if (e.key === "[" || e.key === "]") nudge("temperature", e.key === "[" ? -.05 : .05);
  else if (e.key === "-" || e.key === "+") nudge("fps", e.key === "-" ? -1 : 1);
  else if (KEYS[e.key]) { e.preventDefault(); if (!e.repeat || e.key === "." || e.key === ",") act(KEYS[e.key], e); }
});
addEventListener("keyup", (e) => { held.delete(ARROWS[e.key]); const d = /^[0-9]$/.test(e.key) ? (+e.key + 9) % 10 : -1; if (d >= 0) held.delete(`#${d}`); });
addEventListener("blur", () => held.clear());
addEventListener("resize", () => seen && drawTimeline($("timeline"), timeline, seen.t, seen.length));
addEventListener("pagehide", remember);
document.addEventListener("visibilitychange", () => { if (document.hidden) { pause(); if (seen) refresh(); remember(); } });
connect(); refresh();
