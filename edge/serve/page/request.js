// A path of messages and the settings → the body of OpenAI's request. Pure functions.

const CHARACTERS_PER_TOKEN = 3; // until an answer has told better; low for English, so that what is kept fits

/** A text file as the model sees it. */
const quoted = (file) => `File ${file.name}:\n\`\`\`\n${file.text}\n\`\`\`\n\n`;

/** What a message says to the model: text, or parts where there are images. */
function contentOf(message) {
  const files = message.files ?? [];
  const text = files.filter((file) => file.kind === "text").map(quoted).join("") + message.content;
  const images = files.filter((file) => file.kind === "image");
  if (!images.length) return text;
  return [...images.map((image) => ({ type: "image_url", image_url: { url: image.data } })), { type: "text", text }];
}

const isEmpty = (message) => !message.content && !message.thinking;

/** Without questions that failed: what the server refused once would be refused again. */
export function withoutFailures(path) {
  const kept = [];
  for (const message of path) {
    if (message.role === "assistant" && message.state === "failed" && isEmpty(message)) kept.pop();
    else if (message.role !== "assistant" || !isEmpty(message)) kept.push(message);
  }
  return kept;
}

/** Two questions in a row are one: many templates refuse anything but turns. */
function joined(messages) {
  const turns = [];
  for (const message of messages) {
    const last = turns.at(-1);
    if (last?.role === "user" && message.role === "user" && typeof last.content === "string" && typeof message.content === "string") {
      last.content += `\n\n${message.content}`;
    } else turns.push(message);
  }
  return turns;
}

const lengthOf = (message) =>
  message.content.length + (message.files ?? []).reduce((sum, file) => sum + (file.text?.length ?? 0), 0);

/** Characters that a token of this conversation has, by its last counted answer. */
function charactersPerToken(path) {
  const at = path.findLastIndex((message) => message.usage?.total_tokens > 20 && !message.left);
  if (at < 0) return CHARACTERS_PER_TOKEN;
  const all = path.slice(0, at + 1).reduce((sum, message) => sum + lengthOf(message) + (message.thinking ?? "").length, 0);
  return Math.min(Math.max(all / path[at].usage.total_tokens, 0.5), 8);
}

/**
 * The newest messages, half of the text at most and of the context's half; where the last one is longer alone, its end.
 * @param {object[]} path
 * @param {number} context tokens; 0 is unknown
 * @returns {{path: object[], left: number}} what is sent, and how many messages are left out
 */
export function newestPart(path, context) {
  const total = path.reduce((sum, message) => sum + lengthOf(message), 0);
  const room = Math.min(total / 2, context ? (context / 2) * charactersPerToken(path) : Infinity);
  const kept = path.slice(path.findLastIndex((message) => message.role === "user"));
  let used = kept.reduce((sum, message) => sum + lengthOf(message), 0);
  for (let at = path.length - kept.length - 1; at > 0; at -= 2) {
    const pair = path.slice(at - 1, at + 1);
    used += pair.reduce((sum, message) => sum + lengthOf(message), 0);
    if (used > room) break;
    kept.unshift(...pair);
  }
  const last = kept.at(-1);
  const others = kept.slice(0, -1).reduce((sum, message) => sum + lengthOf(message), 0);
  if (lengthOf(last) + others > room) {
    kept[kept.length - 1] = { ...last, content: last.content.slice(-Math.max(room - others, room / 4)) };
  }
  return { path: kept, left: path.length - kept.length };
}

/** What continues an answer that was cut: the server goes on inside it instead of beginning another. */
function continuation(message) {
  const inThought = !message.content && message.thinking;
  return {
    last: inThought
      ? { role: "assistant", content: "", reasoning_content: message.thinking }
      : { role: "assistant", content: message.content },
    fields: { add_generation_prompt: false, continue_final_message: inThought ? "reasoning_content" : true },
  };
}

/**
 * The request for the answer to a path.
 * @param {object[]} path messages up to a question, or up to an answer that is to be continued
 * @param {object} settings of the conversation; what is null is left to the server
 * @returns {object}
 */
export function requestBody(path, settings) {
  const kept = withoutFailures(path);
  const last = kept.at(-1);
  const continuing = last?.role === "assistant" ? continuation(last) : null;
  const turns = joined((continuing ? kept.slice(0, -1) : kept).map((message) => ({ role: message.role, content: contentOf(message) })));
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const messages = [...system, ...turns, ...(continuing ? [continuing.last] : [])];
  return { messages, ...chosen(settings), ...(continuing?.fields ?? {}) };
}

function chosen(settings) {
  const body = {};
  const fields = { temperature: "temperature", length: "max_tokens", topP: "top_p", minP: "min_p", seed: "seed" };
  for (const [own, theirs] of Object.entries(fields)) if (Number.isFinite(settings[own])) body[theirs] = settings[own];
  if (settings.thinking === "off") body.chat_template_kwargs = { enable_thinking: false };
  if (settings.schema) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: JSON.parse(settings.schema) } };
  }
  return body;
}
