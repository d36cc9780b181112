// Conversations in the browser's IndexedDB. Each message is a record of its own, so that two tabs that write into one
// conversation add branches and never overwrite each other. What changed is told to the other tabs.

const NAME = "edgepack-chats";

const asPromise = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

function open() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("chats", { keyPath: "id" });
    request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("chat", "chat");
  };
  return asPromise(request);
}

/** What browsers keep; where one keeps nothing (`lasting` is false) it lives as long as the page. */
export class Store {
  #database = null;
  #chats = new Map();
  #messages = new Map();
  #channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel(NAME);

  /** @returns {Promise<Store>} */
  static async open() {
    const store = new Store();
    try {
      store.#database = await open();
      store.#database.onversionchange = () => store.#database.close();
    } catch { /* private windows of some browsers */ }
    return store;
  }

  /** Whether conversations outlive the page. */
  get lasting() { return this.#database !== null; }

  /**
   * Hear of other tabs: what changed in which conversation, or which answer is to stop.
   * @param {(change: {chat?: string, message?: string, stop?: string}) => void} listener
   */
  onChange(listener) {
    if (this.#channel) this.#channel.onmessage = (event) => listener(event.data);
  }

  /** Ask the tab that writes an answer to stop it. @param {string} message */
  askToStop(message) { this.#tell({ stop: message }); }

  #tell(change) { this.#channel?.postMessage(change); }

  /** Every conversation, newest first. */
  async chats() {
    const all = this.#database ? await asPromise(this.#on("chats").getAll()) : [...this.#chats.values()];
    return all.sort((one, other) => other.updated - one.updated);
  }

  /** One conversation, or undefined. @param {string} id */
  async chat(id) {
    return this.#database ? asPromise(this.#on("chats").get(id)) : this.#chats.get(id);
  }

  /** The messages of a conversation. @param {string} chat @returns {Promise<Map<string, object>>} */
  async messages(chat) {
    const all = this.#database
      ? await asPromise(this.#on("messages").index("chat").getAll(chat))
      : [...this.#messages.values()].filter((message) => message.chat === chat);
    return new Map(all.map((message) => [message.id, message]));
  }

  /** One message, or undefined. @param {string} id */
  async message(id) {
    return this.#database ? asPromise(this.#on("messages").get(id)) : this.#messages.get(id);
  }

  /** All messages, for the search. */
  async allMessages() {
    return this.#database ? asPromise(this.#on("messages").getAll()) : [...this.#messages.values()];
  }

  /** Keep a conversation's name, settings and what it shows. */
  async putChat(chat) {
    if (this.#database) await asPromise(this.#on("chats", "readwrite").put(chat));
    else this.#chats.set(chat.id, chat);
    this.#tell({ chat: chat.id });
  }

  /** Keep a message. */
  async putMessage(message) {
    if (this.#database) await asPromise(this.#on("messages", "readwrite").put(message));
    else this.#messages.set(message.id, message);
    this.#tell({ chat: message.chat, message: message.id });
  }

  /** Keep a conversation and its messages, all or nothing. */
  async putWhole(chat, messages) {
    if (!this.#database) {
      this.#chats.set(chat.id, chat);
      for (const message of messages) this.#messages.set(message.id, message);
    } else {
      const transaction = this.#database.transaction(["chats", "messages"], "readwrite");
      transaction.objectStore("chats").put(chat);
      for (const message of messages) transaction.objectStore("messages").put(message);
      await finished(transaction);
    }
    this.#tell({ chat: chat.id });
  }

  /** Forget a conversation and its messages. @param {string} id */
  async deleteChat(id) {
    const messages = await this.messages(id);
    if (!this.#database) {
      this.#chats.delete(id);
      for (const key of messages.keys()) this.#messages.delete(key);
    } else {
      const transaction = this.#database.transaction(["chats", "messages"], "readwrite");
      transaction.objectStore("chats").delete(id);
      for (const key of messages.keys()) transaction.objectStore("messages").delete(key);
      await finished(transaction);
    }
    this.#tell({ chat: id });
  }

  #on(name, mode = "readonly") { return this.#database.transaction(name, mode).objectStore(name); }
}

const finished = (transaction) => new Promise((resolve, reject) => {
  transaction.oncomplete = () => resolve();
  transaction.onerror = transaction.onabort = () => reject(transaction.error);
});
