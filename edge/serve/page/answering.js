// Answers that are being written. They belong to their conversation, not to what is on the screen: another
// conversation may be shown, or begun, while one goes on.

import { streamAnswer } from "./server.js";
import { parted } from "./thinking.js";
import { verdictOf } from "./verdict.js";

const SAVE_EVERY = 1000; // milliseconds
const LOST_AFTER = 90000; // an answer without a lock that nobody has written for so long has no writer any more
const CUT = "edgepack-cut-"; // in localStorage, before a message's id
const lockName = (id) => `edgepack-answer-${id}`;

/** The running answers of this tab. */
export class Answers {
  #running = new Map(); // message id → {message, controller}
  #store;
  #show;

  /**
   * @param {import("./store.js").Store} store
   * @param {(message: object) => void} show is told of each change of an answer
   */
  constructor(store, show) {
    this.#store = store;
    this.#show = show;
    addEventListener("pagehide", () => this.#saveCut());
  }

  /** The page goes: IndexedDB would not end its writing any more, localStorage writes at once. */
  #saveCut() {
    for (const { message } of this.#running.values()) {
      try {
        localStorage.setItem(CUT + message.id, JSON.stringify({ ...message, state: "lost" }));
      } catch { /* full: what was kept a second ago remains */ }
    }
  }

  /** Put what pages that went have left into the store. */
  async mend() {
    for (const name of Object.keys(localStorage).filter((key) => key.startsWith(CUT))) {
      const message = JSON.parse(localStorage.getItem(name));
      localStorage.removeItem(name);
      if (await this.#store.chat(message.chat)) await this.#store.putMessage(message);
    }
  }

  /** The running answer's message, as far as it is. @param {string} id */
  message(id) { return this.#running.get(id)?.message; }

  /** Whether a conversation has a running answer here. @param {string} chat */
  runsIn(chat) { return [...this.#running.values()].some(({ message }) => message.chat === chat); }

  /** End an answer where it is. @param {string} id */
  stop(id) { this.#running.get(id)?.controller.abort(); }

  /** End the answers of a conversation, and do not keep them. @param {string} chat */
  forget(chat) {
    for (const entry of this.#running.values()) {
      if (entry.message.chat === chat) {
        entry.forgotten = true;
        entry.controller.abort();
      }
    }
  }

  /**
   * Ask, and write what comes into `message` until it ends; never throws: how it ended stands in the message's state.
   * @param {object} message an assistant's message; what it says already is continued
   * @param {object} body the request
   * @param {number} context tokens of the context; 0 is unknown
   */
  async run(message, body, context) {
    const entry = { message, controller: new AbortController(), forgotten: false };
    this.#running.set(message.id, entry);
    Object.assign(message, { state: "running", error: undefined, full: undefined, verdict: undefined, read: 0, updated: Date.now() });
    await withLock(lockName(message.id), async () => {
      await this.#keep(entry);
      const timer = setInterval(() => this.#keep(entry), SAVE_EVERY);
      try {
        await this.#write(entry, body, context);
      } catch (error) {
        entry.message.state = entry.controller.signal.aborted ? "stopped" : "failed";
        if (entry.message.state === "failed") Object.assign(message, { error: error.message, full: error.full === true });
      }
      clearInterval(timer);
      this.#running.delete(message.id);
      await this.#keep(entry);
    });
    if (!entry.forgotten) this.#show(message);
  }

  async #write({ message, controller }, body, context) {
    const clock = new Clock();
    const before = { content: message.content, thinking: message.thinking ?? "" };
    const heard = { content: "", thinking: "" };
    let finish = null;
    for await (const piece of streamAnswer(body, controller.signal)) {
      heard.content += piece.content;
      heard.thinking += piece.thinking;
      if (piece.content || piece.thinking) clock.tick();
      finish = piece.finish ?? finish;
      if (piece.usage) message.usage = piece.usage;
      if (piece.verdict && !before.content && !before.thinking) message.verdict = verdictOf(piece.verdict); // else of the rest
      if (piece.timings) clock.told = piece.timings;
      if (piece.progress?.total) message.read = piece.progress.processed / piece.progress.total;
      Object.assign(message, joined(before, heard), { speed: clock.speed });
      this.#show(message);
    }
    message.state = ending(finish, message, body.max_tokens, context);
  }

  async #keep({ message, forgotten }) {
    if (forgotten) return;
    message.updated = Date.now();
    try {
      await this.#store.putMessage(message);
    } catch (error) {
      message.error = `not kept by the browser: ${error.message}`;
    }
  }
}

/** What was said before and what came now, thinking apart. */
function joined(before, heard) {
  if (before.content) return { content: before.content + heard.content, thinking: before.thinking };
  if (heard.thinking || before.thinking) return { thinking: before.thinking + heard.thinking, content: heard.content };
  return parted(heard.content);
}

/** How an answer ended; where no length was asked for, "length" can only mean that the context is full. */
function ending(finish, message, asked, context) {
  if (finish === null) return "lost";
  if (finish !== "length") return "done";
  const total = message.usage?.total_tokens ?? 0;
  if (context && total >= context - 1) return "context";
  return asked && !(message.usage?.completion_tokens < asked) ? "length" : "context";
}

/** Tokens per second by the server's own clock where it tells it, else by the pieces that came. */
class Clock {
  #began = performance.now();
  #first = 0;
  #last = 0;
  tokens = 0;
  told = null;

  tick() {
    this.#last = performance.now();
    if (!this.tokens++) this.#first = this.#last;
  }

  get speed() {
    const seconds = (this.#last - this.#first) / 1000;
    const perSecond = this.told?.predicted_per_second ?? (seconds > 0 ? (this.tokens - 1) / seconds : 0);
    return { tokens: this.told?.predicted_n ?? this.tokens, perSecond, first: this.tokens ? (this.#first - this.#began) / 1000 : 0 };
  }
}

/** Hold a lock that other tabs can see; on addresses that browsers do not call secure there are none. */
const withLock = (name, act) => (navigator.locks ? navigator.locks.request(name, act) : act());

/**
 * Whether a message that says it is running still has a writer, in whichever tab.
 * @param {object} message
 * @returns {Promise<boolean>}
 */
export async function hasWriter(message) {
  if (!navigator.locks) return Date.now() - (message.updated ?? 0) < LOST_AFTER;
  const { held } = await navigator.locks.query();
  return held.some((lock) => lock.name === lockName(message.id));
}
