/** The panel's words in ComfyUI's language; in English where there are none of ours. */

let translations = {};

/**
 * Takes a language; what is written afterwards is in it.
 *
 * @param {string} language such as "zh", as ComfyUI's settings name it
 * @param {(address: URL) => Promise<Response>} get
 */
export async function speak(language, get = fetch) {
  translations = {};
  if (!/^[\w-]{2,10}$/.test(language ?? "") || language === "en") return;
  try {
    const response = await get(new URL(`../texts/${language}.json`, import.meta.url));
    if (response.ok) translations = await response.json();
  } catch {
    // the server is away; English it is
  }
}

/** A text in the page's language, with values in place of its {names}. */
export function t(text, values = {}) {
  const words = Object.hasOwn(translations, text) ? translations[text] : text;
  return words.replace(/\{(\w+)\}/g, (hole, name) => (name in values ? String(values[name]) : hole));
}

/** Marks a text that `t` is given later. */
export const later = (text) => text;
