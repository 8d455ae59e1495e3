// The page at /: live load on the left, a playground on the right. Talks to the public API only.

import { Chart } from "/page/chart.js";

const $ = (id) => document.getElementById(id);
const POLL_MS = 1000;
const SPAN_S = 180;

// -- requests ------------------------------------------------------------------------------------------------------

let key = sessionStorage.getItem("penstock-key") || "";

function headers(extra) {
  return key ? { authorization: `Bearer ${key}`, ...extra } : { ...extra };
}

async function fetchJson(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store" });
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Error(await sentence(response));
  return response.json();
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function askForKey() {
  const form = $("key-form");
  if (form.hidden) {
    form.hidden = false;
    $("key-error").textContent = key ? "The server refused this key." : "";
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("penstock-key", key);
  $("key-form").hidden = true;
  described = false;
  poll();
});

// Links cannot carry a key, so with one the answer is fetched and shown as a file.
for (const id of ["decisions", "metrics"]) {
  $(id).addEventListener("click", async (event) => {
    if (!key) return;
    event.preventDefault();
    const response = await fetch($(id).href, { headers: headers() });
    const shown = new Blob([await response.text()], { type: "text/plain; charset=utf-8" });
    window.open(URL.createObjectURL(shown), "_blank");
  });
}

// -- live load -----------------------------------------------------------------------------------------------------

const chartOut = new Chart($("chart-out"), SPAN_S);
const chartIn = new Chart($("chart-in"), SPAN_S);
const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const RATE_WINDOW_S = 3; // a slow model gives less than a token per poll; shorter windows would show spikes
let recent = [];
let described = false;
let modelName = null;

function show(load) {
  $("running").textContent = number(load.num_running);
  $("waiting").textContent = number(load.num_waiting);
  $("kv").textContent = `${number(load.kv_usage * 100, 1)} %`;
  const looked = load.prefix_query_tokens;
  $("hits").textContent = looked ? `${number((load.prefix_hit_tokens / looked) * 100)} %` : "–";
  const last = recent.at(-1);
  if (last && (load.time <= last.time || load.sent_tokens < last.sent_tokens)) recent = []; // the server was restarted
  while (recent.length > 1 && load.time - recent[1].time >= RATE_WINDOW_S) recent.shift();
  if (recent.length) {
    const seconds = load.time - recent[0].time;
    const out = (load.sent_tokens - recent[0].sent_tokens) / seconds;
    const into = (load.received_tokens - recent[0].received_tokens) / seconds;
    $("rate").textContent = number(out, out < 10 ? 1 : 0);
    $("rate-in").textContent = number(into, into < 10 ? 1 : 0);
    chartOut.add(load.time, out);
    chartIn.add(load.time, into);
  }
  recent.push(load);
}

function setState(kind, text) {
  $("state").className = `state ${kind}`;
  $("state").lastElementChild.textContent = text;
}

async function describe() {
  const info = await fetchJson("/debug/decisions");
  modelName = info.served_names[0];
  $("model").textContent = modelName;
  document.title = `${modelName} · Penstock`;
  const model = info.model;
  const facts = [
    ["architecture", model.architecture],
    ["parameters", model.num_parameters ? `${number(model.num_parameters / 1e6, 1)} M` : ""],
    ["weights", model.weight_bytes ? `${number(model.weight_bytes / 2 ** 20)} MiB ${Object.keys(model.weight_schemes).join(", ")}` : ""],
    ["format", model.format],
    ["context", `${number(info.max_model_len)} tokens`],
    ["sequences at a time", number(info.max_num_seqs)],
    ["KV blocks", info.num_blocks.map((count) => number(count)).join(" + ")],
    ["device", info.platform.cpu_model && info.platform.name === "cpu" ? info.platform.cpu_model : info.platform.name],
    // Sizes are shown above; here are the choices among implementations.
    ...info.decisions.filter((one) => one.chosen && !/^\d/.test(one.chosen)).slice(0, 6).map((one) => [one.subject, one.chosen]),
  ];
  $("facts").replaceChildren(
    ...facts.filter(([, value]) => value).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }),
  );
  described = true;
}

let polling = null;
async function poll() {
  clearTimeout(polling);
  try {
    const ready = await fetch("/ready", { cache: "no-store" });
    if (ready.ok) setState("good", "ready");
    else setState(ready.status === 503 ? "warn" : "bad", await sentence(ready));
    if ($("key-form").hidden) {
      if (!described) await describe();
      show(await fetchJson("/debug/load"));
    }
  } catch (error) {
    if ($("key-form").hidden) setState("bad", error instanceof TypeError ? "the server does not answer" : error.message);
    recent = [];
  }
  polling = setTimeout(poll, POLL_MS);
}

