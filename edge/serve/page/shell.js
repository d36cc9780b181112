// The frame around the conversation: the sidebar that opens and closes, keys that work everywhere.

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 800px)");

function setSidebar(open) {
  document.body.dataset.sidebar = open ? "open" : "closed";
  byId("sidebar").inert = !open;
  byId("toggle-sidebar").setAttribute("aria-expanded", String(open));
  byId("backdrop").hidden = !(open && narrow.matches);
}

const isOpen = () => document.body.dataset.sidebar === "open";

/** Show the list of conversations. */
export const openSidebar = () => setSidebar(true);

/** On a phone the list makes room for what was chosen in it. */
export function closeSidebarWhereNarrow() {
  if (narrow.matches) setSidebar(false);
}

/**
 * Keys that work wherever the focus is.
 * @param {{newChat: () => void, stop: () => void, search: () => void}} acts
 */
export function bindShortcuts(acts) {
  setSidebar(!narrow.matches);
  narrow.addEventListener("change", () => setSidebar(!narrow.matches));
  byId("toggle-sidebar").addEventListener("click", () => setSidebar(!isOpen()));
  byId("backdrop").addEventListener("click", () => setSidebar(false));
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    const act = key === "escape" ? () => escape(acts)
      : command && event.shiftKey && key === "o" ? acts.newChat
      : command && !event.shiftKey && key === "k" ? acts.search
      : command && !event.shiftKey && key === "b" ? () => setSidebar(!isOpen())
      : null;
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function escape(acts) {
  if (narrow.matches && isOpen()) {
    setSidebar(false);
    byId("toggle-sidebar").focus();
  } else acts.stop();
}
