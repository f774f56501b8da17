// Draws what /events sends. Every text becomes a text node: nothing that a peer says is read as HTML.
"use strict";

const TONES = {
  serving: "good", ready: "good", recovered: "good", joined: "good", connected: "good",
  spare: "busy", planned: "busy", unusable: "bad", removed: "faint", rounding: "warn", joining: "warn", waiting: "warn", starting: "warn", restarting: "warn",
  draining: "warn", suspected: "warn", refused: "warn", gone: "bad", failed: "bad", stopped: "bad", offline: "bad",
};
const UNKNOWN = "–";
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
  if (seconds >= 10) return `${seconds.toFixed(0)} s`;
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

function tokensPerSecond(report) {
  const total = report.stats.generation_tokens_total;
  const before = previous?.stats.generation_tokens_total ?? total;
  const elapsed = previous?.cluster ? report.cluster.time_s - previous.cluster.time_s : 0;
  return elapsed > 0 && total >= before ? ((total - before) / elapsed).toFixed(0) : UNKNOWN;
}

function figures(report) {
  const { cluster, stats } = report;
  const shown = {
    "Epoch": epoch(cluster.epoch),
    "Stages": `${cluster.stages.length} of ${cluster.num_stages}`,
    "Steps in flight": cluster.num_in_flight,
    "Running": stats.num_running,
    "Waiting": stats.num_waiting,
    "Tokens a second": tokensPerSecond(report),
    "KV in use": `${(100 * stats.kv_cache_usage).toFixed(0)} %`,
    "Recoveries": cluster.recoveries_total,
    "Last recovery": duration(cluster.last_recovery_s),
    "Tokens rebuilt": cluster.rebuilt_tokens_total,
  };
  return Object.entries(shown).map(([name, value]) =>
    element("div", "", element("dt", "", name), element("dd", "", value)));
}

function epoch(number) {
  if (number === null) return UNKNOWN; // it begins with the time in milliseconds: the last digits tell them apart
  const digits = String(number);
  const shown = element("span", "", digits.length > 7 ? `…${digits.slice(-5)}` : digits);
  shown.title = `epoch ${digits}`;
  return shown;
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

function stageBox(stage, peer, stats) {
  const kv = `KV ${bytes(stats.num_blocks * stage.kv_block_bytes)}, room for ${stage.num_blocks} blocks`;
  return element("li", "stage",
    element("b", "", stage.peer_id),
    element("span", "", layers(stage.begin, stage.end)),
    peer ? toned(peer.state) : toned("gone"),
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
  const lines = [duration(link?.frame_s ?? null), goodput, way.join(", ")];
  const arrow = element("li", "link", ...lines.map(line => element("span", "", line)));
  if (link?.delay_s != null) {
    arrow.title = `measured before: ${duration(link.delay_s)} one way, ${bytes(link.goodput_bytes_per_s)}/s`;
    arrow.append(element("span", "faint", `delay ${duration(link.delay_s)}`));
    arrow.append(element("span", "faint", `up to ${bytes(link.goodput_bytes_per_s)}/s`));
  }
  return arrow;
}

function chain({ cluster, stats }) {
  const peers = new Map(cluster.peers.map(peer => [peer.peer_id, peer]));
  const items = cluster.stages.flatMap((stage, number) => [
    ...(number ? [linkArrow(cluster.links[number - 1])] : []),
    stageBox(stage, peers.get(stage.peer_id), stats),
  ]);
  const spares = cluster.peers.filter(peer => peer.stage === null && !["gone", "removed"].includes(peer.state));
  const boxes = spares.map(peer => element("li", "spare",
    element("b", "", peer.peer_id),
    toned(peer.state),
    ...(peer.state === "unusable" ? [element("span", "faint", peer.trouble)] : [])));
  return items.length + boxes.length ? [...items, ...boxes] : [element("li", "faint", "no peer is here")];
}

function prediction({ predicted }) {
  if (!predicted) return "";
  const single = `TTFT ${duration(predicted.ttft_s)} and TPOT ${duration(predicted.tpot_s)} for one stream`;
  const load = `${predicted.tokens_per_s.toFixed(0)} tokens a second of the expected load`;
  return `Predicted: ${single}, ${load}, bound by ${predicted.binding_limit}.`;
}

function peerRow(peer) {
  const loaded = peer.loaded.map(([begin, end]) => `[${begin}, ${end})`).join(" ") || UNKNOWN;
  const name = element("td", "name", element("b", "", peer.peer_id), element("span", "faint", peer.address));
  const state = element("td", "state", toned(peer.state), element("span", "bad", peer.trouble ?? ""));
  const numbers = [
    duration(peer.step_s), duration(peer.busy_s), bytes(peer.free_bytes),
    duration(peer.beat_age_s), duration(peer.round_trip_s),
  ];
  return element("tr", "", name,
    state,
    element("td", "", loaded),
    ...numbers.map(number => element("td", "number", number)));
}

function eventRow(event) {
  const took = event.duration_ms === null ? "" : `after ${duration(event.duration_ms / 1000)}: `;
  return element("li", "",
    element("span", "faint", new Date(1000 * event.time_s).toLocaleTimeString()),
    toned(event.kind),
    element("span", "", event.peer_id ?? ""),
    element("span", "", took + event.text));
}

function show(report) {
  const { cluster, state } = report;
  const isWaiting = state === "ready" && Boolean(cluster?.waiting);
  setState(isWaiting ? "waiting" : state);
  const notice = cluster?.waiting ?? report.loading?.activity ?? "";
  document.getElementById("notice").textContent = notice;
  if (cluster) {
    fill("figures", figures(report));
    fill("chain", chain(report));
    document.getElementById("prediction").textContent = prediction(cluster);
    fill("peers", cluster.peers.map(peerRow));
    fill("events", cluster.events.map(eventRow));
  }
  previous = report;
}

function setState(state) {
  const badge = document.getElementById("state");
  badge.textContent = state;
  badge.className = `badge ${TONES[state] ?? ""}`;
}

const source = new EventSource("events");
source.onmessage = message => show(JSON.parse(message.data));
source.onerror = () => setState("offline");
