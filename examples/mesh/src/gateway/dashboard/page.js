// One page, no build step. All text from outside is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const HISTORY = 60;
const FAULTS = [
  ["errors", { error_rate: 0.9 }],
  ["slow", { latency_ms: 400 }],
  ["hang", { hang_rate: 0.8 }],
  ["resets", { reset_rate: 0.8 }],
];

/** An element with attributes and children; a child that is no element becomes text. */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "polyline"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const pill = (text, mood) => el("span", { class: `pill ${mood}` }, text);
const fixed = (number, digits = 1) => Number(number).toFixed(digits);
const clock = (ms) => new Date(ms).toLocaleTimeString();
const millis = (ms) => (ms >= 1000 ? `${fixed(ms / 1000, 2)} s` : `${fixed(ms, 1)} ms`);

/** A part of a whole. The style is set by script: the page's policy allows none in markup. */
function bar(part, whole, alarm = (share) => share > 0.8) {
  const inner = el("i");
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  inner.style.width = `${100 * share}%`;
  return el("span", { class: alarm(share) ? "bar alarm" : "bar" }, inner);
}

// === services ===

const history = new Map();

function line(values, most, kind) {
  // The newest value is at the right edge.
  const first = HISTORY - values.length;
  const points = values.map((value, i) => `${first + i},${fixed(30 - 28 * (value / most), 2)}`).join(" ");
  return el("polyline", { points, class: kind });
}

function rates(name, recent) {
  const past = history.get(name) ?? [];
  past.push(recent ? [recent.requests_per_second, recent.failures_per_second] : [0, 0]);
  history.set(name, past.slice(-HISTORY));
  const shown = history.get(name);
  const most = Math.max(1, ...shown.map(([all]) => all));
  return el("svg", { viewBox: `0 0 ${HISTORY - 1} 32`, preserveAspectRatio: "none", "aria-hidden": "true" },
    line(shown.map(([all]) => all), most, "all"), line(shown.map(([, failed]) => failed), most, "failed"));
}

async function setFault(service, plan) {
  await fetch(`/admin/faults/${service}`, {
    method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(plan),
  });
}

function faults(name, plan) {
  const on = (wanted) => Object.entries(wanted).every(([key, value]) => plan?.[key] === value);
  const any = plan && ["error_rate", "latency_ms", "hang_rate", "reset_rate"].some((key) => plan[key] > 0);
  const button = ([label, wanted]) => el("button", {
    type: "button", "data-fault": `${name}-${label}`, "aria-pressed": String(on(wanted)),
    click: () => setFault(name, on(wanted) ? {} : wanted),
  }, label);
  return el("div", { class: "faults" }, FAULTS.map(button),
    any ? el("button", { type: "button", "data-fault": `${name}-off`, click: () => setFault(name, {}) }, "off") : null);
}

function service({ name, state }) {
  const health = !state ? pill("no answer", "bad") : state.ready ? pill("ready", "good") : pill("not ready", "warn");
  const facts = [];
  const fact = (label, value) => facts.push(el("div", {}, el("dt", {}, label), el("dd", {}, value)));
  if (state) {
    fact("req/s", fixed(state.recent.requests_per_second));
    fact("failed/s", fixed(state.recent.failures_per_second));
    const idle = state.recent.requests_per_second === 0;
    fact("p50", idle ? "–" : millis(state.recent.p50_ms));
    fact("p99", idle ? "–" : millis(state.recent.p99_ms));
    fact("in work", `${state.bulkhead.in_flight} / ${state.bulkhead.limit}`);
    fact("shed", state.bulkhead.rejected);
    for (const [gauge, value] of Object.entries(state.gauges)) fact(gauge.replace(".", " "), value);
  }
  return el("article", { class: "card", "data-service": name },
    el("h3", {}, name, health), rates(name, state?.recent), el("dl", {}, facts), faults(name, state?.faults));
}

// === circuits ===

const MOODS = { closed: "good", "half-open": "warn", open: "bad", "forced-open": "bad" };

function circuit(dependency) {
  const { name, circuit, bulkhead, retry } = dependency;
  const last = circuit.changes[0];
  return el("tr", { "data-circuit": name, "data-state": circuit.state },
    el("td", {}, name), el("td", {}, pill(circuit.state, MOODS[circuit.state] ?? "")),
    el("td", { class: "n" }, `${circuit.failures} / ${circuit.calls}`), el("td", { class: "n" }, circuit.rejected),
    el("td", {}, bar(bulkhead.in_flight, bulkhead.limit), `${bulkhead.in_flight} of ${bulkhead.limit}`),
    el("td", { class: "n" }, bulkhead.rejected), el("td", { class: "n" }, retry.retries),
    el("td", {}, bar(retry.balance, 20, (share) => share < 0.2), fixed(retry.balance)),
    el("td", { class: "why" }, last ? `${clock(last.at_ms)}  ${last.from} → ${last.to}: ${last.cause}` : "none yet"));
}

// === sagas, and one order with its trace ===

let followed = null;

const SAGA = { completed: "good", running: "", compensating: "warn", compensated: "warn", stuck: "bad", resolved: "warn" };
const STEP = { done: "good", undone: "warn", failed: "bad", running: "" };

function steps(saga) {
  return saga.steps.map((step) => pill(step.failed_attempts > 0 ? `${step.name} ×${step.failed_attempts}` : step.name, STEP[step.state] ?? ""));
}

