// Runs in a page of the site that the options name. It asks that page's own origin, in the page's own session, and nobody else; the gateway's token is not here.
"use strict";

const LINE_CHARACTERS = 4_000_000;
const works = new Map(); // by id
let port = null;

class Failed extends Error {
  constructor(cause, message, members = {}) {
    super(message);
    this.frame = {type: "error", cause, message, ...members};
  }
}

class Work {
  constructor(frame) {
    this.frame = frame;
    this.seq = 0;
    this.credit = frame.credit;
    this.aborter = new AbortController();
    this.signal = this.aborter.signal;
    this.wake = () => {};
    this.signal.addEventListener("abort", () => this.wake());
  }

  grant(n) {
    this.credit += n;
    this.wake();
  }

  // Waits for credit: whoever reads an answer slowly slows the page's connection down.
  async emit(members) {
    while (this.credit < 1 && !this.signal.aborted) await new Promise((resolve) => (this.wake = resolve));
    this.signal.throwIfAborted();
    this.credit -= 1;
    this.seq += 1;
    port.postMessage({...members, id: this.frame.id, seq: this.seq});
  }
}

function uuid() { // crypto.randomUUID is missing on a page without TLS
  const hex = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// What any other answer than 2xx means, in the protocol's causes. Where the site wants to see a person, the person has to go to the page.
async function refusal(response) {
  const text = (await response.text()).slice(0, 65_536);
  const {status} = response;
  const detail = parsed(text)?.detail;
  if (status === 429) {
    const after = Number(response.headers.get("retry-after") || detail?.clears_in || Number.NaN);
    return new Failed("rate_limited", "the site's limit is reached", {status, ...(after >= 0 && after < 1e6 && {retry_after_s: after})});
  }
  if (status === 401 || status === 403) return new Failed("unauthorised", `the site refused with ${status}: look at the page and sign in`, {status});
  if (status < 400 || status >= 500) return new Failed("upstream_failed", `the site answered with ${status}`, {status});
  return new Failed("bad_request", `the site refused with ${status}`, {status, body: parsed(text) ?? text});
}

async function ask(work, path, body, headers = {}) {
  const posted = body && {method: "POST", body: JSON.stringify(body)};
  const response = await fetch(new URL(path, location.origin), {
    ...posted, headers: {...(posted && {"Content-Type": "application/json"}), ...headers}, credentials: "same-origin", redirect: "error", signal: work.signal,
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

// The documents of an event stream, up to [DONE]. A stream without one was cut.
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    const lines = (rest + (done ? "\n" : decoder.decode(value, {stream: true}))).split("\n");
    rest = lines.pop();
    if (rest.length > LINE_CHARACTERS) throw new Failed("upstream_failed", "an event of the page's stream is too large");
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      const document = parsed(data);
      if (document && typeof document === "object") yield document;
    }
    if (done) throw new Failed("upstream_failed", "the page's answer was cut");
  }
}

// ChatGPT's web interface, and what imitates it: events that repeat the whole text so far.

class CumulativeText {
  constructor() {
    this.text = this.given = "";
    this.speaker = this.messageId = this.conversationId = this.finish = null;
    this.finished = false;
  }

  // The text that an event adds to the answer.
  read({message, conversation_id: conversationId}) {
    if (message?.author?.role !== "assistant") return "";
    this.finished = false;
    const {id, metadata = {}, content, status, end_turn: turn} = message;
    const text = content?.parts?.[0];
    const settled = status === "finished_successfully";
    if (typeof id === "string" && typeof conversationId === "string") [this.messageId, this.conversationId] = [id, conversationId];
    if (typeof text !== "string" || !["next", "continue"].includes(metadata.message_type) || ![null, undefined, true].includes(turn)) return "";
    this.finish = metadata.finish_details?.type ?? this.finish;
    this.finished = settled && (turn === true || Boolean(metadata.finish_details?.type));
    if (turn === true && !text.startsWith(this.given)) return ""; // it ends the turn, and its text is another's
    this.text = text;
    return this.added(settled ? text : text.replace(/\ufffd+$|[\ud800-\udbff]$/, ""), id); // half a character is held back
  }

  rest() {
    return this.added(this.text, this.speaker);
  }

  // What was given cannot be taken back: of a text that was rewritten, what stands behind the common beginning is new.
  added(text, speaker) {
    const {given} = this;
    let from = 0;
    if (text.startsWith(given)) from = given.length;
    else if (speaker === this.speaker && given.startsWith(text)) return "";
    else if (speaker === this.speaker) while (text[from] === given[from]) from += 1;
    [this.given, this.speaker] = [text, speaker];
    return text.slice(from);
  }
}

function plainText({content}) {
  const parts = Array.isArray(content) ? content : [{type: "text", text: content ?? ""}];
  if (!parts.every((part) => typeof part.text === "string")) throw new Failed("bad_request", "this page takes text only", {status: 400});
  return parts.map((part) => part.text).join("");
}

function webRequest({body, conversation}) {
  const messages = (Array.isArray(body.messages) ? body.messages : []).map((message) => ({
    id: uuid(), author: {role: message.role === "system" ? "critic" : message.role}, content: {content_type: "text", parts: [plainText(message)]},
  }));
  if (!messages.length) throw new Failed("bad_request", "there is no message", {status: 400});
  if (conversation?.message_id) messages.at(-1).id = conversation.message_id;
  return {
    action: "next",
    messages: conversation?.id ? messages.slice(-1) : messages, // the conversation has the others
    ...(conversation?.id && {conversation_id: conversation.id}),
    parent_message_id: conversation?.parent_id || uuid(),
    model: body.model,
  };
}

async function answerWeb(work) {
  const asked = webRequest(work.frame);
  const session = parsed(await (await ask(work, "/api/auth/session")).text());
  if (!session?.accessToken) throw new Failed("unauthorised", "nobody is signed in on the page");
  const response = await ask(work, "/backend-api/conversation", asked, {Accept: "text/event-stream", Authorization: `Bearer ${session.accessToken}`});
  const answer = new CumulativeText();
  for await (const document of events(response)) {
    const error = document.error ?? (document.message ? null : document.detail);
    if (error) throw new Failed("upstream_failed", "the page broke off", {body: {error}});
    const text = answer.read(document);
    if (text) await work.emit({type: "delta", text});
  }
  if (!answer.finished) throw new Failed("upstream_failed", "the page's answer was cut");
  const rest = answer.rest();
  if (rest) await work.emit({type: "delta", text: rest});
  const reason = {max_tokens: "length", length: "length", content_filter: "content_filter"}[answer.finish] ?? "stop";
  await work.emit({type: "done", reason, conversation: {id: answer.conversationId, message_id: answer.messageId}});
}

// A site with OpenAI's own interface.

async function answerOpenai(work) {
  const {body, path} = work.frame;
  const response = await ask(work, `${path}/chat/completions`, {...body, stream: true, stream_options: {include_usage: true}});
  let reason = null;
  let usage = null;
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Failed("upstream_failed", "the page broke off", {body: {error: chunk.error}});
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.find(({index}) => !index);
    reason = choice?.finish_reason ?? reason;
    if (choice?.delta?.content) await work.emit({type: "delta", text: String(choice.delta.content)});
    for (const {index, id, function: called} of choice?.delta?.tool_calls ?? []) {
      await work.emit({type: "delta", tool_call: {index, arguments: called?.arguments ?? "", ...(id && {id, name: called?.name ?? ""})}});
    }
  }
  if (!reason) throw new Failed("upstream_failed", "the page's answer was cut");
  await work.emit({type: "done", reason, ...(usage && {usage})});
}

async function begin(frame) {
  const work = new Work(frame);
  works.set(frame.id, work);
  try {
    await (frame.kind === "openai" ? answerOpenai(work) : answerWeb(work));
  } catch (error) {
    const failed = error instanceof Failed ? error : new Failed("upstream_failed", `the page cannot be asked: ${error.name}`);
    await work.emit(failed.frame).catch(() => {}); // aborted: nobody waits for it
  } finally {
    work.aborter.abort(); // what is left of the page's answer is not read
    works.delete(frame.id);
  }
}

// The port ends with the extension's worker, which the next one wakes.
function join() {
  if (!chrome.runtime?.id) return; // the extension was removed
  port = chrome.runtime.connect({name: "page"});
  port.onMessage.addListener((frame) => {
    if (frame.type === "request") begin(frame);
    else if (frame.type === "credit") works.get(frame.id)?.grant(frame.n);
    else if (frame.type === "cancel") works.get(frame.id)?.aborter.abort();
  });
  port.onDisconnect.addListener(() => {
    port = null;
    for (const work of works.values()) work.aborter.abort();
    setTimeout(join, 1000);
  });
}

join();
setInterval(() => port?.postMessage({type: "alive"}), 15_000); // Firefox ends a background page that no event reaches; a websocket's are none
