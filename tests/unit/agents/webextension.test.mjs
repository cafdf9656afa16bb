// The extension's scripts as they are, in a context of their own each, with a browser's parts faked: ports, fetch, WebSocket, storage.
// test_webextension.py runs this; by hand: `node --test tests/unit/agents/webextension.test.mjs`.

import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {test} from "node:test";
import vm from "node:vm";

const FOLDER = new URL("../../../agents/webextension/", import.meta.url);
const SITE = "https://chat.example";
const plain = (value) => JSON.parse(JSON.stringify(value)); // objects of another context have other prototypes
const tick = () => new Promise((resolve) => setTimeout(resolve, 5));

async function until(met, what = "it") {
  for (let tries = 0; tries < 400; tries += 1) {
    if (met()) return;
    await tick();
  }
  assert.fail(`${what} did not happen`);
}

function event() {
  const listeners = [];
  return {addListener: (listener) => listeners.push(listener), fire: (...given) => Promise.all(listeners.map((listener) => listener(...given)))};
}

function ports(sender) {
  const make = () => ({sent: [], onMessage: event(), onDisconnect: event(), sender, name: "page"});
  const [one, other] = [make(), make()];
  one.postMessage = (message) => { one.sent.push(plain(message)); other.onMessage.fire(plain(message)); };
  other.postMessage = (message) => { other.sent.push(plain(message)); one.onMessage.fire(plain(message)); };
  return [one, other];
}

function run(name, globals) {
  const context = vm.createContext({
    URL, TextDecoder, AbortController, console, crypto, setTimeout, clearTimeout, Response, setInterval: () => 0, ...globals,
  });
  vm.runInContext(readFileSync(new URL(name, FOLDER), "utf8"), context, {filename: name});
  return context;
}

// content.js

function page(answers) {
  const [background, content] = ports();
  const fetched = [];
  const fetch = async (url, given) => {
    fetched.push({url: String(url), ...given, body: given.body && JSON.parse(given.body)});
    const answer = answers[new URL(url).pathname];
    if (!answer) return new Response("nothing", {status: 404});
    return answer(given);
  };
  const chrome = {runtime: {id: "extension", connect: () => content}};
  run("content.js", {chrome, fetch, location: {origin: SITE}});
  return {
    fetched,
    ask: (members = {}) => background.postMessage({
      type: "request", id: "r1", kind: "chatgpt_web", path: "/v1", credit: 1000, body: {model: "m", messages: [{role: "user", content: "hi"}]}, ...members,
    }),
    tell: (frame) => background.postMessage(frame),
    frames: () => content.sent,
    end: async () => {
      await until(() => ["done", "error"].includes(content.sent.at(-1)?.type), "an end");
      return content.sent.at(-1);
    },
    leave: () => content.onDisconnect.fire(),
  };
}

function stream(blocks, {status = 200, headers = {"content-type": "text/event-stream"}, pulled = () => {}, signal} = {}) {
  let position = 0;
  const encoder = new TextEncoder();
  return new Response(new ReadableStream({
    start(controller) { signal?.addEventListener("abort", () => controller.error(signal.reason)); },
    pull(controller) {
      pulled(position);
      if (position === blocks.length) return controller.close();
      const block = blocks[position++];
      controller.enqueue(typeof block === "string" ? encoder.encode(block) : block);
      return undefined;
    },
  }, {highWaterMark: 0}), {status, headers});
}

const data = (document) => `data: ${typeof document === "string" ? document : JSON.stringify(document)}\n\n`;
const said = (text, members = {}, metadata = {}) => ({
  conversation_id: "c1",
  message: {id: "m1", author: {role: "assistant"}, content: {parts: [text]}, status: "in_progress", end_turn: null, metadata: {message_type: "next", ...metadata}, ...members},
});
const ended = (text, type = "stop") => said(text, {status: "finished_successfully", end_turn: true}, {finish_details: {type}});
const signedIn = () => Response.json({accessToken: "page-token"});
const site = (blocks, options) => page({
  "/api/auth/session": signedIn,
  "/backend-api/conversation": ({signal}) => stream(blocks, {signal, ...options}),
});
const text = (frames) => frames.map((frame) => frame.text ?? "").join("");

