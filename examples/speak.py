"""An avatar says a recording: its pictures as PNG files, 25 for every second.

python examples/speak.py anna.avatar speech.wav pictures
"""

import sys
from pathlib import Path

import cv2

from engine import speak

avatar, speech, folder = sys.argv[1:]
Path(folder).mkdir(exist_ok=True)
spoken = 0
for unit in speak(avatar, speech):
    cv2.imwrite(f"{folder}/{unit.index:05}.png", unit.image[..., ::-1])  # RGB to BGR
    spoken += unit.speaking
print(f"{spoken} frames of speech in {folder}")
