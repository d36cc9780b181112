// The page: which conversation is open, and what its buttons do. Drawing is the views', keeping the store's.

import { Answers, hasWriter } from "./answering.js";
import { ChatView, showMeter } from "./chat_view.js";
import { Composer } from "./composer.js";
import { announce, byId, notice } from "./dom.js";
import { newestPart, requestBody } from "./request.js";
import { modelFacts } from "./server.js";
import { applyTheme, defaultSettings, editSettings } from "./settings.js";
import { bindShortcuts, closeSidebarWhereNarrow, openSidebar } from "./shell.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { nameFrom, newestLeaf, newId, pathTo } from "./tree.js";

const RETRY_AFTER = 5000;

class Page {
  #chat = null; // null: a new conversation, which begins with its first question
  #messages = new Map();
  #facts = { name: "", context: 0, vision: false, defaults: {} };
  #settings = defaultSettings();

  constructor(store) {
    this.store = store;
    this.answers = new Answers(store, (message) => this.#answered(message));
    this.view = new ChatView(this);
    this.composer = new Composer({
      send: (text, files) => this.ask(text, files), stop: () => this.stop(), editLast: () => this.#editLast(),
      vision: () => this.#facts.vision,
    });
    this.sidebar = new Sidebar(store, this.answers, {
      current: () => this.#chat?.id ?? null,
      deleted: (id) => { if (id === this.#chat?.id) this.newChat(); },
      renamed: (id, name) => { if (id === this.#chat?.id) this.#renamed(name); },
      opened: (id) => { location.hash = `#/chat/${id}`; },
    });
    byId("new-chat").addEventListener("click", () => this.newChat());
    byId("open-settings").addEventListener("click", () => this.#openSettings());
    bindShortcuts({ newChat: () => this.newChat(), stop: () => this.stop(), search: () => { openSidebar(); byId("search").focus(); } });
    addEventListener("hashchange", () => this.route());
    store.onChange((change) => this.#changedElsewhere(change));
  }

  async start() {
    if (!this.store.lasting) notice("This browser keeps nothing: conversations end with the page. Export what you need.");
    await this.answers.mend();
    await this.route();
    await this.#meet();
  }

  /** Learn about the model; where the server is not there, again after a while. */
  async #meet() {
    try {
      this.#facts = await modelFacts();
      byId("model").textContent = this.#facts.name;
      const facts = [`${this.#facts.context.toLocaleString("en")} tokens of context`, "sees images"];
      byId("model-facts").textContent = facts.filter((_fact, at) => [this.#facts.context, this.#facts.vision][at]).join(", ");
      document.body.dataset.ready = "yes";
    } catch (error) {
      byId("model").textContent = error.status === 401 ? "API key needed" : "no connection";
      if (error.status === 401) this.#openSettings("key");
      else setTimeout(() => this.#meet(), RETRY_AFTER);
    }
    this.#draw();
  }

  /** Open what the address names. */
  async route() {
    const address = location.hash;
    const id = /^#\/chat\/([0-9a-f]+)$/.exec(address)?.[1] ?? null;
    if (id !== null && id === this.#chat?.id) return;
    const chat = id === null ? null : await this.store.chat(id);
    const messages = chat ? await this.store.messages(id) : new Map();
    await this.#mendLost(messages);
    if (location.hash !== address) return; // another one was opened meanwhile
    if (id !== null && !chat) history.replaceState(null, "", "#/");
    this.#open(chat ?? null, messages);
  }

  #open(chat, messages) {
    this.#chat = chat;
    this.#messages = messages;
    this.#settings = chat?.settings ?? defaultSettings();
    this.view.clear();
    this.composer.open(chat?.id ?? null);
    this.#renamed(chat?.name ?? "New chat");
    this.#draw();
    this.view.toEnd();
    closeSidebarWhereNarrow();
    this.#kept(this.sidebar.draw());
  }

  /** Answers whose tab is gone are cut; those of this tab are the ones that are being written. */
  async #mendLost(messages) {
    for (const message of messages.values()) {
      const own = this.answers.message(message.id);
      if (own) messages.set(message.id, own);
      else if (message.state === "running" && !(await hasWriter(message))) messages.set(message.id, { ...message, state: "lost" });
    }
  }

  /** An empty conversation, whatever is being answered in another. */
  newChat() {
    if (this.#chat) history.pushState(null, "", "#/");
    this.#open(null, new Map());
    byId("question").focus();
  }

  /** End the answer of the conversation that is shown, whichever tab writes it. */
  stop() {
    for (const message of this.#path()) {
      if (this.answers.message(message.id)) this.answers.stop(message.id);
      else if (message.state === "running") this.store.askToStop(message.id);
    }
  }

  /** A new question at the end of the conversation. */
  async ask(text, files) {
    const chat = await this.#ownChat(text || files[0].name);
    const question = this.#add({ parent: chat.tip, role: "user", content: text, files, state: "done" });
    this.view.toEnd();
    await this.#answer(question);
  }

  async #ownChat(text) {
    if (!this.#chat) {
      const now = Date.now();
      this.#chat = { id: newId(), name: nameFrom(text), created: now, updated: now, tip: null, settings: this.#settings };
      this.#messages = new Map();
      history.replaceState(null, "", `#/chat/${this.#chat.id}`);
      this.composer.open(this.#chat.id);
      this.#renamed(this.#chat.name);
    }
    return this.#chat;
  }

  /** A message at the tip of the conversation that is shown. */
  #add(fields) {
    const message = { id: newId(), chat: this.#chat.id, created: Date.now(), thinking: "", files: [], ...fields };
    this.#messages.set(message.id, message);
    this.#moveTo(message.id);
    this.#kept(this.store.putMessage(message));
    return message;
  }

  #moveTo(tip) {
    Object.assign(this.#chat, { tip, updated: Date.now() });
    this.#kept(this.store.putChat({ ...this.#chat }).then(() => this.sidebar.draw()));
    this.#draw();
  }

  #kept(promise) {
    promise.catch((error) => notice(`The browser cannot keep this conversation: ${error.message}. Export it.`));
  }

  async #answer(question) {
    const answer = this.#add({ parent: question.id, role: "assistant", content: "", state: "running" });
    await this.#run(answer, pathTo(this.#messages, question.id));
  }

  /** Let an answer be written after a path; with `squeezed` only after its newest part. */
  async #run(answer, path, squeezed = false) {
    const sent = squeezed ? newestPart(path, this.#facts.context) : { path, left: answer.left ?? 0 };
    answer.left = sent.left;
    const running = this.answers.run(answer, requestBody(sent.path, this.#settings), this.#facts.context);
    announce("Answering");
    this.#draw();
    this.#kept(this.sidebar.draw());
    await running;
    this.#kept(this.sidebar.draw());
  }

  /** An answer has changed; it may belong to a conversation that is not shown. */
  #answered(message) {
    if (message.chat !== this.#chat?.id) return;
    this.#messages.set(message.id, message);
    this.#drawSoon();
    if (message.state !== "running") this.view.told(message);
  }

  regenerate(message) {
    this.#answer(this.#messages.get(message.parent));
  }

  retry(message) {
    if (message.content) this.regenerate(message);
    else this.#run(message, pathTo(this.#messages, message.parent));
  }

  resume(message) {
    this.#run(message, pathTo(this.#messages, message.id), message.state === "context");
  }

  squeeze(message) {
    this.#run(message, pathTo(this.#messages, message.content ? message.id : message.parent), true);
  }

  edit(message) {
    this.view.view(message.id).edit((text) => {
      const { parent, role, files } = message;
      if (!text.trim() || text === message.content) return;
      const edited = this.#add({ parent, role, files, content: text, state: "done" });
      if (role === "user") this.#answer(edited);
    });
  }

  #editLast() {
    const last = this.#path().findLast((message) => message.role === "user");
    if (last && !this.#busy) this.edit(last);
  }

  switchTo(message) {
    this.#moveTo(newestLeaf(this.#messages, message.id));
  }

  /** The conversation up to a message as one of its own. */
  async branch(message) {
    const now = Date.now();
    const chat = { ...this.#chat, id: newId(), name: `${this.#chat.name} (branch)`, created: now, updated: now, tip: null };
    const copies = pathTo(this.#messages, message.id).map((one) => {
      const copy = { ...one, id: newId(), chat: chat.id, parent: chat.tip };
      chat.tip = copy.id;
      return copy;
    });
    await this.store.putWhole(chat, copies);
    location.hash = `#/chat/${chat.id}`;
  }

  async #changedElsewhere({ chat, message, stop }) {
    if (stop) return this.answers.stop(stop);
    if (!message) await this.sidebar.draw();
    if (chat !== this.#chat?.id) return;
    const kept = await this.store.chat(chat);
    if (!kept) return this.newChat();
    const messages = await this.store.messages(chat);
    if (this.#chat?.id !== chat) return;
    await this.#mendLost(messages);
    this.#messages = messages;
    // Follow another tab only where it goes on from what is shown here.
    const onward = pathTo(messages, kept.tip).some((one) => one.id === this.#chat.tip);
    this.#chat = { ...kept, tip: onward ? kept.tip : this.#chat.tip };
    this.#renamed(kept.name);
    this.#draw();
  }

  #openSettings(focus = "system") {
    editSettings(this.#settings, this.#facts.defaults, (settings) => {
      this.#settings = settings;
      if (this.#chat) {
        this.#chat.settings = settings;
        this.#kept(this.store.putChat({ ...this.#chat }));
      }
      if (!document.body.dataset.ready) this.#meet();
    });
    byId(`setting-${focus}`).focus();
  }

  #renamed(name) {
    if (this.#chat) this.#chat.name = name;
    byId("chat-name").textContent = name;
    document.title = `${name} · edgepack`;
  }

  #path() { return pathTo(this.#messages, this.#chat?.tip ?? null); }

  get #busy() { return this.#path().some((message) => message.state === "running"); }

  #frame = 0;

  #drawSoon() {
    if (document.hidden) this.#draw(); // hidden pages get no frames
    else this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const path = this.#path();
    this.view.show(this.#messages, this.#chat?.tip ?? null);
    this.composer.busy = this.#busy;
    const counted = path.findLastIndex((message) => message.usage?.total_tokens && message.state !== "running");
    const rest = path.slice(counted + 1).reduce((sum, message) => sum + message.content.length + (message.thinking ?? "").length, 0);
    showMeter((path[counted]?.usage.total_tokens ?? 0) + Math.round(rest / 3.5), this.#facts.context);
  }
}

applyTheme();
const page = new Page(await Store.open());
await page.start();
