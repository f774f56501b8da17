// Draws what /events sends. Every text becomes a text node: nothing that a peer says is read as HTML.
"use strict";

const TONES = {
  serving: "good", ready: "good", recovered: "good", joined: "good", connected: "good",
  spare: "busy", planned: "busy", joining: "warn", waiting: "warn", starting: "warn", restarting: "warn",
  paused: "warn", recovering: "warn", draining: "warn", suspected: "warn", refused: "warn", rounding: "warn",
  unusable: "bad", gone: "bad", failed: "bad", stopped: "bad", offline: "bad", removed: "faint",
};
const UNKNOWN = "–";
const RECONNECT_MS = 3000;
let previous = null; // the report before, for rates

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map(child => child instanceof Node ? child : String(child)));
  return made;
}

function fill(id, children) {
  document.getElementById(id).replaceChildren(...children);
}

function toned(word) {
  return element("span", TONES[word] ?? "", word);
}

function duration(seconds) {
  if (seconds === null) return UNKNOWN;
  if (seconds >= 120) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds >= 1) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const value = 1000 * seconds;
  return `${value.toFixed(value > 0 && value < 10 ? 2 : 0)} ms`;
}

function bytes(count) {
  if (count === null) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count.toFixed(count < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

function layers(begin, end) {
  return end - begin === 1 ? `layer ${begin}` : `layers ${begin}–${end - 1}`;
}

function clock(seconds) {
  const time = new Date(1000 * seconds);
  const isToday = time.toDateString() === new Date().toDateString();
  return isToday ? time.toLocaleTimeString() : time.toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
}

function elapsed({ cluster }) {
  return previous?.cluster ? cluster.time_s - previous.cluster.time_s : 0;
}

function tokensPerSecond(report) {
  const total = report.stats.generation_tokens_total;
  const before = previous?.stats.generation_tokens_total ?? total;
  const time = elapsed(report);
  return time > 0 && total >= before ? ((total - before) / time).toFixed(0) : UNKNOWN;
}

function load(peer, report) {
  const before = previous?.cluster?.peers.find(other => other.peer_id === peer.peer_id);
  const busy = before ? peer.compute_s_total - before.compute_s_total : -1;
  const time = elapsed(report);
  return time > 0 && busy >= 0 ? `${Math.min(100, 100 * busy / time).toFixed(0)} %` : UNKNOWN;
}

function epoch({ epoch }) {
  if (epoch === null) return UNKNOWN;
  const digits = String(epoch);
  const shown = element("span", "", digits.length > 6 ? `…${digits.slice(-4)}` : digits);
  shown.title = `${digits}: every change of the plan begins an epoch, and stages obey the latest alone`;
  return shown;
}

function figures(report) {
  const { cluster, stats } = report;
  const shown = {
    "Stages": `${cluster.stages.length} of ${cluster.num_stages}`,
    "Running": stats.num_running,
    "Waiting": stats.num_waiting,
    "Tokens a second": tokensPerSecond(report),
    "KV in use": `${(100 * stats.kv_cache_usage).toFixed(0)} %`,
    "Steps in flight": cluster.num_in_flight,
    "Epoch": epoch(cluster),
    "Recoveries": cluster.recoveries_total,
    "Last recovery": duration(cluster.last_recovery_s),
    "Tokens rebuilt": cluster.rebuilt_tokens_total,
  };
  return Object.entries(shown).map(([name, value]) =>
    element("div", "", element("dt", "", name), element("dd", "", value)));
}

function kvMeter(usage) {
  const meter = element("meter");
  meter.value = usage;
  meter.high = 0.9;
  meter.title = `${(100 * usage).toFixed(0)} % of the KV cache is in use`;
  return meter;
}

function step(stage) {
  const predicted = stage.predicted_step_s === null ? "" : `, alone ${duration(stage.predicted_step_s)} predicted`;
  return `step ${duration(stage.step_s)}${predicted}`;
}

function stateOf(peer, { is_serving }) {
  if (!peer) return "gone";
  return !is_serving && peer.stage !== null && peer.state === "spare" ? "paused" : peer.state;
}

function stageBox(stage, peer, { cluster, stats }) {
  const kv = `KV ${bytes(stats.num_blocks * stage.kv_block_bytes)}, room for ${stage.num_blocks} blocks`;
  return element("li", "stage",
    element("b", "", stage.peer_id),
    element("span", "", layers(stage.begin, stage.end)),
    toned(stateOf(peer, cluster)),
    element("span", "", step(stage)),
    element("span", "", `weights ${bytes(stage.weight_bytes)}${stage.quantization ? `, ${stage.quantization}` : ""}`),
    element("span", "", stage.num_ranks === 1 ? "1 process" : `${stage.num_ranks} ranks`),
    element("span", "", kv),
    kvMeter(stats.kv_cache_usage),
    element("span", "faint", stage.numerics));
}

function linkArrow(link) {
  const goodput = link?.bytes_per_s ? `${bytes(link.bytes_per_s)}/s` : "";
  const way = [...(link?.is_relayed ? ["relayed"] : []), ...(link && link.codec !== "none" ? [link.codec] : [])];
  const lines = [`${duration(link?.frame_s ?? null)} a frame`, goodput, way.join(", ")].filter(Boolean);
  const arrow = element("li", "link", ...lines.map(line => element("span", "", line)));
  if (link?.delay_s != null) {
    arrow.title = `measured before: ${duration(link.delay_s)} one way, ${bytes(link.goodput_bytes_per_s)}/s`;
    arrow.append(element("span", "faint", `delay ${duration(link.delay_s)}`));
    arrow.append(element("span", "faint", `up to ${bytes(link.goodput_bytes_per_s)}/s`));
  }
  return arrow;
}

function nobody() {
  const command = element("code", "", "distllm token");
  return element("li", "empty", "No peer is here. ", command, " prints the command to add one.");
}

function spareBox(peer) {
  return element("li", "spare", element("b", "", peer.peer_id), ...stateWithReason(peer, peer.state));
}

function chain(report) {
  const { cluster } = report;
  const peers = new Map(cluster.peers.map(peer => [peer.peer_id, peer]));
  const items = cluster.stages.flatMap((stage, number) => [
    ...(number ? [linkArrow(cluster.links[number - 1])] : []),
    stageBox(stage, peers.get(stage.peer_id), report),
  ]);
  const spares = cluster.peers.filter(peer => peer.stage === null && !["gone", "removed"].includes(peer.state));
  const boxes = [...items, ...spares.map(spareBox)];
  return boxes.length ? boxes : [nobody()];
}

function prediction({ predicted }) {
  if (!predicted) return "";
  const single = `TTFT ${duration(predicted.ttft_s)} and TPOT ${duration(predicted.tpot_s)} for one stream`;
  const load = `${predicted.tokens_per_s.toFixed(0)} tokens a second of the expected load`;
  return `Predicted: ${single}, ${load}, bound by ${predicted.binding_limit}.`;
}

function stateWithReason(peer, state) {
  const reason = peer.state === "removed" ? `put out at ${clock(peer.removed_s)}` : peer.trouble;
  const tone = peer.state === "removed" ? "faint" : "bad";
  return [toned(state), ...(reason ? [element("span", `second ${tone}`, reason)] : [])];
}

function peerRow(peer, report) {
  const loaded = peer.loaded.map(([begin, end]) => `[${begin}, ${end})`).join(" ") || UNKNOWN;
  const isHere = !["gone", "removed"].includes(peer.state);
  const cells = {
    "Load": load(peer, report), "Step": duration(peer.step_s), "Free memory": bytes(peer.free_bytes),
    "Beat age": duration(peer.beat_age_s), "Round trip": duration(peer.round_trip_s),
  };
  const numbers = Object.entries(cells).map(([name, value]) =>
    cell(name, "number", isHere || name === "Beat age" ? value : UNKNOWN));
  numbers[0].title = `its present step has taken ${duration(peer.busy_s)}`;
  const row = element("tr", "",
    cell(null, "", element("b", "", peer.peer_id), " ", element("span", "second faint", peer.address)),
    cell(null, "", ...stateWithReason(peer, stateOf(peer, report.cluster))),
    cell("Loaded layers", "", isHere ? loaded : UNKNOWN),
    ...numbers);
  row.role = "row";
  return row;
}

function cell(name, className, ...children) {
  const made = element("td", className, ...children);
  made.role = "cell";
  if (name) made.dataset.label = name; // shown where the window is too narrow for the table's head
  return made;
}

function eventRow(event) {
  const took = event.duration_ms === null ? "" : `after ${duration(event.duration_ms / 1000)}: `;
  return element("li", "",
    element("span", "faint", clock(event.time_s)),
    toned(event.kind),
    element("span", "", event.peer_id ?? ""),
    element("span", "", took + event.text));
}

function phase({ cluster, state }) {
  if (state !== "ready" || !cluster) return state;
  if (cluster.waiting) return "waiting";
  return cluster.is_serving || cluster.epoch === null ? state : "recovering";
}

function notice({ cluster, loading }) {
  const loss = cluster && !cluster.is_serving ? sinceLoss(cluster) : "";
  return [loss, cluster?.waiting ?? loading?.activity].filter(Boolean).join(" – ");
}

// How long no step has been able to run, and after whose loss.
function sinceLoss({ events, time_s }) {
  const end = events.findIndex(event => event.kind === "recovered" || event.kind === "planned");
  const losses = events.slice(0, end < 0 ? events.length : end).filter(event => event.kind === "suspected");
  const first = losses.at(-1);
  return first ? `${first.peer_id} was lost ${duration(time_s - first.time_s)} ago: ${first.text}` : "";
}

function show(report) {
  const { cluster } = report;
  setState(phase(report), notice(report));
  if (cluster) {
    fill("figures", figures(report));
    fill("chain", chain(report));
    document.getElementById("prediction").textContent = prediction(cluster);
    fill("peers", cluster.peers.map(peer => peerRow(peer, report)));
    fill("events", cluster.events.length ? cluster.events.map(eventRow) : [element("li", "empty", "Nothing yet.")]);
  }
  previous = report;
}

function setState(state, text) {
  const badge = document.getElementById("state");
  if (badge.textContent !== state) badge.textContent = state; // a screen reader tells of changes alone
  badge.className = `badge ${TONES[state] ?? ""}`;
  document.getElementById("notice").textContent = text;
  document.body.classList.toggle("stale", state === "offline");
}

function connect() {
  const source = new EventSource("events");
  source.onmessage = message => show(JSON.parse(message.data));
  source.onerror = () => {
    const last = previous?.cluster ? ` What follows is as of ${clock(previous.cluster.time_s)}.` : "";
    setState("offline", `The server does not answer.${last}`);
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RECONNECT_MS); // it was refused
  };
}

connect();
