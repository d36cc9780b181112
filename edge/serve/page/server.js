// Talks to the server by its documented routes: OpenAI's chat completions and models, llama.cpp's /props.
// It knows nothing of conversations and draws nothing.

const KEY = "edgepack-key";

/** The API key of this tab, or "". */
export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** Remember the API key until the tab is closed. @param {string} key */
export const setApiKey = (key) => sessionStorage.setItem(KEY, key);

const headers = () => (apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {});

/** A request that the server refused, in its own words. */
export class ServerError extends Error {
  /** @param {string} message @param {number} status @param {string} [code] */
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.full = code === "context_length_exceeded" || code === "exceed_context_size_error";
  }
}

function errorOf(body, status, otherwise) {
  const error = body?.error ?? body;
  const text = error?.message ?? body?.detail ?? otherwise;
  const code = [error?.code, error?.type].find((name) => /context/.test(String(name)));
  return new ServerError(typeof text === "string" ? text : JSON.stringify(text), status, code);
}

async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  if (!answer.ok) throw errorOf(await answer.json().catch(() => null), answer.status, answer.statusText);
  return answer.json();
}

/**
 * What is known of the model.
 * @returns {Promise<{name: string, context: number, vision: boolean, defaults: object}>} context is 0 where the server
 *   does not tell it
 * @throws {ServerError} status 401: the key is missing or wrong
 */
export async function modelFacts() {
  const name = (await get("v1/models")).data?.[0]?.id ?? "model";
  const props = await get("props").catch(() => ({}));
  const settings = props.default_generation_settings ?? {};
  return {
    name: String(name).split(/[\\/]/).at(-1).replace(/\.gguf$/i, ""),
    context: Number(settings.n_ctx) || 0,
    vision: props.modalities?.vision === true,
    defaults: settings.params ?? settings,
  };
}

/**
 * Ask for an answer, piece by piece.
 * @param {object} body OpenAI's request, without `stream`
 * @param {AbortSignal} signal ends it
 * @yields {{content: string, thinking: string, finish: string|null, verdict?: object, usage?: object, timings?: object,
 *   progress?: object}}
 * @throws {ServerError} the server refuses it, or fails while it answers
 */
export async function* streamAnswer(body, signal) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true }, return_progress: true }),
  });
  if (!answer.ok) throw errorOf(await answer.json().catch(() => null), answer.status, answer.statusText);
  for await (const data of events(answer.body)) {
    if (data.error) throw errorOf(data, 500, "the server failed");
    const choice = data.choices?.[0] ?? {};
    yield {
      content: choice.delta?.content ?? "",
      thinking: choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "",
      finish: choice.finish_reason ?? null,
      verdict: choice.edgepack,
      usage: data.usage ?? undefined,
      timings: data.timings,
      progress: data.prompt_progress,
    };
  }
}

/**
 * The JSON objects of server-sent events; the borders of network packets may be anywhere.
 * @param {ReadableStream<Uint8Array>} stream
 */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? "\n" : value;
      const lines = held.split(/\r\n|\n|\r(?!$)/);
      held = lines.pop();
      for (const line of lines) {
        const data = /^(?:data|error):/.test(line) ? line.slice(line.indexOf(":") + 1).trim() : "";
        if (data === "[DONE]") return;
        if (data) yield line.startsWith("error:") ? { error: JSON.parse(data) } : JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
