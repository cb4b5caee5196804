"use strict";
// Drawing: panes, the timeline, the pictures of the gallery, the legend. No function here talks to the server.
const LABELS = { dream: "Dream", branch: "Branch", real: "Real game" };

function make(tag, parent, text = "", more = {}) {
  const element = Object.assign(document.createElement(tag), more);
  element.textContent = text;
  parent.append(element);
  return element;
}
function hint(parent, key) { make("kbd", parent, key).setAttribute("aria-hidden", "true"); }

function makePanes(parent, names, [H, W]) {
  parent.replaceChildren();
  parent.style.setProperty("--panes", names.length);
  parent.style.setProperty("--ratio", W / H);
  for (const name of names) {
    const figure = make("figure", parent, "", { className: name }), frame = make("div", figure, "", { className: "frame" });
    make("canvas", frame).setAttribute("role", "img");
    make("canvas", frame, "", { hidden: true }).setAttribute("aria-hidden", "true");
    const words = make("figcaption", figure);
    make("b", words, LABELS[name]);
    make("div", words);
  }
}

// One pane at one step: picture, surprise, caption.
function drawPane(name, pane, rgb, [H, W], actions, overlay) {
  const figure = document.querySelector(`figure.${name}`), [canvas, cover] = figure.querySelectorAll("canvas");
  paint(canvas, rgb, W, H);
  drawSurprise(cover, overlay ? pane.surprise : null);
  const parts = caption(name, pane, actions), words = figure.querySelector("figcaption div");
  words.replaceChildren();
  for (const [text, className] of parts) make("span", words, text, { className });
  canvas.setAttribute("aria-label", `${LABELS[name]}: ${parts.map(([text]) => text).join(", ")}`);
}

// [text, class] of each part; a small window hides the parts of class "more".
function caption(name, pane, actions) {
  const parts = [];
  if (name === "branch") parts.push([`from step ${pane.at}: ${actions[pane.action].toLowerCase()}`, ""]);
  else if ((pane.action != null || pane.name) && pane.t > 0) parts.push([(pane.name ?? actions[pane.action].toLowerCase()) + (pane.by ? ` (${pane.by})` : ""), ""]);
  parts.push([`return ${+pane.return.toFixed(2)}`, ""]);
  if (pane.ended) parts.push([`ended at step ${pane.t}`, "end"]);
  if (pane.p_end !== undefined && pane.t > 0) parts.push([`end ${(100 * pane.p_end).toFixed(0)} %`, "more"]);
  if (pane.bits != null) parts.push([`surprise ${pane.bits.toFixed(1)} bits`, "more"]);
  return parts;
}

function paint(canvas, rgb, W, H) {
  if (canvas.width !== W || canvas.height !== H) { canvas.width = W; canvas.height = H; }
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  for (let i = 0, j = 0; i < image.data.length; i += 4) {
    image.data[i] = rgb[j++]; image.data[i + 1] = rgb[j++]; image.data[i + 2] = rgb[j++]; image.data[i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// Orange by bits; from 1 bit up also a white border and stripes, so that it is visible without color.
function drawSurprise(canvas, bits_grid) {
  canvas.hidden = !bits_grid;
  if (canvas.hidden) return;
  const n = 16, h = bits_grid.length, w = bits_grid[0].length, context = canvas.getContext("2d");
  canvas.width = w * n; canvas.height = h * n;
  bits_grid.forEach((row, y) => row.forEach((bits, x) => {
    context.fillStyle = `rgba(230, 159, 0, ${Math.min(0.75, bits / 8)})`;
    context.fillRect(x * n, y * n, n, n);
    if (bits < 1) return;
    context.strokeStyle = "#fff"; context.lineWidth = 1.5;
    context.strokeRect(x * n + 1, y * n + 1, n - 2, n - 2);
    context.beginPath();
    for (let d = 5; d < 2 * n; d += 6) {
      context.moveTo(x * n + Math.max(0, d - n), y * n + Math.min(d, n));
      context.lineTo(x * n + Math.min(d, n), y * n + Math.max(0, d - n));
    }
    context.lineWidth = .7; context.stroke();
  }));
}

function drawTimeline(canvas, timeline, t, length) {
  const ratio = devicePixelRatio || 1, W = canvas.clientWidth, H = canvas.clientHeight, style = getComputedStyle(document.body);
  if (!W) return;
  canvas.width = W * ratio; canvas.height = H * ratio;
  const context = canvas.getContext("2d"), x = (step) => 6 + (W - 12) * step / Math.max(1, length);
  const color = (name) => style.getPropertyValue(`--${name}`);
  context.scale(ratio, ratio); context.font = "11px system-ui"; context.fillStyle = color("soft");
  const most = Math.max(1, ...Object.values(timeline).flatMap((line) => line.bits.map((b) => b ?? 0)));
  context.fillText(`surprise, bits per frame (at most ${most.toFixed(1)}); ▲ ▼ reward`, 6, 12);
  for (const [name, line] of Object.entries(timeline)) {
    context.strokeStyle = context.fillStyle = color(name); context.lineWidth = 1.5;
    context.setLineDash(name === "branch" ? [4, 3] : []); context.beginPath();
    line.bits.forEach((b, i) => context.lineTo(x(i + 1), H - 5 - (H - 24) * (b ?? 0) / most)); context.stroke();
    line.reward.forEach((r, i) => {
      if (Math.abs(r) >= .5) context.fillText(r > 0 ? "▲" : "▼", x(i + 1) - 5, name === "branch" ? H - 14 : H - 4);
    });
  }
  context.setLineDash([]); context.strokeStyle = color("ink");
  context.beginPath(); context.moveTo(x(t), 0); context.lineTo(x(t), H); context.stroke();
}

function drawLegend(channels) {
  for (const list of document.querySelectorAll(".legend")) {
    list.replaceChildren();
    list.hidden = !channels.length;
    for (const [name, color] of channels) {
      const item = make("li", list);
      make("i", item).style.background = color;
      make("span", item, name);
    }
  }
}
