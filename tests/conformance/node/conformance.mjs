// OpenAI's npm package, unmodified, against the gateway at BASE_URL with KEY. Prints one line of JSON for each case:
// {"case", "value"}, or {"case", "error"} where it raised. What is right is said in ../test_openai_node.py.
import { Buffer, File } from 'node:buffer';
import { createHash } from 'node:crypto';
import OpenAI, { toFile } from 'openai';

globalThis.File ??= File; // Node 18 has it, but not as a global

const { BASE_URL: baseURL, KEY, RESTRICTED_KEY, BODY_LIMIT } = process.env;
const once = { baseURL, maxRetries: 0 };
const client = new OpenAI({ ...once, apiKey: KEY });
const messages = [{ role: 'user', content: 'Grüße 👋' }];
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

const schema = {
  type: 'object',
  properties: { place: { type: 'string' }, days: { type: 'integer' } },
  required: ['place', 'days'],
  additionalProperties: false,
};
const tools = [{ type: 'function', function: { name: 'weather', strict: true, parameters: schema } }];
const picture = [
  {
    role: 'user',
    content: [
      { type: 'text', text: 'What is this?' },
      { type: 'image_url', image_url: { url: 'data:image/png;base64,' + 'iVBORw0KGgo='.repeat(9000) } },
    ],
  },
];

async function all(stream) {
  const items = [];
  for await (const item of await stream) items.push(item);
  return items;
}

const spoken = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
const chat = (model, more = {}) => client.chat.completions.create({ model, messages, ...more });

async function streamedCall() {
  const call = { name: '', arguments: '' };
  const chunks = await all(chat('gpt-4o', { tools, stream: true }));
  for (const { function: part } of chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? [])) {
    call.name += part.name ?? '';
    call.arguments += part.arguments ?? '';
  }
  return { ...call, finish: chunks.at(-1).choices[0].finish_reason };
}

async function brokenOff() {
  const { data: stream, request_id } = await chat('stalls', { stream: true }).withResponse();
  for await (const chunk of stream) return { first: chunk.choices[0].delta.role, request_id };
}

async function abandoned() {
  const controller = new AbortController();
  const asked = client.responses.create({ model: 'stalls-too', input: 'Hi', stream: true }, { signal: controller.signal });
  const { data: stream, request_id } = await asked.withResponse();
  let first;
  for await (const event of stream) {
    first ??= event.type;
    controller.abort();
  }
  return { first, request_id };
}

async function farTooLarge() {
  const padding = 'x'.repeat(16 * Number(BODY_LIMIT));
  const errors = [];
  // More than once: whether the answer gets through while the body is still being sent is a matter of chance
  // where the server only closes the connection.
  for (let turn = 0; turn < 5; turn += 1) await chat('gpt-4o', { padding }).catch((error) => errors.push(error));
  throw errors.find((error) => error.status !== 413) ?? errors[0];
}

async function cut(stream) {
  let seen = 0;
  try {
    for await (const _ of await stream) seen += 1;
  } catch (error) {
    error.seen = seen;
    throw error;
  }
  return { seen };
}

