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
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A button. What it does is in `actions`; the name says it to those who do not see where it is. */
function button(label, name, data, attributes = {}) {
  const all = { type: "button", "aria-label": name, ...attributes };
  for (const [key, value] of Object.entries(data)) all[`data-${key}`] = value;
  return el("button", all, label);
}

// === patching: nodes that are still wanted stay, and with them focus, selection and a press ===

function patch(old, next) {
  if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName) return old.replaceWith(next);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of [...next.attributes]) {
    if (old.getAttribute(name) === value) continue;
    // The page's policy forbids styles in markup; setting one by script is allowed.
    if (name === "style") old.style.cssText = next.style.cssText;
    else old.setAttribute(name, value);
  }
  fill(old, [...next.childNodes]);
}

/** Makes `wanted` the children of `parent`. Children with the same `data-key` are the same. */
function fill(parent, wanted) {
  const keys = new Set(wanted.map((child) => child.dataset?.key).filter(Boolean));
  for (const child of [...parent.children]) if (child.dataset.key && !keys.has(child.dataset.key)) child.remove();
  const kept = new Map([...parent.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  let at = parent.firstChild;
  for (const child of wanted) {
    const key = child.dataset?.key;
    const old = key ? kept.get(key) : at && !at.dataset?.key ? at : null;
    if (!old) {
      parent.insertBefore(child, at);
    } else {
      if (old === at) at = at.nextSibling;
      else parent.insertBefore(old, at);
      patch(old, child);
    }
  }
  while (at) {
    const rest = at.nextSibling;
    at.remove();
    at = rest;
  }
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

async function send(method, path, body) {
  const answer = await fetch(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return { status: answer.status, body: await answer.json().catch(() => ({})) };
}

function faults(name, plan) {
  // A program built without fault injection reports none.
  if (!plan) return null;
  const on = (wanted) => Object.entries(wanted).every(([key, value]) => plan[key] === value);
  const any = ["error_rate", "latency_ms", "hang_rate", "reset_rate"].some((key) => plan[key] > 0);
  const one = ([label, wanted]) => button(label, `${label} at ${name}`,
    { do: "fault", service: name, plan: JSON.stringify(on(wanted) ? {} : wanted), fault: `${name}-${label}`, key: label },
    { "aria-pressed": String(on(wanted)) });
  return el("div", { class: "faults" }, FAULTS.map(one),
    any ? button("off", `no faults at ${name}`, { do: "fault", service: name, plan: "{}", fault: `${name}-off`, key: "off" }) : null);
}

function service({ name, state }) {
  const health = !state ? pill("no answer", "bad") : !state.ready ? pill("not ready", "warn")
    : state.degraded.length > 0 ? pill("degraded", "warn") : pill("ready", "good");
  const facts = [];
  const fact = (label, value) => facts.push(el("div", {}, el("dt", {}, label), el("dd", {}, value)));
  if (state) {
    fact("req/s", fixed(state.recent.requests_per_second));
    fact("failed/s", fixed(state.recent.failures_per_second));
    const idle = state.recent.requests_per_second === 0;
    fact("p50", idle ? "–" : millis(state.recent.p50_ms));
    fact("p99", idle ? "–" : millis(state.recent.p99_ms));
    // The fullest lane: one that is full refuses its requests, however empty the others are.
    const fullest = state.lanes.reduce((one, other) => other.in_flight / other.limit > one.in_flight / one.limit ? other : one);
    const places = state.lanes.map((lane) => `${lane.name}: ${lane.in_flight} of ${lane.limit}, ${lane.waiting} waiting, ${lane.rejected} refused`);
    fact("in work", el("span", { title: places.join("\n") }, `${fullest.in_flight} / ${fullest.limit}`));
    fact("shed", state.lanes.reduce((sum, lane) => sum + lane.rejected, 0));
    const lag = gauge(state, "bus.lag");
    for (const [name, value] of Object.entries(state.gauges)) if (!name.includes(" ")) fact(name.replaceAll(".", " "), Math.round(value));
    if (lag !== null) fact("consumer lag", lag);
  }
  return el("article", { class: "card", "data-service": name, "data-key": name },
    el("h3", {}, name, health), rates(name, state?.recent), el("dl", {}, facts), faults(name, state?.faults));
}

/** The sum of a gauge over its labels. `null` if the service does not have it. */
function gauge(state, name) {
  const values = Object.entries(state?.gauges ?? {}).filter(([key]) => key === name || key.startsWith(`${name} `));
  return values.length > 0 ? values.reduce((sum, [, value]) => sum + value, 0) : null;
}

// === what needs attention ===

const KINDS = [
  { kind: "sagas", title: "stuck sagas", gauge: "saga.stuck", actions: ["retry", "skip", "resolve"] },
  { kind: "dead-letters", title: "dead letters", gauge: "bus.dead.letters", actions: ["redrive", "discard"] },
  { kind: "parked", title: "parked events", gauge: "outbox.parked", actions: ["retry", "discard"] },
];
const SHOWN = 20;
/** The lists, by service and kind, and when they were read. */
let lists = new Map();
let read = 0;

function places(services) {
  return services.flatMap(({ name, state }) => KINDS.map((of) => ({ ...of, service: name, count: gauge(state, of.gauge) ?? 0 })))
    .filter(({ count }) => count > 0);
}

async function readLists(services) {
  const wanted = places(services);
  if (Date.now() - read < 2000) return;
  read = Date.now();
  const got = await Promise.all(wanted.map(async (of) => {
    const items = await json(`/admin/services/${of.service}/attention/${of.kind}?limit=${SHOWN}`);
    return [`${of.service} ${of.kind}`, items ?? []];
  }));
  lists = new Map(got);
}

function item(of, { id, name, at, order, error, since_ms }) {
  const data = { kind: of.kind, service: of.service, id, do: "decide" };
  const one = (action) => button(action, `${action} ${name} of order ${order || "unknown"}`, { ...data, action });
  return el("tr", { "data-item": id, "data-key": `${of.service} ${of.kind} ${id}` },
    el("td", {}, name, at ? el("small", {}, ` at ${at}`) : null), el("td", {}, el("code", {}, order)),
    el("td", {}, since_ms > 0 ? ago(since_ms) : ""), el("td", { class: "why" }, error),
    el("td", { class: "actions" }, of.actions.map(one)));
}

function attention(services) {
  const reasons = services.flatMap(({ name, state }) => (state?.degraded ?? []).map((reason) => `${name}: ${reason}`));
  const tables = places(services).map((of) => {
    const items = lists.get(`${of.service} ${of.kind}`) ?? [];
    const all = (action) => button(`${action} all`, `${action} all ${of.title} of ${of.service}`,
      { do: "decide", kind: of.kind, service: of.service, action, count: of.count });
    return el("div", { class: "waiting", "data-key": `${of.service} ${of.kind}`, "data-waiting": of.kind },
      el("h3", {}, `${of.count} ${of.title} of ${of.service}`, el("span", { class: "actions" }, of.actions.map(all))),
      el("table", {}, el("tbody", {}, items.map((one) => item(of, one)))),
      of.count > items.length && items.length > 0 ? el("p", {}, `the oldest ${items.length} are shown`) : null);
  });
  fill($("attention"), [
    ...reasons.map((reason) => el("p", { class: "reason", "data-key": reason.split(" ", 2).join(" ") }, reason)), ...tables,
  ]);
  $("attention-counts").textContent = tables.length + reasons.length === 0 ? "nothing" : "";
}

const ago = (ms) => {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  return seconds < 120 ? `${seconds} s ago` : seconds < 7200 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
};

let asked = null;

function ask(data) {
  asked = data;
  const what = data.id ?? `all ${data.count} of them`;
  $("question").textContent = `${data.action} ${data.kind} of ${data.service}: ${what}?`;
  for (const id of ["consequence", "note-label"]) $(id).hidden = data.action !== "resolve";
  $("note").required = data.action === "resolve";
  $("note").value = "";
  $("confirm").showModal();
}

$("confirm").addEventListener("close", async () => {
  if ($("confirm").returnValue !== "yes" || !asked) return;
  const { kind, service, action, id } = asked;
  const { status, body } = await send("POST", `/admin/services/${service}/attention/${kind}/${action}`,
    { which: id ? { ids: [id] } : "all", note: $("note").value });
  const failed = body.failed?.map(({ error }) => error).join("; ") || body.detail || "";
  $("decided").textContent = body.done === undefined ? `${status} ${failed}` : `${action}: ${body.done} done${failed ? `, ${failed}` : ""}`;
  read = 0;
});

// === circuits ===

const MOODS = { closed: "good", "half-open": "warn", open: "bad", "forced-open": "bad" };

function circuit(dependency) {
  const { name, circuit, bulkhead, retry } = dependency;
  const last = circuit.changes[0];
  return el("tr", { "data-circuit": name, "data-state": circuit.state, "data-key": name },
    el("td", {}, name), el("td", {}, pill(circuit.state, MOODS[circuit.state] ?? "")),
    el("td", { class: "n" }, `${circuit.failures} / ${circuit.calls}`), el("td", { class: "n" }, circuit.rejected),
    el("td", {}, bar(bulkhead.in_flight, bulkhead.limit), `${bulkhead.in_flight} of ${bulkhead.limit}`),
    el("td", { class: "n" }, bulkhead.rejected), el("td", { class: "n" }, retry.retries),
    el("td", {}, bar(retry.balance, 20, (share) => share < 0.2), fixed(retry.balance)),
    el("td", { class: "why" }, last ? `${clock(last.at_ms)}  ${last.from} → ${last.to}: ${last.cause}` : "none yet"));
}

// === limits of the servers ===

function limitRow(key, kind, use, bounds, waiting, rejected) {
  return el("tr", { "data-limit": key, "data-kind": kind, "data-key": `${kind} ${key}` },
    el("td", {}, key), el("td", {}, kind), el("td", {}, use), el("td", {}, bounds),
    el("td", { class: "n" }, waiting), el("td", { class: "n" }, rejected));
}

/** A lane: a bulkhead, whose limit is chosen, or an adaptive limit, whose limit moves in its bounds. */
function lane({ name, in_flight, waiting, limit, rejected, bounds }) {
  return limitRow(name, bounds ? "adaptive" : "bulkhead", [bar(in_flight, limit), `${in_flight} of ${limit}`],
    bounds ? `${bounds[0]} to ${bounds[1]}` : "", bounds ? "" : waiting, rejected);
}

function customersRate({ name, per_second, burst, customers, untracked, rejected }) {
  const others = untracked > 0 ? `, ${untracked} requests of customers without a bucket` : "";
  return limitRow(`${name} per customer`, "rate", `${customers} customers${others}`, `${per_second} a second, ${burst} at once`, "", rejected);
}

function loadShed(service, { share, shed, too_late, levels }) {
  const total = Object.values(shed).reduce((sum, count) => sum + count, too_late);
  const loads = Object.entries(levels).map(([monitor, level]) => `${monitor.replaceAll("_", " ")} ${fixed(level, 2)}`);
  return limitRow(service, "load shed", [bar(share, 1, (part) => part > 0), `${fixed(100 * share)} % rejected`], loads.join(", "), "", total);
}

function limits(services) {
  const shown = services.filter(({ state }) => state);
  fill($("limits"), shown.flatMap(({ name, state }) => [
    ...(state.load_shed ? [loadShed(name, state.load_shed)] : []),
    ...state.rates.map(customersRate), ...state.lanes.map(lane),
  ]));
  const shed = shown.flatMap(({ state }) => Object.entries(state.load_shed?.shed ?? {}));
  $("shed").textContent = `shed: ${shed.map(([word, count]) => `${count} ${word.replaceAll("_", " ")}`).join(", ")}`;
}

// === sagas, and one order with its trace ===

let followed = null;

const SAGA = { completed: "good", running: "", compensating: "warn", compensated: "warn", stuck: "bad", resolved: "warn" };
const STEP = { done: "good", undone: "warn", failed: "bad", running: "" };

function steps(saga) {
  return saga.steps.map((step) => pill(step.failed_attempts > 0 ? `${step.name} ×${step.failed_attempts}` : step.name, STEP[step.state] ?? ""));
}

function saga(saga) {
  return el("tr", { "data-order": saga.id, "data-key": saga.id, "data-do": "follow", "aria-selected": String(saga.id === followed) },
    el("td", {}, button(saga.id, `follow order ${saga.id}`, {}, { class: "id" })), el("td", {}, clock(saga.created_ms)),
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
    trace.spans.flatMap((span) => span.links).map((link) => el("p", {}, "the caller's trace: ", el("code", {}, link))),
    el("div", { class: "spans" }, rows));
}

// === all of it ===

async function show(state) {
  fill($("services"), state.services.map(service));
  const circuits = state.services.flatMap(({ state }) => state?.dependencies ?? []);
  fill($("circuits"), circuits.map(circuit));
  limits(state.services);
  if (state.sagas) {
    const { running, compensating, stuck, sagas } = state.sagas;
    $("saga-counts").textContent = `${running} running, ${compensating} compensating, ${stuck} stuck`;
    fill($("sagas"), sagas.map(saga));
  }
  await readLists(state.services);
  attention(state.services);
}

/** What the buttons do. One listener, because the nodes stay while their meaning changes. */
const actions = {
  fault: ({ service, plan }) => send("PUT", `/admin/services/${service}/faults`, JSON.parse(plan)),
  follow: ({ order }) => follow(order),
  decide: (data) => ask(data),
};
document.addEventListener("click", ({ target }) => {
  const found = target.closest("[data-do]");
  if (found) actions[found.dataset.do]({ ...found.dataset });
});

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
  const answer = await fetch("/dashboard/orders", {
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