// -- playground ----------------------------------------------------------------------------------------------------

let mode = "chat";
let turns = [];
let running = null;

function selectMode(next) {
  if (running) running.abort();
  mode = next;
  for (const name of ["chat", "text"]) $(`tab-${name}`).setAttribute("aria-selected", String(name === mode));
  $("prompt").placeholder = mode === "chat"
    ? "Write a message. Enter sends, Shift+Enter breaks the line."
    : "Write the beginning of a text; the model goes on. Enter sends, Shift+Enter breaks the line.";
  $("system-label").hidden = mode !== "chat";
  document.querySelector('input[name="max_tokens"]').placeholder = mode === "chat" ? "model's limit" : "128";
  clear();
}

function clear() {
  if (running) running.abort();
  turns = [];
  $("log").replaceChildren();
  $("usage").textContent = "";
}

function addTurn(kind, text) {
  const node = document.createElement("div");
  node.className = `turn ${kind}`;
  node.textContent = text;
  $("log").append(node);
  node.scrollIntoView({ block: "end" });
  return node;
}

function note(node, text) {
  const extra = document.createElement("span");
  extra.className = "note";
  extra.textContent = text;
  node.append(extra);
}

function parameters() {
  const chosen = {};
  for (const input of document.querySelectorAll(".parameters input")) {
    if (input.value === "" || input.name === "system") continue;
    chosen[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return chosen;
}

function requestBody(text) {
  const common = { model: modelName, stream: true, stream_options: { include_usage: true }, ...parameters() };
  if (mode === "text") return ["/v1/completions", { ...common, prompt: text, max_tokens: common.max_tokens ?? 128 }];
  const system = document.querySelector('input[name="system"]').value;
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns];
  return ["/v1/chat/completions", { ...common, messages }];
}

async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
    if (done) return;
  }
}

async function ask(text) {
  if (mode === "chat") {
    turns.push({ role: "user", content: text });
    addTurn("user", text);
  }
  const node = addTurn(mode === "chat" ? "assistant open" : "text open", "");
  if (mode === "text") {
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = text;
    node.append(given);
  }
  const written = document.createTextNode("");
  node.append(written);
  running = new AbortController();
  setBusy(true);
  const begun = performance.now();
  let first = 0, usage = null, reason = null;
  try {
    const [path, body] = requestBody(text);
    const response = await fetch(path, {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error(await sentence(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      const piece = choice?.delta?.content ?? choice?.text;
      reason = choice?.finish_reason ?? reason;
      if (!piece) continue;
      first ||= performance.now();
      const log = $("log");
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      written.data += piece;
      if (follows) log.scrollTop = log.scrollHeight;
    }
    if (reason === "length") note(node, "ended: the token limit was reached");
    showUsage(usage, begun, first);
  } catch (error) {
    if (error.name === "AbortError") {
      note(node, "stopped");
    } else {
      node.classList.add("failed");
      note(node, error.message);
    }
  } finally {
    node.classList.remove("open");
    // An answer that never came must not be part of the next request.
    if (mode === "chat" && written.data) turns.push({ role: "assistant", content: written.data });
    else if (mode === "chat") turns.pop();
    running = null;
    setBusy(false);
  }
}

function showUsage(usage, begun, first) {
  if (!usage || !first) return;
  const end = performance.now();
  const rate = usage.completion_tokens > 1 ? ((usage.completion_tokens - 1) * 1000) / Math.max(end - first, 1) : 0;
  const cached = usage.prompt_tokens_details?.cached_tokens;
  $("usage").textContent = [
    `${usage.prompt_tokens} prompt tokens${cached ? ` (${cached} cached)` : ""}`,
    `${usage.completion_tokens} generated`,
    `first after ${number(first - begun)} ms`,
    rate ? `${number(rate, rate < 10 ? 1 : 0)} tokens/s` : "",
  ].filter(Boolean).join(" · ");
}

function setBusy(busy) {
  $("send").disabled = busy;
  $("stop").hidden = !busy;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (running || !text.trim()) return;
  if (mode === "chat") $("prompt").value = "";
  ask(text);
});
// The browser can only complain about a field that is visible.
$("ask").addEventListener("invalid", () => { document.querySelector("details").open = true; }, true);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", clear);
$("tab-chat").addEventListener("click", () => selectMode("chat"));
$("tab-text").addEventListener("click", () => selectMode("text"));

poll();
