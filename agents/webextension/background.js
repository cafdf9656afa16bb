// The connection: one websocket to the gateway while a page of the site is open. It relays; what is asked of the page is content.js's work.
"use strict";

const PROTOCOL = "chat-gateway.agent.v2";
const HELLO_MS = 10_000;
const FINAL = {
  1007: "a frame was not UTF-8: update the extension",
  1009: "a frame was larger than the gateway takes",
  4400: "a frame broke the protocol: update the extension, or the gateway",
  4401: "the token is missing, unknown, expired or revoked: save another one",
  4403: "the token may not do that: save another one",
  4409: "another agent of this name has connected: give this one a name of its own",
};
const PATIENT = [4408, 4429, 4503];
const NONE = {gateway: "", token: "", site: "", kind: "chatgpt_web", path: "/v1", models: [], concurrency: 1, name: ""};

const session = crypto.randomUUID();
const pages = new Set(); // their ports
const requests = new Map(); // by id: {page, seq}
let options = NONE;
let status = {state: "off", error: "", served: 0};
let socket = null;
let heardAt = 0;
let silenceMs = HELLO_MS;
let lastPauseS = 0;
let timer = null;

function note(change) {
  status = {...status, ...change};
  return chrome.storage.local.set({status});
}

async function load() {
  const stored = await chrome.storage.local.get(["options", "status"]);
  options = {...NONE, ...stored.options};
  status = {...status, ...stored.status};
  if (status.state === "stopped") return;
  await note({state: "off"});
  connect();
}

// The site's pages get content.js from their next load on. A match pattern has no port: whoever connects is asked for its origin again.
async function register() {
  await chrome.scripting.unregisterContentScripts();
  if (!options.site) return;
  const site = new URL(options.site);
  await chrome.scripting.registerContentScripts([{id: "page", js: ["content.js"], matches: [`${site.protocol}//${site.hostname}/*`]}]);
}

function connect() {
  if (socket || timer || !pages.size || !options.gateway || !options.token) return;
  const opened = new WebSocket(`${options.gateway}/client/register`, [PROTOCOL]);
  const begun = Date.now();
  socket = opened;
  heardAt = begun;
  silenceMs = HELLO_MS;
  opened.onopen = () => send({
    type: "hello", token: options.token, models: options.models, concurrency: options.concurrency, resumes: false, session,
    software: `chat-gateway webextension ${chrome.runtime.getManifest().version}`, ...(options.name && {agent: options.name}),
  });
  opened.onmessage = (event) => {
    if (socket === opened) received(event.data);
  };
  opened.onclose = (event) => {
    if (socket === opened) lost(event.code, event.reason, Date.now() - begun);
  };
}

function send(frame) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
}

function received(data) {
  heardAt = Date.now();
  try {
    take(JSON.parse(data));
  } catch {
    socket.close(4400, "a frame that is none");
    lost(4408, "the gateway sent what is no frame", 0);
  }
}

function take(frame) {
  const request = requests.get(frame.id);
  if (frame.type === "welcome") {
    silenceMs = 2500 * (frame.ping_s ?? 20);
    note({state: "connected", error: frame.models.length ? "" : "the token covers none of the models"});
  } else if (frame.type === "ping") send({type: "pong", at: frame.at});
  else if (frame.type === "request") begin(frame);
  else if (frame.type === "credit") credit(frame, request);
  else if (frame.type === "cancel") cancel(frame.id);
  else if (frame.type === "resume") fail(frame.id, frame.received + 1, "unknown_request", "this agent resumes nothing");
  else if (frame.type !== "pong") throw new Error("of no known type");
}

