"""Synthesised speech with the times of its phonemes: lips have to close at p, b and m.

Training uses eSpeak NG, which is fast, in many voices, and Kokoro, which is natural, in voices and languages outside
the test. The test uses Kokoro with other sentences.

Kokoro-82M (Apache-2.0) as ONNX predicts the durations of phonemes before it speaks; that tensor becomes an output. Its
folder holds `kokoro.onnx`, `config.json` (the vocabulary; both come with `kokoro-onnx`) and `voices/NAME.bin` (float32
[510, 1, 256], as in the npm package `kokoro-js`). `espeak-ng` turns text into phonemes. The sentences are in
`sentences.csv`.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import struct
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.signal
from rich.progress import track as progress
from safetensors import safe_open
from safetensors.numpy import save_file

from engine.errors import MediaError
from engine.models.speech import FRAME_SAMPLES, RATE_HZ

log = logging.getLogger(__name__)

WAV_RATE_OFFSET, WAV_HEADER_BYTES = 24, 44  # a canonical header: RIFF, fmt of 16 bytes, data
KOKORO_HZ = 24_000
DURATION_SAMPLES = 600  # one unit of the predicted durations
DURATIONS = "/encoder/Clip_output_0"
LATE_S = 0.06  # lag of its durations behind its sound: measured, where vowels match loudness best
BILABIALS = frozenset("pbm")
OPEN_VOWELS = frozenset("aɑæɐɒʌ")
SENTENCES = Path(__file__).parent / "sentences.csv"
KOKORO_TEST_VOICES = {
    "en-us": ("af_bella", "am_puck"),
    "en": ("bf_emma",),
    "es": ("ef_dora",),
    "it": ("if_sara",),
    "fr-fr": ("ff_siwis",),
    "cmn-latn-pinyin": ("zf_xiaoxiao", "zm_yunxi"),
    "ja": ("jf_alpha", "jm_kumo"),
}
# For training: none of the voices above. The only French voice is above, so voices of other languages speak French.
KOKORO_TRAINING_VOICES = {
    "en-us": ("af_alloy", "af_heart", "af_kore", "af_nicole", "af_nova", "af_sarah", "am_adam", "am_eric", "am_fenrir",
              "am_liam", "am_michael", "am_onyx", "bf_alice", "bf_isabella", "bm_daniel", "bm_fable", "bm_george"),
    "es": ("em_alex", "em_santa"),
    "it": ("im_nicola",),
    "pt-br": ("pf_dora", "pm_alex"),
    "hi": ("hf_alpha", "hm_omega"),
    "fr": ("af_heart", "bm_george", "em_alex", "im_nicola", "pf_dora"),
    "cmn-latn-pinyin": ("zf_xiaobei", "zf_xiaoni", "zf_xiaoyi", "zm_yunjian", "zm_yunxia", "zm_yunyang"),
    "ja": ("jf_gongitsune", "jf_nezumi", "jf_tebukuro", "am_michael"),
}  # fmt: skip
MEDLEYS = 585  # four seconds each
MEDLEY_PIECES, PIECE_WORDS = 4, 3
ESPEAK_VARIANTS = ("", "+f1", "+f2", "+f3", "+f5", "+m1", "+m3", "+m7", "+f4", "+m2", "+m4", "+m6")
VARIANTS_PER_SENTENCE = 4


@dataclass(frozen=True)
class Spoken:
    """A sentence: `pcm` [N] float32 at 16 kHz, and its phonemes with the seconds at which they begin and end."""

    name: str
    language: str
    text: str
    pcm: np.ndarray
    phonemes: list[tuple[str, float, float]]

    def spans(self, symbols: frozenset[str]) -> list[tuple[int, int]]:
        """First frame, and the frame after the last one, of every phoneme in `symbols`; at least two frames each."""
        times = [(start, end) for symbol, start, end in self.phonemes if symbol in symbols]
        return [(int(start * 25), max(int(np.ceil(end * 25)), int(start * 25) + 2)) for start, end in times]

    def frame_phonemes(self) -> list[str]:
        """The first sign of the phoneme at the middle of every frame of 40 ms; empty between words."""
        frames = [""] * -(-len(self.pcm) // FRAME_SAMPLES)
        for symbol, start, end in self.phonemes:
            first, after = max(0, round(start * 25)), round(end * 25)
            frames[first:after] = symbol[:1] * len(frames[first:after])
        return frames


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protocol buffer field (wire type 2)."""
    length, size = b"", len(payload)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def without_marks(phonemes: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The letters. The time of a stress mark goes to the next letter, the time of a length mark to the previous one."""
    letters: list[tuple[str, float, float]] = []
    stressed_from: float | None = None
    for symbol, start, end in phonemes:
        if symbol in "ˈˌ":
            stressed_from = start
        elif symbol == "ː" and letters:
            letters[-1] = (*letters[-1][:2], end)
        elif unicodedata.category(symbol).startswith("L"):
            letters.append((symbol, start if stressed_from is None else stressed_from, end))
            stressed_from = None
    return letters


class Kokoro:
    """The synthesiser. Raises MediaError where its folder lacks a file."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self._voices = folder / "voices"
        for path in (folder / "kokoro.onnx", folder / "config.json", self._voices):
            if not path.exists():
                raise MediaError(f"{path}: not found; training/speech/phonemes.py lists the files of the folder")
        # Serialised messages merge when they are joined: ModelProto.graph (7) gets one more output (12) by name (1).
        model = (folder / "kokoro.onnx").read_bytes() + _field(7, _field(12, _field(1, DURATIONS.encode())))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._vocabulary: dict[str, int] = json.loads((folder / "config.json").read_text())["vocab"]

    def speak(self, text: str, language: str, voice: str) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
        """16 kHz float32 [N] and the phonemes with their seconds."""
        command = ["espeak-ng", "-q", "--ipa=3", "-v", language, text]
        try:
            spelled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise MediaError(f"espeak-ng does not spell {language} ({error}); install the package espeak-ng") from error
        plain = unicodedata.normalize("NFC", re.sub(r"\(.*?\)", "", " ".join(spelled.split()))).replace("ä", "a")
        symbols = [s for s in plain if s in self._vocabulary]
        tokens = np.array([[0, *(self._vocabulary[s] for s in symbols), 0]], np.int64)
        path = self._voices / f"{voice}.bin"
        if not path.is_file():
            raise MediaError(f"{path}: not found; the voices are in the npm package kokoro-js")
        style = np.fromfile(path, np.float32).reshape(-1, 1, 256)[len(symbols)]
        feed = {"tokens": tokens, "style": style, "speed": np.ones(1, np.float32)}
        audio, durations = self._session.run(["audio", DURATIONS], feed)
        seconds = np.concatenate([[0], np.cumsum(durations.reshape(-1))]) * DURATION_SAMPLES / KOKORO_HZ
        seconds = seconds - LATE_S
        phonemes = without_marks([(s, float(seconds[i + 1]), float(seconds[i + 2])) for i, s in enumerate(symbols)])
        pcm = scipy.signal.resample_poly(audio.reshape(-1), RATE_HZ // 8000, KOKORO_HZ // 8000).astype(np.float32)
        return pcm, phonemes


def espeak(text: str, voice: str) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """16 kHz float32 [N] and the phonemes with the seconds at which they begin and end.

    The server's eSpeak program speaks, `streaming.voices.espeak_child`. Raises MediaError where it has no such voice.
    """
    command = [sys.executable, "-m", "streaming.voices.espeak_child", voice, "--phonemes"]
    child = subprocess.run(command, input=text.encode(), capture_output=True)
    if child.returncode != 0:
        raise MediaError(f"eSpeak NG does not speak as {voice}: {child.stderr.decode(errors='replace').strip()}")
    wav, _, line = child.stdout.rpartition(b"\n")
    (rate_hz,) = struct.unpack_from("<I", wav, WAV_RATE_OFFSET)
    pcm = np.frombuffer(wav, np.int16, offset=WAV_HEADER_BYTES).astype(np.float32) / 32768
    symbols, samples = zip(*json.loads(line), strict=True)
    starts = [sample / rate_hz for sample in samples]
    ends = [*starts[1:], len(pcm) / rate_hz]
    phonemes = [(s.strip("ˈˌ"), a, b) for s, a, b in zip(symbols, starts, ends, strict=True) if s]
    common = np.gcd(RATE_HZ, rate_hz)
    return scipy.signal.resample_poly(pcm, RATE_HZ // common, rate_hz // common).astype(np.float32), phonemes


def speak_all(runs: Path, kokoro: Path | None = None) -> None:
    """Write every sentence of `sentences.csv`, as its voices speak it, to `runs/spoken`; resumes.

    Without the folder `kokoro` only eSpeak's training sentences.
    """
    folder = runs / "spoken"
    folder.mkdir(parents=True, exist_ok=True)
    with SENTENCES.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    todo = [
        (f"train_{number:03d}_{row['language']}{variant}", row, partial(espeak, row["text"], row["language"] + variant))
        for number, row in enumerate(rows)
        if row["split"] == "train"
        for variant in np.roll(ESPEAK_VARIANTS, -number * VARIANTS_PER_SENTENCE)[:VARIANTS_PER_SENTENCE]
    ]
    if kokoro is not None:
        natural = Kokoro(kokoro)
        for number, row in enumerate(rows):
            for voice in KOKORO_TEST_VOICES[row["language"]] if row["split"] == "test" else ():
                speak = partial(natural.speak, row["text"], row["language"], voice)
                todo.append((f"test_{number:03d}_{voice}", row, speak))
        for number, row in enumerate(medleys(rows)):
            todo.append((f"train_medley{number:03d}_{row['voice']}", row, partial(natural.speak, **row)))
    for name, row, speak in progress(todo, "sentences"):
        path = folder / f"{name}.safetensors"
        if path.exists():
            continue
        pcm, phonemes = speak()
        metadata = {"language": row["language"], "text": row["text"], "phonemes": json.dumps(phonemes)}
        save_file({"pcm": pcm}, path.with_suffix(".tmp"), metadata=metadata)
        path.with_suffix(".tmp").rename(path)


def medleys(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of `text`, `language` and `voice`: pieces of training sentences in new orders, for the training voices."""
    rng = np.random.default_rng(0)
    voices = [(language, voice) for language, names in KOKORO_TRAINING_VOICES.items() for voice in names]
    rows_of_medleys = []
    for number in range(MEDLEYS):
        language, voice = voices[number % len(voices)]
        texts = [row["text"].split() for row in rows if row["split"] == "train" and row["language"] == language]
        pieces = []
        for which in rng.integers(0, len(texts), MEDLEY_PIECES):
            first = int(rng.integers(0, max(1, len(texts[which]) - PIECE_WORDS + 1)))
            pieces += texts[which][first : first + PIECE_WORDS]
        rows_of_medleys.append({"text": " ".join(pieces), "language": language, "voice": voice})
    return rows_of_medleys


def load_spoken(runs: Path, split: str) -> list[Spoken]:
    """The sentences of the split `train` or `test` that `speak_all` wrote; none where it did not run."""
    sentences = []
    for path in sorted((runs / "spoken").glob(f"{split}_*.safetensors")):
        with safe_open(path, "np") as stored:
            metadata, pcm = stored.metadata(), stored.get_tensor("pcm")
        phonemes = [(s, a, b) for s, a, b in json.loads(metadata["phonemes"])]
        sentences.append(Spoken(path.stem, metadata["language"], metadata["text"], pcm, phonemes))
    return sentences