function saga(saga) {
  return el("tr", { "data-order": saga.id, "aria-selected": String(saga.id === followed), click: () => follow(saga.id) },
    el("td", {}, el("button", { type: "button", class: "id" }, saga.id)), el("td", {}, clock(saga.created_ms)),
    el("td", {}, pill(saga.status, SAGA[saga.status] ?? "")), el("td", {}, steps(saga)));
}

function stepRow(step) {
  const took = step.ended_ms ? millis(step.ended_ms - step.started_ms) : "…";
  const said = step.error ? `: ${step.error}` : "";
  return el("div", { "data-step": step.name, "data-state": step.state },
    pill(step.state, STEP[step.state] ?? ""), ` ${step.name}, ${took}${said}`);
}

function spanRow(span, start, whole, depth) {
  const box = el("i", { class: span.kind });
  box.style.left = `${(100 * (span.start_us - start)) / whole}%`;
  box.style.width = `${(100 * span.duration_us) / whole}%`;
  const path = span.attributes["url.path"] ?? "";
  const text = path.slice(1) === span.name ? span.name : `${span.name} ${path}`;
  const name = el("span", { title: text }, text);
  name.style.paddingLeft = `${depth}em`;
  return el("div", { class: span.failed ? "span failed" : "span", "data-span": span.name, "data-service": span.service },
    el("b", {}, span.service), name, el("div", { class: "lane" }, box), el("span", { class: "time" }, millis(span.duration_us / 1000)));
}

/** The spans as a tree: each under the one that caused it, in the order in which they began. */
function tree(spans) {
  const known = new Set(spans.map((span) => span.id));
  const children = Map.groupBy(spans, (span) => (known.has(span.parent) ? span.parent : ""));
  const rows = [];
  const walk = (id, depth) => (children.get(id) ?? []).forEach((span) => {
    rows.push([span, depth]);
    walk(span.id, depth + 1);
  });
  walk("", 0);
  return rows;
}

async function json(path) {
  const answer = await fetch(path);
  return answer.ok ? answer.json() : null;
}

async function follow(id) {
  followed = id;
  $("followed").hidden = false;
  $("followed-title").textContent = `order ${id}`;
  const [found, traces] = await Promise.all([json(`/admin/sagas/${id}`), json(`/admin/traces?order=${id}`)]);
  if (followed !== id) return;
  $("saga").replaceChildren(el("div", { class: "steps" }, (found?.steps ?? []).map(stepRow)));
  const latest = traces?.traces[0];
  const trace = latest ? await json(`/admin/traces/${latest.id}`) : null;
  if (followed !== id) return;
  if (!trace) {
    $("trace").replaceChildren("no trace of it yet");
    return;
  }
  const start = Math.min(...trace.spans.map((span) => span.start_us));
  const whole = Math.max(1, ...trace.spans.map((span) => span.start_us + span.duration_us - start));
  const rows = tree(trace.spans).map(([span, depth]) => spanRow(span, start, whole, depth));
  $("trace").replaceChildren(
    el("p", {}, "trace ", el("code", {}, trace.id), `, ${trace.spans.length} spans, ${latest.services.join(", ")}, ${millis(whole / 1000)}`),
    el("div", { class: "spans" }, rows));
}

// === all of it ===

function show(state) {
  // A button that is redrawn between press and release gets no click event and loses the focus.
  if (pressed) return;
  const focus = document.activeElement?.dataset.fault;
  const cards = state.services.map(service);
  $("services").replaceChildren(...cards);
  if (focus) document.querySelector(`[data-fault="${focus}"]`)?.focus();
  const circuits = state.services.flatMap(({ state }) => state?.dependencies ?? []);
  $("circuits").replaceChildren(...circuits.map(circuit));
  if (state.sagas) {
    const { running, compensating, stuck, sagas } = state.sagas;
    $("saga-counts").textContent = `${running} running, ${compensating} compensating, ${stuck} stuck`;
    $("sagas").replaceChildren(...sagas.map(saga));
  }
}

let pressed = false;
document.addEventListener("pointerdown", () => { pressed = true; });
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { setTimeout(() => { pressed = false; }); });

function listen() {
  const events = new EventSource("/dashboard/events");
  events.onmessage = ({ data }) => {
    $("live").dataset.live = "yes";
    const state = JSON.parse(data);
    $("live").textContent = clock(state.at_ms);
    show(state);
  };
  events.onerror = () => {
    $("live").dataset.live = "no";
    $("live").textContent = "no connection, trying again";
  };
}

async function place(customer, sku, quantity) {
  const answer = await fetch("/v1/orders", {
    method: "POST",
    headers: { "content-type": "application/json", "idempotency-key": crypto.randomUUID?.() ?? String(Math.random()) },
    body: JSON.stringify({ customer, items: [{ sku, quantity }] }),
  });
  const body = await answer.json().catch(() => ({}));
  return { status: answer.status, id: body.id ?? body.order_id, said: body.state ?? body.title };
}

$("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const { status, id, said } = await place(form.get("customer"), form.get("sku"), Number(form.get("quantity")));
  $("placed").textContent = `${status} ${said ?? ""}`;
  if (id) await follow(id);
  // Events take a moment to be handled, and spans are exported in batches.
  if (id) setTimeout(() => followed === id && follow(id), 2500);
});

let stream = null;
$("stream").addEventListener("change", ({ target }) => {
  clearInterval(stream);
  if (!target.checked) return;
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const one = () => place(pick(["alice", "bob", "carol", "dave"]), pick(["tea", "mug", "kettle", "honey"]), 1).catch(() => {});
  stream = setInterval(one, 100);
});

listen();