test("the page is asked in its own session, and its texts become exact deltas", async () => {
  const pieces = ["ha", "haha", "haha Grüße \ud83d", "haha Grüße 👋", "haha Grüße 👋"];
  const noise = [data(said("the question", {author: {role: "user"}})), "event: message\n", data("2023-08-01 12:00:00"), data("no json")];
  const chat = site([...noise, ...pieces.map((piece) => data(said(piece))), data(ended(pieces.at(-1))), data({conversation_id: "c1", message_id: "m1"}), data("[DONE]")]);
  chat.ask();
  assert.deepEqual(await chat.end(), {type: "done", reason: "stop", conversation: {id: "c1", message_id: "m1"}, id: "r1", seq: 5});
  assert.deepEqual(chat.frames().slice(0, -1).map((frame) => frame.text), ["ha", "ha", " Grüße ", "👋"]);
  assert.deepEqual(chat.frames().map((frame) => frame.seq), [1, 2, 3, 4, 5]);
  const [session, conversation] = chat.fetched;
  assert.equal(session.url, `${SITE}/api/auth/session`);
  assert.equal(conversation.url, `${SITE}/backend-api/conversation`);
  assert.equal(conversation.headers.Authorization, "Bearer page-token");
  assert.ok(chat.fetched.every(({credentials, redirect}) => credentials === "same-origin" && redirect === "error"));
  assert.equal(conversation.body.action, "next");
  assert.equal(conversation.body.model, "m");
  assert.deepEqual(conversation.body.messages[0].content, {content_type: "text", parts: ["hi"]});
  assert.match(conversation.body.parent_message_id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.ok(!("conversation_id" in conversation.body));
});

test("a conversation goes on with its last message only", async () => {
  const chat = site([data(ended("yes")), data("[DONE]")]);
  const messages = [{role: "system", content: "be brief"}, {role: "user", content: [{type: "text", text: "a"}, {type: "text", text: "b"}]}];
  chat.ask({body: {model: "m", messages}, conversation: {id: "c1", parent_id: "p1", message_id: "q1"}});
  await chat.end();
  const {body} = chat.fetched[1];
  assert.equal(body.conversation_id, "c1");
  assert.equal(body.parent_message_id, "p1");
  assert.deepEqual(body.messages.map(({id, author, content}) => [id, author.role, content.parts[0]]), [["q1", "user", "ab"]]);
});

test("a new conversation has all messages", async () => {
  const chat = site([data(ended("yes")), data("[DONE]")]);
  chat.ask({body: {model: "m", messages: [{role: "system", content: "be brief"}, {role: "user", content: "a"}]}});
  await chat.end();
  assert.deepEqual(chat.fetched[1].body.messages.map(({author}) => author.role), ["critic", "user"]);
});

test("a text that was rewritten gives what stands behind the common beginning", async () => {
  const chat = site([...["one two", "one", "one three", "one three"].map((piece) => data(said(piece))), data(ended("one three!")), data("[DONE]")]);
  chat.ask();
  assert.equal((await chat.end()).type, "done");
  assert.deepEqual(chat.frames().slice(0, -1).map((frame) => frame.text), ["one two", "hree", "!"]);
});

test("bytes may be cut anywhere", async () => {
  const whole = new TextEncoder().encode([said("Grüße"), said("Grüße 👋"), ended("Grüße 👋")].map(data).join("") + data("[DONE]"));
  const chat = site([...whole].map((byte) => new Uint8Array([byte])));
  chat.ask();
  assert.equal((await chat.end()).type, "done");
  assert.equal(text(chat.frames()), "Grüße 👋");
});

test("a limit of tokens is told as OpenAI tells it", async () => {
  const chat = site([data(said("a", {status: "finished_successfully"}, {finish_details: {type: "max_tokens"}})), data("[DONE]")]);
  chat.ask();
  assert.equal((await chat.end()).reason, "length");
});

for (const [name, blocks] of Object.entries({
  "without [DONE]": [data(said("a")), data(ended("a"))],
  "without an end of its message": [data(said("a")), data("[DONE]")],
  "by an error": [data(said("a")), data({message: null, error: "no more"}), data("[DONE]")],
  "by an event that is too large": [data(said("a")), `data: ${"x".repeat(4_000_001)}`],
})) {
  test(`an answer that ends ${name} is an error and never an end`, async () => {
    const chat = site(blocks);
    chat.ask();
    const last = await chat.end();
    assert.deepEqual([last.type, last.cause, last.seq], ["error", "upstream_failed", 2]);
  });
}

const refusing = (status, body, headers = {}) => () => new Response(body, {status, headers});
for (const [answer, expected] of [
  [refusing(401, "{}"), {cause: "unauthorised", status: 401}],
  [refusing(403, "<html>Just a moment...</html>"), {cause: "unauthorised", status: 403}],
  [refusing(429, "{}", {"retry-after": "7"}), {cause: "rate_limited", status: 429, retry_after_s: 7}],
  [refusing(429, '{"detail": {"clears_in": 9}}'), {cause: "rate_limited", status: 429, retry_after_s: 9}],
  [refusing(429, "slow", {"retry-after": "soon"}), {cause: "rate_limited", status: 429}],
  [refusing(413, '{"detail": "too long"}'), {cause: "bad_request", status: 413, body: {detail: "too long"}}],
  [refusing(404, "gone"), {cause: "bad_request", status: 404, body: "gone"}],
  [refusing(502, "bad"), {cause: "upstream_failed", status: 502}],
  [() => { throw new TypeError("Failed to fetch"); }, {cause: "upstream_failed"}],
]) {
  test(`a refusal becomes ${JSON.stringify(expected)}`, async () => {
    const chat = page({"/api/auth/session": signedIn, "/backend-api/conversation": answer});
    chat.ask();
    const {type, id, seq, message, ...told} = await chat.end();
    assert.deepEqual([type, id, seq], ["error", "r1", 1]);
    assert.deepEqual(told, expected);
    assert.ok(message);
  });
}

test("a page where nobody is signed in says so", async () => {
  const chat = page({"/api/auth/session": () => Response.json({})});
  chat.ask();
  assert.equal((await chat.end()).cause, "unauthorised");
  assert.equal(chat.fetched.length, 1);
});

test("what is no text is refused before the page is asked", async () => {
  const chat = site([]);
  chat.ask({body: {model: "m", messages: [{role: "user", content: [{type: "image_url", image_url: {url: "x"}}]}]}});
  assert.equal((await chat.end()).cause, "bad_request");
  assert.equal(chat.fetched.length, 0);
});

test("credit is kept, and a slow client slows the page down", async () => {
  let read = 0;
  const many = Array.from({length: 50}, (_, number) => data(said("x".repeat(number + 1))));
  const chat = site([...many, data(ended("x".repeat(50))), data("[DONE]")], {pulled: (position) => (read = position)});
  chat.ask({credit: 2});
  await until(() => chat.frames().length === 2);
  await tick();
  assert.equal(chat.frames().length, 2);
  assert.ok(read < 6, `${read} blocks were read`);
  chat.tell({type: "credit", id: "r1", n: 3});
  await until(() => chat.frames().length === 5);
  await tick();
  assert.equal(chat.frames().length, 5);
  chat.tell({type: "credit", id: "r1", n: 100});
  assert.equal((await chat.end()).seq, 51);
});

for (const how of ["cancel", "the end of the port"]) {
  test(`${how} ends the page's request at once`, async () => {
    let given;
    const chat = page({
      "/api/auth/session": signedIn,
      "/backend-api/conversation": ({signal}) => {
        given = signal;
        return new Response(new ReadableStream({start(controller) {
          controller.enqueue(new TextEncoder().encode(data(said("a"))));
          signal.addEventListener("abort", () => controller.error(signal.reason));
        }}));
      },
    });
    chat.ask();
    await until(() => chat.frames().length === 1);
    if (how === "cancel") chat.tell({type: "cancel", id: "r1"});
    else chat.leave();
    await until(() => given.aborted);
    await tick();
    assert.equal(chat.frames().length, 1);
  });
}

test("a site with OpenAI's interface is asked under the path of the options", async () => {
  const call = {index: 0, id: "t1", function: {name: "f", arguments: ""}};
  const chunks = [
    {choices: [{index: 0, delta: {role: "assistant", content: ""}}]},
    {choices: [{index: 0, delta: {content: "Grüße"}}]},
    {choices: [{index: 0, delta: {tool_calls: [call]}}]},
    {choices: [{index: 0, delta: {tool_calls: [{index: 0, function: {arguments: "{}"}}]}}]},
    {choices: [{index: 0, delta: {}, finish_reason: "tool_calls"}]},
    {choices: [], usage: {prompt_tokens: 3}},
  ];
  const chat = page({"/api/chat/completions": () => stream([...chunks.map(data), data("[DONE]")])});
  chat.ask({kind: "openai", path: "/api"});
  assert.deepEqual(await chat.end(), {type: "done", reason: "tool_calls", usage: {prompt_tokens: 3}, id: "r1", seq: 4});
  assert.deepEqual(chat.frames().slice(0, 3).map(({text: said_, tool_call: called}) => said_ ?? called), [
    "Grüße", {index: 0, arguments: "", id: "t1", name: "f"}, {index: 0, arguments: "{}"},
  ]);
  assert.deepEqual(chat.fetched[0].body.stream_options, {include_usage: true});
});

test("a cut answer of OpenAI's interface is an error", async () => {
  for (const blocks of [[data({choices: [{delta: {content: "a"}}]})], [data({choices: [{delta: {content: "a"}}]}), data("[DONE]")]]) {
    const chat = page({"/v1/chat/completions": () => stream(blocks)});
    chat.ask({kind: "openai"});
    assert.equal((await chat.end()).cause, "upstream_failed");
  }
});

// background.js

const OPTIONS = {gateway: "wss://gateway.example", token: "secret-token", site: SITE, kind: "chatgpt_web", path: "/v1", models: ["m"], concurrency: 1, name: ""};

async function worker(stored = {}) {
  const storage = {options: OPTIONS, ...stored};
  const sockets = [];
  const timers = [];
  const registered = [];
  class WebSocket {
    static OPEN = 1;
    constructor(url, protocols) {
      Object.assign(this, {url, protocols: plain(protocols), readyState: 0, sent: [], closedWith: null});
      sockets.push(this);
    }
    send(frame) { this.sent.push(JSON.parse(frame)); }
    close(code) { this.closedWith = code; }
    open() { this.readyState = 1; this.onopen(); }
    say(frame) { this.onmessage({data: typeof frame === "string" ? frame : JSON.stringify(frame)}); }
    end(code, reason = "") { this.readyState = 3; this.onclose({code, reason}); }
  }
  const onChanged = event();
  const chrome = {
    runtime: {id: "extension", onConnect: event(), onInstalled: event(), getManifest: () => ({version: "0.1.0"}), openOptionsPage: () => {}},
    storage: {
      onChanged,
      local: {
        get: async () => plain(storage),
        set: async (change) => {
          Object.assign(storage, plain(change));
          await onChanged.fire(Object.fromEntries(Object.entries(plain(change)).map(([name, newValue]) => [name, {newValue}])), "local");
        },
      },
    },
    scripting: {unregisterContentScripts: async () => registered.splice(0), registerContentScripts: async (scripts) => registered.push(...plain(scripts))},
    alarms: {create: () => {}, onAlarm: event()},
    action: {onClicked: event()},
  };
  const clock = {ahead: 0};
  run("background.js", {
    chrome, WebSocket, Date: {now: () => Date.now() + clock.ahead},
    setTimeout: (callback, ms) => timers.push({callback, ms}), clearTimeout: () => timers.splice(0),
  });
  const open = async (url = `${SITE}/c/1`) => {
    const [background, content] = ports({id: "extension", url});
    await chrome.runtime.onConnect.fire(background);
    return {asked: background.sent, say: (frame) => content.postMessage(frame), leave: () => background.onDisconnect.fire()};
  };
  await tick();
  return {storage, sockets, timers, registered, chrome, open, clock};
}

const welcome = {type: "welcome", agent: "a", models: ["m"], ping_s: 20, grace_s: 5};
const request = {type: "request", id: "r1", model: "m", stream: true, credit: 8, body: {model: "m", messages: []}};

async function attached(stored) {
  const it = await worker(stored);
  const tab = await it.open();
  const [socket] = it.sockets;
  socket.open();
  socket.say(welcome);
  return {...it, tab, socket};
}

test("it connects while a page of the site is open, and says hello with its token", async () => {
  const it = await worker();
  assert.equal(it.sockets.length, 0);
  await it.open("https://evil.example/");
  assert.equal(it.sockets.length, 0);
  const tab = await it.open();
  const [socket] = it.sockets;
  assert.equal(socket.url, "wss://gateway.example/client/register");
  assert.deepEqual(socket.protocols, ["chat-gateway.agent.v2"]);
  socket.open();
  const {session, software, ...hello} = socket.sent[0];
  assert.deepEqual(hello, {type: "hello", token: "secret-token", models: ["m"], concurrency: 1, resumes: false});
  assert.ok(session && software);
  socket.say(welcome);
  assert.equal(it.storage.status.state, "connected");
  await tab.leave();
  assert.equal(socket.closedWith, 1000);
  assert.equal(it.storage.status.state, "off");
});

test("requests go to the page, and its frames to the gateway", async () => {
  const {socket, tab, storage} = await attached();
  socket.say(request);
  assert.deepEqual(tab.asked, [{...request, kind: "chatgpt_web", path: "/v1"}]);
  assert.ok(!JSON.stringify(tab.asked).includes("secret-token"));
  socket.say({type: "credit", id: "r1", n: 3, received: 1});
  assert.deepEqual(tab.asked[1], {type: "credit", id: "r1", n: 3});
  tab.say({type: "delta", id: "r1", seq: 1, text: "a"});
  tab.say({type: "done", id: "r1", seq: 2, reason: "stop"});
  tab.say({type: "delta", id: "r1", seq: 3, text: "late"});
  assert.deepEqual(socket.sent.slice(1).map((frame) => frame.type), ["delta", "done"]);
  assert.equal(storage.status.served, 1);
  socket.say({...request, id: "r2"});
  tab.say({type: "error", id: "r2", seq: 1, cause: "unauthorised", message: "sign in"});
  assert.equal(storage.status.error, "unauthorised: sign in");
});

test("a ping is answered at once", async () => {
  const {socket} = await attached();
  socket.say({type: "ping", at: 17});
  assert.deepEqual(socket.sent.at(-1), {type: "pong", at: 17});
});

test("what it cannot take is refused with its cause", async () => {
  const {socket, tab} = await attached();
  socket.say(request);
  socket.say({...request, id: "r2"});
  socket.say({type: "cancel", id: "r1"});
  socket.say({...request, id: "r3", body: {model: "other"}});
  socket.say({type: "resume", id: "r4", received: 6, credit: 1});
  assert.deepEqual(socket.sent.slice(1).map(({id, seq, cause}) => [id, seq, cause]), [["r2", 1, "busy"], ["r3", 1, "model_not_served"], ["r4", 7, "unknown_request"]]);
  assert.deepEqual(tab.asked.at(-1), {type: "cancel", id: "r1"});
});

test("a page that is closed in mid-answer is told", async () => {
  const {socket, tab, open} = await attached();
  await open();
  socket.say(request);
  tab.say({type: "delta", id: "r1", seq: 1, text: "a"});
  await tab.leave();
  assert.deepEqual([socket.sent.at(-1).cause, socket.sent.at(-1).seq], ["upstream_failed", 2]);
  assert.equal(socket.closedWith, null);
});

test("several requests are spread over the pages", async () => {
  const {socket, tab, open} = await attached({options: {...OPTIONS, concurrency: 2}});
  const other = await open();
  socket.say(request);
  socket.say({...request, id: "r2"});
  assert.deepEqual([tab.asked.length, other.asked.length], [1, 1]);
});

test("a lost connection cancels what runs and is made again after a random pause", async () => {
  const {socket, tab, timers, sockets} = await attached();
  socket.say(request);
  socket.end(1006);
  assert.deepEqual(tab.asked.at(-1), {type: "cancel", id: "r1"});
  assert.equal(sockets.length, 1);
  assert.ok(timers[0].ms >= 200 && timers[0].ms <= 600);
  timers.splice(0)[0].callback();
  assert.equal(sockets.length, 2);
  const pauses = [];
  for (let tries = 0; tries < 60; tries += 1) {
    sockets.at(-1).end(1006);
    const {callback, ms} = timers.splice(0)[0];
    pauses.push(ms);
    callback();
  }
  assert.ok(Math.max(...pauses) > 5000 && Math.max(...pauses) <= 30_000);
  assert.ok(new Set(pauses.slice(0, 5)).size > 3);
  sockets.at(-1).end(4503);
  assert.ok(timers[0].ms >= 3000);
});

for (const code of [1007, 1009, 4400, 4401, 4403, 4409]) {
  test(`${code} stops it until the options are saved again, also over a restart of the worker`, async () => {
    const {socket, storage, timers, chrome, sockets} = await attached();
    socket.end(code);
    await tick();
    assert.equal(storage.status.state, "stopped");
    assert.match(storage.status.error, new RegExp(`^closed with ${code}: .+`));
    assert.equal(timers.length, 0);
    await chrome.alarms.onAlarm.fire();
    assert.equal(sockets.length, 1);
    const next = await worker(plain(storage));
    await next.open();
    assert.equal(next.sockets.length, 0);
    await next.chrome.storage.local.set({options: {...OPTIONS, token: "another", savedAt: 1}});
    assert.equal(next.sockets.length, 1);
  });
}

test("options that are saved register the site's pages and connect anew", async () => {
  const {socket, registered, chrome, sockets} = await attached();
  await chrome.storage.local.set({options: {...OPTIONS, site: "http://127.0.0.1:8123", models: ["n"], savedAt: 2}});
  assert.deepEqual(registered, [{id: "page", js: ["content.js"], matches: ["http://127.0.0.1/*"]}]);
  assert.equal(socket.closedWith, 1000);
  assert.equal(sockets.length, 1);
});

for (const garbage of ["no json", "7", "null", "[]", '{"type": "surprise"}', '{"type": "request", "id": 7}', '{"type": "request", "id": "x", "body": {}}',
  '{"type": "credit", "id": "x", "n": "many"}', '{"type": "welcome"}']) {
  test(`garbage from the gateway closes the connection only: ${garbage}`, async () => {
    const {socket, sockets, timers} = await attached();
    socket.say(garbage);
    assert.equal(socket.closedWith, 4400);
    socket.say(request); // nothing is taken from it any more
    timers.splice(0)[0].callback();
    assert.equal(sockets.length, 2);
  });
}

test("a gateway that says nothing any more is left", async () => {
  const {chrome, clock, sockets, timers} = await attached();
  clock.ahead = 45_000;
  await chrome.alarms.onAlarm.fire();
  assert.equal(timers.length, 0);
  clock.ahead = 55_000;
  await chrome.alarms.onAlarm.fire();
  timers.splice(0)[0].callback();
  assert.equal(sockets.length, 2);
});