function begin(frame) {
  if (typeof frame.id !== "string" || typeof frame.body !== "object" || !frame.body || !Number.isInteger(frame.credit)) throw new Error("no request");
  if (requests.has(frame.id)) return;
  if (requests.size >= options.concurrency || !pages.size) return fail(frame.id, 1, "busy", "the agent takes no more requests now");
  if (!options.models.includes(frame.body.model)) return fail(frame.id, 1, "model_not_served", "the agent does not serve this model");
  const busy = (page) => [...requests.values()].filter((request) => request.page === page).length;
  const page = [...pages].sort((one, other) => busy(one) - busy(other))[0];
  requests.set(frame.id, {page, seq: 0});
  page.postMessage({...frame, kind: options.kind, path: options.path});
}

function credit({id, n}, request) {
  if (!Number.isInteger(n) || n < 0) throw new Error("no credit");
  request?.page.postMessage({type: "credit", id, n});
}

function fail(id, seq, cause, message) {
  send({type: "error", id, seq, cause, message});
}

function cancel(id) {
  requests.get(id)?.page.postMessage({type: "cancel", id});
  requests.delete(id);
}

function lost(code, reason, lastedMs) {
  socket = null;
  for (const id of [...requests.keys()]) cancel(id);
  if (FINAL[code]) return note({state: "stopped", error: `closed with ${code}: ${FINAL[code]}`});
  const leastS = PATIENT.includes(code) ? 3 : 0.2;
  const beforeS = lastedMs > 10_000 || code === 1001 || code === 1012 ? leastS : Math.max(leastS, lastPauseS);
  lastPauseS = Math.min(30, leastS + Math.random() * (beforeS * 3 - leastS));
  note({state: "waiting", error: reason || `the connection is closed (${code})`});
  clearTimeout(timer);
  timer = setTimeout(again, lastPauseS * 1000);
}

function again() {
  clearTimeout(timer);
  timer = null;
  connect();
}

function disconnect(state, error) {
  const closing = socket;
  socket = null;
  for (const id of [...requests.keys()]) cancel(id);
  closing?.close(1000);
  clearTimeout(timer);
  timer = null;
  return note({state, error});
}

function pageSays(page, frame) {
  const request = requests.get(frame.id);
  if (request?.page !== page) return; // cancelled, or asked over a connection that is lost
  request.seq = frame.seq;
  send(frame);
  if (frame.type === "delta") return;
  requests.delete(frame.id);
  note(frame.type === "done" ? {served: status.served + 1, error: ""} : {error: `${frame.cause}: ${frame.message}`});
}

function pageLeft(page) {
  pages.delete(page);
  for (const [id, request] of requests) {
    if (request.page !== page) continue;
    fail(id, request.seq + 1, "upstream_failed", "the page was closed");
    requests.delete(id);
  }
  if (!pages.size && status.state !== "stopped") disconnect("off", "no page of the site is open");
}

const loaded = load();

chrome.runtime.onConnect.addListener(async (page) => {
  let open = true;
  page.onDisconnect.addListener(() => {
    open = false;
    pageLeft(page);
  });
  page.onMessage.addListener((frame) => pageSays(page, frame));
  await loaded;
  if (!open || page.sender.id !== chrome.runtime.id || new URL(page.sender.url).origin !== options.site) return;
  pages.add(page);
  if (status.state !== "stopped") connect();
});

chrome.storage.onChanged.addListener(async (changes, area) => {
  if (area !== "local" || !changes.options) return;
  options = {...NONE, ...changes.options.newValue};
  await register();
  for (const page of pages) if (new URL(page.sender.url).origin !== options.site) pages.delete(page);
  await disconnect("off", pages.size ? "" : "open a page of the site, or load it again");
  connect();
});

chrome.runtime.onInstalled.addListener(async () => {
  await loaded;
  await register();
});

chrome.action.onClicked.addListener(() => chrome.runtime.openOptionsPage());
chrome.alarms.create("keepalive", {periodInMinutes: 0.5});
chrome.alarms.onAlarm.addListener(async () => {
  await loaded;
  const silent = socket;
  if (silent && Date.now() - heardAt > silenceMs) {
    lost(1006, "nothing is heard of the gateway", 0);
    silent.close(4408);
  }
  if (status.state !== "stopped") connect();
});
