// Conversations to and from files: this page's JSON, the transcripts of `edgepack run`, Markdown to read.
// What comes in was written by anybody: every field is checked, and every id is made anew.

import { nameFrom, newId, pathTo } from "./tree.js";
import { keptVerdict } from "./verdict.js";

const FORMAT = "edgepack-conversations";
const STATES = ["done", "stopped", "length", "context", "lost", "failed"];
const MOST_MESSAGES = 100000;

/** A file that is no export of conversations, and why. */
export class ImportError extends Error {}

/**
 * Conversations as JSON.
 * @param {{chat: object, messages: Map<string, object>}[]} conversations
 * @returns {string}
 */
export function asJson(conversations) {
  const all = conversations.map(({ chat, messages }) => ({ ...chat, messages: [...messages.values()] }));
  return `${JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1)}\n`;
}

/** What is shown of a conversation, as Markdown. @returns {string} */
export function asMarkdown(chat, messages) {
  const turns = pathTo(messages, chat.tip).map(
    (message) => `## ${message.role === "user" ? "You" : "Model"}\n\n${message.content.trim()}\n`,
  );
  return `# ${chat.name}\n\n${turns.join("\n")}`;
}

/**
 * The conversations in a file.
 * @param {string} text
 * @returns {{chat: object, messages: object[]}[]} with new ids
 * @throws {ImportError}
 */
export function fromJson(text) {
  let record;
  try {
    record = JSON.parse(text);
  } catch (error) {
    throw new ImportError(`not JSON: ${error.message}`);
  }
  if (record?.format === FORMAT) {
    if (record.version !== 1) throw new ImportError(`format version 1 expected, got ${record.version}`);
    return list(record.conversations, "conversations").map(conversation);
  }
  if (Array.isArray(record?.messages)) return [transcript(record.messages)];
  throw new ImportError(`expected an export of this page, or a transcript of edgepack run`);
}

function list(value, where) {
  if (!Array.isArray(value) || value.length > MOST_MESSAGES) throw new ImportError(`${where}: expected a list`);
  return value;
}

function string(value, where) {
  if (typeof value !== "string") throw new ImportError(`${where}: expected a text`);
  return value;
}

function conversation(record, number) {
  const where = `conversations[${number}]`;
  const messages = list(record?.messages, `${where}.messages`);
  const chat = newChatOf(string(record.name, `${where}.name`), record.settings);
  const ids = new Map(messages.map((message, at) => [string(message?.id, `${where}.messages[${at}].id`), newId()]));
  const made = messages.map((message, at) => checkedMessage(message, chat, ids, `${where}.messages[${at}]`));
  chat.tip = ids.get(record.tip) ?? made.at(-1)?.id ?? null;
  checkTree(made, where);
  return { chat, messages: made };
}

function newChatOf(name, settings) {
  const now = Date.now();
  return { id: newId(), name: name.slice(0, 200), created: now, updated: now, tip: null, settings: checkedSettings(settings) };
}

function checkedSettings(settings) {
  const kept = {};
  for (const field of ["temperature", "length", "topP", "minP", "seed"]) {
    if (Number.isFinite(settings?.[field])) kept[field] = settings[field];
  }
  for (const field of ["system", "schema", "thinking"]) if (typeof settings?.[field] === "string") kept[field] = settings[field];
  return kept;
}

function checkedMessage(message, chat, ids, where) {
  const parent = message.parent === null || message.parent === undefined ? null : ids.get(message.parent);
  if (parent === undefined) throw new ImportError(`${where}.parent: no message has this id`);
  if (!["user", "assistant"].includes(message.role)) throw new ImportError(`${where}.role: expected user or assistant`);
  return {
    id: ids.get(message.id), chat: chat.id, parent, role: message.role,
    content: string(message.content, `${where}.content`),
    thinking: typeof message.thinking === "string" ? message.thinking : "",
    files: list(message.files ?? [], `${where}.files`).map((file, at) => checkedFile(file, `${where}.files[${at}]`)),
    created: Number.isFinite(message.created) ? message.created : 0,
    state: STATES.includes(message.state) ? message.state : "done",
    error: typeof message.error === "string" ? message.error : undefined,
    verdict: message.role === "assistant" ? keptVerdict(message.verdict) : undefined,
  };
}

function checkedFile(file, where) {
  const name = string(file?.name, `${where}.name`);
  if (file.kind === "text") return { kind: "text", name, text: string(file.text, `${where}.text`) };
  if (file.kind === "image" && /^data:image\/(png|jpeg);base64,[A-Za-z0-9+/=]*$/.test(file.data)) {
    return { kind: "image", name, data: file.data };
  }
  throw new ImportError(`${where}: expected a text or an image`);
}

/** Every message must lead back to a first one. */
function checkTree(messages, where) {
  const all = new Map(messages.map((message) => [message.id, message]));
  if (all.size !== messages.length) throw new ImportError(`${where}: two messages have one id`);
  const rooted = new Set();
  for (const message of messages) {
    const path = new Set();
    let at = message;
    while (at && !rooted.has(at.id)) {
      if (path.has(at.id)) throw new ImportError(`${where}: messages follow each other in a circle`);
      path.add(at.id);
      at = all.get(at.parent);
    }
    for (const id of path) rooted.add(id);
  }
}

function transcript(records) {
  const system = records[0]?.role === "system" ? string(records[0].content, "messages[0].content") : "";
  const turns = list(system ? records.slice(1) : records, "messages");
  const chat = newChatOf(nameFrom(string(turns[0]?.content ?? "", "messages[0].content")), system ? { system } : {});
  let parent = null;
  const messages = turns.map((turn, at) => {
    const made = checkedMessage({ ...turn, thinking: turn.reasoning_content, id: "", parent: null, created: at }, chat, new Map([["", newId()]]), `messages[${at}]`);
    made.parent = parent;
    parent = made.id;
    return made;
  });
  return { chat: { ...chat, tip: parent }, messages };
}