const cases = {
  chat_whole: async () => {
    const { data, request_id } = await chat('gpt-4o').withResponse();
    return { text: data.choices[0].message.content, tokens: data.usage.total_tokens, request_id, own_id: data._request_id };
  },
  chat_streamed: async () => {
    const chunks = await all(chat('gpt-4o', { stream: true }));
    return { text: spoken(chunks), usages: chunks.filter((chunk) => chunk.usage).length };
  },
  chat_streamed_with_usage: async () => {
    const chunks = await all(chat('gpt-4o', { stream: true, stream_options: { include_usage: true } }));
    return { text: spoken(chunks), tokens: chunks.at(-1).usage?.total_tokens };
  },
  echo_streamed: async () => spoken(await all(chat('echo', { stream: true }))),
  runner: async () => client.chat.completions.stream({ model: 'gpt-4o', messages }).finalContent(),
  tools_whole: async () => (await chat('gpt-4o', { tools })).choices[0].message.tool_calls[0].function,
  tools_streamed: streamedCall,
  vision: async () => (await client.chat.completions.create({ model: 'gpt-4o', messages: picture })).choices[0].message.content,
  json_schema: async () => {
    const response_format = { type: 'json_schema', json_schema: { name: 'weather', strict: true, schema } };
    return JSON.parse((await chat('gpt-4o', { response_format })).choices[0].message.content);
  },
  embeddings: async () => {
    const asked = { model: 'text-embedding-3-small', input: ['one', 'two'] };
    const answers = [await client.embeddings.create(asked), await client.embeddings.create({ ...asked, encoding_format: 'float' })];
    return answers.map((answer) => answer.data.map((item) => item.embedding));
  },
  response_whole: async () => {
    const answer = await client.responses.create({ model: 'gpt-4o', input: 'Hi' });
    return { text: answer.output_text, tokens: answer.usage.total_tokens };
  },
  response_streamed: async () => {
    const events = await all(client.responses.create({ model: 'gpt-4o', input: 'Hi', stream: true }));
    const deltas = events.filter((event) => event.type === 'response.output_text.delta');
    return { first: events[0].type, last: events.at(-1).type, text: deltas.map((event) => event.delta).join('') };
  },
  speech: async () => {
    const answer = await client.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: 'Say it', response_format: 'flac' });
    return { sha256: sha256(Buffer.from(await answer.arrayBuffer())), type: answer.headers.get('content-type') };
  },
  transcription: async () => {
    const recording = Buffer.alloc(1_500_000, Buffer.from('0123456789abcdef\r\n--'));
    const file = await toFile(recording, 'My "best" Grüße.mp3');
    const answer = await client.audio.transcriptions.create({ model: 'house-ears', file });
    return { text: answer.text, sha256: sha256(recording) };
  },
  models: async () => (await all(client.withOptions({ apiKey: RESTRICTED_KEY }).models.list())).map((model) => model.id),

  refused_by_the_upstream: () => chat('refuses-400'),
  refused_by_the_gateway: () => client.responses.create({ model: 'gpt-4o', input: 'Hi', store: true }),
  wrong_key: () => client.withOptions({ apiKey: 'sk-not-ours' }).chat.completions.create({ model: 'gpt-4o', messages }),
  not_allowed: () => client.withOptions({ apiKey: RESTRICTED_KEY }).chat.completions.create({ model: 'house-chat', messages }),
  unknown_model: () => chat('gpt-nonesuch'),
  too_large: () => chat('gpt-4o', { padding: 'x'.repeat(Number(BODY_LIMIT)) }),
  far_too_large: farTooLarge,
  limited: () => chat('is-limited'),
  failed: () => chat('fails'),
  failed_in_its_first_event: () => chat('fails-in-its-first-event', { stream: true }),
  unreachable: () => chat('is-unreachable'),
  too_slow: () => chat('is-silent-too-long'),
  not_served: () => new OpenAI({ baseURL, apiKey: KEY }).files.list(),

  broken_off: brokenOff,
  abandoned,
  timed_out: () => client.withOptions({ timeout: 300 }).chat.completions.create({ model: 'is-silent', messages }),
  cut: () => cut(chat('breaks', { stream: true })),
  cut_without_a_trace: () => cut(chat('stops-talking', { stream: true })),
  cut_response: () => cut(client.responses.create({ model: 'breaks', input: 'Hi', stream: true })),
};

function told(error) {
  const { status, code, param, message, requestID, seen } = error;
  return { name: error.constructor.name, status, code, param, message, request_id: requestID, retry_after: error.headers?.get('retry-after'), seen };
}

for (const [name, run] of Object.entries(cases)) {
  let outcome;
  try {
    outcome = { value: (await run()) ?? null };
  } catch (error) {
    outcome = { error: told(error) };
  }
  console.log(JSON.stringify({ case: name, ...outcome }));
}
