// The conversation on the screen: its messages in order, and where it is scrolled to.

import { announce, byId, element } from "./dom.js";
import { MessageView } from "./message_view.js";
import { pathTo } from "./tree.js";

const NEAR = 48; // pixels from the end that still count as the end
const TOLD = 2000; // characters of an answer that are told to screen readers at its end

/** Draws the path to a conversation's tip; follows a growing answer only while the reader is at the end. */
export class ChatView {
  #views = new Map();
  #following = true;

  /** @param {object} acts what messages' buttons do, as MessageView has it */
  constructor(acts) {
    this.acts = acts;
    this.scroller = byId("scroller");
    this.list = byId("messages");
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    byId("latest").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.#follow()).observe(this.list);
  }

  /**
   * Show a conversation.
   * @param {Map<string, object>} messages
   * @param {string|null} tip
   */
  show(messages, tip) {
    const path = pathTo(messages, tip);
    const busy = path.some((message) => message.state === "running");
    const wanted = new Set(path.map((message) => message.id));
    const branches = new Map();
    for (const { parent } of messages.values()) branches.set(parent ?? null, (branches.get(parent ?? null) ?? 0) + 1);
    for (const [id, view] of this.#views) {
      if (!wanted.has(id)) {
        view.root.remove();
        this.#views.delete(id);
      }
    }
    path.forEach((message, at) => {
      let view = this.#views.get(message.id);
      if (!view) this.#views.set(message.id, (view = new MessageView(message, this.acts)));
      view.show(message, messages, branches.get(message.parent ?? null), busy);
      if (this.list.children[at] !== view.root) this.list.insertBefore(view.root, this.list.children[at] ?? null);
    });
    byId("welcome").hidden = path.length > 0;
    this.#follow();
  }

  /** Forget what is drawn: another conversation comes. */
  clear() {
    this.#views.clear();
    this.list.replaceChildren();
    this.#following = true;
  }

  /** The view of a message. @param {string} id */
  view(id) { return this.#views.get(id); }

  /** Go to the end and follow what comes. */
  toEnd() {
    this.#following = true;
    this.#follow();
  }

  /** Tell screen readers how an answer ended. @param {object} message */
  told(message) {
    if (message.state === "running") return;
    const said = message.content.length > TOLD ? `${message.content.slice(0, TOLD)} … the answer goes on` : message.content;
    announce(message.state === "failed" ? `The question failed: ${message.error}` : `The model says: ${said}`);
  }

  get #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  #scrolled() {
    this.#following = this.#atEnd;
    byId("latest").hidden = this.#following;
  }

  #follow() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
    byId("latest").hidden = this.#atEnd;
  }
}

/** How full the context is. @param {number} used tokens @param {number} context 0: unknown */
export function showMeter(used, context) {
  const meter = byId("meter");
  meter.hidden = !used && !context;
  const text = context ? `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens` : `${used.toLocaleString("en")} tokens`;
  const share = context ? Math.min(used / context, 1) : 0;
  const bar = element("meter", { min: 0, max: context || 1, value: Math.min(used, context || 1), high: 0.85 * (context || 1), optimum: 0, "aria-label": "Context in use" });
  bar.textContent = text;
  meter.classList.toggle("full", share > 0.85);
  meter.replaceChildren(bar, element("span", {}, text));
  meter.title = `The model sees ${text} of this conversation and its answers`;
}
