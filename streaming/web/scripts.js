// Texts: which voices can read one, by its letters and by the languages in the voices' names, and whether it is too long.

const MAX_CHARS = 5_000; // of one text (docs/protocol.md)
const languages = new Intl.DisplayNames([navigator.language], { type: "language", fallback: "code" });

const SCRIPTS = [
  ["Japanese", /[\p{Script=Hiragana}\p{Script=Katakana}]/u, ["ja"]],
  ["Korean", /\p{Script=Hangul}/u, ["ko"]],
  ["Chinese", /\p{Script=Han}/u, ["cmn", "zh", "yue", "hak", "ja"]],
  ["Cyrillic letters", /\p{Script=Cyrillic}/u, ["ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "ba", "tt", "cv"]],
  ["Arabic letters", /\p{Script=Arabic}/u, ["ar", "fa", "ur", "ug", "sd"]],
  ["Hebrew", /\p{Script=Hebrew}/u, ["he"]],
  ["Greek", /\p{Script=Greek}/u, ["el", "grc"]],
  ["Thai", /\p{Script=Thai}/u, ["th"]],
  ["Devanagari", /\p{Script=Devanagari}/u, ["hi", "mr", "ne", "kok"]],
];
const LETTER = /\p{L}/u;

/** The script that `voice` cannot read and most of the text is in, and the voices that can; an empty list of nothing
 * else. A voice whose name is no language is thought to read everything. */
function voicesFor(text, voice, voices) {
  const letters = [...text].filter((character) => LETTER.test(character));
  const found = SCRIPTS.find(([, script]) => letters.filter((letter) => script.test(letter)).length * 3 > letters.length);
  if (!found || !languageOf(voice)) return [];
  const [name, , readers] = found;
  if (readers.includes(languageOf(voice))) return [];
  return [name, voices.filter((other) => readers.includes(languageOf(other)))];
}

/** The name of a voice for people: a voice that is only a language code has the language's name. */
export function nameOf(voice) {
  return /^[a-z]{2,3}(-[a-z]+)*$/.test(voice) ? languages.of(voice) : readable(voice);
}

export const readable = (name) => name.replaceAll(/[-_]+/g, " ");

export const isTooLong = (text) => [...text].length > MAX_CHARS;

/** Why a text cannot be spoken in `voice`, one of `voices`; or null. */
export function problemOf(text, voice, voices) {
  const { length } = [...text];
  if (isTooLong(text)) {
    return `The text has ${length.toLocaleString()} characters, and ${MAX_CHARS.toLocaleString()} can be spoken at once. Shorten it, or speak it in parts.`;
  }
  const [name, fitting] = voicesFor(text, voice, voices);
  if (!name) return null;
  if (!fitting.length) return `This voice does not read ${name}, and this server has no voice that does.`;
  return `This voice does not read ${name}. Choose ${fitting.slice(0, 3).map(nameOf).join(" or ")}.`;
}

const languageOf = (voice) => /^([a-z]{2,3})(-[a-z]+)*$/i.exec(voice)?.[1] ?? null;
