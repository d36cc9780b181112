// Settings: those of a conversation, those of new ones, the colours, the API key. They are kept in the browser.

import { byId } from "./dom.js";
import { apiKey, setApiKey } from "./server.js";

const DEFAULTS = "edgepack-settings";
const THEME = "edgepack-theme";
const NUMBERS = ["temperature", "length", "topP", "minP", "seed"];
const TEXTS = ["system", "schema", "thinking"];

/** What new conversations begin with. @returns {object} */
export function defaultSettings() {
  try {
    return JSON.parse(localStorage.getItem(DEFAULTS)) ?? {};
  } catch {
    return {};
  }
}

/** Colours as chosen: light, dark, or as the system has them. */
export function applyTheme() {
  const theme = localStorage.getItem(THEME) ?? "";
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

const field = (name) => byId(`setting-${name}`);

function schemaProblem(text) {
  if (!text.trim()) return "";
  try {
    const schema = JSON.parse(text);
    return schema && typeof schema === "object" && !Array.isArray(schema) ? "" : "A JSON schema is an object, such as {\"type\": \"object\"}.";
  } catch (error) {
    return `Not JSON: ${error.message}`;
  }
}

function read() {
  const settings = {};
  for (const name of NUMBERS) if (field(name).value !== "") settings[name] = Number(field(name).value);
  for (const name of TEXTS) if (field(name).value.trim()) settings[name] = field(name).value;
  return settings;
}

/**
 * Let the settings be changed in their dialog.
 * @param {object} settings of the conversation
 * @param {object} defaults the server's own values, shown where nothing is set
 * @param {(settings: object) => void} keep is called with the new ones
 */
export function editSettings(settings, defaults, keep) {
  const dialog = byId("settings");
  for (const name of [...NUMBERS, ...TEXTS]) field(name).value = settings[name] ?? "";
  const told = { temperature: defaults.temperature, topP: defaults.top_p, minP: defaults.min_p };
  for (const [name, value] of Object.entries(told)) {
    field(name).placeholder = Number.isFinite(value) ? `model's default: ${Math.round(value * 1000) / 1000}` : "model's default";
  }
  field("key").value = apiKey();
  field("theme").value = localStorage.getItem(THEME) ?? "";
  field("everywhere").checked = true;
  field("schema").setCustomValidity("");
  field("schema").oninput = () => field("schema").setCustomValidity(schemaProblem(field("schema").value));
  dialog.onclose = () => {
    if (dialog.returnValue !== "keep") return;
    if (field("key").value !== apiKey()) setApiKey(field("key").value);
    localStorage.setItem(THEME, field("theme").value);
    applyTheme();
    const chosen = read();
    if (field("everywhere").checked) localStorage.setItem(DEFAULTS, JSON.stringify(chosen));
    keep(chosen);
  };
  dialog.returnValue = "";
  dialog.showModal();
}
