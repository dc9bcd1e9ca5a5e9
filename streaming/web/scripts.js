// Scripts: which voices can read a text, by its letters and by the languages in the voices' names.

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
export function voicesFor(text, voice, voices) {
  const letters = [...text].filter((character) => LETTER.test(character));
  const found = SCRIPTS.find(([, script]) => letters.filter((letter) => script.test(letter)).length * 3 > letters.length);
  if (!found || !languageOf(voice)) return [];
  const [name, , readers] = found;
  if (readers.includes(languageOf(voice))) return [];
  return [name, voices.filter((other) => readers.includes(languageOf(other)))];
}

const languageOf = (voice) => /^([a-z]{2,3})(-[a-z]+)*$/i.exec(voice)?.[1] ?? null;
