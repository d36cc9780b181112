// A conversation is a tree: each message knows the one before it, and what is shown is the path to one leaf.
// Pure functions over a Map of id → message; nothing is stored or drawn here.

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} chat the conversation that it belongs to
 * @property {string|null} parent the message before it
 * @property {"user"|"assistant"} role
 * @property {string} content
 * @property {string} [thinking]
 * @property {object[]} [files]
 * @property {number} created milliseconds since 1970
 * @property {number} [updated]
 * @property {"done"|"running"|"stopped"|"length"|"context"|"lost"|"failed"} state how an answer ended
 * @property {string} [error]
 * @property {object} [usage] OpenAI's token counts
 * @property {number} [read] the share of the prompt that has been read
 * @property {object} [speed] tokens, perSecond and first (seconds to the first token)
 */

/** 128 random bits in hexadecimal; needs no secure address. @returns {string} */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The messages from the first to `tip`.
 * @param {Map<string, Message>} messages
 * @param {string|null} tip
 * @returns {Message[]}
 */
export function pathTo(messages, tip) {
  const path = [];
  const seen = new Set();
  for (let at = messages.get(tip); at && !seen.has(at.id); at = messages.get(at.parent)) {
    seen.add(at.id);
    path.push(at);
  }
  return path.reverse();
}

/** Messages that follow `parent` (null: the first ones), oldest first. @returns {Message[]} */
export function childrenOf(messages, parent) {
  return [...messages.values()]
    .filter((message) => (message.parent ?? null) === parent)
    .sort((one, other) => one.created - other.created || (one.id < other.id ? -1 : 1));
}

/** The branches at a message: it and its alternatives, oldest first. @returns {Message[]} */
export const siblings = (messages, message) => childrenOf(messages, message.parent ?? null);

/** The newest end of the conversation below a message. @returns {string} its id */
export function newestLeaf(messages, id) {
  const seen = new Set();
  for (let at = id; ; ) {
    seen.add(at);
    const next = childrenOf(messages, at).at(-1);
    if (!next || seen.has(next.id)) return at;
    at = next.id;
  }
}

/** A name for a conversation: the beginning of its first question. @returns {string} */
export function nameFrom(text) {
  const line = text.trim().split("\n")[0].trim();
  return (line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line) || "New chat";
}

/** Answers that were cut and can be continued. @param {Message} message */
export const wasCut = (message) => ["stopped", "length", "context", "lost"].includes(message.state);
